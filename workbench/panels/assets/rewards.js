// Rewards tried on pictures: each by itself in figures, all together by weight, and every picture in the order that a reward gives.
window.workbench.page("rewards", (page) => {
  const wb = window.workbench, { make, setText, setAttr, show, signed } = wb, { paint, ready } = wb.sprites;
  const KIND_HELP = {
    "": "Training prompts, in the groups that competed.", evaluation: "Held-out prompts at the seeds of every evaluation.",
    base: "The untrained model, at training prompts.", renderings: "What a perfect answer looks like: a good reward rates it high.",
  };
  let known = null, formOf = "", initial = {}, domain = "", judges = [], held = null, weighed = null, weights = {}, asked = "";

  const get = (name) => wb.address.get(name);
  const drawn = () => ["base", "renderings"].includes(get("kind"));
  const inputs = () => [...page.slot("form").querySelectorAll("input, select")].filter((input) => !input.closest("[hidden]"));
  const values = () => Object.fromEntries(inputs().map((input) => [input.name, wb.valueOf(input)]));
  const changed = () => Object.fromEntries(Object.entries(values()).filter(([name, value]) => initial[name] !== value));

  // The form of the rewards comes from the server; those that know nothing of the task are not offered.
  const bringForm = async () => {
    const run = get("run");
    if (!run || formOf === run) return;
    formOf = run;
    const reply = await page.ask("settings", { run });
    if (run !== get("run")) return;
    wb.complain(page.slot("errors"), reply.errors || []);
    if (reply.errors) return;
    page.slot("form").innerHTML = reply.form;
    ({ domain, judges } = reply);
    for (const line of page.slot("form").querySelectorAll(".wb-line")) line.hidden = Boolean(line.dataset.domain) && line.dataset.domain !== domain;
    initial = values();
    const others = JSON.parse(get("form") || "{}");
    for (const input of inputs()) if (input.name in others) input.type === "checkbox" ? input.checked = others[input.name] : input.value = others[input.name];
    page.slot("combine").value = get("combine") || reply.combine;
    asked = "";
    refresh();
  };

  const question = () => {
    const more = drawn() ? { prompts: Number(get("prompts") || 8), each: Number(get("each") || 8), seed: Number(get("seed") || 0) } : {};
    const at = !drawn() && get("at") !== "" ? { at: Number(get("at")) } : !drawn() && !get("kind") && known && known.rollouts.length ? { at: known.rollouts.at(-1)[1] } : {};
    const sent = Object.fromEntries(Object.entries(values()).filter(([name]) => !name.endsWith(".weight")));
    return { pictures: { run: get("run"), kind: get("kind") || "rollout", ...at, ...more }, form: sent };
  };
  const refresh = wb.latest(async (outdated) => {
    if (!page.slot("form").childElementCount || !known) return;
    const ask = question(), key = JSON.stringify(ask);
    if (key === asked) return;
    asked = key;
    setAttr(page.root, "aria-busy", true);
    const reply = await page.ask("attempt", ask);
    if (!reply.errors) await ready(reply.sheet);
    if (outdated() && JSON.stringify(question()) !== key) return;
    setAttr(page.root, "aria-busy", false);
    wb.complain(page.slot("errors"), reply.errors || []);
    if (reply.errors) return;
    held = reply;
    weighed = null;
    takeWeights();
    draw();
    weigh();
  });
  const weightInput = (name) => page.slot("form").querySelector(`[name="rewards.${name}.weight"]`);
  const takeWeights = () => { weights = Object.fromEntries(held.rewards.map(({ name }) => [name, Number(weightInput(name).value)])); sliders(); };

  const sound = () => held.rewards.filter((reward) => !reward.failure);
  const weigh = async () => {
    wb.complain(page.slot("refused"), []);
    if (!held.group_size) return;
    const use = sound(), ask = { run: get("run"), group_size: held.group_size, combine: page.slot("combine").value,
      values: Object.fromEntries(use.map((reward) => [reward.name, reward.values])), weights: Object.fromEntries(use.map((reward) => [reward.name, weights[reward.name]])) };
    const of = held, reply = use.length ? await page.ask("weigh", ask) : { errors: ["No reward gave every picture a number, so there is nothing to add up."] };
    if (of !== held) return;
    wb.complain(page.slot("refused"), reply.errors || []);
    weighed = reply.errors ? null : reply;
    groups();
    ranking();
  };
  const weighSoon = wb.settled(60, weigh);

  const sliders = () => {
    const box = page.slot("weights"), key = held.rewards.map((reward) => reward.name).join();
    if (box.dataset.key !== key) {
      box.dataset.key = key;
      box.replaceChildren(...held.rewards.map(({ name }) => {
        const label = make("label", "rw-weight"), range = Object.assign(make("input"), { type: "range", min: -1, max: 2, step: 0.05 });
        range.dataset.of = name;
        label.append(make("span", "", wb.words(name)), range, make("output"));
        range.addEventListener("input", () => {
          weights[name] = Number(range.value);
          weightInput(name).value = range.value;
          setText(label.lastChild, range.value);
          remember();
          weighSoon();
        });
        return label;
      }));
    }
    for (const label of box.children) {
      const range = label.querySelector("input"), weight = weights[range.dataset.of];
      if (weight > Number(range.max)) range.max = String(weight);
      range.value = String(weight);
      range.disabled = Boolean(held.rewards.find((reward) => reward.name === range.dataset.of).failure);
      setText(label.lastChild, String(weight));
    }
  };
  const remember = () => { const all = changed(); wb.address.set({ form: Object.keys(all).length ? JSON.stringify(all) : "" }); };

  const share = (value) => value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`;
  const two = (value) => value === null || value === undefined ? "–" : wb.number(value, 3);
  const draw = () => {
    const count = held.prompts.length;
    setText(page.slot("title"), `${held.title}: ${count} pictures${held.group_size ? `, ${held.group_size} of each prompt` : ""}`);
    const heads = ["reward", "mean", "lowest", "highest", "different values", "ties", "NaN", "spread within a prompt", "prompts without signal", "ms per picture"];
    const node = wb.table("What each reward says of these pictures", heads, held.rewards.filter((reward) => reward.values).map((reward) => [
      wb.words(reward.name), two(reward.mean), two(reward.low), two(reward.high), String(reward.distinct), String(reward.tied), String(reward.missing), two(reward.within), share(reward.quiet), two(reward.milliseconds)]));
    node.querySelector("caption").className = "wb-sr";
    const failed = held.rewards.filter((reward) => reward.failure).map((reward) => make("p", "rw-failed", `✕ ${wb.words(reward.name)} ${reward.failure}`));
    page.slot("table").replaceChildren(...(held.rewards.some((reward) => reward.values) ? [node] : []), ...failed);
    setText(page.slot("measured"), held.group_size ? "a prompt without signal scores all its pictures alike: GRPO learns nothing from it" : "");
    const menu = page.slot("by"), by = get("by");
    menu.replaceChildren(...(held.group_size ? [new Option("all, weighted", "")] : []), ...held.rewards.filter((reward) => reward.values).map((reward) => new Option(wb.words(reward.name), reward.name)));
    if ([...menu.options].some((option) => option.value === by)) menu.value = by;
    wb.charts.draw(page, "agreement", held.agreement, "agreement");
    groups();
    ranking();
  };

  const tile = (index, way, first, second, words) => {
    const node = make("span", "wb-tile rw-tile"), picture = make("span", "pic");
    setAttr(node, "data-way", way);
    paint(picture, held.sheet, index, 80);
    node.style.setProperty("--w", picture.style.width);
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", words);
    node.title = words;
    node.append(picture, make("span", "adv", first), make("span", "rew", second));
    return node;
  };
  const groups = () => {
    const box = page.slot("groups"), left = held.rewards.filter((reward) => reward.failure).map((reward) => wb.words(reward.name));
    setText(page.slot("quiet"), weighed ? `${weighed.quiet} of ${weighed.groups} groups without gradient${left.length ? `; without ${left.join(", ")}, which failed` : ""}` : "");
    if (!weighed) return box.replaceChildren(make("p", "wb-wait", held.group_size ? "Being weighed." : "These pictures are not in groups of one size, so that they cannot compete: choose a rollout, or pictures that are drawn now."));
    const rows = Array.from({ length: weighed.groups }, (_, group) => {
      const row = make("section", "wb-group"), head = make("div", "wb-prompt"), tiles = make("div", "wb-tiles");
      const index = Array.from({ length: held.group_size }, (_, turn) => group * held.group_size + turn).sort((i, j) => weighed.advantages[j] - weighed.advantages[i] || i - j);
      const quiet = index.every((i) => weighed.advantages[i] === 0);
      setAttr(row, "data-quiet", quiet);
      head.append(make("h3", "", held.prompts[index[0]]), ...(quiet ? [make("span", "wb-quiet", "no gradient")] : []));
      tiles.append(...index.map((i) => {
        const advantage = weighed.advantages[i], way = advantage === 0 ? "none" : advantage > 0 ? "up" : "down";
        const node = tile(i, way, quiet ? "○" : `${{ up: "▲", down: "▼", none: "○" }[way]} ${signed(advantage)}`, weighed.total[i].toFixed(2), `${held.prompts[i]}, seed ${held.seeds[i]}: advantage ${signed(advantage)}, weighted sum ${weighed.total[i].toFixed(2)}`);
        node.style.setProperty("--pull", `${Math.min(100, 35 + 35 * Math.abs(advantage))}%`);
        return node;
      }));
      row.append(head, tiles);
      return row;
    });
    box.replaceChildren(...rows);
  };
  const ranking = () => {
    const name = page.slot("by").value, reward = held.rewards.find((each) => each.name === name);
    const source = name ? reward : weighed && { values: weighed.total, places: weighed.places, shared: weighed.shared, figure: weighed.figure };
    if (!source) { page.slot("wall").replaceChildren(); return setText(page.slot("rank-note"), ""); }
    const order = held.prompts.map((_, index) => index).sort((i, j) => (source.places[i] ?? Infinity) - (source.places[j] ?? Infinity) || i - j);
    const ties = source.shared.filter(Boolean).length, missing = source.places.filter((place) => place === null).length;
    setText(page.slot("rank-note"), `${ties ? `${ties} pictures share their place with another, marked =.` : "No two pictures share a place."}${missing ? ` ${missing} have no value and stand last, marked ✕.` : ""}`);
    page.slot("wall").replaceChildren(...order.map((index) => {
      const place = source.places[index], text = place === null ? "✕" : `${source.shared[index] ? "=" : ""}${place}`;
      return tile(index, "none", text, source.values[index] === null ? "NaN" : wb.number(source.values[index], 3), `place ${text}: ${held.prompts[index]}, seed ${held.seeds[index]}, ${source.values[index] === null ? "no value" : wb.number(source.values[index], 4)}`);
    }));
    wb.charts.draw(page, "values", source.figure, name);
  };

  const menus = () => {
    const kind = get("kind");
    page.slot("kind").value = kind;
    setText(page.slot("kind-help"), KIND_HELP[kind] || "");
    for (const field of page.root.querySelectorAll("[data-of]")) if (field.matches(".wb-field")) show(field, (field.dataset.of === "drawn") === drawn());
    if (!known || drawn()) return;
    const entries = kind === "evaluation" ? known.evaluations.map((at) => [at, at]) : known.rollouts;
    const menu = page.slot("at"), key = JSON.stringify([kind, entries]);
    if (menu.dataset.key !== key) {
      menu.dataset.key = key;
      menu.replaceChildren(new Option(entries.length ? `latest (${entries.at(-1)[0]})` : "none yet", ""), ...entries.slice(0, -1).reverse().map(([at, row]) => new Option(at, row)));
    }
    menu.value = [...menu.options].some((option) => option.value === get("at")) ? get("at") : "";
  };

  const parts = {
    run(id) { if (get("run") !== id) wb.address.set({ run: id }); },
    known(found) { known = found; },
  };
  const told = () => {
    show(page.slot("body"), Boolean(known) && !page.held.problem);
    show(page.slot("empty"), !wb.runs.length && !page.held.problem);
    if (!known) return;
    menus();
    bringForm();
    refresh();
  };
  const open = () => {
    page.forget();
    known = null;
    formOf = asked = "";
    for (const [slot, otherwise] of [["prompts", 8], ["each", 8], ["seed", 0]]) page.slot(slot).value = get(slot) || otherwise;
    menus();
  };

  for (const slot of ["kind", "at", "prompts", "each", "seed"]) {
    page.slot(slot).addEventListener("change", (event) => { wb.address.set({ [slot]: event.target.value, ...(slot === "kind" ? { at: "" } : {}) }); menus(); refresh(); });
  }
  const formSoon = wb.settled(300, () => { remember(); refresh(); });
  page.slot("form").addEventListener("input", (event) => {
    if (!event.target.name.endsWith(".weight")) return formSoon();
    remember();
    if (held) { takeWeights(); weighSoon(); }
  });
  page.slot("form").addEventListener("submit", (event) => event.preventDefault());
  page.slot("combine").addEventListener("change", (event) => { wb.address.set({ combine: event.target.value }); if (held) weigh(); });
  page.slot("by").addEventListener("change", (event) => { wb.address.set({ by: event.target.value }); ranking(); });
  page.root.addEventListener("click", (event) => {
    if (!event.target.closest('[data-act="train"]')) return;
    const changes = Object.fromEntries(held ? sound().map(({ name }) => [`rewards.${name}`, weights[name]]) : []);
    for (const name of judges) if (changes[`rewards.${name}`] !== undefined) changes[`eval_rewards.${name}`] = 0; // what is trained on cannot judge
    for (const input of page.slot("form").querySelectorAll('.wb-line:not([hidden]) [name$=".use"]')) {
      const name = input.name.split(".")[1];
      if (!input.checked && initial[input.name]) changes[`rewards.${name}`] = 0; // the run had it, and now it shall not
    }
    wb.go("train", { new: "yes", with: JSON.stringify({ ...changes, "grpo.combine": page.slot("combine").value }) });
  });

  return { parts, told, open };
});
