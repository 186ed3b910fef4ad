// Images: groups sorted by reward, one image in detail, and the strip of before and now. Sheets are files; a tile is a background position.
window.workbench.pictures = (page) => {
  const wb = window.workbench, { signed } = wb, { paint, ready } = wb.sprites;
  let shown = null, selected = null, loading = 0, tracing = false, paired = null, requested = null;

  // How large a picture is shown: what the visitor chose, or by its own size, so that photographs are larger than pixel art.
  const side = (sheet) => Number(localStorage.getItem("wb-picture-size")) || (Math.max(...sheet.tile) > 64 ? 120 : 80);

  const sign = (image, quiet) => quiet ? "○" : image.clipped ? "◇" : image.advantage > 0 ? "▲" : image.advantage < 0 ? "▼" : "○";
  const direction = (image, quiet) => quiet || image.advantage === 0 ? "none" : image.clipped ? "clipped" : image.advantage > 0 ? "up" : "down";
  const meaning = { up: "pushed up", down: "pushed down", none: "no gradient", clipped: "clipped: far enough, held back" };

  const tileNode = () => {
    const node = wb.make("button", "wb-tile");
    node.type = "button";
    node.append(wb.make("span", "pic"), wb.make("span", "adv"), wb.make("span", "rew"), wb.make("span", "wb-sr"));
    return node;
  };
  const fillTile = (node, data, group, image, rank) => {
    const [picture, advantage, reward, words] = node.children, way = direction(image, group.quiet);
    wb.setAttr(node, "data-way", way);
    node.style.setProperty("--pull", `${group.quiet ? 0 : Math.min(100, 35 + 35 * Math.abs(image.advantage))}%`);
    if (data.sheet) {
      paint(picture, data.sheet, image.tile, side(data.sheet));
      node.style.setProperty("--w", picture.style.width);
    } else picture.style.backgroundImage = "none";
    wb.setText(advantage, group.quiet ? "○" : `${sign(image)} ${signed(image.advantage)}`);
    wb.setText(reward, image.reward.toFixed(2));
    wb.setText(words, ` reward, ${meaning[way]}, rank ${rank + 1} for ${group.prompt}`);
    node.details = { data, group, image, rank };
    wb.setAttr(node, "aria-pressed", Boolean(selected) && selected.data.row === data.row && selected.image.tile === image.tile);
  };

  const drawGroups = (data) => {
    const box = page.slot("rows");
    const rows = [...box.querySelectorAll(".wb-group")];
    if (!rows.length) box.replaceChildren();
    data.groups.forEach((group, place) => {
      let row = rows[place];
      if (!row) {
        row = wb.make("section", "wb-group");
        const head = wb.make("div", "wb-prompt");
        head.append(wb.make("h3"), wb.make("p"), wb.make("span", "wb-quiet", "no gradient"));
        row.append(head, wb.make("div", "wb-tiles"));
        box.append(row);
      }
      const [head, tiles] = row.children;
      wb.setText(head.children[0], group.prompt);
      head.title = group.prompt;
      wb.setText(head.children[1], `reward ${group.mean.toFixed(2)} ± ${group.std.toFixed(2)}`);
      wb.show(head.children[2], group.quiet);
      wb.setAttr(row, "data-quiet", group.quiet);
      while (tiles.children.length < group.images.length) tiles.append(tileNode());
      while (tiles.children.length > group.images.length) tiles.lastChild.remove();
      group.images.forEach((image, rank) => fillTile(tiles.children[rank], data, group, image, rank));
    });
    rows.slice(data.groups.length).forEach((row) => row.remove());
  };

  const groups = async (data) => {
    if (!data) return;
    const turn = ++loading;
    await ready(data.sheet);
    if (turn !== loading) return; // a later iteration overtook this one
    shown = data;
    if (data.sheet) size.value = String(side(data.sheet));
    wb.setText(page.slot("groups-at"), `at iteration ${data.iteration}`);
    const share = `${data.quiet} of ${data.prompts} groups without gradient` + (data.sheet ? "" : "; the pictures of this iteration were thinned, its numbers remain");
    wb.setText(page.slot("groups-note"), share);
    const time = page.slot("time"), last = data.rows.length - 1;
    time.max = String(Math.max(0, last));
    const place = data.rows.findIndex(([, row]) => row === data.row);
    if (document.activeElement !== time || !page.at) time.value = String(place < 0 ? last : place);
    time.setAttribute("aria-valuetext", `iteration ${data.iteration}`);
    wb.setAttr(page.root.querySelector('[data-act="live"]'), "aria-pressed", !page.at);
    drawGroups(data);
    if (!selected && data.groups.length && matchMedia("(min-width: 1100px)").matches) detail({ data, group: data.groups[0], image: data.groups[0].images[0], rank: 0 }, false);
  };

  const detail = (choice, byHand = true) => {
    selected = byHand ? choice : null;
    const { data, group, image, rank } = choice, direct = direction(image, group.quiet);
    const box = page.slot("detail"), head = wb.make("div", "wb-head");
    const close = wb.make("button", "wb-button small wb-close", "Close");
    close.type = "button";
    close.addEventListener("click", () => box.classList.remove("open"));
    head.append(wb.make("h2", "", "Image"), wb.make("span", "wb-note", `iteration ${data.iteration}, rank ${rank + 1} of ${group.images.length}`), close);
    box.classList.toggle("open", byHand);
    const picture = wb.make("div", "wb-large");
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `${group.prompt}, seed ${image.seed}`);
    if (data.sheet) paint(picture, data.sheet, image.tile, 240);
    const facts = wb.make("dl", "wb-facts");
    const fact = (name, value, className) => { const div = wb.make("div"); div.append(wb.make("dt", "", name), wb.make("dd", className, value)); facts.append(div); };
    fact("Reward", wb.number(image.reward, 4));
    fact("Advantage", group.quiet ? "none" : `${sign(image)} ${signed(image.advantage)}`, direct);
    fact("Seed", String(image.seed), "seed");
    const parts = wb.table("Reward, part by part", ["part", "value"], Object.entries(image.parts).map(([name, value]) => [wb.words(name), wb.number(value, 4)]));
    const ratios = image.ratios.length > 0; // with one epoch all are exactly 1, and none are recorded
    const steps = wb.table("Stochastic steps that are trained", ["step", "log-probability", "noise std", ...(ratios ? ["ratio − 1"] : [])],
      data.steps.map((step, i) => [String(step), wb.number(image.log_probs[i], 4), wb.number(data.noise_std[i], 3),
        ...(ratios ? [image.ratios[i] === null ? "–" : wb.number(image.ratios[i] - 1, 2)] : [])]));
    const way = wb.make("div", "wb-way"), trace = wb.make("button", "wb-button small", "Show its way from noise");
    trace.type = "button";
    trace.title = "Draws this image again from the same seeds with the policy as it is now, and shows every step";
    trace.addEventListener("click", () => { tracing = true; retrace(way, choice); });
    way.append(trace);
    box.replaceChildren(head, picture, wb.make("p", "wb-quote", group.prompt), facts, way, parts, steps);
    if (tracing && byHand) retrace(way, choice);
    if (shown) drawGroups(shown);
  };

  // What the same seeds lead to with the policy as it is now: the states on the way, and what the map takes each of them for.
  const retrace = async (box, { data, image }) => {
    box.replaceChildren(wb.make("p", "wb-note", "Drawing it again…"));
    const reply = await page.ask("trace", { run: wb.address.get("run"), row: data.row, sample: image.sample });
    if (!box.isConnected) return;
    if (reply.errors) return box.replaceChildren(wb.make("p", "wb-note", reply.errors.join(" ")));
    const last = reply.times.length - 1, now = wb.make("div", "wb-beside"), strip = wb.make("div", "wb-steps");
    for (const [label, sheet, index] of [["when it was drawn", data.sheet, image.tile], [`iteration ${reply.iteration}, same seeds`, reply.states, last]]) {
      const figure = wb.make("figure");
      figure.append(wb.sprites.picture(sheet, index, 120, label), wb.make("figcaption", "", label));
      now.append(figure);
    }
    reply.times.forEach((t, i) => {
      const step = wb.make("figure"), drawn = reply.drawn[i - 1];
      step.append(wb.sprites.picture(reply.states, i, 56, `state at time ${t}`), wb.sprites.picture(reply.ends, i, 56, `prediction at time ${t}`),
        wb.make("figcaption", "", `t ${t}${drawn ? ` · noise ${wb.number(drawn[0], 2)}` : ""}`));
      if (drawn) step.title = `Drawn with standard deviation ${drawn[0]}, log-probability ${drawn[1]}`;
      strip.append(step);
    });
    box.replaceChildren(now, strip, wb.make("p", "wb-note", "Above: the state at each time. Below: the picture that the map takes it for."));
  };

  const pairNode = (data, index) => {
    const node = wb.make("figure", "wb-pair"), images = wb.make("div", "both");
    for (const [name, sheet] of [["before", data.before.sheet], ["now", data.now && data.now.sheet]]) {
      const picture = wb.make("div", "pic");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `${name}: ${data.prompts[index]}, seed ${data.seeds[index]}`);
      picture.dataset.side = name;
      if (sheet || data.before.sheet) paint(picture, sheet || data.before.sheet, index, side(data.before.sheet || sheet));
      if (!sheet) picture.style.backgroundImage = "none";
      images.append(picture);
    }
    node.append(images, wb.make("figcaption", "", data.prompts[index]));
    node.style.width = `${2 * parseFloat(images.firstChild.style.width || 80) + 2}px`;
    node.title = `${data.prompts[index]}, seed ${data.seeds[index]}`;
    return node;
  };
  const pairs = async (data) => {
    if (!data) return;
    paired = data;
    wb.show(page.slot("pairs"), true);
    await Promise.all([ready(data.before.sheet), ready(data.now && data.now.sheet)]);
    wb.setText(page.slot("pairs-note"), data.now ? `iteration ${data.before.iteration} | iteration ${data.now.iteration}, same prompts and seeds` : "iteration 0; the next evaluation fills the right side");
    const strip = page.slot("strip"), count = data.before.sheet ? data.before.sheet.count : 0;
    if (strip.dataset.of !== (data.before.sheet ? data.before.sheet.path : "")) {
      strip.replaceChildren(...Array.from({ length: count }, (_, index) => pairNode(data, index)));
      strip.dataset.of = data.before.sheet ? data.before.sheet.path : "";
    } else if (data.now && data.now.sheet) {
      [...strip.querySelectorAll('[data-side="now"]')].forEach((picture, index) => paint(picture, data.now.sheet, index, side(data.before.sheet)));
    }
  };

  const sheet = async (data) => {
    wb.show(page.slot("sampled"), Boolean(data && data.sheet));
    if (!data || !data.sheet) return;
    requested = data;
    await ready(data.sheet);
    wb.setText(page.slot("sampled-note"), `at iteration ${data.iteration}, averaged weights`);
    page.slot("sheet").replaceChildren(...Array.from({ length: data.sheet.count }, (_, index) => {
      const node = wb.make("figure", "wb-pair"), picture = wb.make("div", "pic");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `${data.prompts[index]}, seed ${data.seeds[index]}`);
      paint(picture, data.sheet, index, side(data.sheet));
      node.append(picture, wb.make("figcaption", "", data.prompts[index]));
      node.style.width = `${parseFloat(picture.style.width) + 4}px`;
      node.title = data.prompts[index];
      return node;
    }));
  };

  const clear = () => {
    loading++;
    selected = shown = paired = requested = null;
    delete page.slot("strip").dataset.of;
    page.slot("rows").replaceChildren(wb.make("p", "wb-wait", "The first groups appear as soon as they are scored."));
    page.slot("strip").replaceChildren(wb.make("p", "wb-wait", "The base's images appear after the first evaluation."));
    page.slot("detail").replaceChildren(wb.make("p", "wb-wait", "Choose an image of a group to see how it came about."));
    wb.setText(page.slot("groups-at"), "");
  };

  // Arrow keys walk through the images of a group and from group to group.
  const walk = (event) => {
    const tile = event.target.closest(".wb-tile");
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!tile || !step) return;
    const lines = [...page.slot("rows").querySelectorAll(".wb-tiles")].map((line) => [...line.children]);
    const row = lines.findIndex((line) => line.includes(tile));
    const next = (lines[row + step[0]] || [])[lines[row].indexOf(tile) + step[1]];
    if (next) { event.preventDefault(); next.focus(); }
  };

  const box = page.slot("rows"), size = page.slot("size");
  size.addEventListener("input", () => {
    localStorage.setItem("wb-picture-size", size.value);
    delete page.slot("strip").dataset.of;
    if (shown) drawGroups(shown);
    pairs(paired);
    if (requested) sheet(requested);
  });
  box.addEventListener("click", (event) => { const tile = event.target.closest(".wb-tile"); if (tile) detail(tile.details); });
  box.addEventListener("keydown", walk);
  page.slot("time").addEventListener("input", (event) => {
    const place = Number(event.target.value), rows = shown ? shown.rows : [];
    page.at = place >= rows.length - 1 ? 0 : rows[place][1];
    wb.setText(page.slot("groups-at"), rows[place] ? `at iteration ${rows[place][0]}` : "");
  });

  return { groups, pairs, sheet, clear };
};
