// The frame: which page is open, what the timer asks for and brings, how a page asks; and what all pages share.
// A page's script calls workbench.page(name, make). make(page) binds its layout and returns { parts, open, asks, close }.
window.workbench = (() => {
  const wb = {};
  const makers = new Map(), pages = new Map();
  let root, server, current = null, lastCharts = 0;

  const setText = (node, text) => { if (node && node.textContent !== text) node.textContent = text; };
  const setAttr = (node, name, value) => { if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value); };
  const show = (node, yes) => { if (node && node.hidden === Boolean(yes)) node.hidden = !yes; };
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const grouped = (label, options) => { const node = make("optgroup"); node.label = label; node.append(...options); return node; };
  // Presets for a menu, in their groups.
  const presetMenu = (presets) => Array.from(Map.groupBy(presets, (each) => each.group),
    ([group, members]) => grouped(group, members.map(({ name, title }) => new Option(`${name}: ${title}`, `preset:${name}`))));
  const number = (value, digits = 3) => value === null || value === undefined ? "–"
    : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 || value === 0 ? String(+value.toPrecision(digits)) : value.toExponential(1);
  const duration = (s) => s === null || s === undefined ? "–" : s < 60 ? `${Math.round(s)} s`
    : s < 3600 ? `${Math.floor(s / 60)} min ${String(Math.round(s % 60)).padStart(2, "0")} s` : `${Math.floor(s / 3600)} h ${Math.round(s % 3600 / 60)} min`;
  const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
  const words = (name) => name.replaceAll("_", " ");
  // An advantage beside a tile, where there is room for two digits.
  const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value) < 0.95 ? Math.abs(value).toFixed(2).slice(1) : Math.abs(value).toFixed(1)}`;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const valueOf = (input) => input.type === "checkbox" ? input.checked : input.value.trim();
  const api = (path) => `${(window.gradio_config && window.gradio_config.root) || ""}/gradio_api/${path}`;
  const fileUrl = (path) => api(`file=${encodeURI(path)}`);
  const download = (href, name) => Object.assign(make("a"), { href, download: name }).click();
  const marks = { queued: "◷", running: "▶", paused: "❚❚", done: "✓", stopped: "■", failed: "✕", crashed: "✕" };
  const badge = ({ status, wanted }) => `${marks[status] || ""} ${(status === "running" && { pause: "pausing", stop: "stopping" }[wanted]) || status}`;
  const table = (caption, heads, lines) => {
    const node = make("table"), top = make("thead"), body = make("tbody");
    const row = (cells, tag) => { const tr = make("tr"); tr.append(...cells.map((cell) => make(tag, "", cell))); return tr; };
    top.append(row(heads, "th"));
    body.append(...lines.map((line) => row(line, "td")));
    node.append(make("caption", "", caption), top, body);
    return node;
  };
  // The noise of every step in one unit for all samplers; there is no rate where a step begins in pure noise.
  const noise = (caption, steps) => {
    const rate = (step) => step.t >= 1 && step.share < 1 ? "–" : step.share >= 1 ? "all" : number(step.rate, 2);
    return table(caption, ["time", "std", "fresh", "λ"], steps.map((step) => [
      `${number(step.t, 2)} → ${number(step.s, 2)}`, number(step.std, 2), `${Math.round(100 * Math.min(step.share, 9.99))} %`, rate(step)]));
  };
  // One question at a time; what was asked meanwhile is asked once, afterwards.
  const latest = (work) => {
    let busy = false, again = false;
    return async () => {
      if (busy) { again = true; return; }
      busy = true;
      do { again = false; await work(() => again); } while (again);
      busy = false;
    };
  };
  // One change after another settles before it is acted on.
  const settled = (milliseconds, act) => {
    let waiting = null;
    return (...values) => { clearTimeout(waiting); waiting = setTimeout(() => act(...values), milliseconds); };
  };
  const complain = (node, lines) => {
    node.replaceChildren(...lines.map((line) => make("li", "", line)));
    show(node, lines.length > 0);
  };
  // A slider above a number whose range is known; either moves the other, and a change is the number's.
  const slider = (input) => {
    const range = make("input");
    Object.assign(range, { type: "range", min: input.dataset.min, max: input.dataset.max, step: "any", value: input.value });
    range.setAttribute("aria-label", `${input.name}, slider`);
    range.addEventListener("input", () => { input.value = String(+Number(range.value).toPrecision(3)); input.dispatchEvent(new Event("input", { bubbles: true })); });
    range.addEventListener("change", (event) => { event.stopPropagation(); input.dispatchEvent(new Event("change", { bubbles: true })); });
    input.addEventListener("input", () => { range.value = input.value; });
    input.before(range);
    return range;
  };
  // A line at the foot of the window that says what was done, and offers to take it back.
  const toast = (text, undo) => {
    const box = root.querySelector('[data-slot="toast"]');
    box.replaceChildren(make("span", "", text));
    if (undo) {
      const button = make("button", "wb-button small", "Undo");
      button.type = "button";
      button.addEventListener("click", () => { show(box, false); undo(); });
      box.append(button);
    }
    show(box, true);
    clearTimeout(toast.timer);
    toast.timer = setTimeout(() => show(box, false), undo ? 12000 : 4000);
  };

  // The address holds which page is open, as `tab` (`page` means a page to Gradio), and what it shows, so that a link brings it back.
  const address = {
    get: (name) => new URLSearchParams(location.search).get(name) || "",
    set: (values, remember = false) => {
      const url = new URL(location.href);
      for (const [name, value] of Object.entries(values)) value === "" || value === null || value === undefined ? url.searchParams.delete(name) : url.searchParams.set(name, value);
      if (url.href !== location.href) history[remember ? "pushState" : "replaceState"](null, "", url);
    },
  };

  const ask = async (page, name, value) => {
    try {
      return await server.ask({ page, name, value: value === undefined ? {} : value });
    } catch (error) {
      return { errors: [`The server did not answer (${error.message || error}). If it was stopped, start it again: this page attaches by itself.`] };
    }
  };

  const handle = (name, section) => ({
    name, root: section, seen: {}, held: {},
    slot: (slot) => section.querySelector(`[data-slot="${slot}"]`),
    ask: (what, value) => ask(name, what, value),
    forget: function (...parts) { for (const part of parts.length ? parts : Object.keys(this.seen)) { delete this.seen[part]; delete this.held[part]; } lastCharts = 0; },
  });

  // What the timer sends along: nothing while hidden. Charts are the costly part, so only those in view are asked for, every two seconds.
  const asks = () => {
    if (!current || document.hidden) return "";
    const charts = performance.now() - lastCharts < 2000 ? [] : wb.charts.inView(current.root);
    return JSON.stringify({ page: current.name, run: address.get("run"), ...(current.asks ? current.asks() : {}), seen: current.seen, charts });
  };

  const receive = (news) => {
    if (!news || !news.parts || !current || news.page !== current.name) return;
    if (news.run !== address.get("run") && !address.get("run").startsWith(news.run)) return; // an answer to a question asked before the run was changed
    const here = current;
    for (const [name, part] of Object.entries(news.parts)) {
      if (current !== here) return; // a part has led elsewhere
      current.seen[name] = news.versions[name];
      current.held[name] = part;
      const [kind, chart] = name.split(":");
      if (chart) lastCharts = performance.now();
      try {
        if (chart) wb.charts.draw(current, chart, part);
        else if (kind === "runs") runs(part);
        else if (kind === "problem") problem(part);
        else current.parts[kind](part);
      } catch (error) {
        reportError(error); // one part that cannot be drawn leaves the others standing
      }
    }
    if (current.told) current.told();
  };

  const problem = (text) => {
    const box = current.slot("problem");
    if (!box) return;
    setText(box, text);
    show(box, Boolean(text));
    if (!text) delete current.held.problem;
  };

  const runs = (listed) => {
    wb.runs = listed;
    const menu = root.querySelector('[data-slot="runs"]');
    const options = listed.map((run) => new Option(`${marks[run.status] || ""} ${run.title} · ${run.status} · ${when(run.created)}`, run.id));
    menu.replaceChildren(...(options.length ? options : [new Option("no runs yet", "")]));
    menu.value = address.get("run") || menu.value;
    if (current.parts.runs) current.parts.runs(listed);
  };

  // Open a page, or the same page with other values in the address.
  const go = (name, values = {}, remember = true) => {
    const next = pages.get(name) || pages.values().next().value, run = address.get("run");
    if (remember && next !== current) {
      const kept = { ...(next === pages.values().next().value ? {} : { tab: next.name }), ...(run ? { run } : {}) };
      history.pushState(null, "", `${location.pathname}?${new URLSearchParams(kept)}`);
      window.scrollTo({ top: 0 });
    }
    address.set(values);
    if (current && current !== next && current.close) current.close();
    current = next;
    for (const page of pages.values()) show(page.root, page === current);
    for (const link of root.querySelectorAll("[data-go]")) link.dataset.go === current.name ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    show(root.querySelector('[data-slot="picker"]'), current.follows !== false);
    setAttr(root.querySelector('.wb-top [data-act="new"]'), "aria-expanded", Boolean(address.get("new")));
    current.forget("runs");
    setAttr(root, "data-open", current.name);
    document.title = `${root.querySelector(`[data-go="${current.name}"]`).textContent} · Flow-Map Workbench`;
    if (current.open) current.open();
  };

  const bind = () => {
    root.addEventListener("click", (event) => {
      if (event.target.closest('[data-act="new"]')) return go("train", { new: current.name === "train" && address.get("new") ? "" : "yes" });
      const link = event.target.closest("[data-go]");
      if (!link || event.metaKey || event.ctrlKey) return;
      event.preventDefault();
      go(link.dataset.go, JSON.parse(link.dataset.with || "{}"));
    });
    root.querySelector('[data-slot="runs"]').addEventListener("change", (event) => {
      if (!event.target.value) return;
      address.set({ run: event.target.value }, true);
      if (current.open) current.open();
    });
    window.addEventListener("popstate", () => go(address.get("tab"), {}, false));
  };

  const mount = (element, functions) => {
    root = element.querySelector(".wb");
    server = functions;
    wb.root = root;
    bind();
    for (const section of root.querySelectorAll("[data-page]")) {
      const page = handle(section.dataset.page, section);
      pages.set(page.name, page);
      Object.assign(page, makers.get(page.name)(page));
    }
    wb.charts.bind();
    go(address.get("tab"), {}, false);
    root.inert = false; // a click on what is not bound yet would be lost
  };

  return Object.assign(wb, {
    setText, setAttr, show, make, number, duration, when, words, signed, colour, valueOf, api, fileUrl, download, marks, badge, table, grouped, presetMenu, noise, latest, settled, complain, slider, toast, address, go, asks, receive, mount,
    page: (name, make) => makers.set(name, make), runs: [],
  });
})();
