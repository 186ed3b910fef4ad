// The policy of the plane that follows a reward which is dragged about; it learns while the page is open.
// `of` says what it learns on: data(), settings(), isOpen(); and remember() keeps them in the address.
window.workbench.pathlabPolicy = (page, of) => {
  const wb = window.workbench, field = wb.plane(page.slot("field"));
  const fact = (name, text) => wb.setText(page.root.querySelector(`[data-fact="${name}"]`), text);
  const visitor = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("");
  let running = false, learner = null, base = null, madeOf = "", pace = [], chartsAt = 0, baseOf = "";
  const learnButton = page.root.querySelector('[data-act="learn"]'), handle = page.slot("handle"), form = page.slot("lever");
  const centre = () => ["x", "y", "width"].map((name) => Number(form.querySelector(`[name="${name}"]`).value) || 0);
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
    const about = of.data();
    if (about.name === "drawn" && !about.strokes.length) { learner = base = null; showField(); return { errors: ["Nothing is drawn yet: draw a line on the plane above, or choose another distribution."] }; }
    const key = JSON.stringify(about);
    if (madeOf !== key) reset();
    madeOf = key;
    const charts = performance.now() - chartsAt > 600;
    if (charts) chartsAt = performance.now();
    const reply = await page.ask("learn", { visitor, data: about, lever: of.settings(), base: baseOf !== key, charts, ...asked });
    if (reply.errors) return reply;
    if (JSON.stringify(of.data()) !== key) return reply; // an answer about other data
    learner = wb.unpack.points(reply.particles, reply.reach);
    if (reply.base) [base, baseOf] = [wb.unpack.points(reply.base, reply.reach), key];
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
    while (running && of.isOpen()) {
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
  const look = wb.latest(async () => { const reply = await learn(); wb.complain(page.slot("refused"), reply.errors || []); });

  const move = (x, y) => {
    for (const [name, value] of [["x", x], ["y", y]]) {
      const input = form.querySelector(`[name="${name}"]`);
      input.value = Math.max(-4, Math.min(4, value)).toFixed(2);
      input.dispatchEvent(new Event("change"));
    }
    showField();
    of.remember();
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
  form.addEventListener("change", () => { showField(); of.remember(); });

  const again = () => { if (!running) look(); };
  const anew = async () => {
    reset();
    wb.charts.clear({ root: form.closest(".lab-grid") });
    for (const name of ["reward", "kl", "silent"]) fact(name, "–");
    await learn({ anew: true });
  };
  const open = () => {
    showField();
    if (running && !looping) { looping = true; loop(); } else again();
  };
  return { open, again, anew, toggle: () => run(!running) };
};
