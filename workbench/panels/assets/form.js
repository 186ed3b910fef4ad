// The form of a new run: which fields show, what is sent, and where a refusal belongs. The fields themselves come from the server.
window.workbench.form = (() => {
  const wb = window.workbench;

  const values = () => Object.fromEntries(inputs().map((input) => [input.name, input.type === "checkbox" ? input.checked : input.value.trim()]));

  // Fields of an extension that is not chosen are hidden, and hidden fields are not sent.
  const follow = (menu) => {
    for (const box of wb.slot("form").querySelectorAll(`[data-of="${menu.dataset.choice}"]`)) box.hidden = box.dataset.name !== menu.value;
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
  const inputs = () => [...wb.slot("form").querySelectorAll("[name]")].filter((input) => !input.closest(".wb-extension[hidden]"));
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
  };

  const fill = async (asked) => {
    const reply = await wb.ask("settings", asked);
    if (reply.form) { wb.slot("form").innerHTML = reply.form; remember(); }
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
    wb.root.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-act]");
      if (button && acts[button.dataset.act]) acts[button.dataset.act](button);
    });
    wb.slot("preset").addEventListener("change", (event) => fill({ preset: event.target.value }));
    wb.slot("form").addEventListener("change", (event) => { if (event.target.dataset.choice) follow(event.target); mark(event.target); });
    wb.slot("form").addEventListener("submit", (event) => { event.preventDefault(); start(wb.root.querySelector('[data-act="start"]')); });
  };

  return { bind };
})();
