"""How the rewards of one iteration compare inside their groups."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.figures.style import DOWN, QUIET, UP, figure
from workbench.history import History

HEALTHY = (
    "Healthy: a broad shape on both sides of zero and few samples without gradient. If most are at zero, prompts are too easy or "
    "too hard, or the noise is too low for the samples of a group to differ."
)
EDGES = np.linspace(-3, 3, 25)


def advantage_distribution(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Histogram of the latest advantages; samples of groups without spread are counted apart, at zero."""
    chart = figure("Advantages of the latest groups", HEALTHY, x="advantage, in spreads", y="samples")
    chart.update_layout(barmode="stack", bargap=0.06, hovermode="closest", showlegend=True)
    chart.update_xaxes(rangemode="normal", range=[-3.2, 3.2])
    if history.groups is None:
        return chart
    data = history.groups.data
    advantages = np.array(data["advantages"], np.float64).reshape(-1, data["group_size"])
    quiet = np.repeat((advantages == 0).all(1), data["group_size"])
    flat = advantages.ravel().clip(EDGES[0], EDGES[-1] - 1e-9)
    centres = (EDGES[:-1] + EDGES[1:]) / 2
    for name, chosen, colour in (
        ("down", (flat < 0) & ~quiet, DOWN),
        ("up", (flat >= 0) & ~quiet, UP),
        ("no gradient", quiet, QUIET),
    ):
        counts = np.histogram(flat[chosen], EDGES)[0]
        chart.add_bar(
            x=centres,
            y=counts,
            width=0.23,
            name=f"{name} {int(chosen.sum())}",
            marker={"color": colour},
            hovertemplate="%{y} samples",
        )
    return chart
