// The two grids of the Playground: the plane of a sampler's knobs, and any parameters along three axes.
window.workbench.playgroundGrids = (page, { request, take, noted }) => {
  const wb = window.workbench, { paint, ready } = wb.sprites, slot = page.slot;
  const AXES = [["gx", "gxv"], ["gy", "gyv"], ["gz", "gzv"]], CELL = 80;
  let shownKey = "", cells = [], knobs = [], turn = 0, finished = null;

  // The plane: it depends on all but its own knobs, so it stays while those are moved.
  const mark = () => {
    const own = request().sampler;
    for (const { node, set } of cells) wb.setAttr(node, "aria-pressed", Object.entries(set).every(([name, value]) => Math.abs(own[name] - value) < 1e-6));
  };
  const plane = async (still) => {
    const asked = request(), own = { ...asked.sampler };
    for (const knob of knobs) delete own[knob.name];
    const key = JSON.stringify({ ...asked, sampler: own, images: 0 });
    if (key === shownKey) { mark(); return true; }
    await new Promise((resolve) => setTimeout(resolve, 350));
    if (!still()) return true;
    const reply = await page.ask("plane", asked);
    if (reply.errors) return true; // said where the group is drawn
    wb.show(slot("plane"), reply.knobs.length > 0);
    knobs = reply.knobs;
    const rest = { ...asked.sampler };
    for (const knob of knobs) delete rest[knob.name];
    shownKey = JSON.stringify({ ...asked, sampler: rest, images: 0 });
    if (!knobs.length) return true;
    await ready(reply.sheet);
    const [across, upward] = knobs, rewards = reply.cells.map((cell) => cell.reward), low = Math.min(...rewards), high = Math.max(...rewards);
    wb.setText(slot("plane-title"), upward ? `${across.label} across, ${upward.label.toLowerCase()} upward` : `${across.label}`);
    const wide = reply.sheet.tile[0] > reply.sheet.tile[1], narrow = page.root.clientWidth < 700;
    const small = narrow ? 26 : wide ? 80 : 40, beside = wide || narrow ? 2 : 4;
    const table = wb.make("table"), head = wb.make("thead"), body = wb.make("tbody"), top = wb.make("tr");
    top.append(wb.make("td"), ...reply.cells.slice(0, reply.columns).map((cell) => { const th = wb.make("th", "", `${across.name} ${wb.number(cell.set[across.name], 3)}`); th.scope = "col"; return th; }));
    head.append(top);
    cells = reply.cells.map(({ set, reward, diversity }, place) => {
      const node = wb.make("button", "pg-cell"), four = wb.make("span", "pg-four"), said = wb.make("span", "rew");
      node.type = "button";
      four.style.gridTemplateColumns = `repeat(${beside}, auto)`;
      for (let sample = 0; sample < reply.samples; sample++) {
        const picture = wb.make("span", "pic");
        paint(picture, reply.sheet, place * reply.samples + sample, small);
        four.append(picture);
      }
      said.append(wb.make("b", "", wb.number(reward, 2)), wb.make("span", "", wb.number(diversity, 2)));
      node.append(four, said);
      node.style.setProperty("--heat", String(high > low ? (reward - low) / (high - low) : 0));
      node.setAttribute("aria-label", `${Object.entries(set).map(([name, value]) => `${name} ${value}`).join(", ")}: reward ${wb.number(reward, 2)}, diversity ${wb.number(diversity, 2)}`);
      node.addEventListener("click", () => { take(set); mark(); });
      return { node, set };
    });
    for (let start = 0; start < cells.length; start += reply.columns) {
      const row = wb.make("tr"), th = wb.make("th", "", upward ? `${upward.name} ${wb.number(cells[start].set[upward.name], 3)}` : "");
      th.scope = "row";
      row.append(th, ...cells.slice(start, start + reply.columns).map(({ node }) => { const td = wb.make("td"); td.append(node); return td; }));
      body.append(row);
    }
    table.append(head, body);
    slot("plane-table").replaceChildren(table);
    mark();
    return true;
  };

  // Any parameters: asked for portion by portion, so that a long grid shows how far it is and can be stopped.
  const chosen = () => AXES.map(([name, values]) => ({ name: slot(name).value, values: slot(values).value })).filter((axis) => axis.name);
  const fill = (form) => {
    for (const [name, values] of AXES) {
      const menu = slot(name), kept = menu.dataset.wanted === undefined ? menu.value : menu.dataset.wanted;
      menu.replaceChildren(new Option("nothing", ""), ...form.varied.map((known) => new Option(wb.words(known), known)));
      menu.setAttribute("aria-label", { gx: "What varies across", gy: "What varies down", gz: "What varies from panel to panel" }[name]);
      menu.value = form.varied.includes(kept) ? kept : "";
      if (slot(values).dataset.wanted !== undefined) slot(values).value = slot(values).dataset.wanted;
      suggest(name, values);
    }
  };
  const EXAMPLES = { prompt: "a circle | two red circles", seed: "0..7", share: "0..1 x5", steps: "1,2,4,8", scale: "0,0.5,1,1.5", checkpoint: "all", sampler: "asfmc, ddim_mix", sample: "1..8", budget: "step, time", distance: "0.01,0.03,0.1", detach_correction: "true, false" };
  const suggest = (name, values) => { slot(values).placeholder = slot(name).value ? EXAMPLES[slot(name).value] || "0..1 x5" : ""; slot(values).disabled = !slot(name).value; };
  const linked = () => {
    const wanted = AXES.some(([name]) => slot(name).dataset.wanted);
    for (const name of AXES.flat()) delete slot(name).dataset.wanted;
    return wanted;
  };
  const busy = (yes) => {
    wb.show(page.root.querySelector('[data-act="cancel"]'), yes);
    page.root.querySelector('[data-act="grid"]').disabled = yes;
    wb.show(slot("grid-progress"), yes);
  };
  const panel = (axes, place) => {
    const [x, y, z] = axes, box = wb.make("div", "pg-panel"), table = wb.make("table"), head = wb.make("thead"), body = wb.make("tbody"), top = wb.make("tr");
    if (z) box.append(wb.make("h3", "", `${wb.words(z.name)} ${z.labels[place]}`));
    if (y) top.append(wb.make("th", "", ""));
    top.append(...x.labels.map((label) => { const th = wb.make("th", "", `${wb.words(x.name)} ${label}`); th.scope = "col"; return th; }));
    head.append(top);
    for (const label of y ? y.labels : [""]) {
      const row = wb.make("tr");
      if (y) { const th = wb.make("th", "", `${wb.words(y.name)} ${label}`); th.scope = "row"; row.append(th); }
      row.append(...x.labels.map(() => { const td = wb.make("td"), picture = wb.make("div", "pic"); picture.setAttribute("role", "img"); picture.setAttribute("aria-label", "not drawn yet"); picture.style.width = picture.style.height = `${CELL}px`; td.append(picture, wb.make("span", "rew", " ")); return td; }));
      body.append(row);
    }
    table.append(head, body);
    box.append(table);
    return box;
  };
  const draw = async () => {
    const own = ++turn, asked = { request: request(), axes: chosen() }, began = performance.now();
    wb.complain(slot("grid-errors"), []);
    finished = null;
    wb.show(page.root.querySelector('[data-act="download-grid"]'), false);
    busy(true);
    wb.setText(slot("grid-note"), "");
    for (let start = 0; start !== null && own === turn;) {
      const reply = await page.ask("grid", { ...asked, start });
      if (own !== turn) return;
      if (reply.errors) { wb.complain(slot("grid-errors"), reply.errors); wb.setText(slot("grid-note"), ""); busy(false); return; }
      await ready(reply.sheet);
      if (start === 0) slot("grid").replaceChildren(...(reply.axes[2] ? reply.axes[2].labels : [""]).map((_, place) => panel(reply.axes, place)));
      const boxes = [...slot("grid").querySelectorAll("td")], told = [...slot("grid").querySelectorAll("td .rew")];
      reply.rewards.forEach((reward, place) => {
        const picture = boxes[start + place].firstChild;
        paint(picture, reply.sheet, place, Math.max(CELL, Math.max(...reply.sheet.tile)));
        picture.setAttribute("aria-label", `reward ${wb.number(reward, 2)}`);
        wb.setText(told[start + place], wb.number(reward, 2));
      });
      const done = start + reply.rewards.length;
      wb.setAttr(slot("grid-progress"), "aria-valuenow", Math.round(100 * done / reply.total));
      slot("grid-progress").firstElementChild.style.transform = `scaleX(${done / reply.total})`;
      wb.setText(slot("grid-note"), `${done} of ${reply.total} cells`);
      start = reply.next;
    }
    if (own !== turn) return;
    busy(false);
    finished = asked.axes;
    wb.setText(slot("grid-note"), `${slot("grid").querySelectorAll("td").length} cells in ${((performance.now() - began) / 1000).toFixed(1)} s; the number below each is its reward`);
    wb.show(page.root.querySelector('[data-act="download-grid"]'), true);
  };
  const cancel = () => { turn++; busy(false); wb.setText(slot("grid-note"), `stopped: ${slot("grid-note").textContent}`); };

  for (const [name, values] of AXES) {
    const chosenByHand = () => { delete slot(name).dataset.wanted; delete slot(values).dataset.wanted; }; // a link that is still being followed gives way
    slot(name).addEventListener("change", () => { chosenByHand(); suggest(name, values); if (slot(name).value && !slot(values).value) slot(values).value = slot(values).placeholder; noted(); });
    slot(values).addEventListener("input", () => { chosenByHand(); noted(); });
    slot(values).addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); draw(); } });
  }
  return { forget: () => { shownKey = ""; }, plane, fill, linked, draw, cancel, drawn: () => finished };
};
