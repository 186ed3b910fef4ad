// The form of a new run: which fields show, what is sent, and where a refusal belongs. The fields themselves come from the server.
window.workbench.form = (page) => {
  const wb = window.workbench;

  const values = () => Object.fromEntries(inputs().map((input) => [input.name, wb.valueOf(input)]));

  // Fields of an extension that is not chosen are hidden, and hidden fields are not sent.
  const follow = (menu) => {
    for (const box of page.slot("form").querySelectorAll(`[data-of="${menu.dataset.choice}"]`)) box.hidden = box.dataset.name !== menu.value;
  };
  // A setting that matters only beside certain values of its neighbours shows only beside them, and elsewhere is not sent.
  const relevant = () => {
    for (const field of page.slot("form").querySelectorAll("[data-when]")) {
      const group = field.dataset.field.replace(/[^.]+$/, "");
      const holds = ([name, fitting]) => fitting.includes(page.slot("form").querySelector(`[name="${group}${name}"]`).value);
      field.hidden = !Object.entries(JSON.parse(field.dataset.when)).every(holds);
    }
  };

  // Models and rewards that know nothing of the task's domain are not offered; those in use are put away with them.
  const fitting = () => {
    const form = page.slot("form"), about = form.querySelector('[name="task.name"]').selectedOptions[0].dataset.domain;
    const fits = (element) => !element.dataset.domain || element.dataset.domain === about;
    for (const line of form.querySelectorAll(".wb-line")) {
      line.hidden = !fits(line);
      if (line.hidden) line.querySelector('[name$=".use"]').checked = false;
    }
    const menu = form.querySelector('[name="model.name"]');
    for (const option of menu.options) option.hidden = option.disabled = !fits(option);
    if (!fits(menu.selectedOptions[0])) { menu.value = [...menu.options].find(fits).value; follow(menu); mark(menu); }
  };

  // While settings change: the noise of every step in one unit for all kernels, or why there can be no such run.
  let waiting = null;
  const explain = () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const reply = await page.ask("explain", values());
      refuse(reply.errors || []);
      if (reply.noise) tabulate(reply.noise);
    }, 300);
  };
  const tabulate = (steps) => {
    const menu = page.slot("form").querySelector('[data-choice="sampler"]');
    let box = page.slot("form").querySelector(".wb-noise");
    if (!box) {
      box = document.createElement("div");
      box.className = "wb-noise";
      menu.closest("fieldset").append(box);
    }
    box.replaceChildren(wb.noise("Noise of each stochastic step. Fresh: its share of the noise at that time. λ: one unit for all kernels, whatever the steps.", steps));
  };

  const mark = (input) => {
    const field = input.closest(".wb-field, .wb-inline");
    if (field) field.classList.toggle("changed", input.dataset.initial !== undefined && input.dataset.initial !== String(wb.valueOf(input)));
  };
  const remember = () => page.slot("form").querySelectorAll("[name]").forEach((input) => {
    input.dataset.initial = String(wb.valueOf(input));
  });

  // A refusal names a field as configuration files do: without the extension's name, and list entries by their place.
  const inputs = () => [...page.slot("form").querySelectorAll("[name]")].filter((input) => !input.closest(".wb-extension[hidden], .wb-field[hidden]"));
  const keyOf = (input) => {
    const box = input.closest(".wb-extension"), list = input.closest(".wb-list");
    if (box) return input.name.replace(`${box.dataset.of}.${box.dataset.name}.`, `${box.dataset.of}.`);
    if (!list) return input.name;
    const used = [...list.querySelectorAll('[name$=".use"]:checked')].map((check) => check.closest(".wb-line"));
    const parts = input.name.split(".");
    return [parts[0], used.indexOf(input.closest(".wb-line")), ...parts.slice(2)].join(".");
  };

  const refuse = (lines) => {
    wb.complain(page.slot("errors"), lines);
    for (const field of page.slot("form").querySelectorAll(".wrong")) field.classList.remove("wrong");
    for (const line of lines) {
      const input = inputs().find((candidate) => keyOf(candidate) === line.split(/ = |: /)[0]);
      if (!input) continue;
      (input.closest(".wb-field") || input).classList.add("wrong");
      const fold = input.closest("details");
      if (fold) fold.open = true;
    }
  };

  const open = (yes) => {
    const box = page.slot("new"), opening = yes && box.hidden;
    wb.show(box, yes);
    if (opening) box.scrollIntoView({ block: "start", behavior: "smooth" });
    if (opening && !page.slot("form").querySelector(".wb-noise")) explain();
  };

  // Where a branch begins, if this is the form of one.
  let from = {};
  const fill = async (asked) => {
    const button = page.root.querySelector('[data-act="start"]');
    button.disabled = true; // until the form says what would start
    const reply = await page.ask("settings", asked);
    button.disabled = false;
    from = reply.note ? { parent: asked.parent, iteration: asked.iteration } : {};
    wb.setText(page.slot("branch"), reply.note || "");
    wb.show(page.slot("branch"), Boolean(reply.note));
    if (reply.preset) page.slot("preset").value = reply.preset;
    if (reply.form) { page.slot("form").innerHTML = reply.form; remember(); fitting(); relevant(); explain(); }
    refuse(reply.errors || []);
  };

  const start = async (button) => {
    button.disabled = true;
    const reply = await page.ask("start", { settings: values(), ...from });
    button.disabled = false;
    refuse(reply.errors || []);
    wb.go("train", reply.run ? { run: reply.run, new: "", with: "", preset: "" } : { new: "yes" });
    if (reply.run) window.scrollTo({ top: 0 });
  };

  const acts = {
    close: () => wb.go("train", { new: "", with: "", preset: "" }),
    start: (button) => start(button),
    "start-default": (button) => start(button),
    reset: () => fill({ preset: page.slot("preset").value }),
    same: () => wb.address.get("run") && fill({ run: wb.address.get("run") }),
  };

  remember();
  fitting();
  relevant();
  page.root.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-act]");
    if (button && acts[button.dataset.act]) acts[button.dataset.act](button);
  });
  page.slot("preset").addEventListener("change", (event) => fill({ preset: event.target.value }));
  page.slot("form").addEventListener("change", (event) => {
    if (event.target.dataset.choice) follow(event.target);
    mark(event.target);
    if (event.target.name === "task.name") fitting();
    relevant();
    explain();
  });
  page.slot("form").addEventListener("submit", (event) => { event.preventDefault(); start(page.root.querySelector('[data-act="start"]')); });

  // What another page, or a link, asks the form to begin with: a preset or the run in the address, changed; or a branch.
  let prefilled = "";
  const prefill = () => {
    const wanted = wb.address.get("with"), preset = wb.address.get("preset"), key = `${wanted} ${preset}`;
    if (key === prefilled || !key.trim()) return;
    prefilled = key;
    let changes = {};
    try { changes = JSON.parse(wanted || "{}"); } catch { return refuse(["The link's settings cannot be read; they were left out."]); }
    const { parent, iteration, ...rest } = changes;
    fill({ parent, iteration, preset, run: wb.address.get("run"), changes: rest });
  };

  return { open, prefill, values };
};
