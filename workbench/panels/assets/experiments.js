// Experiments: notebooks with a form of their parameters, the queue, and the frame of the other views.
window.workbench.page("experiments", (page) => {
  const wb = window.workbench, { make, setText, setAttr, show } = wb;
  const slot = page.slot, get = wb.address.get;
  let notebooks = [], presets = [], last = {}, shown = "", opened = null, overnight = "";

  const view = () => get("view") || "notebooks";
  const current = () => notebooks.find((each) => each.name === get("notebook")) || notebooks.find((each) => each.name === "quickstart") || notebooks[0];
  const progress = (run) => run.iterations ? Math.min(1, run.iteration / run.iterations) : 0;
  const badge = (run) => {
    const node = make("span", "wb-badge", wb.badge(run));
    node.dataset.status = run.status;
    if (run.error) node.title = run.error;
    return node;
  };
  const button = (text, act, className = "wb-button small") => {
    const node = make("button", className, text);
    node.type = "button";
    node.addEventListener("click", (event) => { event.stopPropagation(); act(); });
    return node;
  };
  const bar = (run) => {
    const node = make("progress", "ex-bar");
    node.max = 1;
    node.value = progress(run);
    node.setAttribute("aria-label", `progress of ${run.title}`);
    return node;
  };
  const told = (run) => run.status === "queued" ? "waits" : run.iterations ? `${run.iteration} of ${run.iterations}` : `${run.iteration}`;
  // Nodes are kept by key, so that a press, a focus or a running transition survives the next tick.
  const keyed = (box, items, key, make, fill) => {
    const known = new Map([...box.children].map((node) => [node.dataset.key, node]));
    const nodes = items.map((item) => {
      const id = String(key(item)), node = known.get(id) || make(item);
      node.dataset.key = id;
      const state = JSON.stringify(item);
      if (node.state !== state) { node.state = state; fill(node, item); }
      return node;
    });
    if (nodes.length !== box.children.length || nodes.some((node, place) => node !== box.children[place])) box.replaceChildren(...nodes);
  };
  const live = (run) => wb.go("train", { run });

  const stop = async (run) => {
    const reply = await page.ask("stop", { run: run.id });
    wb.toast(reply.errors ? reply.errors.join(" ") : `${run.title}: ${run.status === "queued" ? "taken out of the queue" : "stopping"}`);
  };
  const queue = ({ entries, problem, begins }) => {
    show(slot("stuck"), Boolean(problem));
    setText(slot("stuck"), problem);
    const running = entries.filter((run) => run.status !== "queued").length, waiting = entries.length - running;
    let note = slot("queue").querySelector(".ex-count"), box = slot("queue").querySelector(".ex-entries");
    if (!box) { note = make("p", "wb-note ex-count"); box = make("div", "ex-entries"); slot("queue").append(note, box); }
    const idle = begins ? "Nothing waits and nothing runs. What you start here waits its turn, survives this page, and shows up under Runs." : "";
    const elsewhere = begins || !waiting ? "" : " This app begins none: start one with python -m workbench schedule serve.";
    setText(note, entries.length ? `${running} running, ${waiting} waiting.${elsewhere}` : idle);
    const first = entries.filter((run) => run.status !== "queued").concat(entries.filter((run) => run.status === "queued")).slice(0, 12);
    keyed(box, first, (run) => run.id, () => make("div", "ex-entry"), (node, run) => {
      const title = button(run.title, () => run.kind === "notebook" && run.status !== "queued" ? output(run.id) : live(run.id), "ex-link");
      const tries = make("small", "", run.attempt > 1 ? `attempt ${run.attempt} of ${run.tries}` : "");
      node.replaceChildren(badge(run), title, make("small", "wb-note", `${run.kind} · ${told(run)}`), tries, bar(run), button(run.status === "queued" ? "Take back" : "Stop", () => stop(run)));
    });
    const more = entries.length - first.length;
    if (more > 0) setText(note, `${note.textContent} The first ${first.length} are listed.`);
  };

  // Notebooks
  const field = (each) => {
    const box = make("div", "wb-field"), label = make("label", "", wb.words(each.name)), id = `nb-${each.name}`;
    label.htmlFor = id;
    let input;
    if (each.options.length) {
      input = make("select");
      input.append(...each.options.map((option) => new Option(option, option)));
      input.value = String(each.default);
    } else {
      input = make("input");
      input.type = each.type === "bool" ? "checkbox" : each.type === "int" || each.type === "float" ? "number" : "text";
      if (each.type === "bool") input.checked = each.default; else input.value = each.default;
      if (input.type === "number") input.step = each.type === "int" ? "1" : "any";
      input.spellcheck = false;
    }
    Object.assign(input, { id, name: each.name });
    input.setAttribute("aria-describedby", `${id}-help`);
    const help = make("small", "", `${each.help}${["int", "float", "str", "bool"].includes(each.type) || each.options.length ? "" : ` (${each.type})`}`);
    help.id = `${id}-help`;
    box.append(label, input, help);
    return box;
  };
  const read = (input) => input.type === "checkbox" ? input.checked : input.value;
  const values = (form) => Object.fromEntries([...form.querySelectorAll("[name]")].map((input) => [input.name, read(input)]));
  const changed = () => {
    const found = current(), now = values(slot("parameters"));
    return Object.fromEntries(found.parameters.filter((each) => String(now[each.name]) !== String(each.default)).map((each) => [each.name, now[each.name]]));
  };
  const fill = (parameters) => {
    for (const input of slot("parameters").querySelectorAll("[name]")) {
      if (!(input.name in parameters)) continue;
      const given = parameters[input.name];
      if (input.type === "checkbox") input.checked = given; else input.value = typeof given === "string" ? given : JSON.stringify(given);
    }
  };
  const choose = () => {
    const found = current();
    show(slot("notebook"), Boolean(found));
    if (!found || shown === found.name) return;
    shown = found.name;
    setText(slot("notebook-title"), found.title);
    setText(slot("notebook-name"), `${found.name}.ipynb`);
    setText(slot("summary"), found.summary.replaceAll(/[*`]/g, "").replaceAll(/([^\n])\n(?!\n)/g, "$1 "));
    slot("parameters").replaceChildren(...found.parameters.map(field));
    wb.complain(slot("errors"), found.problem ? [found.problem] : []);
    for (const act of ["run", "to-schedule", "to-sweep"]) page.root.querySelector(`[data-act="${act}"]`).disabled = Boolean(found.problem);
    list();
  };
  const list = () => keyed(slot("notebooks"), notebooks.map((each) => ({ ...each, on: each === current(), last: last[each.name] })), (each) => each.name, () => make("button", "ex-item"), (node, each) => {
    node.type = "button";
    setAttr(node, "aria-current", each.on);
    node.onclick = () => { wb.address.set({ notebook: each.name, output: "" }, true); open(); };
    const mark = each.problem ? "cannot be run" : each.last ? `${wb.marks[each.last] || ""} last run ${each.last}` : "not run yet";
    node.replaceChildren(make("b", "", each.title), make("small", "", `${each.name}.ipynb · ${mark}`));
  });
  const run = async () => {
    const reply = await page.ask("run", { notebook: current().name, parameters: values(slot("parameters")), limits: values(slot("limits")) });
    wb.complain(slot("errors"), reply.errors || []);
    if (!reply.errors) { wb.toast("Queued. It begins when it is its turn."); page.forget("recent"); }
  };
  const recent = (runs) => {
    show(slot("recent-box"), runs.length > 0);
    keyed(slot("recent"), runs, (run) => run.id, () => make("div", "ex-run"), (node, run) => {
      const words = Object.entries(run.own).map(([name, value]) => `${wb.words(name)} = ${JSON.stringify(value)}`).join(", ") || "defaults";
      const text = make("div", "ex-run-text");
      text.append(make("span", "", words), make("small", "wb-note", `${wb.when(run.created)}${run.seconds === null ? `, ${told(run)}` : `, ${wb.duration(run.seconds)} in all`} · ${run.origin}`));
      if (run.error) text.append(make("small", "ex-error", run.error));
      const acts = make("div", "wb-row");
      acts.append(button("Output", () => output(run.id)), button("Curves", () => live(run.id)), button("Again", () => { fill(run.parameters); slot("notebook").scrollIntoView({ block: "start", behavior: "smooth" }); }));
      node.replaceChildren(badge(run), text, acts, ...(run.status === "running" ? [bar(run)] : []));
    });
  };

  // The notebook with its outputs lies in a frame that can do nothing to this page.
  const dark = () => document.body.classList.contains("dark");
  const output = async (id) => {
    if (view() !== "notebooks") wb.address.set({ view: "" });
    wb.address.set({ output: id }, true);
    await draw(id);
    slot("output").scrollIntoView({ block: "start" });
  };
  const draw = async (id) => {
    const reply = await page.ask("output", { run: id });
    wb.complain(slot("errors"), reply.errors || []);
    show(slot("output"), !reply.errors);
    if (reply.errors) return;
    views();
    const url = `${wb.fileUrl(reply.path)}?v=${reply.version}${dark() ? "&dark" : ""}`;
    opened = { id, status: reply.status, failed: reply.failed, url };
    setText(slot("output-title"), `${reply.title} · ${reply.status}`);
    setText(slot("output-error"), reply.error || "");
    show(slot("output-error"), Boolean(reply.error));
    show(page.root.querySelector('[data-act="failed"]'), Boolean(reply.failed));
    slot("output-link").href = url;
    if (slot("frame").dataset.url !== url) { slot("frame").dataset.url = url; slot("frame").src = url; }
  };

  const views = () => {
    for (const each of page.root.querySelectorAll("[data-of-view]")) show(each, each.dataset.ofView === view());
    for (const each of page.root.querySelectorAll("[data-view]")) setAttr(each, "aria-pressed", each.dataset.view === view());
  };
  const common = { page, keyed, badge, bar, button, told, values, stop, known: () => ({ notebooks, presets }), view, open: () => open() };
  const sweeps = wb.sweeps(common), schedules = wb.schedules(common);

  const digest = async () => {
    const reply = await page.ask("overnight", { hours: slot("hours").value });
    wb.complain(slot("digest-errors"), reply.errors || []);
    if (reply.errors) return;
    overnight = reply.page;
    slot("digest").srcdoc = overnight.replace("(prefers-color-scheme: dark)", dark() ? "all" : "not all"); // as this page is, not the system
  };

  const open = async () => {
    views();
    if (!notebooks.length) {
      const reply = await page.ask("known");
      ({ notebooks = [], presets = [] } = reply);
      wb.complain(slot("errors"), reply.errors || []);
      list();
    }
    page.forget();
    choose();
    list();
    sweeps.open();
    schedules.open();
    if (view() === "digest") digest();
    if (view() === "notebooks" && get("output")) draw(get("output"));
    else if (view() === "notebooks") show(slot("output"), false);
  };

  const acts = {
    run,
    defaults() { shown = ""; choose(); },
    "to-sweep": () => { wb.address.set({ view: "sweeps", sweep: "", of: `notebook:${current().name}`, fixed: JSON.stringify(changed()) }, true); open(); },
    "to-schedule": () => { wb.address.set({ view: "schedules", of: `notebook:${current().name}`, fixed: JSON.stringify(changed()) }, true); open(); },
    failed: () => { slot("frame").src = `${opened.url}#${opened.failed}`; },
    "close-output": () => { wb.address.set({ output: "" }, true); show(slot("output"), false); },
    digest,
    "save-digest": () => {
      const link = make("a");
      link.href = URL.createObjectURL(new Blob([overnight], { type: "text/html" }));
      link.download = `digest-${new Date().toISOString().slice(0, 10)}.html`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
    ...sweeps.acts, ...schedules.acts,
  };
  page.root.addEventListener("click", (event) => {
    const node = event.target.closest("button[data-act], button[data-view]");
    if (!node) return;
    if (node.dataset.view) { wb.address.set({ view: node.dataset.view === "notebooks" ? "" : node.dataset.view, of: "", fixed: "" }, true); open(); }
    else if (acts[node.dataset.act]) acts[node.dataset.act]();
  });
  slot("hours").addEventListener("change", digest);
  slot("parameters").addEventListener("submit", (event) => { event.preventDefault(); run(); });

  const parts = {
    queue,
    recent(runs) {
      recent(runs);
      const seen = opened && runs.find((each) => each.id === opened.id);
      if (seen && get("output") === seen.id && seen.status !== opened.status) draw(seen.id); // it went on: show how far
    },
    last(found) { last = found; list(); },
    ...sweeps.parts, ...schedules.parts,
  };
  return { parts, open, follows: false, close: () => {}, asks: () => ({ view: view(), notebook: (current() || {}).name || "", sweep: get("sweep") }) };
});
