// The page of all runs. The list is fetched once; then the timer brings the lines that changed. What is open or chosen is in the address.
window.workbench.page("runs", (page) => {
  const wb = window.workbench, { make, setText, setAttr, show } = wb;
  const lines = new Map(), rows = new Map(); // by run: what the server said, and where it is shown
  const filters = [...page.root.querySelectorAll("[data-filter]")];
  let held = "", order = [], placed = "", trashed = [], branching = null;

  const chosen = () => wb.address.get("chosen").split(",").filter(Boolean);
  const filter = (name) => wb.address.get(name);
  const complain = (reply) => { wb.complain(page.slot("errors"), reply.errors || []); return !reply.errors; };
  const text = (line) => [line.title, line.id, line.kind, line.status, line.origin, line.note, line.preset, ...line.tags, ...line.method].join(" ").toLowerCase();
  const fits = (line) => filter("q").toLowerCase().split(/\s+/).every((word) => text(line).includes(word))
    && ["status", "kind"].every((name) => !filter(name) || line[name] === filter(name)) && (!filter("tag") || line.tags.includes(filter("tag")));

  // Order. A tree puts every run after its parent; a parent that is gone leaves its branches at the top.
  const ranks = { best: (line) => line.best, gain: (line) => line.base === null ? null : line.best - line.base, iteration: (line) => line.iteration };
  const ranked = () => {
    const rank = ranks[filter("sort")];
    if (!rank) return order;
    const value = (id) => { const found = rank(lines.get(id)); return found === null ? -Infinity : found; };
    return [...order].sort((a, b) => value(b) - value(a));
  };
  const tree = () => {
    const children = new Map();
    for (const id of order) {
      const parent = lines.has(lines.get(id).parent) ? lines.get(id).parent : "";
      children.set(parent, [...(children.get(parent) || []), id]);
    }
    const walk = (id, depth) => [...(id ? [[id, depth]] : []), ...(children.get(id) || []).flatMap((child) => walk(child, id ? depth + 1 : 0))];
    return walk("", 0);
  };

  // One line of the list. Pictures are painted once a line comes into view.
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { entry.target.inView = true; thumbs(entry.target); }
  }, { rootMargin: "300px" });
  const thumbs = (row) => {
    const line = lines.get(row.dataset.id), box = row.parts.thumbs, key = line && line.preview ? line.preview.path : "";
    if (!row.inView || !line || box.dataset.of === key) return;
    box.dataset.of = key;
    const wide = line.preview && line.preview.tile[0] > 1.5 * line.preview.tile[1];
    box.replaceChildren(...(line.preview ? Array.from({ length: Math.min(wide ? 2 : 3, line.preview.count) }, (_, i) => wb.sprites.picture(line.preview, i, wide ? 54 : 36, "")) : []));
    for (const picture of box.children) { picture.removeAttribute("role"); picture.removeAttribute("aria-label"); }
  };
  const build = (id) => {
    const row = make("div", "runs-row"), line = make("div", "runs-line"), pick = make("label", "runs-pick"), box = make("input");
    row.dataset.id = id;
    row.setAttribute("role", "listitem");
    box.type = "checkbox";
    box.dataset.pick = id;
    pick.append(box);
    const name = make("div", "runs-name"), link = make("a"), tags = make("span", "runs-tags"), about = make("p"), from = make("p", "runs-from"), note = make("p", "runs-note");
    link.href = `?run=${id}`;
    link.dataset.go = "train";
    link.dataset.with = JSON.stringify({ run: id });
    name.append(link, tags, about, from, note);
    const state = make("div", "runs-state"), first = make("div"), badge = make("span", "wb-badge"), count = make("span"), resume = make("button", "wb-button small", "Resume"), bar = make("div", "wb-progress");
    resume.type = "button";
    resume.dataset.act = "resume";
    first.append(badge, resume, count);
    bar.append(make("i"));
    state.append(first, bar);
    const reward = make("div", "runs-reward"), change = make("span"), best = make("small"), more = make("button", "wb-button small", "Details");
    reward.append(change, best);
    more.type = "button";
    more.dataset.act = "more";
    const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    spark.setAttribute("class", "runs-spark");
    spark.setAttribute("viewBox", "0 0 104 32");
    spark.setAttribute("role", "img");
    row.parts = { box, link, tags, about, from, note, badge, count, resume, bar, change, best, spark, when: make("div", "runs-when"), more, thumbs: make("div", "runs-thumbs") };
    line.append(pick, row.parts.thumbs, name, state, reward, spark, row.parts.when, more);
    row.append(line);
    rows.set(id, row);
    seen.observe(row);
    return row;
  };
  const drawSpark = (svg, line) => {
    const key = line.spark.join();
    if (svg.dataset.key === key) return;
    svg.dataset.key = key;
    svg.setAttribute("aria-label", line.spark.length > 1 ? `held-out reward from ${line.base} to ${line.now}` : "no curve yet");
    if (line.spark.length < 2) return svg.replaceChildren();
    const low = Math.min(...line.spark), span = Math.max(...line.spark) - low || 1;
    const points = line.spark.map((value, i) => [3 + 96 * i / (line.spark.length - 1), 28 - 24 * (value - low) / span].map((v) => v.toFixed(1)));
    const [x, y] = points[points.length - 1];
    svg.innerHTML = `<polyline points="${points.map((point) => point.join()).join(" ")}"></polyline><circle cx="${x}" cy="${y}" r="3"></circle>`;
  };
  const fill = (line) => {
    const row = rows.get(line.id) || build(line.id), p = row.parts;
    setText(p.link, line.title);
    setAttr(p.box, "aria-label", `Choose ${line.title}`);
    setAttr(p.more, "aria-label", `Details of ${line.title}`);
    setAttr(p.resume, "aria-label", `Resume ${line.title}`);
    if (p.tags.dataset.key !== line.tags.join()) {
      p.tags.dataset.key = line.tags.join();
      p.tags.replaceChildren(...line.tags.map((tag) => { const chip = make("button", "runs-tag", tag); chip.type = "button"; chip.dataset.tag = tag; chip.title = "Show the runs with this tag"; return chip; }));
    }
    setText(p.about, [line.method.map(wb.words).join(" · ") || line.kind, line.origin, line.id].join("  –  "));
    setText(p.from, line.parent ? `↳ ${line.branched === null ? "belongs to" : `from iteration ${line.branched} of`} ${lines.has(line.parent) ? lines.get(line.parent).title : line.parent}${line.changed.length ? `: ${line.changed.slice(0, 4).join(", ")}${line.changed.length > 4 ? ", …" : ""}` : ""}` : "");
    show(p.from, Boolean(line.parent));
    setText(p.note, line.note);
    show(p.note, Boolean(line.note));
    setText(p.badge, wb.badge(line));
    setAttr(p.badge, "data-status", line.status);
    setAttr(p.badge, "title", line.error || "");
    show(p.resume, line.resumable);
    setText(p.count, line.iterations ? `${line.iteration} of ${line.iterations}` : `iteration ${line.iteration}`);
    setAttr(p.bar, "data-status", line.status);
    p.bar.firstElementChild.style.transform = `scaleX(${line.iterations ? Math.min(1, line.iteration / line.iterations) : 0})`;
    setText(p.change, line.base === null ? "–" : line.spark.length > 1 ? `${wb.number(line.base)} → ${wb.number(line.now)}` : wb.number(line.now));
    setText(p.best, line.best === null ? "not evaluated" : line.spark.length > 1 ? `best ${wb.number(line.best)} at ${line.best_at}` : "base");
    drawSpark(p.spark, line);
    setText(p.when, wb.when(line.created));
    thumbs(row);
    if (row.fill) row.fill(line);
  };

  // What can be done with one run, below its line; made when it is first opened.
  const field = (label, help, control, wide) => {
    const node = make("div", `wb-field${wide ? " wide" : ""}`), name = make("label", "", label);
    control.id = name.htmlFor = `runs-field-${++field.count}`;
    node.append(name, control, make("small", "", help));
    return node;
  };
  field.count = 0;
  const button = (label, act, title, className = "") => { const node = make("button", `wb-button small ${className}`, label); node.type = "button"; node.dataset.act = act; node.title = title; return node; };
  // Where a run comes from is asked for when somebody unfolds it.
  const origin = (id) => {
    const fold = make("details", "wb-fold wide runs-origin"), body = make("div");
    fold.append(make("summary", "", "Where it comes from"), body);
    fold.addEventListener("toggle", async () => {
      if (!fold.open || body.childElementCount) return;
      const reply = await page.ask("origin", { run: id }), lines = reply.lines || [];
      const said = reply.errors ? reply.errors.join(" ") : lines.length ? "" : "This run was recorded before runs said where they come from.";
      body.replaceChildren(...(reply.verdict ? [make("p", "", reply.verdict)] : []), said ? make("p", "wb-note", said) : wb.table("", ["", ""], lines));
    });
    return fold;
  };
  const details = (row) => {
    const id = row.dataset.id, box = make("div", "runs-more"), saved = make("span", "runs-saved"), errors = make("ul", "wb-errors"), at = make("select");
    saved.setAttribute("role", "status");
    errors.setAttribute("role", "alert");
    errors.hidden = true;
    const inputs = { title: make("input"), tags: make("input"), note: make("textarea") };
    inputs.note.rows = 3;
    let saving = Promise.resolve();
    const texts = { title: (line) => line.title, tags: (line) => line.tags.join(", "), note: (line) => line.note };
    for (const [name, input] of Object.entries(inputs)) {
      input.addEventListener("change", () => {
        const value = name === "tags" ? input.value.split(",") : input.value;
        saving = saving.then(async () => { // one after another: what is said last is of what was written last
          const reply = await page.ask("annotate", { run: id, [name]: value });
          wb.complain(errors, reply.errors || []);
          setText(saved, reply.errors ? "" : `✓ ${name} saved`);
        });
      });
    }
    at.setAttribute("aria-label", "Weights after iteration");
    const pipeline = make("label", "wb-inline", "whole pipeline"), whole = make("input"), bar = make("progress", "runs-bar"), cancel = button("Cancel", "cancel", "End it; nothing of it is left");
    whole.type = "checkbox";
    pipeline.title = "Of merged weights and cards: every part of the pipeline, in a folder beside the run";
    pipeline.prepend(whole);
    bar.setAttribute("aria-label", "How far it is");
    pipeline.hidden = bar.hidden = cancel.hidden = true;
    const acts = make("div", "wb-row wide"), files = make("div", "wb-row wide");
    acts.append(button("Open", "open", "Watch and control this run on the Train page", "primary"), button("Branch from a checkpoint", "branch", "Go on from one of its checkpoints with other settings"),
      button("Reproduce", "repeat", "Run it again from its record, in the queue; it then says whether the two are equal"),
      button("Delete", "delete", "Put it into the trash; it can be brought back", "danger"));
    files.append(make("span", "wb-note", "Download"), button("Report", "report", "One HTML file for people: verdicts, curves, pictures, settings; opens offline"),
      button("Notebook", "notebook", "A notebook with parameters that repeats the run"), button("Archive", "archive", "One zip with everything; another workbench can import it"), 
      button("Weights", "weights", "Averaged weights: a LoRA that diffusers loads, or all of them as safetensors"), button("Merged", "merged", "Weights that need no adapter, folded into those of the base"),
      button("Model card", "card", "A folder for the hub: weights, a card, its curves, the same seeds before and after"), at, pipeline, bar, cancel, saved);
    box.append(field("Title", "saved when you leave the field", inputs.title), field("Tags", "separated by commas; a tag is a filter", inputs.tags), field("Note", "what you wanted to know, and what you found; saved when you leave the field", inputs.note, true), acts, files, errors, origin(id));
    row.append(box);
    row.errors = errors;
    row.iteration = at;
    row.whole = whole;
    row.making = { bar, cancel };
    row.fill = (line) => {
      for (const [name, input] of Object.entries(inputs)) if (document.activeElement !== input) input.value = texts[name](line);
      const none = line.checkpoint === null;
      for (const act of ["repeat", "notebook"]) box.querySelector(`[data-act="${act}"]`).disabled = line.kind === "sweep" || act === "repeat" && !["done", "stopped", "failed", "crashed"].includes(line.status);
      for (const act of ["branch", "weights", "merged", "card"]) box.querySelector(`[data-act="${act}"]`).disabled = none || line.kind !== "train";
      at.hidden = none || line.kind !== "train";
      if (at.dataset.last !== String(line.checkpoint)) {
        at.dataset.last = String(line.checkpoint);
        page.ask("checkpoints", { run: id }).then((reply) => { options(at, reply.checkpoints || []); show(pipeline, Boolean(reply.pipeline) && !at.hidden); });
      }
    };
    row.fill(lines.get(id));
  };
  const options = (menu, iterations) => menu.replaceChildren(...[...iterations].reverse().map((iteration) => new Option(`after iteration ${iteration}`, iteration)));
  const unfold = () => {
    const open = wb.address.get("open");
    for (const [id, row] of rows) {
      const yes = id === open;
      if (yes && !row.fill && lines.has(id)) details(row);
      setAttr(row, "data-open", yes);
      setAttr(row.parts.more, "aria-expanded", yes);
      if (row.fill) show(row.lastElementChild, yes);
    }
  };

  // Which lines show, and in which order. Values that change move no line: only what you do, and runs that come or go.
  const menus = () => {
    const all = [...lines.values()], fillMenu = (name, values) => {
      const menu = page.root.querySelector(`[data-filter="${name}"]`), key = values.join();
      if (menu.dataset.key === key) return;
      menu.dataset.key = key;
      menu.replaceChildren(menu.options[0], ...values.map((value) => new Option(value, value)));
      menu.value = filter(name);
    };
    const distinct = (values) => [...new Set(values)].sort();
    fillMenu("status", distinct([...all.map((line) => line.status), ...(filter("status") ? [filter("status")] : [])]));
    fillMenu("kind", distinct(all.map((line) => line.kind)));
    fillMenu("tag", distinct(all.flatMap((line) => line.tags)));
  };
  const arrange = (anew = true) => {
    menus();
    const list = page.slot("list"), picked = new Set(chosen());
    if (anew || !placed) {
      const depth = filter("sort") === "tree" ? new Map(tree()) : new Map();
      const wanted = depth.size ? [...depth.keys()] : ranked();
      if (placed !== wanted.join()) list.replaceChildren(...wanted.map((id) => rows.get(id)));
      placed = wanted.join();
      for (const id of wanted) {
        setAttr(rows.get(id), "data-depth", depth.get(id) || 0);
        rows.get(id).style.setProperty("--depth", Math.min(6, depth.get(id) || 0));
      }
    }
    let shown = 0;
    for (const [id, line] of lines) {
      const yes = fits(line);
      shown += yes;
      show(rows.get(id), yes);
      rows.get(id).parts.box.checked = picked.has(id);
    }
    setText(page.slot("count"), `${shown === lines.size ? "" : `${shown} of `}${lines.size} ${lines.size === 1 ? "run" : "runs"}`);
    empty(shown);
    unfold();
    pick();
  };
  const empty = (shown) => {
    const box = page.slot("none");
    show(box, held && !shown);
    if (!held || shown) return;
    const act = lines.size ? button("Clear the search", "clear", "Show all runs again", "primary") : button("Start a run", "start", "Open the form of a new run", "primary");
    box.replaceChildren(make("p", "", lines.size ? "No run fits this search and these filters." : "There are no runs yet. Start one here, from the command line or a notebook, or import an archive: every run of this store appears in this list, live."), act);
  };
  const pick = () => {
    const ids = chosen().filter((id) => lines.has(id));
    show(page.slot("chosen"), ids.length > 0);
    setText(page.slot("picked"), ids.length === 1 ? "1 run chosen; choose another to compare" : `${ids.length} runs chosen${ids.length > 12 ? "; the first 12 are compared" : ""}`);
  };
  const choose = (ids) => {
    wb.address.set({ chosen: ids.join(",") });
    arrange(false);
  };

  const receive = (news) => {
    held = news.version;
    for (const line of news.rows) lines.set(line.id, line);
    if (news.order) {
      order = news.order;
      const here = new Set(order);
      for (const id of [...lines.keys()]) if (!here.has(id)) { lines.delete(id); rows.get(id)?.remove(); rows.delete(id); }
    }
    order = order.filter((id) => lines.has(id)); // more lines than one answer holds come with the next
    for (const line of news.rows) if (lines.has(line.id)) fill(line);
    arrange(Boolean(news.order));
    if (news.trash) showTrash(news.trash);
  };
  const showTrash = (listed) => {
    trashed = listed;
    const toggle = page.root.querySelector('[data-act="trash"]');
    setText(toggle, listed.length ? `Trash (${listed.length})` : "Trash");
    page.root.querySelector('[data-act="empty"]').disabled = !listed.length;
    page.slot("trash-list").replaceChildren(...(listed.length ? listed.map((run) => {
      const item = make("li"), back = button("Bring back", "restore", "Put it back into the list");
      back.dataset.run = run.id;
      item.append(make("span", "", `${run.title} – ${run.id}`), make("small", "wb-note", `deleted ${wb.when(run.deleted)}`), back);
      return item;
    }) : [make("li", "wb-note", "The trash is empty. Runs that you delete wait here for a week.")]));
  };
  const differences = (data) => {
    const menu = page.root.querySelector('[data-filter="metric"]'), key = data.metrics.join();
    if (menu.dataset.key !== key) {
      menu.dataset.key = key;
      menu.replaceChildren(...data.metrics.map((name) => new Option(wb.words(name), name === "held-out reward" ? "" : name)));
      if (!data.metrics.includes("held-out reward")) menu.prepend(new Option("held-out reward", ""));
      menu.value = filter("metric");
    }
    const settings = Object.entries(data.settings);
    page.slot("differences").replaceChildren(data.titles.length < 2 ? make("p", "wb-note", "Choose a second run to see in which settings the two differ.")
      : settings.length ? wb.table(`${settings.length} of all settings; the others are equal`, ["setting", ...data.titles], settings.map(([name, values]) => [name, ...values]))
        : make("p", "wb-note", "All settings are equal; what differs is chance, or the code."));
    besides();
  };
  // Of exactly two runs also what lies outside their settings.
  let pair = "";
  const besides = async () => {
    const ids = chosen().filter((id) => lines.has(id)), box = page.slot("besides");
    show(box, ids.length === 2);
    if (ids.length !== 2 || pair === ids.join()) return;
    pair = ids.join();
    const reply = await page.ask("apart", { a: ids[0], b: ids[1] });
    if (pair !== ids.join()) return;
    const names = ids.map((id) => lines.get(id).title), found = Object.entries(reply.groups || {});
    const tables = found.map(([name, rows]) => wb.table(wb.words(name), ["", ...names], rows));
    const notes = [...(reply.errors || []), ...(reply.notes || []), ...(found.length || reply.errors || (reply.notes || []).length ? [] : ["Code, packages, machine, prompts and weights are the same."])];
    box.replaceChildren(...tables, ...notes.map((text) => make("p", "wb-note", text)), ...(reply.diffstat ? [make("pre", "runs-stat", reply.diffstat)] : []));
  };

  const refresh = async () => {
    const reply = await page.ask("rows");
    if (complain(reply)) receive(reply);
  };
  const remove = async (ids) => {
    const titles = ids.map((id) => lines.get(id)?.title || id), reply = await page.ask("delete", { runs: ids });
    complain(reply);
    const gone = reply.deleted || [];
    if (!gone.length) return;
    wb.address.set({ chosen: chosen().filter((id) => !gone.includes(id)).join(","), ...(gone.includes(wb.address.get("run")) ? { run: "" } : {}), ...(gone.includes(wb.address.get("open")) ? { open: "" } : {}) });
    await refresh();
    wb.toast(gone.length === 1 ? `“${titles[ids.indexOf(gone[0])]}” is in the trash.` : `${gone.length} runs are in the trash.`, async () => { if (complain(await page.ask("restore", { runs: gone }))) refresh(); });
  };
  // A file is fetched once it is written. What takes long is asked after until it is done; a second one waits its turn.
  const download = async (row, what) => {
    const said = row.querySelector(".runs-saved"), ofOne = ["weights", "merged", "card"].includes(what);
    setText(said, "writing the file …");
    let reply = await page.ask("write", { run: row.dataset.id, what, ...(ofOne ? { iteration: Number(row.iteration.value), pipeline: row.whole.checked } : {}) });
    if (reply.making) reply = await followed(row, reply.making);
    wb.complain(row.errors, reply.errors || []);
    const size = `${wb.number(reply.bytes / 2 ** 20, 2)} MB`;
    setText(said, reply.errors ? "" : reply.folder ? `✓ ${size} in ${reply.folder}` : `✓ ${reply.name}, ${size}`);
    if (reply.path) wb.download(wb.fileUrl(reply.path), reply.name);
  };
  const followed = async (row, making) => {
    const { bar, cancel } = row.making, said = row.querySelector(".runs-saved"), own = row.makes = making;
    for (;;) {
      const reply = await page.ask("writing", { making, cancel: row.unwanted === making });
      if (reply.errors || reply.name) {
        if (row.makes === own) bar.hidden = cancel.hidden = true;
        return reply;
      }
      if (row.makes === own) {
        bar.hidden = cancel.hidden = false;
        if (reply.total) { bar.max = reply.total; bar.value = reply.done; } else bar.removeAttribute("value");
        setText(said, reply.total ? `${Math.floor(100 * reply.done / reply.total)} % of ${wb.number(reply.total / 2 ** 20, 2)} MB` : reply.waits ? "waiting for its turn …" : "at work …");
      }
      await new Promise((done) => setTimeout(done, 300));
    }
  };
  const upload = async (input) => {
    const file = input.files[0];
    if (!file) return;
    wb.toast(`Taking in ${file.name} …`);
    const body = new FormData();
    body.append("files", file);
    try {
      const answer = await fetch(wb.api("upload"), { method: "POST", body });
      if (!answer.ok) throw new Error(await answer.text());
      const reply = await page.ask("take_in", { path: (await answer.json())[0] });
      if (complain(reply)) { wb.address.set({ open: reply.run }); await refresh(); wb.toast(`${file.name} was taken in.`); complain({ errors: reply.needs.map((each) => `${file.name} was taken in, but ${each}`) }); rows.get(reply.run)?.scrollIntoView({ block: "center" }); }
    } catch (error) {
      complain({ errors: [`${file.name} could not be uploaded: ${error.message || error}`] });
    }
    input.value = "";
  };

  // The dialog of a branch.
  const branch = async (id) => {
    const reply = await page.ask("checkpoints", { run: id }), line = lines.get(id);
    if (!complain(reply)) return;
    branching = id;
    options(page.slot("from"), reply.checkpoints);
    setText(page.slot("branch-of"), `of “${line.title}”, which ran ${line.iteration}${line.iterations ? ` of ${line.iterations}` : ""} iterations. A branch from its end goes on for as many again, unless you set iterations.`);
    page.slot("changes").value = "";
    wb.complain(page.slot("branch-errors"), []);
    page.slot("dialog").showModal();
  };
  const begin = async (control) => {
    control.disabled = true;
    const reply = await page.ask("branch", { run: branching, iteration: Number(page.slot("from").value), changes: page.slot("changes").value });
    control.disabled = false;
    wb.complain(page.slot("branch-errors"), reply.errors || []);
    if (reply.errors) return;
    page.slot("dialog").close();
    await refresh();
    wb.toast("The branch has begun.");
    wb.address.set({ open: reply.run });
    arrange();
    rows.get(reply.run)?.scrollIntoView({ block: "center" });
  };
  const inForm = () => {
    const changes = Object.fromEntries(page.slot("changes").value.split("\n").filter((each) => each.includes("=")).map((each) => { const [key, ...rest] = each.split("="); return [key.trim(), rest.join("=").trim()]; }));
    page.slot("dialog").close();
    wb.go("train", { new: "yes", with: JSON.stringify({ parent: branching, iteration: Number(page.slot("from").value), ...changes }) });
  };

  const acts = {
    more: (row) => { wb.address.set({ open: wb.address.get("open") === row.dataset.id ? "" : row.dataset.id }); unfold(); },
    open: (row) => lines.get(row.dataset.id)?.kind === "sweep" ? wb.go("experiments", { view: "sweeps", sweep: row.dataset.id }) : wb.go("train", { run: row.dataset.id }),
    branch: (row) => branch(row.dataset.id),
    delete: (row) => remove([row.dataset.id]),
    report: (row) => download(row, "report"),
    archive: (row) => download(row, "archive"),
    notebook: (row) => download(row, "notebook"),
    repeat: async (row) => {
      const reply = await page.ask("repeat", { run: row.dataset.id });
      wb.complain(row.errors, reply.errors || []);
      if (!reply.errors) wb.toast("Queued: it begins when it is its turn, and compares itself when it is done.");
    },
    weights: (row) => download(row, "weights"),
    merged: (row) => download(row, "merged"),
    card: (row) => download(row, "card"),
    cancel: (row) => { row.unwanted = row.makes; },
    resume: async (row, control) => { control.disabled = true; complain(await page.ask("resume", { run: row.dataset.id })); control.disabled = false; },
    trash: (_, control) => { const box = page.slot("trash"); show(box, box.hidden); setAttr(control, "aria-expanded", !box.hidden); },
    restore: async (_, control) => { if (complain(await page.ask("restore", { runs: [control.dataset.run] }))) refresh(); },
    empty: async () => { const reply = await page.ask("empty"); if (complain(reply)) { showTrash(reply.trash); wb.toast(`${reply.purged} ${reply.purged === 1 ? "run is" : "runs are"} removed for good.`); } },
    clear: () => { wb.address.set({ q: "", status: "", kind: "", tag: "" }); follow(); },
    start: () => wb.go("train", { new: "yes" }),
    "pick-none": () => choose([]),
    "pick-shown": () => choose(order.filter((id) => fits(lines.get(id)))),
    "delete-picked": () => remove(chosen().filter((id) => lines.has(id))),
    "branch-start": (_, control) => begin(control),
    "branch-form": inForm,
  };
  page.root.addEventListener("click", (event) => {
    const chip = event.target.closest("[data-tag]"), control = event.target.closest("[data-act]");
    if (chip) { wb.address.set({ tag: filter("tag") === chip.dataset.tag ? "" : chip.dataset.tag }); return follow(); }
    if (control && acts[control.dataset.act]) acts[control.dataset.act](control.closest(".runs-row"), control);
  });
  page.root.addEventListener("change", (event) => {
    if (event.target.dataset.pick) choose(event.target.checked ? [...chosen(), event.target.dataset.pick] : chosen().filter((id) => id !== event.target.dataset.pick));
  });
  page.slot("file").addEventListener("change", (event) => upload(event.target));
  const follow = () => {
    for (const control of filters) if (control.value !== filter(control.dataset.filter)) control.value = filter(control.dataset.filter);
    arrange();
  };
  const narrowed = wb.settled(120, () => arrange());
  for (const control of filters) {
    control.addEventListener("input", () => {
      wb.address.set({ [control.dataset.filter]: control.value });
      if (["metric", "by"].includes(control.dataset.filter)) page.forget("chart:overlay");
      else narrowed();
    });
  }

  const open = () => {
    for (const control of filters) control.value = filter(control.dataset.filter);
    if (held) follow();
    refresh();
  };
  return { follows: false, open, parts: { rows: receive, chosen: differences }, asks: () => ({ held, chosen: chosen(), metric: filter("metric"), by: filter("by") }) };
});
