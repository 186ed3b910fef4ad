// Two policies at the same prompts and seeds: which they are, the wall of pairs with its rewards, one slider over the iterations.
window.workbench.page("compare", (page) => {
  const wb = window.workbench, { make, setText, setAttr, show } = wb, { ready } = wb.sprites;
  const KEYS = ["a", "b", "ai", "bi", "view", "find", "skill", "order", "by", "prompts", "seed", "each"];
  let sides = {}, held = null, scores = null, asked = "", busy = false, again = false, figure = null, revealed = "";
  let playing = null;

  const wanted = () => {
    const at = Object.fromEntries(KEYS.map((key) => [key, wb.address.get(key)])), run = wb.address.get("run");
    const a = at.a || run, b = at.b || run;
    const number = (text, otherwise) => text === "" ? otherwise : Number(text);
    return { ...at, a, b, ai: number(at.ai, 0), bi: number(at.bi, null), view: views.known(at.view) ? at.view : "side" };
  };
  const latest = (run) => sides[run] && sides[run].recorded.length ? sides[run].recorded.at(-1) : null;
  const question = () => {
    const at = wanted(), prompts = at.prompts ? at.prompts.split("\n").map((line) => line.trim()).filter(Boolean) : [];
    const more = prompts.length ? { prompts, seed: Number(at.seed || 0), each: Number(at.each || 1) } : {};
    return { a: { run: at.a, iteration: at.ai }, b: { run: at.b, iteration: at.bi === null ? latest(at.b) : at.bi }, ...more };
  };

  const shown = () => {
    const side = ({ run, iteration }) => ({ run, iteration });
    return held ? { ...question(), a: side(held.a), b: side(held.b) } : question();
  };

  // What is compared is asked anew when it changed; of many changes in a row only the last one counts.
  const refresh = async () => {
    const ask = question(), key = JSON.stringify(ask);
    if (!ask.a.run || key === asked) return;
    if (busy) { again = true; return; }
    busy = true;
    asked = key;
    setAttr(page.slot("wall"), "aria-busy", true);
    const reply = await page.ask("compare", ask);
    if (!reply.errors) await Promise.all([ready(reply.a.sheet), ready(reply.b.sheet)]);
    busy = false;
    if (again) { again = false; if (JSON.stringify(question()) !== key) return refresh(); }
    setAttr(page.slot("wall"), "aria-busy", false);
    wb.complain(page.slot("errors"), reply.errors || []);
    const same = held && !reply.errors && JSON.stringify([held.prompts, held.seeds, held.b.run]) === JSON.stringify([reply.prompts, reply.seeds, reply.b.run]);
    held = reply.errors ? null : reply;
    if (!same) scores = null;
    if (revealed !== key) hideResult();
    draw();
    if (held) measure(ask, key);
  };
  const measure = async (ask, key) => {
    const reply = await page.ask("score", ask);
    if (key !== asked) return;
    scores = reply.errors ? null : reply;
    wb.complain(page.slot("unscored"), reply.errors || []);
    draw();
  };

  const metric = () => scores && scores.b[wanted().by] ? wanted().by : "reward";
  const change = (index) => {
    if (!scores) return null;
    const before = scores.a[metric()][index], after = scores.b[metric()][index];
    return { before, after, gain: after - before };
  };
  const two = (value) => value === null || value === undefined ? "–" : value.toFixed(2);
  const fillScore = (node, index) => {
    const found = change(index);
    if (!found) { node.textContent = "\u00a0"; node.className = "cmp-score"; return; }
    const way = Math.abs(found.gain) < 5e-3 ? "none" : found.gain > 0 ? "up" : "down";
    const text = `${two(found.before)} → ${two(found.after)}`, sign = { up: "▲ +", down: "▼ −", none: "= " }[way];
    node.replaceChildren(make("span", "", text), make("b", way, `${sign}${way === "none" ? "" : Math.abs(found.gain).toFixed(2)}`));
  };
  const cell = (index) => {
    const node = make("figure", "cmp-cell"), button = make("button", "cmp-pair");
    button.type = "button";
    button.append(views.both(index));
    node.append(button, make("figcaption"), make("p", "cmp-score"));
    node.index = index;
    return node;
  };
  const fill = (node) => {
    const index = node.index;
    views.repaint(node.querySelector(".cmp-both"), index);
    setText(node.querySelector("figcaption"), held.prompts[index]);
    node.title = `${held.prompts[index]}, seed ${held.seeds[index]}`;
    fillScore(node.querySelector(".cmp-score"), index);
    const found = change(index), words = found ? `, ${wb.words(metric())} ${two(found.before)} before, ${two(found.after)} after` : "";
    setAttr(node.firstChild, "aria-label", `${held.prompts[index]}, seed ${held.seeds[index]}${words}: open in full size`);
  };

  const sorted = () => {
    const at = wanted(), index = held.prompts.map((_, place) => place);
    const weight = { gain: (i) => change(i).gain, loss: (i) => -change(i).gain, apart: (i) => scores.apart[i] }[at.order];
    if (weight && scores) index.sort((i, j) => weight(j) - weight(i) || i - j);
    return index;
  };
  const passes = (index) => {
    const at = wanted();
    return (!at.find || held.prompts[index].toLowerCase().includes(at.find.toLowerCase())) && (!at.skill || held.skills[index] === at.skill);
  };
  const seen = () => sorted().filter(passes);

  const draw = () => {
    const wall = page.slot("wall");
    views.say();
    if (!held) {
      wall.replaceChildren(make("p", "wb-wait", "Nothing to compare yet: see what is said above."));
      page.slot("sum").replaceChildren();
      wb.complain(page.slot("unscored"), []);
      return setText(page.slot("sum-note"), "");
    }
    choices();
    let cells = [...wall.querySelectorAll(".cmp-cell")];
    if (cells.length !== held.prompts.length) {
      cells = held.prompts.map((_, index) => cell(index));
      wall.replaceChildren(...cells);
    }
    const order = sorted(), place = new Map(cells.map((node) => [node.index, node]));
    if (cells.some((node, turn) => node.index !== order[turn])) wall.append(...order.map((index) => place.get(index)));
    for (const node of cells) { fill(node); show(node, passes(node.index)); }
    let none = wall.querySelector(".wb-wait");
    if (!seen().length) { if (!none) wall.append(make("p", "wb-wait", "No prompt fits the filter. Clear it to see all pictures.")); } else if (none) none.remove();
    summary();
    mark();
    views.again();
  };
  const options = (menu, entries, value) => {
    const key = JSON.stringify(entries);
    if (menu.dataset.key !== key) { menu.replaceChildren(...entries.map(([name, text]) => new Option(text, name))); menu.dataset.key = key; }
    menu.value = value;
  };
  const choices = () => {
    const skills = [...new Set(held.skills)];
    show(page.slot("skill-box"), skills.length > 1);
    options(page.slot("skill"), [["", "all"], ...skills.map((name) => [name, name])], wanted().skill);
    options(page.slot("by"), scores ? Object.keys(scores.b).map((name) => [name, name === "reward" ? "all, weighted" : wb.words(name)]) : [["reward", "all, weighted"]], metric());
  };
  const summary = () => {
    if (!scores) return page.slot("sum").childElementCount || page.slot("sum").replaceChildren(make("p", "wb-wait", "The rewards are being measured."));
    const index = seen(), names = Object.keys(scores.b), mean = (values) => index.length ? index.reduce((sum, i) => sum + values[i], 0) / index.length : null;
    const gains = index.map((i) => change(i).gain), count = (test) => String(gains.filter(test).length);
    const facts = make("dl", "wb-facts");
    for (const [name, value, way] of [["Better", count((g) => g >= 5e-3), "up"], ["Worse", count((g) => g <= -5e-3), "down"], ["As before", count((g) => Math.abs(g) < 5e-3), "none"]]) {
      const box = make("div"); box.append(make("dt", "", name), make("dd", way, value)); facts.append(box);
    }
    const lines = names.map((name) => { const [x, y] = [mean(scores.a[name]), mean(scores.b[name])]; return [name === "reward" ? "all, weighted" : wb.words(name), two(x), two(y), x === null ? "–" : `${y - x >= 0 ? "+" : "−"}${Math.abs(y - x).toFixed(2)}`]; });
    page.slot("sum").replaceChildren(facts, wb.table("Mean reward", ["reward", "A", "B", "gain"], lines));
    setText(page.slot("sum-note"), `${index.length} pairs, scored now by the rewards of B`);
  };

  // The curve with both iterations marked.
  const mark = () => {
    if (!figure || !held) return;
    const line = (x, dash) => ({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { width: 2, dash, color: wb.colour("--ink") } });
    const name = (x, text) => ({ x, y: 1, xref: "x", yref: "paper", text, showarrow: false, yanchor: "bottom", font: { size: 12 } });
    const layout = { ...figure.layout, shapes: [line(held.a.iteration, "dash"), line(held.b.iteration, "solid")], annotations: [name(held.a.iteration, "A"), name(held.b.iteration, "B")], margin: { ...figure.layout.margin, t: 22 } };
    wb.charts.draw(page, "beside", { data: figure.data.map((trace) => ({ ...trace })), layout }, `${held.a.run} ${held.b.run}`);
  };

  const inFull = (index) => scores ? {
    caption: `Rewards; the pictures lie ${two(scores.apart[index])} apart (root mean square, 0 to 1)`,
    lines: Object.keys(scores.b).map((name) => [name === "reward" ? "all, weighted" : wb.words(name), two(scores.a[name][index]), two(scores.b[name][index])]),
  } : { caption: "", lines: [] };
  const look = (view) => { wb.address.set({ view: view === "side" ? "" : view }); draw(); };
  // The slider steps over all recorded evaluations of B, from the first to the last.
  const time = () => {
    const at = wanted(), known = (sides[at.b] || { recorded: [] }).recorded, slider = page.slot("time");
    slider.max = String(Math.max(0, known.length - 1));
    slider.disabled = known.length < 2;
    page.root.querySelector('[data-act="play"]').disabled = known.length < 2;
    const now = at.bi === null ? known.at(-1) : at.bi, place = known.findLastIndex((iteration) => iteration <= now);
    if (document.activeElement !== slider || !busy) slider.value = String(Math.max(0, place));
    const text = now === undefined ? "–" : `${now}${known.length ? ` of ${known.at(-1)}` : ""}`;
    setText(page.slot("time-at"), text);
    setAttr(slider, "aria-valuetext", `iteration ${text}`);
  };
  const turnTo = (place) => {
    const known = (sides[wanted().b] || { recorded: [] }).recorded;
    wb.address.set({ bi: place >= known.length - 1 ? "" : known[place] });
    menus();
    time();
    refresh();
  };
  const play = (on) => {
    clearInterval(playing);
    playing = null;
    const button = page.root.querySelector('[data-act="play"]'), slider = page.slot("time");
    if (on) {
      if (Number(slider.value) >= Number(slider.max)) { slider.value = "0"; turnTo(0); }
      playing = setInterval(() => {
        if (busy) return;
        slider.value = String(Number(slider.value) + 1);
        turnTo(Number(slider.value));
        if (Number(slider.value) >= Number(slider.max)) play(false);
      }, 700);
    }
    setText(button, on ? "❚❚ Pause" : "▶ Play");
    setAttr(button, "aria-pressed", on);
  };

  const menus = () => {
    const at = wanted();
    const runs = wb.runs.filter((run) => run.kind === "train").map((run) => [run.id, `${run.title} · ${wb.when(run.created)}`]);
    for (const side of ["a", "b"]) {
      const id = at[side], listed = runs.some(([known]) => known === id) ? runs : [[id, (sides[id] || { title: id }).title], ...runs];
      options(page.slot(`${side}-run`), listed, id);
      const found = sides[id] || { points: [], recorded: [] }, now = side === "a" ? at.ai : at.bi;
      const points = now === null || found.points.includes(now) ? found.points : [...found.points, now].sort((x, y) => x - y);
      const label = (point) => `${point === 0 ? "base" : point}${found.recorded.includes(point) ? "" : found.points.includes(point) ? " · drawn from its checkpoint" : " · not there"}`;
      const entries = points.map((point) => [String(point), label(point)]);
      options(page.slot(`${side}-at`), side === "b" ? [["", `latest${latest(id) === null ? "" : ` (${latest(id)})`}`], ...entries] : entries, now === null ? "" : String(now));
    }
    const example = (sides[at.a] || { example: [] }).example;
    if (example.length) page.slot("prompts").placeholder = example.join("\n");
  };

  const hideResult = () => {
    revealed = "";
    show(page.slot("result"), false);
    show(page.slot("votes-box"), false);
    setAttr(page.root.querySelector('[data-act="reveal"]'), "aria-expanded", false);
    setText(page.root.querySelector('[data-act="reveal"]'), "Show result");
    wb.complain(page.slot("vote-errors"), []);
  };
  const reveal = async () => {
    const reply = await page.ask("result", question());
    wb.complain(page.slot("vote-errors"), reply.errors || []);
    if (reply.errors) return;
    const { tally } = reply, box = page.slot("result"), share = (value) => `${Math.round(100 * value)} %`;
    const people = `${reply.votes} ${reply.votes === 1 ? "vote" : "votes"} by ${reply.voters} ${reply.voters === 1 ? "person" : "people"} on ${tally.pairs} pairs: A won ${tally.a}, B won ${tally.b}, ${tally.ties} ${tally.ties === 1 ? "tie" : "ties"}.`;
    const proof = tally.rate === null ? (reply.votes ? "Every pair was a tie, so neither is preferred." : "Nobody has voted on these two yet.")
      : `B won ${share(tally.rate)} of the decided pairs (95 %: ${share(tally.low)} to ${share(tally.high)}; sign test p = ${tally.p < 0.001 ? "< 0.001" : tally.p.toFixed(3)}). ${tally.low > 0.5 ? "People prefer B." : tally.high < 0.5 ? "People prefer A." : "That may be chance: vote on."}`;
    box.replaceChildren(make("p", "", proof), make("p", "wb-hint", reply.votes ? people : "Press Vote blind to be the first."));
    revealed = asked;
    show(box, true);
    show(page.slot("votes-box"), tally.rate !== null);
    if (tally.rate !== null) wb.charts.draw(page, "votes", reply.figure, asked);
    setAttr(page.root.querySelector('[data-act="reveal"]'), "aria-expanded", true);
    setText(page.root.querySelector('[data-act="reveal"]'), "Hide result");
  };
  const views = wb.views(page, { pictures: () => held, view: () => wanted().view, look, order: seen, rewards: inFull });
  const booth = wb.booth(page, { question: shown, pictures: () => held, ended: reveal, began: hideResult });

  const parts = {
    run(id) { if (wb.address.get("run") !== id) wb.address.set({ run: id }); },
    sides(found) { sides = found; },
    curves(drawn) { figure = drawn; mark(); },
    runs() { menus(); },
  };
  const told = () => {
    const any = Object.keys(sides).length > 0 && !page.held.problem;
    show(page.slot("body"), any);
    show(page.slot("empty"), !wb.runs.length && !page.held.problem);
    if (!any) return;
    menus();
    time();
    refresh();
  };
  const open = () => {
    const at = wanted();
    page.forget();
    sides = {};
    figure = null;
    page.slot("find").value = at.find;
    page.slot("order").value = at.order;
    page.slot("prompts").value = at.prompts;
    page.slot("seed").value = at.seed || "0";
    page.slot("each").value = at.each || "1";
    if (at.prompts) page.slot("custom").open = true;
    if (held) draw();
  };
  const close = () => { play(false); views.close(); booth.close(); };

  for (const side of ["a", "b"]) {
    page.slot(`${side}-run`).addEventListener("change", (event) => { wb.address.set({ [side]: event.target.value === wb.address.get("run") ? "" : event.target.value, [`${side}i`]: "" }, true); page.forget("sides", "curves"); pending(); });
    page.slot(`${side}-at`).addEventListener("change", (event) => { wb.address.set({ [`${side}i`]: side === "a" && event.target.value === "0" ? "" : event.target.value }, true); time(); refresh(); });
  }
  const pending = () => { menus(); wb.complain(page.slot("errors"), []); };
  page.slot("time").addEventListener("input", (event) => { play(false); turnTo(Number(event.target.value)); });
  for (const [slot, event] of [["find", "input"], ["skill", "change"], ["order", "change"], ["by", "change"]]) {
    page.slot(slot).addEventListener(event, () => { const value = page.slot(slot).value; wb.address.set({ [slot]: slot === "by" && value === "reward" ? "" : value }); if (held) draw(); });
  }
  page.slot("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    wb.address.set({ prompts: page.slot("prompts").value.trim(), seed: page.slot("seed").value, each: page.slot("each").value }, true);
    refresh();
  });
  page.slot("voter").value = localStorage.getItem("workbench-voter") || "me";
  page.slot("voter").addEventListener("change", (event) => localStorage.setItem("workbench-voter", event.target.value));

  const acts = {
    swap() { const at = wanted(), run = wb.address.get("run"), known = at.bi === null ? latest(at.b) : at.bi; wb.address.set({ a: at.b === run ? "" : at.b, b: at.a === run ? "" : at.a, ai: known || "", bi: at.ai }, true); menus(); time(); refresh(); },
    recorded() { wb.address.set({ prompts: "", seed: "", each: "" }, true); page.slot("custom").open = false; refresh(); },
    play: () => play(!playing),
    vote: () => booth.open(page.slot("voter").value),
    reveal: () => revealed ? hideResult() : reveal(),
    earlier: () => views.step(-1),
    later: () => views.step(1),
    "close-zoom": () => page.slot("zoom").close(),
  };
  page.root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.viewOf) look(button.dataset.viewOf);
    else if (acts[button.dataset.act]) acts[button.dataset.act]();
    else if (button.matches(".cmp-pair")) views.zoom(button.closest(".cmp-cell").index);
  });
  page.root.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.metaKey || event.ctrlKey || page.slot("booth").open) return;
    if (!views.key(event) && event.target.matches(".cmp-pair")) walk(event);
  });
  const walk = (event) => {
    const cells = [...page.slot("wall").querySelectorAll(".cmp-cell:not([hidden])")], here = cells.indexOf(event.target.closest(".cmp-cell"));
    const across = Math.max(1, cells.findIndex((node) => node.offsetTop > cells[0].offsetTop));
    const next = cells[here + ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key] || 0)];
    if (next && next !== cells[here]) { event.preventDefault(); next.firstChild.focus(); }
  };

  return { parts, told, open, close, asks: () => ({ a: wb.address.get("a"), b: wb.address.get("b") }) };
});
