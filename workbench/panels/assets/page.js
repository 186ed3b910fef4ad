// The Train page: asks for what it has not seen, and puts each part in its place. Pictures, charts and the form have files of their own.
window.workbench = (() => {
  const wb = { seen: {}, run: new URLSearchParams(location.search).get("run") || "", at: 0, parts: {} };
  let root, server, lastCharts = 0;

  const slot = (name) => root.querySelector(`[data-slot="${name}"]`);
  const setText = (node, text) => { if (node && node.textContent !== text) node.textContent = text; };
  const setAttr = (node, name, value) => { if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value); };
  const show = (node, yes) => { if (node && node.hidden === yes) node.hidden = !yes; };
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value, digits = 3) => value === null || value === undefined ? "–"
    : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 || value === 0 ? String(+value.toPrecision(digits)) : value.toExponential(1);
  const duration = (s) => s === null || s === undefined ? "–" : s < 60 ? `${Math.round(s)} s`
    : s < 3600 ? `${Math.floor(s / 60)} min ${String(Math.round(s % 60)).padStart(2, "0")} s` : `${Math.floor(s / 3600)} h ${Math.round(s % 3600 / 60)} min`;
  const fileUrl = (path) => `${(window.gradio_config && window.gradio_config.root) || ""}/gradio_api/file=${encodeURI(path)}`;

  // What the timer sends along: nothing while hidden. Charts are the costly part, so only those in view are asked for, every two seconds.
  const asks = () => {
    if (!root || document.hidden) return "";
    const charts = performance.now() - lastCharts < 2000 ? [] : wb.charts.inView();
    return JSON.stringify({ run: wb.run, seen: wb.seen, charts, at: wb.at });
  };

  const receive = (news) => {
    if (!news || !news.parts) return;
    if (news.id && wb.run && news.id !== wb.run && !news.id.startsWith(wb.run)) return; // an answer to a question asked before the run was changed
    if (news.id && news.id !== wb.run) adopt(news.id);
    for (const [name, part] of Object.entries(news.parts)) {
      wb.seen[name] = news.versions[name];
      wb.parts[name] = part;
      const [kind, chart] = name.split(":");
      if (chart) lastCharts = performance.now();
      try {
        chart ? wb.charts.draw(chart, part) : renderers[kind](part);
      } catch (error) {
        reportError(error); // one part that cannot be drawn leaves the others standing
      }
    }
    if (!("problem" in news.parts) && news.id) show(slot("problem"), false);
    const any = Boolean(wb.run) && Boolean(wb.parts.status);
    show(slot("hero"), !any && !wb.parts.problem);
    show(slot("run"), any);
    setAttr(root, "data-state", any ? "run" : "empty");
  };

  const adopt = (run) => {
    wb.run = run;
    const url = new URL(location.href);
    url.searchParams.set("run", run);
    history.replaceState(null, "", url);
    const menu = slot("runs");
    if ([...menu.options].some((option) => option.value === run)) menu.value = run;
  };

  const choose = (run, remember = true) => {
    const runs = wb.seen.runs;
    wb.seen = { runs };
    wb.at = 0;
    wb.parts = { runs: wb.parts.runs };
    lastCharts = 0;
    wb.charts.clear();
    wb.pictures.clear();
    show(slot("problem"), false);
    show(slot("refused"), false);
    if (remember && wb.run !== run) history.pushState(null, "", location.href);
    adopt(run);
  };

  const marks = { queued: "◷", running: "▶", paused: "❚❚", done: "✓", stopped: "■", failed: "✕", crashed: "✕" };

  const renderers = {
    runs(runs) {
      const menu = slot("runs");
      const options = runs.map((run) => {
        const when = new Date(run.created * 1000).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
        const option = new Option(`${marks[run.status] || ""} ${run.title} · ${run.status} · ${when}`, run.id);
        return option;
      });
      menu.replaceChildren(...(options.length ? options : [new Option("no runs yet", "")]));
      if (wb.run) menu.value = wb.run;
    },
    problem(text) {
      const box = slot("problem");
      setText(box, `${text}. Choose another run above, or start a new one.`);
      show(box, true);
      wb.parts.status = null;
    },
    status(status) {
      const badge = slot("badge");
      const waiting = status.status === "running" && status.wanted === "pause" ? "pausing" : status.status === "running" && status.wanted === "stop" ? "stopping" : status.status;
      setText(badge, `${marks[status.status] || ""} ${waiting}`);
      setAttr(badge, "data-status", status.status);
      setText(slot("title"), status.title);
      document.title = `${status.iterations && status.status === "running" ? Math.floor(100 * status.iteration / status.iterations) + " % · " : ""}${status.title} · Flow-Map Workbench`;
      const share = status.iterations ? Math.min(100, 100 * status.iteration / status.iterations) : 0;
      const bar = slot("progress");
      setAttr(bar, "aria-valuenow", Math.round(share));
      setAttr(bar, "data-status", status.status);
      bar.firstElementChild.style.transform = `scaleX(${share / 100})`;
      const facts = {
        iteration: status.iterations ? `${status.iteration} of ${status.iterations}` : String(status.iteration),
        left: status.status === "running" ? duration(status.left) : "–",
        elapsed: duration(status.seconds),
        speed: number(status.speed, 4),
        checkpoint: status.checkpoint === null ? "none yet" : `iteration ${status.checkpoint}`,
        origin: status.origin,
      };
      for (const [name, text] of Object.entries(facts)) setText(root.querySelector(`[data-fact="${name}"]`), text);
      for (const button of root.querySelectorAll("[data-wish]")) {
        const may = status.may.includes(button.dataset.wish);
        button.disabled = !may;
        if (["pause", "resume"].includes(button.dataset.wish)) show(button, button.dataset.wish === "resume" ? status.may.includes("resume") : !status.may.includes("resume"));
      }
      show(slot("grouped"), status.kind === "train");
      show(slot("pairs"), status.kind === "train" || Boolean(wb.parts.pairs));
      setText(slot("sampled").querySelector("h2"), status.kind === "train" ? "Sampled on request" : "Samples");
      for (const card of root.querySelectorAll("[data-chart]")) show(card, status.charts.includes(card.dataset.chart));
    },
    verdicts(verdicts) {
      const box = slot("verdicts");
      const key = JSON.stringify(verdicts);
      if (box.dataset.key === key) return;
      box.dataset.key = key;
      box.replaceChildren(...verdicts.map((verdict) => {
        const card = make("div", `wb-verdict ${verdict.level}`);
        card.append(make("b", "", `${{ green: "✓", amber: "!", red: "✕" }[verdict.level]} ${verdict.title}`), make("p", "", verdict.sentence));
        if (verdict.remedy) card.append(make("p", "remedy", `What to do: ${verdict.remedy}`));
        return card;
      }));
    },
    checks(checks) {
      show(slot("checks"), checks.length > 0);
      slot("check-grid").replaceChildren(...checks.map((check) => {
        const card = make("div", `wb-check ${check.level}`);
        card.append(make("b", "", `${{ green: "✓ good", amber: "! mind", red: "✕ stop" }[check.level]}`), make("span", "", check.name.replaceAll("_", " ")), make("p", "", check.sentence));
        return card;
      }));
    },
    groups: (groups) => wb.pictures.groups(groups),
    pairs: (pairs) => wb.pictures.pairs(pairs),
    sampled: (sheet) => wb.pictures.sheet(sheet),
    config: (config) => setText(slot("config"), JSON.stringify(config, null, 2)),
  };

  const complain = (name, lines) => {
    const box = slot(name);
    box.replaceChildren(...lines.map((line) => make("li", "", line)));
    show(box, lines.length > 0);
  };

  const ask = async (name, value) => {
    try {
      return await server[name](value);
    } catch (error) {
      return { errors: [`The server did not answer (${error.message || error}). If it was stopped, start it again: this page attaches by itself.`] };
    }
  };

  const bind = () => {
    root.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.wish) {
        button.disabled = true; // the next tick says what is possible now
        delete wb.seen.status;
        const reply = await ask("control", { run: wb.run, wish: button.dataset.wish });
        complain("refused", reply.errors || []);
      } else if (button.dataset.act === "live") {
        wb.at = 0;
        delete wb.seen.groups;
      }
    });
    slot("runs").addEventListener("change", (event) => event.target.value && choose(event.target.value));
    window.addEventListener("popstate", () => choose(new URLSearchParams(location.search).get("run") || "", false));
  };

  const mount = (element, functions) => {
    root = element.querySelector(".wb");
    server = functions;
    Object.assign(wb, { root, slot, setText, setAttr, show, make, number, duration, fileUrl, ask, choose, complain });
    bind();
    wb.charts.bind();
    wb.pictures.bind();
    wb.form.bind();
  };

  return Object.assign(wb, { asks, mount, receive });
})();
