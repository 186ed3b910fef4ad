// The form of a new run: which fields show, what is sent, and where a refusal belongs. The fields themselves come from the server.
window.workbench.form = (() => {
  const wb = window.workbench;

  const values = () => Object.fromEntries(inputs().map((input) => [input.name, input.type === "checkbox" ? input.checked : input.value.trim()]));

  // Fields of an extension that is not chosen are hidden, and hidden fields are not sent.
  const follow = (menu) => {
    for (const box of wb.slot("form").querySelectorAll(`[data-of="${menu.dataset.choice}"]`)) box.hidden = box.dataset.name !== menu.value;
  };
  // A setting that matters only beside certain values of its neighbours shows only beside them, and elsewhere is not sent.
  const relevant = () => {
    for (const field of wb.slot("form").querySelectorAll("[data-when]")) {
      const group = field.dataset.field.replace(/[^.]+$/, "");
      const holds = ([name, fitting]) => fitting.includes(wb.slot("form").querySelector(`[name="${group}${name}"]`).value);
      field.hidden = !Object.entries(JSON.parse(field.dataset.when)).every(holds);
    }
  };

  // Models and rewards that know nothing of the task's domain are not offered; those in use are put away with them.
  const fitting = () => {
    const form = wb.slot("form"), about = form.querySelector('[name="task.name"]').selectedOptions[0].dataset.domain;
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
      const reply = await wb.ask("explain", values());
      refuse(reply.errors || []);
      if (reply.noise) tabulate(reply.noise);
    }, 300);
  };
  const tabulate = (steps) => {
    const menu = wb.slot("form").querySelector('[data-choice="sampler"]');
    let box = wb.slot("form").querySelector(".wb-noise");
    if (!box) {
      box = document.createElement("div");
      box.className = "wb-noise";
      menu.closest("fieldset").append(box);
    }
    const unit = (step) => step.t >= 1 && step.share < 1 ? "–" : step.share >= 1 ? "all" : wb.number(step.rate, 2);
    const cells = (kind, parts) => `<tr>${parts.map((part) => `<${kind}>${part}</${kind}>`).join("")}</tr>`;
    const rows = steps.map((step) => cells("td", [`${wb.number(step.t, 2)} → ${wb.number(step.s, 2)}`, wb.number(step.std, 2), `${Math.round(100 * Math.min(step.share, 9.99))} %`, unit(step)]));
    box.innerHTML = `<table><caption>Noise of each stochastic step. Fresh: its share of the noise at that time. λ: one unit for all kernels, whatever the steps.</caption><thead>${cells("th", ["time", "std", "fresh", "λ"])}</thead><tbody>${rows.join("")}</tbody></table>`;
  };

  const mark = (input) => {
    const field = input.closest(".wb-field, .wb-inline");
    const value = input.type === "checkbox" ? String(input.checked) : input.value;
    if (field) field.classList.toggle("changed", input.dataset.initial !== undefined && input.dataset.initial !== value);
  };
  const remember = () => wb.slot("form").querySelectorAll("[name]").forEach((input) => {
    input.dataset.initial = input.type === "checkbox" ? String(input.checked) : input.value;
  });

  // A refusal names a field as configuration files do: without the extension's name, and list entries by their place.
  const inputs = () => [...wb.slot("form").querySelectorAll("[name]")].filter((input) => !input.closest(".wb-extension[hidden], .wb-field[hidden]"));
  const keyOf = (input) => {
    const box = input.closest(".wb-extension"), list = input.closest(".wb-list");
    if (box) return input.name.replace(`${box.dataset.of}.${box.dataset.name}.`, `${box.dataset.of}.`);
    if (!list) return input.name;
    const used = [...list.querySelectorAll('[name$=".use"]:checked')].map((check) => check.closest(".wb-line"));
    const parts = input.name.split(".");
    return [parts[0], used.indexOf(input.closest(".wb-line")), ...parts.slice(2)].join(".");
  };

  const refuse = (lines) => {
    wb.complain("errors", lines);
    for (const field of wb.slot("form").querySelectorAll(".wrong")) field.classList.remove("wrong");
    for (const line of lines) {
      const input = inputs().find((candidate) => keyOf(candidate) === line.split(/ = |: /)[0]);
      if (!input) continue;
      (input.closest(".wb-field") || input).classList.add("wrong");
      const fold = input.closest("details");
      if (fold) fold.open = true;
    }
  };

  const open = (yes) => {
    wb.show(wb.slot("new"), yes);
    wb.root.querySelector('.wb-top [data-act="new"]').setAttribute("aria-expanded", String(yes));
    if (yes) wb.slot("new").scrollIntoView({ block: "start", behavior: "smooth" });
    if (yes && !wb.slot("form").querySelector(".wb-noise")) explain();
  };

  const fill = async (asked) => {
    const reply = await wb.ask("settings", asked);
    if (reply.form) { wb.slot("form").innerHTML = reply.form; remember(); fitting(); relevant(); explain(); }
    refuse(reply.errors || []);
  };

  const start = async (button) => {
    button.disabled = true;
    const reply = await wb.ask("start", values());
    button.disabled = false;
    refuse(reply.errors || []);
    if (reply.run) { open(false); wb.choose(reply.run); window.scrollTo({ top: 0 }); } else open(true);
  };

  const acts = {
    new: () => open(wb.slot("new").hidden),
    close: () => open(false),
    start: (button) => start(button),
    "start-default": (button) => start(button),
    reset: () => fill({ preset: wb.slot("preset").value }),
    same: () => wb.run && fill({ run: wb.run }),
  };

  const bind = () => {
    remember();
    fitting();
    relevant();
    wb.root.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-act]");
      if (button && acts[button.dataset.act]) acts[button.dataset.act](button);
    });
    wb.slot("preset").addEventListener("change", (event) => fill({ preset: event.target.value }));
    wb.slot("form").addEventListener("change", (event) => {
      if (event.target.dataset.choice) follow(event.target);
      mark(event.target);
      if (event.target.name === "task.name") fitting();
      relevant();
      explain();
    });
    wb.slot("form").addEventListener("submit", (event) => { event.preventDefault(); start(wb.root.querySelector('[data-act="start"]')); });
  };

  return { bind };
})();
