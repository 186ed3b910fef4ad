"""How far the pictures have moved from the base's, in measures that no reward sees."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import QUIET, SERIES, figure, mark_parting
from workbench.health import HACKED, parted, rollout_steps, statistics
from workbench.history import History

HEALTHY = "Times the base's value. Healthy: near 1. Above 3, or variety below 0.85: the reward is hacked, raise the KL weight."
NAMES = {"layouts": "variety"}


def drift(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Held-out picture statistics relative to the base, at each evaluation."""
    chart = figure("Drift from the base (ratio)", HEALTHY, x="", height=170)
    chart.update_layout(showlegend=True)
    names = [*statistics(history, config), "layouts", "saturation", "sharpness"]
    colours = (SERIES[1], SERIES[2], SERIES[3], SERIES[5], SERIES[4], SERIES[0])
    highest = 0.0
    for name, colour in zip(names, colours, strict=False):
        points = history.measure(rollout_steps(config), name)
        if not points or points[0][1] <= 0:
            continue
        ratios = [value / points[0][1] for _, value, *_ in points]
        highest = max(highest, *ratios)
        label = NAMES.get(name, name.replace("_", " "))
        chart.add_scatter(
            x=[at for at, *_ in points],
            y=ratios,
            mode="lines+markers",
            name=label,
            line={"color": colour, "width": 2},
            marker={"size": 5},
            hovertemplate="%{y:.2f}<extra>" + label + "</extra>",
        )
    mark_parting(chart, parted(history, config))
    if highest > 0.6 * HACKED:
        chart.add_hline(y=HACKED, line={"color": QUIET, "dash": "dot", "width": 1})
    return chart
