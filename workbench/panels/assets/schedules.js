// Schedules: what is to be run when, when that will be next, and what became of the times that have passed.
window.workbench.schedules = ({ page, keyed, button, values, known, view }) => {
  const wb = window.workbench, { make, setText, setAttr, show } = wb, { slot } = page;
  const SIGNS = { begun: "✓", skipped: "–", failed: "✕" };
  let changing = "", filled = "";

  const trigger = () => {
    const kind = slot("trigger").value;
    if (kind === "every") return { name: "every", amount: Number(slot("amount").value), unit: slot("unit").value };
    if (kind === "at") return { name: "at", moment: slot("moment").value.replace("T", " ") };
    return { name: "cron", line: kind === "cron" ? slot("cron").value : kind };
  };
  const question = () => ({ name: slot("plan-name").value.trim(), what: slot("what").value, fixed: slot("plan-fixed").value, trigger: trigger(), plan: values(slot("plan-more")), change: changing });
  const explain = wb.settled(300, async () => {
    if (view() !== "schedules") return;
    const reply = await page.ask("explain_schedule", { ...question(), name: slot("plan-name").value.trim() || "preview" });
    wb.complain(slot("plan-errors"), reply.errors || []);
    setText(slot("times"), reply.errors ? "" : reply.times.length ? `Next (${reply.zone}): ${reply.times.join(" · ")}` : "It would never fire.");
  });
  const fields = () => {
    const kind = slot("trigger").value;
    for (const each of slot("plan").querySelectorAll("[data-when-trigger]")) show(each, each.dataset.whenTrigger === kind);
    show(slot("plan-fixed-box"), !slot("what").value.startsWith("sweep:"));
  };
  const change = (each) => {
    const { settings } = each, { work, trigger: when } = settings;
    changing = each.name;
    slot("plan-name").value = each.name;
    slot("plan-name").disabled = true;
    const what = work.kind === "notebook" ? `notebook:${work.config.notebook}` : "";
    if (what) slot("what").value = what;
    slot("plan-fixed").value = work.kind === "notebook" ? Object.entries(work.config.parameters || {}).map(([name, value]) => `${name} = ${typeof value === "string" ? value : JSON.stringify(value)}`).join("\n") : "";
    const known = [...slot("trigger").options].some((option) => option.value === when.line);
    slot("trigger").value = when.name === "cron" ? (known ? when.line : "cron") : when.name;
    if (when.name === "cron") slot("cron").value = when.line;
    if (when.name === "every") Object.assign(slot("amount"), { value: when.amount }), slot("unit").value = when.unit;
    if (when.name === "at") slot("moment").value = when.moment.replace(" ", "T");
    for (const input of slot("plan-more").querySelectorAll("[name]")) input.value = settings[input.name] ?? "";
    head();
    fields();
    explain();
    slot("plan").scrollIntoView({ block: "start", behavior: "smooth" });
  };
  const head = () => {
    setText(slot("plan-head"), changing ? `Change ${changing}` : "New schedule");
    setText(page.root.querySelector('[data-act="plan"]'), changing ? "Save the change" : "Plan it");
    show(page.root.querySelector('[data-act="plan-new"]'), Boolean(changing));
  };
  const fresh = () => { changing = ""; slot("plan").reset(); slot("plan-name").disabled = false; head(); fields(); explain(); };

  const say = (reply, text, undo) => { reply.errors ? wb.toast(reply.errors.join(" ")) : wb.toast(text, undo); page.forget("schedules"); };
  const card = () => make("section", "wb-card ex-schedule");
  const remove = (each) => {
    const back = async () => say(await page.ask("restore", { name: each.name }), `${each.name} is back`);
    return button("Remove", async () => say(await page.ask("remove", { name: each.name }), `${each.name} was removed`, each.broken ? null : back));
  };
  const draw = (node, each) => {
    if (each.broken) {
      const head = make("div", "wb-head"), acts = make("div", "wb-row");
      acts.append(remove(each));
      head.append(make("h2", "", each.name), acts);
      return node.replaceChildren(head, make("p", "ex-error", each.broken));
    }
    const top = make("div", "wb-head"), acts = make("div", "wb-row"), about = make("p", "wb-note"), past = make("div", "ex-past");
    const state = each.paused ? `paused: ${each.paused}` : each.next === null ? "over: it has no time left" : `next ${wb.when(each.next)}`;
    top.append(make("h2", "", each.name), acts);
    acts.append(button("Run now", async () => say(await page.ask("once", { name: each.name }), `${each.name}: queued`)),
      button(each.paused ? "Resume" : "Pause", async () => say(await page.ask("pause", { name: each.name, go: Boolean(each.paused) }), each.paused ? `${each.name} goes on` : `${each.name} is paused`)),
      ...(each.settings.work.kind === "notebook" ? [button("Change", () => change(each))] : []),
      remove(each));
    about.append(`${each.what} · ${each.when} (${each.zone}) · `, make("b", each.paused ? "ex-paused" : "", state), each.budget ? ` · ${wb.number(each.hours)} of ${each.budget} hours spent` : "");
    past.append(...each.firings.map((firing) => {
      const text = `${SIGNS[firing.state]} ${wb.when(firing.due)}${firing.missed ? `, for ${firing.missed} missed` : ""}`;
      const node = firing.run ? button(text, () => wb.go("train", { run: firing.run })) : make("span", `ex-firing ${firing.state}`, text);
      if (firing.reason) node.title = firing.reason;
      return node;
    }));
    if (!each.firings.length) past.append(make("small", "wb-note", "It has not fired yet."));
    const trouble = each.firings.find((firing) => firing.reason && firing.state !== "begun");
    node.replaceChildren(top, about, past, ...(trouble ? [make("small", "ex-error", `${wb.when(trouble.due)}: ${trouble.reason}`)] : []));
  };
  const list = (schedules) => {
    const box = slot("schedules");
    let none = box.querySelector(".ex-none"), lines = box.querySelector(".ex-lines");
    if (!lines) {
      none = make("section", "wb-card ex-none");
      none.append(make("h2", "", "Nothing is planned"), make("p", "wb-note", "Plan a notebook for tonight: it runs by itself as long as this app, or python -m workbench schedule serve, is running. What was missed meanwhile is made up for once, and every time fires exactly once however many of them run. In the morning, the digest says what came out."));
      lines = make("div", "ex-lines");
      box.replaceChildren(none, lines);
    }
    show(none, !schedules.length);
    keyed(lines, schedules, (each) => each.name, card, draw);
  };

  const submit = async (event) => {
    event.preventDefault();
    const reply = await page.ask("add", question());
    wb.complain(slot("plan-errors"), reply.errors || []);
    if (reply.errors) return;
    wb.toast(changing ? `${reply.name} is changed` : `${reply.name} is planned`);
    page.forget("schedules");
    fresh();
  };
  const open = () => {
    const { notebooks, presets } = known();
    if (!slot("what").options.length && presets.length) {
      const sweeps = wb.runs.filter((run) => run.kind === "sweep").map((run) => new Option(`${run.title} · ${wb.when(run.created)}`, `sweep:${run.id}`));
      slot("what").append(wb.grouped("Notebooks", notebooks.filter((each) => !each.problem).map((each) => new Option(each.title, `notebook:${each.name}`))),
        ...wb.presetMenu(presets), ...(sweeps.length ? [wb.grouped("Sweeps", sweeps)] : []));
      fields();
    }
    const of = wb.address.get("of"), key = of + wb.address.get("fixed");
    if (view() === "schedules" && of && key !== filled) {
      filled = key;
      slot("what").value = of;
      slot("plan-fixed").value = Object.entries(JSON.parse(wb.address.get("fixed") || "{}")).map(([name, value]) => `${name} = ${value}`).join("\n");
      fields();
    }
    explain();
  };
  slot("plan").addEventListener("submit", submit);
  slot("plan").addEventListener("input", () => { fields(); explain(); });

  return { open, parts: { schedules: list }, acts: { "plan-new": fresh } };
};
