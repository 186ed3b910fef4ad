// Charts: figures come from the server as data; here they get the page's colours, keep their zoom, and are drawn only while in view.
window.workbench.charts = (() => {
  const wb = window.workbench, { colour } = wb;
  const waiting = new Map(), drawn = new Map();
  let plotly = null;

  const load = () => plotly = plotly || new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = window.workbenchPlotly;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("plotly.min.js could not be loaded"));
    document.head.append(script);
  });

  const themed = (layout) => {
    const ink = colour("--soft"), line = colour("--line"), card = colour("--card");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, color: ink };
    const { title, meta, ...rest } = layout;
    const axes = Object.keys({ xaxis: 0, yaxis: 0, ...rest }).filter((name) => /^[xy]axis\d*$/.test(name));
    return {
      ...rest, showlegend: false, autosize: true, font: { family: "system-ui, sans-serif", size: 12, color: ink },
      ...Object.fromEntries(axes.map((name) => [name, { ...layout[name], ...axis }])),
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

  const redraw = async (card) => {
    const figure = waiting.get(card);
    if (!figure || !figure.data.length) return;
    waiting.delete(card);
    const Plotly = await load(), plot = card.querySelector(".plot");
    plot.setAttribute("aria-label", `Chart: ${figure.layout.title.text}`);
    legend(card, figure);
    plot.querySelector(".wb-wait")?.remove();
    await Plotly.react(plot, figure.data, themed(figure.layout), options);
    drawn.set(card, figure);
  };

  const watchTheme = () => new MutationObserver(() => {
    for (const [card, figure] of drawn) {
      if (!waiting.has(card)) waiting.set(card, figure);
      if (card.dataset.visible) redraw(card);
    }
  }).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  const cards = (within) => [...within.querySelectorAll("[data-chart]")];
  const inView = (within) => cards(within).filter((card) => card.dataset.visible).map((card) => card.dataset.chart);

  // `revision` is what the zoom belongs to: as long as it stays, so does the zoom.
  const draw = (page, name, figure, revision = wb.address.get("run")) => {
    const card = page.root.querySelector(`[data-chart="${name}"]`);
    if (!card) return;
    figure.layout.uirevision = revision;
    wb.setText(card.querySelector("h2"), figure.layout.title.text);
    wb.setText(card.querySelector(".wb-hint"), figure.layout.meta.healthy);
    waiting.set(card, figure);
    redraw(card);
  };

  const clear = (page) => {
    for (const card of cards(page.root)) {
      waiting.delete(card);
      if (!drawn.delete(card)) continue;
      window.Plotly.purge(card.querySelector(".plot"));
      card.querySelector(".plot").append(wb.make("p", "wb-wait", "Drawn as soon as there is something to draw."));
      card.querySelector(".wb-chips").replaceChildren();
      delete card.querySelector(".wb-chips").dataset.key;
    }
  };

  const bind = () => {
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        entry.target.dataset.visible = entry.isIntersecting ? "yes" : "";
        if (entry.isIntersecting) redraw(entry.target);
      }
    }, { rootMargin: "300px" });
    cards(wb.root).forEach((card) => observer.observe(card));
    watchTheme();
  };

  return { bind, draw, clear, inView };
})();
