// Particles of the plane under any kernel, and a policy that follows a reward. One question of each kind is under way at a time, the latest wins.
window.workbench.page("pathlab", (page) => {
  const wb = window.workbench, side = 64, bins = 60;
  const plane = wb.plane(page.slot("plane")), histogram = wb.plane(page.slot("histogram")), field = wb.plane(page.slot("field"));
  const fact = (name, text) => wb.setText(page.root.querySelector(`[data-fact="${name}"]`), text);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const visitor = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("");
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
  const valueOf = (input) => input.type === "checkbox" ? input.checked : input.value.trim();
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

  // One question at a time; what was asked meanwhile is asked once, afterwards.
  const latest = (work) => {
    let busy = false, again = false;
    return async () => {
      if (busy) { again = true; return; }
      busy = true;
      do { again = false; await work(() => again); } while (again);
      busy = false;
    };
  };

  const walk = latest(async (outdated) => {
    if (chosenData() === "drawn" && !strokes.length) { walked = null; show(); return; }
    const reply = await page.ask("follow", { form: values(walkForm), data: data(), holds: walked ? walked.key : "" });
    wb.complain(page.slot("errors"), reply.errors || []);
    if (reply.errors) return;
    const place = scrub.max > 0 ? scrub.value / scrub.max : 1;
    const kept = walked && walked.key === reply.key ? walked : null;
    walked = { ...reply, points: wb.unpack.points(reply.particles), paths: wb.unpack.points(reply.paths), means: wb.unpack.points(reply.means) };
    if (kept && !reply.density) Object.assign(walked, { shades: kept.shades, profiles: kept.profiles });
    else {
      const all = wb.unpack.bytes(reply.density);
      walked.shades = reply.times.map((_, i) => all.subarray(i * side * side, (i + 1) * side * side));
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
    const theme = plane.colour("--good");
    if (!walked.sheets || walked.theme !== theme) Object.assign(walked, { sheets: walked.shades.map((values) => plane.tinted(values, side, "--good")), theme });
    return walked.sheets;
  };
  const scene = () => {
    if (walked) {
      const place = Number(scrub.value), left = Math.min(Math.floor(place), walked.times.length - 1), right = Math.min(left + 1, walked.times.length - 1), share = place - left;
      plane.shade(sheets()[left], 0.5 * (1 - share));
      if (share) plane.shade(sheets()[right], 0.5 * share);
      const size = 2 * walked.count, from = walked.points.subarray(left * size, (left + 1) * size), to = walked.points.subarray(right * size, (right + 1) * size);
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
  const shares = (points) => {
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
    histogram.draw(() => walked && histogram.bars(shares(walked.points.subarray(near * size, (near + 1) * size)), walked.profiles[near]));
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

  // The policy that follows the reward.
  let running = false, learner = null, base = null, madeOf = "", pace = [], chartsAt = 0, baseOf = "";
  const learnButton = page.root.querySelector('[data-act="learn"]'), handle = page.slot("handle");
  const lever = () => values(leverForm);
  const centre = () => ["x", "y", "width"].map((name) => Number(leverForm.querySelector(`[name="${name}"]`).value) || 0);
  const fieldScene = () => {
    const [x, y, width] = centre();
    for (const [times, alpha] of [[2, 0.06], [1, 0.1]]) field.ring(x, y, times * width, "--down", { fill: true, alpha });
    for (const times of [1, 2]) field.ring(x, y, times * width, "--down", { alpha: 0.9 / times, dash: times === 2 ? [4, 4] : [] });
    if (base) field.dots(base, "--soft", 2.2, 0.4);
    if (learner) field.dots(learner, "--accent", 3, 0.8);
  };
  const showField = () => {
    const [x, y] = centre();
    handle.style.left = `${(x / 4 + 1) * 50}%`;
    handle.style.top = `${(1 - y / 4) * 50}%`;
    field.draw(fieldScene);
  };
  const reset = () => { pace = []; chartsAt = 0; };
  const learn = async (asked = {}) => {
    const about = data();
    if (about.name === "drawn" && !strokes.length) { learner = base = null; showField(); return { errors: ["Nothing is drawn yet: draw a line on the plane above, or choose another distribution."] }; }
    const key = JSON.stringify(about);
    if (madeOf !== key) reset();
    madeOf = key;
    const charts = performance.now() - chartsAt > 600;
    if (charts) chartsAt = performance.now();
    const reply = await page.ask("learn", { visitor, data: about, lever: lever(), base: baseOf !== key, charts, ...asked });
    if (reply.errors) return reply;
    if (JSON.stringify(data()) !== key) return reply; // an answer about other data
    learner = wb.unpack.points(reply.particles);
    if (reply.base) [base, baseOf] = [wb.unpack.points(reply.base), key];
    pace = [...pace.filter(([when]) => performance.now() - when < 3000), [performance.now(), reply.updates]];
    const [[start, first]] = pace, passed = (performance.now() - start) / 1000;
    fact("updates", reply.updates.toLocaleString());
    if (!running) fact("speed", "resting"); else if (passed > 0.5) fact("speed", wb.number((reply.updates - first) / passed, 2));
    fact("reward", wb.number(reply.reward, 3));
    fact("kl", reply.updates ? wb.number(reply.kl, 2) : "–");
    fact("silent", reply.silent === null ? "–" : `${Math.round(100 * reply.silent)} %`);
    field.say(`Particles of the policy after ${reply.updates} updates; mean reward ${wb.number(reply.reward, 2)}`);
    if (reply.charts && reply.updates) for (const [name, chart] of Object.entries(reply.charts)) wb.charts.draw(page, name, chart, "pathlab");
    showField();
    return reply;
  };
  const loop = async () => {
    while (running && isOpen) {
      if (document.hidden) { await new Promise((done) => setTimeout(done, 400)); continue; }
      const began = performance.now(), reply = await learn({ learn: true });
      wb.complain(page.slot("refused"), reply.errors || []);
      if (reply.errors) { run(false); break; }
      const took = performance.now() - began;
      wb.setText(page.slot("pace"), took > 1500 ? "slow: another run uses the device" : "\u00a0");
      await new Promise((done) => setTimeout(done, 20));
    }
    looping = false;
  };
  let looping = false;
  const run = (yes) => {
    running = yes;
    reset();
    wb.setText(learnButton, yes ? "Pause" : "Start");
    if (!yes) fact("speed", "resting");
    if (yes && !looping) { looping = true; loop(); }
  };
  const look = latest(async () => { const reply = await learn(); wb.complain(page.slot("refused"), reply.errors || []); });

  const move = (x, y) => {
    for (const [name, value] of [["x", x], ["y", y]]) {
      const input = leverForm.querySelector(`[name="${name}"]`);
      input.value = Math.max(-4, Math.min(4, value)).toFixed(2);
      input.dispatchEvent(new Event("change"));
    }
    showField();
    remember();
  };
  let held = false;
  handle.addEventListener("pointerdown", (event) => { held = true; handle.setPointerCapture(event.pointerId); event.preventDefault(); handle.focus(); });
  handle.addEventListener("pointermove", (event) => held && move(...field.where(event)));
  for (const end of ["pointerup", "pointercancel"]) handle.addEventListener(end, () => { held = false; });
  field.canvas.addEventListener("click", (event) => move(...field.where(event)));
  handle.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const [x, y] = centre(), step = event.shiftKey ? 0.5 : 0.1;
    move(x + step * way[0], y + step * way[1]);
  });

  const another = () => { chosen(walkForm); remember(); walk(); tools(); if (!running) look(); };
  const acts = {
    play: () => play(!playing),
    noise: () => { const seed = walkForm.querySelector('[name="seed"]'); seed.value = Number(seed.value) + 1; remember(); walk(); },
    defaults: () => { fill(walkForm, {}); remember(); walk(); },
    undo: () => { strokes = strokes.slice(0, -1); another(); },
    clear: () => { const before = strokes; strokes = []; another(); if (before.length) wb.toast("All lines were taken back.", () => { strokes = before; another(); }); },
    learn: () => run(!running),
    anew: async () => { reset(); wb.charts.clear({ root: page.slot("lever").closest(".lab-grid") }); for (const name of ["reward", "kl", "silent"]) fact(name, "–"); await learn({ anew: true }); },
  };
  page.root.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button) acts[button.dataset.act]();
  });
  for (const form of [walkForm, leverForm]) form.addEventListener("submit", (event) => event.preventDefault());
  walkForm.addEventListener("change", () => { chosen(walkForm); remember(); walk(); });
  leverForm.addEventListener("change", () => { showField(); remember(); });
  page.root.querySelector(".lab-data").addEventListener("change", another);
  page.slot("brush").addEventListener("input", () => { tools(); remember(); walk(); });
  scrub.addEventListener("input", () => { play(false); show(); });

  const open = () => {
    isOpen = true;
    if (!opened || wb.address.get("lab")) restore(); else remember();
    opened = true;
    walk();
    showField();
    if (running && !looping) { looping = true; loop(); } else if (!running) look();
  };
  const close = () => { isOpen = false; play(false); };

  return { parts: {}, follows: false, open, close };
});
