"""Methods beside one another, at equal cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import QUIET, SERIES, faded, figure

ON_THE_WAY = "Higher is better, and a band that lies wholly above another is a difference that the seeds agree on."
AT_THE_END = (
    "Dots to the right are better. Bars are 95 % intervals over seeds, small marks the seeds: where bars overlap much, "
    "the seeds do not tell the methods apart."
)
LABELS = {"equal evaluations": "at equal network evaluations", "equal seconds": "at equal wall clock"}


def gain_by_evaluations(suite: Mapping[str, Any], methods: Sequence[str] = ()) -> go.Figure:
    """The held-out figure of each method on its way, with a band from the lowest seed to the highest.

    Args:
        suite: of the figures of the benchmark `methods`.
        methods: which to draw; by default all.
    """
    main, steps = suite["main"], str(suite["sampling_steps"])
    start = suite["base"][steps][main]["value"]
    chart = figure(f"Held-out {main}", ON_THE_WAY, x="network evaluations", y=main, height=440)
    chart.update_layout(showlegend=True, margin_t=44)  # a notebook shows the title
    for i, (name, found) in enumerate((name, suite["methods"][name]) for name in methods or suite["methods"]):
        points = [entry for label, entry in found.items() if label not in ("failed", "equal seconds")]
        points.sort(key=lambda entry: entry["evaluations"])
        x = [0.0, *(entry["evaluations"] for entry in points)]
        values = [entry["steps"][steps][main] for entry in points]
        colour = SERIES[i % len(SERIES)]
        low, high = ([start, *(pick(value["seeds"]) for value in values)] for pick in (min, max))
        band = {"x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        chart.add_scatter(**band, fill="toself", fillcolor=faded(colour, 0.15), showlegend=False, legendgroup=name)
        chart.add_scatter(
            x=x,
            y=[start, *(value["value"] for value in values)],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2, "dash": "solid" if i < len(SERIES) else "dot"},
            hovertemplate="%{y:.3f}<extra>" + name + "</extra>",
        )
    return chart


def methods_at_the_end(suite: Mapping[str, Any], metric: str = "", label: str = "equal evaluations") -> go.Figure:
    """Every method's held-out figure when the budget is spent, the best on top, and the base as a line.

    Args:
        suite: of the figures of the benchmark `methods`.
        metric: which figure; by default the suite's main one.
        label: "equal evaluations" or "equal seconds".
    """
    metric, steps = metric or suite["main"], str(suite["sampling_steps"])
    found = {name: entry[label]["steps"][steps][metric] for name, entry in suite["methods"].items() if label in entry}
    order = sorted(found, key=lambda name: found[name]["value"])
    chart = figure(f"Held-out {metric} {LABELS[label]}", AT_THE_END, x=metric, height=90 + 26 * len(order))
    chart.update_layout(hovermode="closest", margin_t=44)
    chart.update_xaxes(rangemode="normal")
    chart.add_vline(x=suite["base"][steps][metric]["value"], line={"color": QUIET, "width": 1.4, "dash": "dash"})
    chart.add_scatter(
        x=[value for name in order for value in found[name]["seeds"]],
        y=[name for name in order for _ in found[name]["seeds"]],
        mode="markers",
        marker={"color": QUIET, "size": 6, "symbol": "line-ns-open"},
        hovertemplate="%{x:.3f}<extra>one seed</extra>",
    )
    chart.add_scatter(
        x=[found[name]["value"] for name in order],
        y=order,
        error_x={
            "type": "data",
            "array": [found[name]["high"] - found[name]["value"] for name in order],
            "thickness": 1.4,
            "width": 0,
        },
        mode="markers",
        marker={"color": SERIES[0], "size": 9},
        hovertemplate="%{y}: %{x:.3f}<extra>mean of the seeds</extra>",
    )
    return chart
