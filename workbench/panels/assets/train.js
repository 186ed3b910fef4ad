// The page of a run: what it is told is put in its place. Pictures and the form have files of their own.
window.workbench.page("train", (page) => {
  const wb = window.workbench;
  page.at = 0; // row of the rollouts that are shown; 0 follows the run
  const pictures = wb.pictures(page), form = wb.form(page), memory = wb.memory(page, form.values);
  let shown = null;
  for (const name of ["form", "preset"]) page.slot(name).addEventListener("change", memory.clear); // it was about other settings

  const parts = {
    run(id) {
      if (wb.address.get("run") !== id) wb.address.set({ run: id });
    },
    status(status) {
      const badge = page.slot("badge");
      wb.setText(badge, wb.badge(status));
      wb.setAttr(badge, "data-status", status.status);
      wb.setText(page.slot("title"), status.title);
      document.title = `${status.iterations && status.status === "running" ? Math.floor(100 * status.iteration / status.iterations) + " % · " : ""}${status.title} · Flow-Map Workbench`;
      const share = status.iterations ? Math.min(100, 100 * status.iteration / status.iterations) : 0;
      const bar = page.slot("progress");
      wb.setAttr(bar, "aria-valuenow", Math.round(share));
      wb.setAttr(bar, "data-status", status.status);
      bar.firstElementChild.style.transform = `scaleX(${share / 100})`;
      const facts = {
        iteration: status.iterations ? `${status.iteration} of ${status.iterations}` : String(status.iteration),
        left: status.status === "running" ? wb.duration(status.left) : "–",
        elapsed: wb.duration(status.seconds),
        speed: wb.number(status.speed, 4),
        checkpoint: status.checkpoint === null ? "none yet" : `iteration ${status.checkpoint}`,
        origin: status.origin,
      };
      for (const [name, text] of Object.entries(facts)) wb.setText(page.root.querySelector(`[data-fact="${name}"]`), text);
      for (const button of page.root.querySelectorAll("[data-wish]")) {
        const may = status.may.includes(button.dataset.wish);
        button.disabled = !may;
        if (["pause", "resume"].includes(button.dataset.wish)) wb.show(button, button.dataset.wish === "resume" ? status.may.includes("resume") : !status.may.includes("resume"));
      }
      if (status.kind === "sweep") return wb.go("experiments", { view: "sweeps", sweep: status.id });
      wb.show(page.slot("grouped"), status.trains);
      wb.show(page.slot("pairs"), status.trains || Boolean(page.held.pairs));
      wb.setText(page.slot("sampled").querySelector("h2"), status.trains ? "Sampled on request" : "Samples");
      const output = page.slot("output-button");
      wb.show(output, status.kind === "notebook");
      output.dataset.with = JSON.stringify({ output: status.id, notebook: status.notebook });
      for (const card of page.root.querySelectorAll("[data-chart]")) wb.show(card, status.charts.includes(card.dataset.chart));
    },
    verdicts(verdicts) {
      const box = page.slot("verdicts");
      const key = JSON.stringify(verdicts);
      if (box.dataset.key === key) return;
      box.dataset.key = key;
      box.replaceChildren(...verdicts.map((verdict) => {
        const card = wb.make("div", `wb-verdict ${verdict.level}`);
        card.append(wb.make("b", "", `${{ green: "✓", amber: "!", red: "✕" }[verdict.level]} ${verdict.title}`), wb.make("p", "", verdict.sentence));
        if (verdict.remedy) card.append(wb.make("p", "remedy", `What to do: ${verdict.remedy}`));
        return card;
      }));
    },
    checks(checks) {
      wb.show(page.slot("checks"), checks.length > 0);
      page.slot("check-grid").replaceChildren(...checks.map((check) => {
        const card = wb.make("div", `wb-check ${check.level}`);
        card.append(wb.make("b", "", `${{ green: "✓ good", amber: "! mind", red: "✕ stop" }[check.level]}`), wb.make("span", "", wb.words(check.name)), wb.make("p", "", check.sentence));
        return card;
      }));
    },
    knobs(knobs) {
      const fields = page.slot("knob-fields");
      wb.show(page.slot("knobs"), Boolean(knobs.form || knobs.changes.length));
      if (fields.contains(document.activeElement)) page.forget("knobs"); // whoever turns one is not disturbed
      else {
        fields.innerHTML = knobs.form;
        for (const input of fields.querySelectorAll("input[data-min][data-max]")) if (input.value > 0.01 * input.dataset.max) wb.slider(input);
      }
      page.slot("knob-changes").replaceChildren(...knobs.changes.map(([iteration, changes]) => {
        const told = Object.entries(changes).map(([key, value]) => `${wb.words(key)} = ${Array.isArray(value) ? value.join(", ") || "all" : value}`);
        return wb.make("li", "", `after iteration ${iteration}: ${told.join("; ")}`);
      }));
    },
    groups: (groups) => pictures.groups(groups),
    pairs: (pairs) => pictures.pairs(pairs),
    sampled: (sheet) => pictures.sheet(sheet),
    config: (config) => wb.setText(page.slot("config"), JSON.stringify(config, null, 2)),
  };

  // Another run, or another page before: what is shown belongs to the run in the address.
  const open = () => {
    form.open(Boolean(wb.address.get("new")));
    if (wb.address.get("new")) form.prefill();
    const run = wb.address.get("run");
    if (run === shown) return;
    shown = run;
    page.at = 0;
    page.forget();
    wb.charts.clear(page);
    pictures.clear();
    wb.show(page.slot("problem"), false);
    wb.show(page.slot("refused"), false);
  };
  const told = () => {
    if (!shown) shown = wb.address.get("run");
    const any = Boolean(page.held.status) && !page.held.problem;
    const example = any && page.held.status.example;
    wb.show(page.slot("hero"), (!any || example) && !page.held.problem);
    wb.show(page.slot("below"), example);
    wb.show(page.slot("run"), any);
    wb.setAttr(page.root, "data-state", any ? "run" : "empty");
  };

  page.root.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.wish) {
      button.disabled = true; // the next tick says what is possible now
      page.forget("status");
      const reply = await page.ask("control", { run: wb.address.get("run"), wish: button.dataset.wish });
      wb.complain(page.slot("refused"), reply.errors || []);
    } else if (button.dataset.act === "live") {
      page.at = 0;
      page.forget("groups");
    }
  });

  page.slot("knob-fields").addEventListener("change", async (event) => {
    if (!event.target.name) return;
    const reply = await page.ask("turn", { run: wb.address.get("run"), changes: { [event.target.name]: event.target.value } });
    wb.complain(page.slot("knob-errors"), reply.errors || []);
    if (!reply.errors) wb.toast(`${wb.words(event.target.name)} = ${event.target.value} from the next iteration on`);
  });

  return { parts, open, told, asks: () => ({ at: page.at }) };
});
