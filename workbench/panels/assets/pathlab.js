// Particles of the plane under any kernel. One question of each kind is under way at a time, the latest wins. The policy has a file of its own.
window.workbench.page("pathlab", (page) => {
  const wb = window.workbench, { valueOf, latest } = wb;
  const plane = wb.plane(page.slot("plane")), histogram = wb.plane(page.slot("histogram"));
  const fact = (name, text) => wb.setText(page.root.querySelector(`[data-fact="${name}"]`), text);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  let strokes = [], drawing = null, walked = null, opened = false, isOpen = false;

  // Sliders: beside every number that has a range. Some span powers of ten.
  const spans = { learning_rate: [1e-4, 0.1], kl_weight: [0.01, 100], shift: [0.1, 10] };
  const slide = (input) => {
    const name = input.name.split(".").pop(), high = Number(input.dataset.max), low = Number(input.dataset.min);
    if (input.dataset.max === undefined || high > 1e6) return;
    const span = spans[name], range = document.createElement("input"), whole = input.step === "1";
    range.type = "range";
    range.setAttribute("aria-label", `${input.closest(".wb-field").querySelector("label").textContent}, slider`);
    const zero = span && low === 0; // its left end is 0
    [range.min, range.max, range.step] = span ? [zero ? -1 : 0, 100, 1] : [low, high, whole ? 1 : (high - low) / 200];
    const shown = () => { range.value = !span ? input.value : zero && Number(input.value) < span[0] ? -1 : 100 * Math.log(input.value / span[0]) / Math.log(span[1] / span[0]); };
    range.addEventListener("input", () => {
      const share = Number(range.value) / 100, value = !span ? Number(range.value) : share < 0 ? 0 : span[0] * (span[1] / span[0]) ** share;
      input.value = whole ? Math.round(value) : !span && value <= low && name === "distance" ? 0.005 : Number(value.toPrecision(span ? 2 : 3));
      input.dispatchEvent(new Event("change", { bubbles: true }));
    });
    input.addEventListener("change", shown);
    const both = wb.make("div", "lab-slide");
    input.replaceWith(both);
    both.append(range, input);
    shown();
  };
  const inputs = (form) => [...form.querySelectorAll("[name]")];
  const used = (form) => inputs(form).filter((input) => !input.closest(".wb-extension[hidden]"));
  const values = (form) => Object.fromEntries(used(form).map((input) => [input.name, valueOf(input)]));
  const fill = (form, wanted) => {
    for (const input of inputs(form)) {
      const value = input.name in wanted ? wanted[input.name] : input.initial;
      if (valueOf(input) === value) continue;
      if (input.type === "checkbox") input.checked = value; else input.value = value;
      const range = input.parentNode.querySelector('input[type="range"]');
      if (range) input.dispatchEvent(new Event("change"));
    }
    chosen(form);
  };
  const chosen = (form) => {
    for (const menu of form.querySelectorAll("[data-choice]")) for (const box of form.querySelectorAll(`[data-of="${menu.dataset.choice}"]`)) box.hidden = box.dataset.name !== menu.value;
  };
  const changed = (form) => Object.fromEntries(used(form).filter((input) => valueOf(input) !== input.initial).map((input) => [input.name, valueOf(input)]));
  const walkForm = page.slot("walk"), leverForm = page.slot("lever");
  for (const form of [walkForm, leverForm]) for (const input of inputs(form)) { input.initial = valueOf(input); if (input.type === "number") slide(input); }

  // What the address remembers: all that differs from the beginning; drawn lines as short text.
  const data = () => ({ name: page.root.querySelector('[name="lab-data"]:checked').value, ...(chosenData() === "drawn" ? { strokes, brush: Number(page.slot("brush").value) } : {}) });
  const chosenData = () => page.root.querySelector('[name="lab-data"]:checked').value;
  const written = () => strokes.map((stroke) => stroke.map(([x, y]) => `${+x.toFixed(2)},${+y.toFixed(2)}`).join(" ")).join(";");
  const read = (text) => text.split(";").filter(Boolean).map((stroke) => stroke.split(" ").map((point) => point.split(",").map(Number)));
  const remember = wb.settled(250, () => {
    if (!isOpen) return;
    const lab = { ...(chosenData() !== "double_ring" ? { data: chosenData() } : {}), ...(strokes.length ? { strokes: written(), brush: page.slot("brush").value } : {}) };
    for (const [name, form] of [["walk", walkForm], ["lever", leverForm]]) if (Object.keys(changed(form)).length) lab[name] = changed(form);
    wb.address.set({ lab: Object.keys(lab).length ? JSON.stringify(lab) : "" });
  });
  const restore = () => {
    let lab = {};
    try { lab = JSON.parse(wb.address.get("lab") || "{}"); } catch { return wb.complain(page.slot("errors"), ["The address holds settings of this page that cannot be read; the page shows its defaults."]); }
    const choice = [...page.root.querySelectorAll('[name="lab-data"]')].find((radio) => radio.value === (lab.data || "double_ring"));
    if (choice) choice.checked = true;
    strokes = read(lab.strokes || "");
    page.slot("brush").value = lab.brush || 0.15;
    fill(walkForm, lab.walk || {});
    fill(leverForm, lab.lever || {});
    tools();
  };
  const tools = () => {
    const own = chosenData() === "drawn";
    wb.show(page.slot("tools"), own);
    page.slot("plane").classList.toggle("drawing", own);
    wb.setText(page.slot("brush-told"), Number(page.slot("brush").value).toFixed(2));
    wb.show(page.slot("empty"), own && !strokes.length && !drawing);
  };

  const walk = latest(async (outdated) => {
    if (chosenData() === "drawn" && !strokes.length) { walked = null; show(); return; }
    const reply = await page.ask("follow", { form: values(walkForm), data: data(), holds: walked ? walked.key : "" });
    wb.complain(page.slot("errors"), reply.errors || []);
    if (reply.errors) return;
    const place = scrub.max > 0 ? scrub.value / scrub.max : 1;
    const kept = walked && walked.key === reply.key ? walked : null;
    walked = { ...reply, ...Object.fromEntries(["particles", "paths", "means"].map((name) => [name, wb.unpack.points(reply[name], reply.reach)])) };
    if (kept && !reply.density) Object.assign(walked, { shades: kept.shades, profiles: kept.profiles });
    else {
      const all = wb.unpack.bytes(reply.density), size = all.length / reply.times.length;
      walked.shades = reply.times.map((_, i) => all.subarray(i * size, (i + 1) * size));
      walked.sheets = null;
    }
    scrub.max = reply.times.length - 1;
    scrub.value = place * scrub.max;
    wb.setText(page.slot("took"), `${reply.count.toLocaleString()} particles in ${wb.number(reply.seconds, 2)} s`);
    const box = page.slot("verdict"), marks = { green: "✓", red: "✕" };
    box.className = `wb-verdict ${reply.verdict.level}`;
    wb.setText(box.firstElementChild, `${marks[reply.verdict.level]} ${reply.verdict.title}`);
    wb.setText(box.lastElementChild, reply.verdict.sentence);
    page.slot("why").replaceChildren(...reply.why.map((part) => wb.make("p", "", part)));
    wb.show(page.slot("mass-fact"), Boolean(reply.masses));
    fact("nodes", `${reply.times.length} of ${reply.grid.length}`);
    wb.charts.draw(page, "p_values", reply.chart, "pathlab");
    show();
    if (!outdated()) compare();
  });
  // Other numbers of steps, one after another, as long as nothing was changed meanwhile.
  let compared = "";
  const compare = wb.settled(500, async () => {
    const asked = { form: values(walkForm), data: data() }, key = JSON.stringify(asked);
    if (!isOpen || compared === key) return;
    for (let known = 0, more = true; more;) {
      const reply = await page.ask("by_steps", { ...asked, known });
      if (!isOpen || JSON.stringify({ form: values(walkForm), data: data() }) !== key) return;
      if (reply.errors) return;
      wb.charts.draw(page, "accuracy", reply.chart, "pathlab");
      [known, more] = [reply.known, reply.more];
    }
    compared = key;
  });

  // The scene: exact marginal, particles and paths between two nodes.
  const scrub = page.slot("scrub");
  const point = (all, index) => [all[2 * index], all[2 * index + 1]];
  const sheets = () => {
    const theme = wb.colour("--good");
    if (!walked.sheets || walked.theme !== theme) Object.assign(walked, { sheets: walked.shades.map((values) => plane.tinted(values, "--good")), theme });
    return walked.sheets;
  };
  const scene = () => {
    if (walked) {
      const place = Number(scrub.value), left = Math.min(Math.floor(place), walked.times.length - 1), right = Math.min(left + 1, walked.times.length - 1), share = place - left;
      plane.shade(sheets()[left], 0.5 * (1 - share));
      if (share) plane.shade(sheets()[right], 0.5 * share);
      const size = 2 * walked.count, from = walked.particles.subarray(left * size, (left + 1) * size), to = walked.particles.subarray(right * size, (right + 1) * size);
      plane.dots(share ? from.map((value, i) => value + share * (to[i] - value)) : from, "--accent", 2.2, 0.55);
      paths(walked.nodes[left], share ? walked.nodes[right] : walked.nodes[left], share);
    }
    for (const stroke of drawing ? [...strokes, drawing] : walked ? [] : strokes) plane.line(stroke, "--good", 8, { alpha: 0.6 });
  };
  const paths = (whole, until, share) => {
    const few = walked.grid.length <= 9;
    for (let i = 0; i < walked.traced; i += 1) {
      const node = (step) => point(walked.paths, step * walked.traced + i), mean = (step) => point(walked.means, step * walked.traced + i);
      const last = share ? Math.min(until, Math.max(whole, Math.ceil(whole + share * (until - whole)))) : whole;
      if (!few) plane.line(Array.from({ length: last + 1 }, (_, step) => node(step)), "--ink", 1, { alpha: 0.7 });
      else for (let step = 1; step <= last; step += 1) {
        plane.line([node(step - 1), mean(step - 1)], "--ink", 1.3, { alpha: 0.7 });
        if (walked.stds[step - 1] > 0) plane.line([mean(step - 1), node(step)], "--down", 1.6, { dash: [1, 4] });
      }
      plane.ring(...node(last), 0.06, "--ink", { fill: true });
      if (!i && few && last && walked.stds[last - 1] > 0) plane.ring(...mean(last - 1), walked.stds[last - 1], "--down", { dash: [2, 4] });
    }
  };
  const shares = (points, bins) => {
    const found = new Array(bins).fill(0), rings = Boolean(walked.masses);
    for (let i = 0; i < points.length; i += 2) {
      const bin = Math.floor(rings ? Math.hypot(points[i], points[i + 1]) / 4 * bins : (points[i] / 4 + 1) / 2 * bins);
      if (bin >= 0 && bin < bins) found[bin] += 2 / points.length;
    }
    return found;
  };
  const show = () => {
    tools();
    plane.draw(scene);
    if (!walked) { histogram.draw(() => undefined); return; }
    const near = Math.round(Number(scrub.value)), t = walked.times[near], size = 2 * walked.count, step = walked.nodes[near];
    histogram.draw(() => walked && histogram.bars(shares(walked.particles.subarray(near * size, (near + 1) * size), walked.profiles[near].length), walked.profiles[near]));
    wb.setText(page.slot("when"), `at t = ${t.toFixed(2)}, after step ${step} of ${walked.grid.length - 1}`);
    wb.setText(page.slot("histogram-told"), `${walked.masses ? "Distance from the centre, 0 to 4" : "Place along the horizontal axis, −4 to 4"}: particles (bars) and exact (line).`);
    fact("p", `${walked.wrong.includes(near) ? "✕ " : ""}${walked.p[near] < 1e-12 ? "below 1e-12" : wb.number(walked.p[near], 2)}`);
    if (walked.masses) fact("mass", `${walked.masses[near].toFixed(3)} (exact ${walked.wanted[near].toFixed(3)})`);
    fact("std", step ? wb.number(walked.stds[step - 1], 2) : "–");
    scrub.setAttribute("aria-valuetext", `t = ${t.toFixed(2)}`);
    plane.say(`${walked.count} particles at t = ${t.toFixed(2)}; ${walked.verdict.title}`);
    histogram.say("Histogram of the particles beside that of the exact distribution");
  };

  // Playing, from noise to data.
  const playButton = page.root.querySelector('[data-act="play"]');
  let playing = 0;
  const play = (yes) => {
    cancelAnimationFrame(playing);
    playing = 0;
    wb.setText(playButton, yes ? "❚❚ Pause" : "▶ Play");
    if (!yes || !walked) return;
    if (Number(scrub.value) >= Number(scrub.max)) scrub.value = 0;
    let before = performance.now(), exact = Number(scrub.value);
    const frame = (now) => {
      const whole = Math.max(2.5, Math.min(7, 0.9 * scrub.max)); // seconds
      exact = Math.min(Number(scrub.max), exact + (now - before) / 1000 / whole * scrub.max);
      before = now;
      scrub.value = calm.matches ? Math.floor(exact) : exact;
      show();
      if (exact >= Number(scrub.max)) return play(false);
      playing = requestAnimationFrame(frame);
    };
    playing = requestAnimationFrame(frame);
  };

  // Drawing.
  plane.canvas.addEventListener("pointerdown", (event) => {
    if (chosenData() !== "drawn") return;
    event.preventDefault();
    plane.canvas.setPointerCapture(event.pointerId);
    if (strokes.length >= 64) { wb.complain(page.slot("errors"), ["A drawing has at most 64 lines; take some back first."]); return; }
    drawing = [plane.where(event)];
    play(false);
    show();
  });
  plane.canvas.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    const [x, y] = plane.where(event), [before, above] = drawing.at(-1);
    if (Math.hypot(x - before, y - above) >= 0.1 && drawing.length < 200) { drawing.push([x, y]); show(); }
  });
  const drawn = () => {
    if (!drawing) return;
    strokes = [...strokes, drawing];
    drawing = null;
    another();
  };
  plane.canvas.addEventListener("pointerup", drawn);
  plane.canvas.addEventListener("pointercancel", drawn);

  const policy = wb.pathlabPolicy(page, { data, settings: () => values(leverForm), remember, isOpen: () => isOpen });
  const another = () => { chosen(walkForm); remember(); walk(); tools(); policy.again(); };
  const acts = {
    play: () => play(!playing),
    noise: () => { const seed = walkForm.querySelector('[name="seed"]'); seed.value = Number(seed.value) + 1; remember(); walk(); },
    defaults: () => { fill(walkForm, {}); remember(); walk(); },
    undo: () => { strokes = strokes.slice(0, -1); another(); },
    clear: () => { const before = strokes; strokes = []; another(); if (before.length) wb.toast("All lines were taken back.", () => { strokes = before; another(); }); },
    learn: policy.toggle,
    anew: policy.anew,
  };
  page.root.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button) acts[button.dataset.act]();
  });
  for (const form of [walkForm, leverForm]) form.addEventListener("submit", (event) => event.preventDefault());
  walkForm.addEventListener("change", () => { chosen(walkForm); remember(); walk(); });
  page.root.querySelector(".lab-data").addEventListener("change", another);
  page.slot("brush").addEventListener("input", () => { tools(); remember(); walk(); });
  scrub.addEventListener("input", () => { play(false); show(); });

  const open = () => {
    isOpen = true;
    if (!opened || wb.address.get("lab")) restore(); else remember();
    opened = true;
    walk();
    policy.open();
  };
  const close = () => { isOpen = false; play(false); };

  return { parts: {}, follows: false, open, close };
});
