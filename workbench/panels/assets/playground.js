// The Playground: one request in the address, drawn again whenever it changes. While one drawing is under way the latest wish waits.
window.workbench.page("playground", (page) => {
  const wb = window.workbench, { paint, ready } = wb.sprites, slot = page.slot;
  const narrow = () => page.root.clientWidth < 700;
  const sizes = () => narrow() ? { large: 160, tile: 80, strip: 80, now: 104, film: 40 } : { large: 280, tile: 128, strip: 96, now: 168, film: 56 };
  const state = { policy: "", scale: 1, prompt: "", seed: 0, seeds: "lock", toward: 1, share: 0.5, steps: 0, sampler: "", images: 8, pick: 0, step: "", knobs: {} };
  const NAMES = Object.keys(state).filter((name) => name !== "knobs"), AXES = ["gx", "gxv", "gy", "gyv", "gz", "gzv"];
  const NUMBERS = ["scale", "share", "steps", "images", "pick"];
  const remembered = new Map(); // settings of samplers that were left, by name
  let form = null, shown = null, opening = 0, written = null, shownRun = "";

  const randomSeed = () => Math.floor(Math.random() * 1e6);
  const preset = () => state.policy.startsWith("preset:") ? state.policy.slice(7) : "";
  const whole = (text) => /^\d+$/.test(String(text).trim()) ? Number(text) : text; // what is no number is sent as it is, to be refused in words
  const samplerOf = (name) => form.samplers.find((sampler) => sampler.name === name);
  const request = () => ({
    run: preset() ? "" : form.run, preset: preset() || form.preset, checkpoint: preset() || state.policy === "" ? null : whole(state.policy), scale: state.scale,
    prompt: state.prompt, seed: whole(state.seed), toward: state.seeds === "walk" ? whole(state.toward) : null, share: state.seeds === "walk" ? state.share : 0,
    steps: state.steps, sampler: { name: state.sampler, ...state.knobs }, images: state.images,
  });

  // The address: everything that the form says, so that a link restores it.
  const remember = (run) => {
    if (wb.address.get("tab") !== page.name) return; // the page was left meanwhile
    for (const name of [...new URLSearchParams(location.search).keys()]) if (name.startsWith("k.")) wb.address.set({ [name]: "" });
    const knobs = Object.fromEntries(Object.entries(state.knobs).map(([name, value]) => [`k.${name}`, String(value)]));
    const plain = Object.fromEntries(NAMES.map((name) => [name, name === "toward" || name === "share" ? (state.seeds === "walk" ? String(state[name]) : "") : String(state[name])]));
    wb.address.set({ ...(run === undefined ? {} : { run }), ...plain, ...knobs, ...Object.fromEntries(AXES.map((name) => [name, slot(name).value])) });
    written = location.search;
  };
  const noted = wb.settled(250, () => remember());
  const recall = () => {
    const query = new URLSearchParams(location.search);
    for (const name of NAMES) if (query.has(name)) state[name] = NUMBERS.includes(name) ? Number(query.get(name)) : query.get(name);
    state.knobs = Object.fromEntries([...query].filter(([name]) => name.startsWith("k.")).map(([name, value]) => [name.slice(2), value]));
    for (const name of AXES) slot(name).dataset.wanted = query.get(name) || "";
  };
  const without = (search) => { const query = new URLSearchParams(search); query.delete("run"); return String(query); };

  const open = async () => {
    if (form && location.search === written) return;
    const turn = ++opening, run = wb.address.get("run"), moved = Boolean(form) && run !== shownRun;
    const linked = NAMES.some((name) => new URLSearchParams(location.search).has(name));
    if (linked && !(moved && without(location.search) === without(written))) recall();
    else if (moved) Object.assign(state, { policy: "", pick: 0 });
    await fill(turn, run);
  };

  // What can be chosen for the policy; then the form, then the pictures.
  const fill = async (turn, run) => {
    let reply = await page.ask("form", { run, preset: preset() });
    if (turn !== opening) return;
    if (reply.errors) {
      tell([...reply.errors.filter((line) => !line.startsWith("unknown run")), "Meanwhile the base of ‘shapes’ draws."], true); // a lost run is told above
      state.policy = "preset:shapes";
      reply = await page.ask("form", { run: "", preset: "shapes" });
      if (reply.errors || turn !== opening) return;
    } else tell(reply.note ? [reply.note] : [], true);
    const before = form;
    form = reply;
    if (reply.note) state.policy = `preset:${form.preset}`;
    if (!run && form.run) run = form.run;
    shownRun = run;
    const { prompt, steps, sampler } = form.defaults;
    if (!state.prompt || (before && before.task !== form.task && !turnedByHand)) Object.assign(state, { prompt, pick: 0 });
    if (!state.steps || (before && before.defaults.steps !== steps && state.steps === before.defaults.steps)) state.steps = steps;
    if (!samplerOf(state.sampler)) { state.sampler = sampler.name; state.knobs = {}; }
    turnedByHand = false;
    settle(sampler);
    controls();
    grids.fill(form);
    remember(run);
    refresh();
    if (grids.linked()) grids.draw();
  };
  let turnedByHand = false; // whether the prompt came along with another task, as from a PNG

  // Every setting of the chosen sampler has a value of the right kind; those of others are put away.
  const settle = (own) => {
    const known = samplerOf(state.sampler), said = { ...(own && own.name === known.name ? own : {}), ...(remembered.get(known.name) || {}), ...state.knobs };
    const typed = { number: Number, whole: Number, switch: (value) => value === true || value === "true", choice: String };
    state.knobs = Object.fromEntries(known.fields.map((field) => [field.name, field.name in said ? typed[field.type](said[field.name]) : field.value]));
  };

  // Controls made from the settings' own ranges and sentences.
  const slider = (field, value, act, { unit = "", top = field.max } = {}) => {
    const box = wb.make("div", "wb-field"), line = wb.make("div", "pg-slide"), id = `pg-${field.name}`;
    const range = wb.make("input"), number = wb.make("input"), label = wb.make("label", "", field.label), help = wb.make("small", "", field.help);
    Object.assign(range, { type: "range", min: field.min, max: Math.max(top, value), step: field.step, value, id });
    Object.assign(number, { type: "number", min: field.min, max: field.max, step: field.type === "whole" ? 1 : "any", value });
    label.htmlFor = id;
    help.id = `${id}-help`;
    range.setAttribute("aria-describedby", help.id);
    range.dataset.knob = number.dataset.knob = field.name;
    number.setAttribute("aria-label", `${field.label}, as a number`);
    range.addEventListener("input", () => { number.value = String(+(+range.value).toFixed(4)); act(Number(number.value)); });
    number.addEventListener("change", () => { range.value = number.value; act(Number(number.value)); });
    line.append(label, number);
    if (unit) line.append(wb.make("span", "", unit));
    box.append(line, range, help);
    return box;
  };
  const choice = (field, value, act) => {
    const box = wb.make("div", "wb-field"), label = wb.make("label", "", field.label), help = wb.make("small", "", field.help), id = `pg-${field.name}`;
    const control = wb.make(field.type === "switch" ? "input" : "select");
    control.id = label.htmlFor = id;
    help.id = `${id}-help`;
    control.dataset.knob = field.name;
    control.setAttribute("aria-describedby", help.id);
    if (field.type === "switch") Object.assign(control, { type: "checkbox", checked: value });
    else { control.append(...field.choices.map((name) => new Option(name, name))); control.value = value; }
    control.addEventListener("change", () => act(field.type === "switch" ? control.checked : control.value));
    box.append(label, control, help);
    return box;
  };
  const place = (name, node, visible = true) => {
    const box = slot(name);
    box.replaceChildren(...(visible ? node.childNodes : []));
    wb.show(box, visible);
  };

  const controls = () => {
    policies();
    wb.setText(slot("task"), `task ${form.task}`);
    slot("prompts").replaceChildren(...form.prompts.map(({ text }) => new Option(text, text)));
    chips("suggested", [...new Set(form.prompts.map(({ text }) => text))].slice(0, 6), (text) => text);
    chips("words", form.words, (word) => `${state.prompt.trim()} ${word}`.trim());
    for (const name of ["prompt", "seed", "toward"]) if (document.activeElement !== slot(name)) slot(name).value = state[name];
    const { scale, share, steps, images } = form.fields, tuned = !preset() && form.run && state.policy !== "0";
    place("scale-field", slider({ ...scale, label: "How much of the training" }, state.scale, set("scale")), Boolean(tuned));
    place("share-field", slider({ ...share, label: "Place on the walk" }, state.share, set("share")), state.seeds === "walk");
    place("steps-field", slider(steps, state.steps, set("steps"), { unit: "steps", top: Math.max(16, 2 * form.defaults.steps) }));
    place("images-field", slider({ ...images, label: "Samples" }, state.images, set("images"), { unit: "images" }));
    slot("sampler").replaceChildren(...form.samplers.map(({ name }) => new Option(name, name)));
    slot("sampler").value = state.sampler;
    knobs();
    modes();
  };
  const policies = () => {
    const menu = slot("policy");
    const own = form.run ? [wb.grouped(form.title, [
      new Option(form.checkpoints.length ? `the last checkpoint (after ${Math.max(...form.checkpoints)} iterations)` : "no checkpoint yet", ""),
      ...form.checkpoints.filter(Boolean).reverse().map((at) => new Option(`after ${at} iterations`, String(at))), new Option("its base, before training", "0")])] : [];
    menu.replaceChildren(...own, ...wb.presetMenu(form.presets));
    menu.value = state.policy;
    if (menu.value !== state.policy || !menu.selectedOptions.length) menu.value = state.policy = form.run ? "" : `preset:${form.preset}`;
  };
  const knobs = () => {
    const known = samplerOf(state.sampler);
    wb.setText(slot("sampler-note"), known.note);
    slot("knobs").replaceChildren(...known.fields.map((field) => {
      const act = (value) => { state.knobs[field.name] = value; changed(); };
      return field.type === "number" || field.type === "whole" ? slider(field, state.knobs[field.name], act) : choice(field, state.knobs[field.name], act);
    }));
  };
  const modes = () => {
    for (const button of page.root.querySelectorAll("[data-mode]")) wb.setAttr(button, "aria-pressed", button.dataset.mode === state.seeds);
    wb.show(slot("toward-field"), state.seeds === "walk");
    wb.setText(slot("seed-help"), { lock: "Names the initial noise. Lock: it stays, so that all changes are seen on the same image.", random: "Random: a new seed with every other prompt, and whenever you ask for one.", walk: "Walk: from this seed's noise to that of a second one." }[state.seeds]);
  };
  const chips = (name, texts, become) => slot(name).replaceChildren(...texts.map((text) => {
    const button = wb.make("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => say(become(text)));
    return button;
  }));

  const changed = () => { noted(); refresh(); };
  const set = (name) => (value) => { state[name] = value; changed(); };
  const seed = (value) => { state.seed = value; slot("seed").value = String(value); };
  const say = (prompt) => {
    if (prompt === state.prompt) return;
    state.prompt = prompt;
    if (slot("prompt").value !== prompt) slot("prompt").value = prompt;
    if (state.seeds === "random") seed(randomSeed());
    changed();
  };
  const tell = (lines, mild) => { wb.complain(slot("notes"), lines); wb.setAttr(slot("notes"), "data-good", Boolean(mild)); };

  // One drawing at a time: a wish that comes meanwhile is taken up when it is done, and only the latest.
  let wanted = 0, busy = false;
  const refresh = async () => {
    wanted++;
    if (busy || !form) return;
    busy = true;
    try {
      for (let turn = 0; turn !== wanted;) {
        turn = wanted;
        for (const stage of [group, walk, path, plane]) if (turn !== wanted || !await stage(() => turn === wanted)) break;
      }
    } finally {
      busy = false;
    }
  };

  const group = async () => {
    const asked = request(), began = performance.now();
    wb.setAttr(slot("result"), "data-busy", true);
    const reply = await page.ask("group", asked);
    wb.setAttr(slot("result"), "data-busy", false);
    wb.complain(slot("errors"), reply.errors || []);
    slot("prompt").closest(".wb-field").classList.toggle("wrong", Boolean(reply.errors) && reply.errors[0].startsWith("prompt"));
    wb.setAttr(slot("result"), "data-stale", Boolean(reply.errors));
    if (reply.errors) { if (!shown) wb.setText(slot("title"), "Nothing drawn yet"); return false; }
    await ready(reply.sheet);
    shown = { ...reply, prompt: asked.prompt, seed: asked.seed };
    images();
    facts();
    noise();
    wb.setText(slot("took"), `drawn in ${Math.round(performance.now() - began)} ms`);
    for (const act of ["download", "download-group"]) page.root.querySelector(`[data-act="${act}"]`).disabled = false;
    return true;
  };

  const reward = (index) => `reward ${wb.number(shown.rewards[index].reward, 3)}`;
  const fillPick = (node, index, wanted, words) => {
    paint(node.querySelector(".pic"), shown.sheet, index, wanted);
    wb.setText(node.querySelector(".wb-sr"), words);
    wb.setAttr(node, "aria-pressed", state.pick === index);
  };
  const images = () => {
    const count = shown.rewards.length - 1, tiles = slot("tiles");
    if (state.pick > count) state.pick = 0;
    wb.setText(slot("title"), `“${shown.prompt}”`);
    wb.setText(slot("said"), [shown.note, shown.title[0].toUpperCase() + shown.title.slice(1), state.seeds === "walk" ? `seeds ${state.seed} to ${state.toward}` : `seed ${shown.seed}`].filter(Boolean).join(" · "));
    wb.show(slot("said"), true);
    fillPick(slot("deployed"), 0, sizes().large, `As deployed, ${reward(0)}`);
    wb.setText(slot("deployed-reward"), reward(0));
    while (tiles.children.length < count) {
      const node = wb.make("button", "pg-pick");
      node.type = "button";
      node.append(wb.make("span", "pic"), wb.make("span", "rew"), wb.make("span", "wb-sr"));
      tiles.append(node);
    }
    while (tiles.children.length > count) tiles.lastChild.remove();
    [...tiles.children].forEach((node, index) => {
      node.dataset.pick = String(index + 1);
      wb.setText(node.querySelector(".rew"), wb.number(shown.rewards[index + 1].reward, 3));
      fillPick(node, index + 1, sizes().tile, ` reward, sample ${index + 1}`);
    });
    const parts = Object.entries(shown.rewards[state.pick]).filter(([name]) => name !== "reward");
    wb.setText(slot("reward-parts"), `${state.pick ? `Sample ${state.pick}` : "As deployed"}: reward ${wb.number(shown.rewards[state.pick].reward, 3)}, from ${parts.map(([name, value]) => `${wb.words(name)} ${wb.number(value, 3)}`).join(", ")}.`);
    wb.setText(slot("split"), { held_out: "Held out: no run ever trains on this prompt.", train: "One of the prompts that runs train on.", "": "None of the task's own prompts, but within its words." }[shown.split]);
  };
  const facts = () => {
    const count = shown.rewards.length - 1, list = [
      ["Group reward", `${wb.number(shown.mean, 3)} ± ${wb.number(shown.std, 2)}`],
      ["Diversity", wb.number(shown.diversity, 3)], ...(shown.compositions === null ? [] : [["Compositions", `${shown.compositions} of ${count}`]])];
    const titles = { "Group reward": "mean and standard deviation of the samples", Diversity: "mean distance of two samples, root mean square over pixels", Compositions: "samples that show something different" };
    const box = slot("facts");
    box.replaceChildren(...list.map(([name, value]) => { const div = wb.make("div"); div.title = titles[name] || ""; div.append(wb.make("dt", "", name), wb.make("dd", "", value)); return div; }));
  };
  const noise = () => {
    const box = slot("noise");
    if (shown.silent) {
      const why = shown.noise.length ? "As it is set, this sampler draws no noise: all samples are the same image." : "A single step goes straight to the image, so no noise is drawn and all samples are the same.";
      box.replaceChildren(wb.make("p", "wb-note", why));
      return;
    }
    box.replaceChildren(wb.noise("Noise of each stochastic step. Fresh: drawn anew; λ: one unit for all samplers.", shown.noise));
  };

  const walk = async () => {
    wb.show(slot("walk"), state.seeds === "walk");
    if (state.seeds !== "walk") return true;
    const asked = { ...request(), share: 0, sampler: undefined }, key = JSON.stringify(asked), strip = slot("walk-strip");
    const mark = () => [...strip.children].forEach((node) => wb.setAttr(node, "aria-pressed", Math.abs(Number(node.dataset.share) - state.share) < 1e-6));
    if (strip.dataset.key === key) { mark(); return true; }
    const reply = await page.ask("walk", asked);
    if (reply.errors) { wb.complain(slot("errors"), reply.errors); return true; }
    await ready(reply.sheet);
    strip.dataset.key = key;
    wb.setText(slot("walk-note"), `from seed ${asked.seed} to seed ${asked.toward}`);
    strip.replaceChildren(...reply.shares.map((share, index) => {
      const node = wb.make("button", "pg-step"), picture = wb.make("span", "pic");
      node.type = "button";
      node.dataset.share = String(share);
      paint(picture, reply.sheet, index, sizes().strip);
      node.append(picture, wb.make("span", "", index === 0 ? `seed ${asked.seed}` : index === reply.shares.length - 1 ? `seed ${asked.toward}` : `${Math.round(100 * share)} %`), wb.make("span", "rew", wb.number(reply.rewards[index], 2)));
      node.addEventListener("click", () => { state.share = share; controls(); changed(); });
      return node;
    }));
    mark();
    return true;
  };

  // How the chosen image comes about.
  const ROWS = { states: ["x at this time", "x"], jumps: ["one jump from here", "jump"], means: ["mean of what it may become", "mean"] };
  const steps = () => [...slot("film").querySelectorAll(".pg-step")];
  let trail = null;
  const path = async () => {
    const asked = { request: request(), pick: state.pick };
    const key = JSON.stringify(state.pick ? asked : { ...asked.request, sampler: 0, images: 0 }); // as deployed, no knob matters
    if (trail && trail.key === key) return true;
    const reply = await page.ask("path", asked);
    if (reply.errors) { wb.complain(slot("errors"), reply.errors); return true; }
    await Promise.all(Object.values(reply.rows).map(ready));
    const fresh = !trail || trail.times.length !== reply.times.length;
    trail = { ...reply, key };
    wb.setText(slot("path-of"), state.pick ? `sample ${state.pick}` : "the image as deployed");
    const film = slot("film");
    if (fresh || film.children.length !== trail.times.length + 1) film.replaceChildren(wb.make("div", "pg-labels"), ...trail.times.map((t, step) => {
      const node = wb.make("button", "pg-step");
      node.type = "button";
      node.tabIndex = -1;
      node.append(...Object.keys(trail.rows).map(() => wb.make("span", "pic")), wb.make("span", "", ""));
      node.addEventListener("click", () => at(step));
      return node;
    }));
    steps().forEach((node, step) => {
      Object.values(trail.rows).forEach((sheet, row) => paint(node.children[row], sheet, step, sizes().film));
      wb.setText(node.lastChild, `t = ${wb.number(trail.times[step], 2)}`);
      node.setAttribute("aria-label", `step ${step}, time ${wb.number(trail.times[step], 2)}`);
    });
    film.firstChild.replaceChildren(...Object.keys(trail.rows).map((name, row) => {
      const label = wb.make("span", "", ROWS[name][1]);
      label.style.height = steps()[0].children[row].style.height;
      return label;
    }));
    slot("step").max = String(trail.times.length - 1);
    at(state.step === "" ? Math.floor(trail.times.length / 2) : Number(state.step), false);
    return true;
  };
  const at = (step, byHand = true) => {
    if (!trail) return;
    const last = trail.times.length - 1, now = Math.max(0, Math.min(last, step || 0));
    if (byHand) { state.step = String(now); noted(); }
    slot("step").value = String(now);
    const said = `${now === last ? "the image" : now ? `after step ${now} of ${last}` : "pure noise"}, t = ${wb.number(trail.times[now], 2)}`;
    wb.setAttr(slot("step"), "aria-valuetext", said);
    wb.setText(slot("path-at"), said);
    const box = slot("path-now");
    if (box.children.length !== Object.keys(trail.rows).length) box.replaceChildren(...Object.keys(trail.rows).map((name) => {
      const node = wb.make("figure");
      node.append(wb.make("div", "pic"), wb.make("figcaption", "", ROWS[name][0]));
      node.firstChild.setAttribute("role", "img");
      return node;
    }));
    Object.entries(trail.rows).forEach(([name, sheet], row) => {
      paint(box.children[row].firstChild, sheet, now, sizes().now);
      wb.setText(box.children[row].lastChild, ROWS[name][0]);
      box.children[row].firstChild.setAttribute("aria-label", `${ROWS[name][0]}, ${said}`);
    });
    steps().forEach((node, index) => wb.setAttr(node, "aria-pressed", index === now));
    const film = slot("film"), node = steps()[now];
    if (film.scrollWidth > film.clientWidth) film.scrollTo({ left: node.offsetLeft - film.offsetLeft - (film.clientWidth - node.offsetWidth) / 2 });
  };

  const choose = (pick) => {
    state.pick = pick;
    noted();
    if (shown) images();
    refresh();
  };
  const take = (values) => {
    Object.assign(state.knobs, values);
    knobs();
    changed();
  };
  const grids = wb.playgroundGrids(page, { request, take, noted });
  const plane = (still) => grids.plane(still);

  const download = async (what) => {
    const reply = await page.ask("picture", { request: request(), mode: state.seeds, ...what });
    if (reply.errors) return tell(reply.errors, false);
    wb.download(reply.data, reply.name);
    wb.toast(`${reply.name} says in itself how it was made; open it here to restore this form.`);
  };

  // A PNG brings its settings back.
  const restore = async (file) => {
    if (!file) return;
    if (file.size > 32 * 2 ** 20) return tell([`${file.name} has ${Math.round(file.size / 2 ** 20)} MiB; pictures of the workbench are far smaller.`], false);
    const data = await new Promise((resolve) => { const reader = new FileReader(); reader.onload = () => resolve(reader.result); reader.onerror = () => resolve(""); reader.readAsDataURL(file); });
    const reply = await page.ask("restore", { data });
    if (reply.errors) return tell(reply.errors.map((line) => `${file.name}: ${line}`), false);
    const { run, preset: base, checkpoint, sampler, toward, ...rest } = reply.request, { name, ...settings } = sampler;
    Object.assign(state, rest, { policy: run ? (checkpoint === null ? "" : String(checkpoint)) : `preset:${base}`, pick: reply.pick, sampler: name, knobs: settings, step: "" });
    state.seeds = toward === null ? (reply.mode === "random" ? "random" : "lock") : "walk";
    if (toward !== null) state.toward = toward;
    AXES.forEach((slotName, place) => { const axis = reply.axes[Math.floor(place / 2)]; slot(slotName).dataset.wanted = axis ? (place % 2 ? axis.values : axis.name) : ""; });
    turnedByHand = true;
    await fill(++opening, run || wb.address.get("run"));
    if (reply.notes.length) tell(reply.notes, true);
    wb.toast(`The settings of ${file.name} are back.`);
  };

  const acts = {
    seed: () => { seed(randomSeed()); changed(); },
    toward: () => { state.toward = randomSeed(); slot("toward").value = String(state.toward); changed(); },
    open: () => slot("file").click(),
    download: () => download({ pick: state.pick }),
    "download-group": () => download({ pick: -1 }),
    "download-grid": () => download({ axes: grids.drawn() }),
    grid: () => { noted(); grids.draw(); },
    cancel: () => grids.cancel(),
    train: () => {
      const knobs = Object.fromEntries(Object.entries(state.knobs).map(([name, value]) => [`sampler.${name}`, value]));
      wb.go("train", { new: "yes", preset: preset(), with: JSON.stringify({ "sampler.name": state.sampler, ...knobs, "rollout.steps": Math.max(2, state.steps) }) });
    },
  };
  page.root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.act && acts[button.dataset.act]) acts[button.dataset.act]();
    else if (button.dataset.mode) { state.seeds = button.dataset.mode; if (form) controls(); changed(); }
    else if (button.dataset.pick) choose(Number(button.dataset.pick));
  });
  const typed = wb.settled(300, () => say(slot("prompt").value));
  slot("prompt").addEventListener("input", typed);
  for (const name of ["seed", "toward"]) slot(name).addEventListener("change", () => { state[name] = slot(name).value.trim(); changed(); });
  slot("form").addEventListener("submit", (event) => { event.preventDefault(); if (document.activeElement === slot("prompt")) say(slot("prompt").value); });
  slot("policy").addEventListener("change", () => { const was = preset(); state.policy = slot("policy").value; was !== preset() ? fill(++opening, wb.address.get("run")) : (controls(), changed()); });
  slot("sampler").addEventListener("change", () => {
    remembered.set(state.sampler, state.knobs);
    state.sampler = slot("sampler").value;
    state.knobs = {};
    settle();
    knobs();
    changed();
  });
  slot("step").addEventListener("input", () => at(Number(slot("step").value)));
  slot("film").addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (way) { event.preventDefault(); at(Number(slot("step").value) + way); }
  });
  slot("tiles").addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key], next = way && event.target.closest(".pg-pick")[way > 0 ? "nextElementSibling" : "previousElementSibling"];
    if (next) { event.preventDefault(); next.focus(); choose(Number(next.dataset.pick)); }
  });
  slot("file").addEventListener("change", () => { restore(slot("file").files[0]); slot("file").value = ""; });
  const carries = (event) => [...(event.dataTransfer ? event.dataTransfer.types : [])].includes("Files");
  page.root.addEventListener("dragover", (event) => { if (carries(event)) { event.preventDefault(); wb.show(slot("drop"), true); } });
  page.root.addEventListener("dragleave", (event) => { if (!page.root.contains(event.relatedTarget)) wb.show(slot("drop"), false); });
  page.root.addEventListener("drop", (event) => { if (carries(event)) { event.preventDefault(); wb.show(slot("drop"), false); restore(event.dataTransfer.files[0]); } });

  const parts = {
    checkpoints(list) {
      if (!form || wb.address.get("run") !== form.run || JSON.stringify(list) === JSON.stringify(form.checkpoints)) return;
      form.checkpoints = list;
      policies();
      if (state.policy !== "") return;
      slot("walk-strip").dataset.key = ""; // "the last" means the new one: what the old one drew counts no more
      trail = null;
      grids.forget();
      refresh();
    },
  };
  return { parts, open };
});
