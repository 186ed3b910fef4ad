// Sweeps: their list, the form of a new one, and how one went, point by point.
window.workbench.sweeps = ({ page, keyed, badge, bar, button, told, values, stop, known, view, open }) => {
  const wb = window.workbench, { make, setText, setAttr, show } = wb, { slot } = page;
  let held = null, filled = "";

  const chosen = () => wb.address.get("sweep");
  const row = (name = "", text = "") => {
    const line = make("div", "ex-axis"), key = make("input"), axis = make("input");
    Object.assign(key, { type: "text", value: name, placeholder: "sampler.noise", spellcheck: false });
    Object.assign(axis, { type: "text", value: text, placeholder: "0.3, 0.6, 0.9", spellcheck: false });
    key.setAttribute("list", "ex-keys");
    key.setAttribute("aria-label", "Setting that is varied");
    axis.setAttribute("aria-label", "Its values");
    line.append(key, axis, button("✕", () => { line.remove(); explain(); }, "wb-button small quiet"));
    line.lastChild.setAttribute("aria-label", "Leave it out");
    return line;
  };
  const space = () => [...slot("space").children].map((line) => [...line.querySelectorAll("input")].map((input) => input.value));
  const question = () => ({ target: slot("target").value, title: slot("sweep-title").value.trim(), fixed: slot("fixed").value, space: space(), search: values(slot("search")) });
  const complete = () => space().some(([name, text]) => name.trim() && text.trim());
  const explain = wb.settled(350, async () => {
    if (!complete()) return setText(slot("size"), "");
    const reply = await page.ask("explain_sweep", question());
    wb.complain(slot("sweep-errors"), reply.errors || []);
    const runs = reply.runs === 1 ? "1 run" : `${reply.runs} runs`;
    setText(slot("size"), reply.errors ? "" : reply.seeds > 1 ? `${reply.points} points x ${reply.seeds} seeds = ${runs}` : `${reply.points} points, ${runs}`);
  });
  const keys = () => {
    const { notebooks } = known(), [kind, name] = slot("target").value.split(":");
    const found = kind === "notebook" ? (notebooks.find((each) => each.name === name) || { parameters: [] }).parameters.map((each) => each.name)
      : ["sampler.noise", "sampler.anchor", "optimizer.learning_rate", "objective.kl_weight", "objective.clip_range", "grpo.group_size", "grpo.groups", "rollout.steps", "adapter.rank", "seed"];
    page.root.querySelector("#ex-keys").replaceChildren(...found.map((each) => new Option(each, each)));
  };
  const fill = (settings) => {
    const { target, space: axes, title, ...rest } = settings;
    slot("target").value = target.preset ? `preset:${target.preset}` : `notebook:${target.notebook}`;
    slot("sweep-title").value = title || "";
    slot("fixed").value = Object.entries(target.preset ? target.changes : target.parameters).map(([name, value]) => `${name} = ${typeof value === "string" ? value : JSON.stringify(value)}`).join("\n");
    const text = (axis) => Array.isArray(axis) ? axis.map((value) => typeof value === "string" ? value : JSON.stringify(value)).join(", ")
      : `${axis.low}..${axis.high}${axis.log ? ":log" : ""}${axis.step ? `:step=${axis.step}` : ""}${axis.count ? `:${axis.count}` : ""}`;
    slot("space").replaceChildren(...Object.entries(axes).map(([name, axis]) => row(name, text(axis))));
    for (const input of slot("search").querySelectorAll("[name]")) if (input.name in rest) input.value = rest[input.name] === null ? "" : Array.isArray(rest[input.name]) ? rest[input.name].join(", ") : rest[input.name];
    keys();
    explain();
  };

  const list = (sweeps) => keyed(slot("sweeps"), sweeps.map((each) => ({ ...each, on: each.id === chosen() })), (each) => each.id, () => make("button", "ex-item"), (node, each) => {
    node.type = "button";
    node.onclick = () => { wb.address.set({ sweep: each.id, of: "", fixed: "" }, true); open(); };
    setAttr(node, "aria-current", each.on);
    const line = make("small", "");
    line.append(badge(each), ` ${each.iteration} of ${each.iterations || "?"} points · ${each.metric}`);
    node.replaceChildren(make("b", "", each.title), line, ...(each.status === "running" ? [bar(each)] : []));
  });

  const two = (value) => value === null ? "–" : wb.number(value);
  const results = (found) => {
    held = found;
    setText(slot("sweep-head"), `${found.title} · ${found.status}`);
    setText(slot("sweep-error"), found.error || "");
    show(slot("sweep-error"), Boolean(found.error));
    const over = ["done", "stopped", "failed", "crashed"].includes(found.status), act = (name) => page.root.querySelector(`[data-act="${name}"]`);
    show(act("stop-sweep"), !over);
    show(act("resume-sweep"), over && found.status !== "done");
    const best = found.points.find((point) => point.number === found.best), { metric, direction } = found.settings;
    const interval = best && best.low !== null ? ` (95 %: ${two(best.low)} to ${two(best.high)})` : "";
    setText(slot("best"), best ? `Best so far, ${direction === "max" ? "highest" : "lowest"} ${metric}: ${two(best.value)}${interval} with ${found.names.map((name, at) => `${name} = ${best.values[at]}`).join(", ")}.`
      : `No point is done yet; ${found.iteration} of ${found.iterations || "?"} are settled.`);
    const table = make("table"), head = make("tr"), body = make("tbody"), top = make("thead");
    head.append(...["", ...found.names, metric, "95 %", "iterations", "time", "status", "runs"].map((text) => make("th", "", text)));
    top.append(head);
    const place = (point) => point.value === null ? Infinity : direction === "max" ? -point.value : point.value; // the best first
    for (const point of [...found.points].sort((a, b) => place(a) === place(b) ? a.number - b.number : place(a) - place(b))) {
      const line = make("tr", point.number === found.best ? "ex-first" : ""), status = make("td", "", wb.words(point.status)), runs = make("td");
      if (point.error) { status.title = point.error; status.append(make("small", "ex-error", ` ${point.error}`)); }
      runs.append(...point.runs.map((run, at) => button(String(at + 1), () => wb.go("train", { run }), "wb-button small quiet")));
      line.append(make("td", "", point.number === found.best ? "★" : ""), ...point.values.map((value) => make("td", "", value)), make("td", "ex-value", two(point.value)),
        make("td", "", point.low === null ? "" : `${two(point.low)} to ${two(point.high)}`), make("td", "", String(point.iterations)), make("td", "", wb.duration(point.seconds)), status, runs);
      body.append(line);
    }
    table.append(make("caption", "", `${found.points.length} of ${found.iterations || "?"} points, the best first; the numbers on the right open the runs`), top, body);
    slot("points").replaceChildren(table);
    for (const [name, yes] of [["plane", found.names.length > 1], ["importance", found.names.length > 1 && over]]) show(page.root.querySelector(`[data-chart="${name}"]`), yes);
  };

  const opened = () => {
    const one = chosen(), { notebooks, presets } = known();
    show(slot("sweep-form"), !one);
    show(slot("sweep"), Boolean(one));
    show(slot("charts"), Boolean(one));
    if (held && held.id !== one) { held = null; slot("points").replaceChildren(); setText(slot("sweep-head"), ""); setText(slot("best"), ""); wb.charts.clear(page); }
    if (!slot("target").options.length && presets.length) {
      slot("target").append(...wb.presetMenu(presets),
        wb.grouped("Notebooks", notebooks.filter((each) => !each.problem).map((each) => new Option(each.title, `notebook:${each.name}`))));
      slot("space").replaceChildren(row());
      slot("search").querySelector('[name="metric"]').setAttribute("list", "ex-metrics");
      page.root.querySelector("#ex-metrics").replaceChildren(...["reward", "held_out/shapes_exact@4", "held_out/shapes_fidelity@4", "held_out/palette_distance@4"].map((each) => new Option(each, each)));
      slot("search").querySelector('[name="metric"]').value = "held_out/shapes_exact@4";
      keys();
    }
    const of = wb.address.get("of"), key = of + wb.address.get("fixed");
    if (view() === "sweeps" && of && key !== filled) {
      filled = key;
      slot("target").value = of;
      slot("fixed").value = Object.entries(JSON.parse(wb.address.get("fixed") || "{}")).map(([name, value]) => `${name} = ${value}`).join("\n");
      keys();
    }
  };
  slot("sweep-form").addEventListener("input", explain);
  slot("target").addEventListener("change", () => { keys(); explain(); });

  return {
    open: opened,
    parts: { sweeps: list, results },
    acts: {
      "new-sweep": () => { wb.address.set({ sweep: "" }, true); open(); },
      "more-space": () => { slot("space").append(row()); slot("space").lastChild.firstChild.focus(); },
      "stop-sweep": () => stop(held),
      "resume-sweep": async () => { const reply = await page.ask("resume", { sweep: held.id }); wb.toast(reply.errors ? reply.errors.join(" ") : "It goes on where it stopped."); },
      "again-sweep": () => { const { settings } = held; wb.address.set({ sweep: "" }, true); open(); fill(settings); },
      begin: async () => {
        const reply = await page.ask("begin", question());
        wb.complain(slot("sweep-errors"), reply.errors || []);
        if (reply.errors) return;
        wb.address.set({ sweep: reply.sweep, of: "", fixed: "" }, true);
        open();
      },
    },
  };
};
