// Charts: figures come from the server as data; here they get the page's colours, keep their zoom, and are drawn only while in view.
window.workbench.charts = (() => {
  const wb = window.workbench;
  const waiting = new Map(), drawn = new Map();
  let plotly = null, observer = null;

  const load = () => plotly = plotly || new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = window.workbenchPlotly;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("plotly.min.js could not be loaded"));
    document.head.append(script);
  });

  const colour = (name) => getComputedStyle(wb.root).getPropertyValue(name).trim();
  const themed = (layout) => {
    const ink = colour("--soft"), line = colour("--line"), card = colour("--card");
    const axis = { gridcolor: line, linecolor: line, tickcolor: line, color: ink };
    const { title, meta, ...rest } = layout;
    return {
      ...rest, showlegend: false, autosize: true, font: { family: "system-ui, sans-serif", size: 12, color: ink },
      xaxis: { ...layout.xaxis, ...axis }, yaxis: { ...layout.yaxis, ...axis },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: colour("--ink") } },
    };
  };
  const options = { displaylogo: false, responsive: true, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"] };

  // One switch for each named line; a band goes with its line. Which are off is remembered while the page is open.
  const legend = (card, figure) => {
    const box = card.querySelector(".wb-chips");
    const named = figure.layout.showlegend ? figure.data.filter((trace) => trace.showlegend !== false) : [];
    const key = named.map((trace) => trace.name).join("|");
    card.chosen = card.chosen || new Map(); // what was switched by hand; all else is as the figure says
    const group = (trace) => trace.legendgroup || trace.name;
    const off = (trace) => card.chosen.has(group(trace)) ? !card.chosen.get(group(trace)) : trace.initially === "legendonly";
    for (const trace of figure.data) trace.initially = trace.initially || trace.visible || true;
    if (box.dataset.key !== key) {
      box.dataset.key = key;
      box.replaceChildren(...named.map((trace) => {
        const chip = wb.make("button", "wb-chip", trace.name);
        chip.type = "button";
        chip.style.setProperty("--line-colour", (trace.line || trace.marker || {}).color);
        chip.setAttribute("aria-pressed", String(!off(trace)));
        chip.addEventListener("click", () => {
          card.chosen.set(group(trace), off(trace));
          chip.setAttribute("aria-pressed", String(!off(trace)));
          if (!waiting.has(card)) waiting.set(card, drawn.get(card));
          redraw(card);
        });
        return chip;
      }));
    }
    for (const trace of figure.data) trace.visible = !off(trace);
  };

  const frame = (card, layout) => {
    if (card.querySelector(".plot")) return card.querySelector(".plot");
    const head = wb.make("div", "wb-head"), plot = wb.make("div", "plot");
    head.append(wb.make("h2", "", layout.title.text), wb.make("div", "wb-chips"));
    plot.style.height = `${layout.height}px`;
    plot.setAttribute("role", "group");
    plot.append(wb.make("p", "wb-wait", "Drawn as soon as there is something to draw."));
    card.append(head, plot, wb.make("p", "wb-hint", layout.meta.healthy));
    return plot;
  };

  const redraw = async (card) => {
    const figure = waiting.get(card);
    if (!figure) return;
    waiting.delete(card);
    if (!figure.data.length) return;
    const Plotly = await load();
    const plot = frame(card, figure.layout);
    plot.setAttribute("aria-label", `Chart: ${figure.layout.title.text}`);
    legend(card, figure);
    plot.querySelector(".wb-wait")?.remove();
    await Plotly.react(plot, figure.data, themed(figure.layout), options);
    drawn.set(card, figure);
  };

  const watchTheme = () => new MutationObserver(() => {
    for (const [card, figure] of drawn) waiting.has(card) || waiting.set(card, figure);
    for (const card of drawn.keys()) if (card.dataset.visible) redraw(card);
  }).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  const draw = (charts) => {
    if (!observer) {
      observer = new IntersectionObserver((entries) => {
        for (const entry of entries) {
          entry.target.dataset.visible = entry.isIntersecting ? "yes" : "";
          if (entry.isIntersecting) redraw(entry.target);
        }
      }, { rootMargin: "900px" });
      wb.root.querySelectorAll("[data-chart]").forEach((card) => observer.observe(card));
      watchTheme();
    }
    for (const [name, figure] of Object.entries(charts)) {
      const card = wb.root.querySelector(`[data-chart="${name}"]`);
      if (!card) continue;
      figure.layout.uirevision = wb.run; // zoom belongs to the run
      frame(card, figure.layout);
      wb.setText(card.querySelector("h2"), figure.layout.title.text);
      wb.setText(card.querySelector(".wb-hint"), figure.layout.meta.healthy);
      waiting.set(card, figure);
      if (card.dataset.visible) redraw(card);
    }
  };

  const clear = () => {
    waiting.clear();
    for (const card of drawn.keys()) window.Plotly.purge(card.querySelector(".plot"));
    for (const card of wb.root.querySelectorAll("[data-chart]")) card.replaceChildren();
    drawn.clear();
  };

  return { draw, clear };
})();
