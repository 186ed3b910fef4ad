"""How fast each kernel's samples of the double ring become right."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import QUIET, SERIES, figure

HEALTHY = (
    "Right: on the line from the first evaluation on, as kernels with exact marginals are. A curve that only nears the line buys "
    "accuracy with steps; one that levels off beside it is biased for ever."
)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon", "hexagon")
TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000)


def outer_mass_by_evaluations(rings: Mapping[str, Any]) -> go.Figure:
    """Mass on the outer ring against network evaluations, logarithmic, with 95 % bars and the mass that the data has.

    Args:
        rings: the figures of the benchmark `rings`.
    """
    chart = figure("Mass on the outer ring", HEALTHY, x="network evaluations (log)", y="share of the points", height=420)
    chart.update_layout(showlegend=True, hovermode="closest", margin_t=44)  # a notebook shows the title, no card does it for it
    chart.update_xaxes(type="log", tickvals=TICKS)
    chart.add_hline(y=rings["wanted_mass"], line={"color": QUIET, "width": 1.4, "dash": "dash"})
    for i, (name, curve) in enumerate(rings["curves"].items()):
        chart.add_scatter(
            x=curve["evaluations"],
            y=curve["outer_mass"],
            error_y={"type": "data", "array": [1.96 * error for error in curve["standard_error"]], "thickness": 1.2, "width": 4},
            mode="lines+markers",
            name=name,
            line={"color": SERIES[i % len(SERIES)], "width": 2, "dash": "solid" if i < len(SERIES) else "dot"},
            marker={"size": 8, "symbol": SYMBOLS[i % len(SYMBOLS)]},
            customdata=list(zip(curve["steps"], curve["scatter"], strict=True)),
            hovertemplate="%{y:.3f} at %{customdata[0]} steps; scatter %{customdata[1]:.3f}<extra>" + name + "</extra>",
        )
    return chart
