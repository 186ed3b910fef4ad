// The booth: pairs one after the other, on random sides and in random order, until all are voted on; whose is whose is not told.
window.workbench.booth = (page, compared) => {
  const wb = window.workbench, { make, setText } = wb;
  const box = page.slot("booth");
  let question = {}, pictures = null, left = [], cast = [], pairs = 0, ballotSeed = 0, voter = "", sending = false;
  const PICKS = [["left", "Left", "←"], ["tie", "No difference", "↓"], ["right", "Right", "→"]];

  const ask = (name, more = {}) => page.ask(name, { ...question, ballot_seed: ballotSeed, voter, ...more });
  const open = async (name) => {
    ballotSeed = Math.floor(Math.random() * 2 ** 31);
    voter = name;
    pictures = compared.pictures(); // what is voted on stays what it was when the booth was opened, whatever a run does meanwhile
    question = compared.question();
    const reply = await ask("begin");
    const told = pictures ? reply.errors || [] : ["There are no pictures to vote on; see what is said at the top."];
    wb.complain(page.slot("vote-errors"), told);
    if (told.length) return;
    ({ left, pairs } = reply);
    cast = [];
    compared.began();
    build();
    draw();
    box.showModal();
  };
  const build = () => {
    const head = make("div", "cmp-zoom-head"), bar = make("progress", "cmp-progress"), end = button("end", "End and reveal", "");
    bar.max = pairs;
    bar.setAttribute("aria-label", "Pairs voted on");
    head.append(make("output", "cmp-count"), bar, end);
    const stage = make("div", "cmp-booth"), row = make("div", "wb-row");
    row.append(...PICKS.map(([pick, label, key]) => button(pick, label, key)), button("undo", "Undo", "U"));
    box.replaceChildren(head, make("h2", "cmp-prompt"), stage, row, Object.assign(make("ul", "wb-errors"), { hidden: true }), make("p", "wb-hint", "Which picture is better? Press an arrow key: left, right, or down for no difference; U takes the last one back. What you voted on is kept at once."));
  };
  const button = (act, label, key) => {
    const node = make("button", act === "end" ? "wb-button small" : "wb-button large", key ? `${key} ${label}` : label);
    node.type = "button";
    node.dataset.pick = act;
    return node;
  };
  const draw = () => {
    const stage = box.querySelector(".cmp-booth"), { a, b, prompts } = pictures;
    setText(box.querySelector(".cmp-count"), left.length ? `pair ${pairs - left.length + 1} of ${pairs}` : `all ${pairs} pairs are voted on`);
    box.querySelector("progress").value = pairs - left.length;
    for (const [pick] of PICKS) box.querySelector(`[data-pick="${pick}"]`).disabled = !left.length;
    box.querySelector('[data-pick="undo"]').disabled = !cast.length;
    setText(box.querySelector('[data-pick="end"]'), left.length ? "End and reveal" : "Reveal who won");
    if (!left.length) {
      setText(box.querySelector(".cmp-prompt"), "Thank you: that was the last pair.");
      stage.replaceChildren();
      return box.querySelector('[data-pick="end"]').focus();
    }
    const [index, swapped] = left[0], [width, height] = a.sheet.tile, longest = Math.max(width, height);
    const room = Math.min((Math.min(innerWidth * 0.96, 1100) - 90) / 2 / width, innerHeight * 0.52 / height);
    setText(box.querySelector(".cmp-prompt"), prompts[index]);
    stage.replaceChildren(...["left", "right"].map((side) => {
      const picture = make("button", "cmp-choice");
      picture.type = "button";
      picture.dataset.pick = side;
      picture.setAttribute("aria-label", `The picture on the ${side} is better`);
      const drawn = make("span", "cmp-pic");
      wb.sprites.paint(drawn, ((side === "left") === swapped ? b : a).sheet, index, Math.max(1, Math.floor(room)) * longest);
      picture.append(drawn);
      return picture;
    }));
  };
  const act = async (pick) => {
    if (pick === "end") return box.close();
    if (sending || !(pick === "undo" ? cast.length : left.length)) return;
    sending = true;
    const reply = await (pick === "undo" ? ask("undo", { vote: cast.at(-1)[0] }) : ask("vote", { index: left[0][0], picked: pick }));
    if (!reply.errors && pick !== "undo") cast.push([reply.vote, left.shift()]);
    if (!reply.errors && pick === "undo") left.unshift(cast.pop()[1]);
    sending = false;
    wb.complain(box.querySelector(".wb-errors"), reply.errors || []);
    draw();
  };
  box.addEventListener("click", (event) => { const node = event.target.closest("[data-pick]"); if (node) act(node.dataset.pick); });
  box.addEventListener("keydown", (event) => {
    const pick = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", u: "undo", U: "undo", Backspace: "undo" }[event.key];
    if (pick && !event.metaKey && !event.ctrlKey) { event.preventDefault(); act(pick); }
  });
  box.addEventListener("close", () => { if (box.childElementCount) { box.replaceChildren(); compared.ended(); } });
  return { open, close: () => { box.replaceChildren(); box.close(); } };
};
