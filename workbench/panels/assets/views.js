// How a pair of pictures is looked at: four views with a knob each, and one pair in full size.
// `of` says what is shown: pictures(), view(), look(view), order(), and rewards(index) as rows for the full size.
window.workbench.views = (page, of) => {
  const wb = window.workbench, { make, setText, setAttr } = wb;
  const VIEWS = {
    side: ["Side by side", "A on the left, B on the right."],
    wipe: ["Slider", "A left of the line, B right of it: point at a picture, or press the left and right arrow keys."],
    flicker: ["Flicker", "A and B take turns in one place: press space, or let them alternate."],
    diff: ["Difference", "Black where A and B are the same; brighter where they differ, each colour by itself."],
  };
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let flip = "b", beat = null, zoomed = null;

  // One pair: two pictures in one button, whose look is the view's.
  const both = (index, wide) => {
    const node = make("span", "cmp-both");
    for (const side of ["a", "b"]) {
      const picture = make("span", `cmp-pic ${side}`);
      node.append(picture);
    }
    node.append(make("i", "cmp-line"));
    repaint(node, index, wide);
    return node;
  };
  const repaint = (node, index, wide) => { // `wide`: room in pixels of the page
    const pictures = of.pictures();
    const [width, height] = pictures.a.sheet.tile, sided = of.view() === "side", longest = Math.max(width, height);
    const small = innerWidth <= 640 ? Math.max(2 * longest, sided ? 80 : 164) : sided ? 132 : 208;
    const room = wide ? Math.min(sided ? (wide.width - 12) / 2 / width : wide.width / width, wide.height / height) : small / longest;
    const scale = room >= 1 ? Math.floor(room) : room;
    [...node.querySelectorAll(".cmp-pic")].forEach((picture, turn) => wb.sprites.paint(picture, (turn ? pictures.b : pictures.a).sheet, index, scale * longest));
    node.style.setProperty("--w", `${Math.round(scale * width)}px`);
    node.style.setProperty("--h", `${Math.round(scale * height)}px`);
    if (!wide) page.slot("wall").style.setProperty("--cell", `${Math.round(scale * width) * (sided ? 2 : 1) + (sided ? 4 : 0)}px`);
  };

  // What goes with a view: how fast it flickers, how much it amplifies, where the line is.
  const knob = () => {
    const box = page.slot("knob"), view = of.view();
    if (box.dataset.of === view) return;
    box.dataset.of = view;
    clearInterval(beat);
    box.replaceChildren();
    if (view === "wipe") {
      const range = Object.assign(make("input"), { type: "range", min: 0, max: 100, value: 50 });
      range.addEventListener("input", () => cut(Number(range.value)));
      box.append(labelled("Line", range));
      cut(50);
    } else if (view === "flicker") {
      const menu = make("select");
      menu.append(...[["0", "by hand (space)"], ["500", "every 0.5 s"], ["1000", "every 1 s"], ["2000", "every 2 s"]].map(([value, text]) => new Option(text, value)));
      menu.value = calm.matches ? "0" : "1000";
      const start = () => { clearInterval(beat); if (Number(menu.value)) beat = setInterval(toggle, Number(menu.value)); };
      menu.addEventListener("change", start);
      const now = make("output", "cmp-now", "B");
      now.setAttribute("aria-live", "off");
      box.append(labelled("Alternate", menu), now);
      toggle("b");
      start();
    } else if (view === "diff") {
      const menu = make("select");
      menu.append(...[1, 2, 4, 8].map((gain) => new Option(`× ${gain}`, gain)));
      menu.value = "2";
      const amplify = () => page.root.style.setProperty("--gain", menu.value);
      menu.addEventListener("change", amplify);
      box.append(labelled("Amplified", menu));
      amplify();
    }
  };
  const labelled = (text, control) => { const label = make("label"); label.append(make("span", "", text), control); return label; };
  const toggle = (to) => {
    flip = typeof to === "string" ? to : flip === "a" ? "b" : "a";
    setAttr(page.root, "data-flip", flip);
    for (const node of page.root.querySelectorAll(".cmp-now")) setText(node, `now ${flip.toUpperCase()}`);
  };
  const cut = (share) => {
    const at = Math.max(0, Math.min(100, share));
    page.root.style.setProperty("--cut", `${at}%`);
    const range = page.slot("knob").querySelector("input");
    if (range && Number(range.value) !== at) range.value = at;
  };
  const cutNow = () => parseFloat(page.root.style.getPropertyValue("--cut")) || 0;

  const viewButtons = () => Object.entries(VIEWS).map(([name, [label]], turn) => {
    const button = make("button", "wb-button small", label);
    button.type = "button";
    button.dataset.viewOf = name;
    button.title = `${label}: key ${turn + 1}`;
    return button;
  });
  const press = () => {
    for (const button of page.root.querySelectorAll("[data-view-of]")) setAttr(button, "aria-pressed", button.dataset.viewOf === of.view());
  };

  // One pair as large as it fits, in whole multiples of its pixels.
  const zoom = (index) => {
    const box = page.slot("zoom"), pictures = of.pictures(), order = pictures ? of.order() : [], turn = order.indexOf(index);
    if (turn < 0) { zoomed = null; return box.close(); }
    const opened = zoomed === null;
    zoomed = index;
    if (opened || !box.childElementCount) {
      const head = make("div", "cmp-zoom-head"), views = make("div", "cmp-views"), close = make("button", "wb-button small", "Close");
      close.type = "button";
      close.dataset.act = "close-zoom";
      views.setAttribute("role", "group");
      views.setAttribute("aria-label", "View");
      views.append(...viewButtons());
      head.append(views, make("output", "cmp-now"), close);
      const stage = make("div", "cmp-stage"), back = make("button", "wb-button cmp-step", "‹"), on = make("button", "wb-button cmp-step", "›");
      for (const [button, act, label] of [[back, "earlier", "Previous pair"], [on, "later", "Next pair"]]) { button.type = "button"; button.dataset.act = act; button.setAttribute("aria-label", label); }
      stage.append(back, both(index), on);
      box.replaceChildren(head, make("h2", "cmp-prompt"), stage, make("p", "wb-hint cmp-where"), make("div", "cmp-parts"));
    }
    press();
    if (opened) { box.showModal(); box.querySelector('[data-view-of][aria-pressed="true"]').focus(); }
    const room = { width: Math.min(innerWidth * 0.96, 1180) - 150, height: innerHeight * 0.58 };
    repaint(box.querySelector(".cmp-both"), index, room.width < 300 ? { ...room, width: innerWidth - 60 } : room);
    setText(box.querySelector(".cmp-prompt"), pictures.prompts[index]);
    setText(box.querySelector(".cmp-where"), `pair ${turn + 1} of ${order.length}, seed ${pictures.seeds[index]}, ${pictures.steps} steps. A: ${pictures.a.title}. B: ${pictures.b.title}. Left and right: other pairs; 1 to 4: views.`);
    const { caption, lines } = of.rewards(index), parts = box.querySelector(".cmp-parts");
    parts.replaceChildren(...(lines.length ? [wb.table(caption, ["reward", "A", "B"], lines)] : []));
  };
  const step = (by) => { const order = of.order(), next = order[order.indexOf(zoomed) + by]; if (next !== undefined) zoom(next); };

  // Keys: in the slider's view the arrows move the line, in full size they walk; space flickers; 1 to 4 choose a view.
  const key = (event) => {
    const view = of.view(), by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], name = Object.keys(VIEWS)[Number(event.key) - 1];
    const act = event.key === " " && view === "flicker" ? toggle : name ? () => of.look(name)
      : by && view === "wipe" && !event.shiftKey ? () => cut(cutNow() + 5 * by) : by && zoomed !== null ? () => step(by) : null;
    if (!act) return false;
    event.preventDefault();
    act();
    return true;
  };
  const say = () => {
    const view = of.view();
    setAttr(page.root, "data-view", view);
    press();
    setText(page.slot("says"), VIEWS[view][1] + (view === "flicker" && calm.matches ? " Your system asks for less motion, so nothing moves by itself." : ""));
    knob();
  };
  const close = () => { clearInterval(beat); delete page.slot("knob").dataset.of; zoomed = null; page.slot("zoom").close(); };

  page.slot("views").append(...viewButtons());
  page.slot("zoom").addEventListener("close", () => {
    const node = [...page.slot("wall").querySelectorAll(".cmp-cell")].find((each) => each.index === zoomed);
    zoomed = null;
    if (node) node.firstChild.focus();
  });
  page.root.addEventListener("pointermove", (event) => {
    const target = of.view() === "wipe" && event.target.closest(".cmp-both");
    if (!target) return;
    const area = target.getBoundingClientRect();
    cut(100 * (event.clientX - area.left) / area.width);
  });
  const again = () => { if (zoomed !== null) zoom(zoomed); };
  window.addEventListener("resize", wb.settled(150, again));

  return { known: (view) => Object.hasOwn(VIEWS, view), both, repaint, say, key, zoom, again, step, close };
};
