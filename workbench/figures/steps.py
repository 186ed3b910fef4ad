"""Quality against the number of sampling steps, before and after."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import HELD_OUT, QUIET, figure
from workbench.health import held_out_reward
from workbench.history import History

HEALTHY = (
    "Healthy: the new curve lies above the old one at every number of steps. If it gains only at the trained number, the map has "
    "specialised: train on other numbers of steps too, or stop earlier."
)
Point = tuple[int, float, float, float]  # iteration, value, low, high


def reward_by_steps(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Held-out reward at 1, 2, 4, 8 steps: the base against the latest evaluation that measured each."""
    chart = figure("Held-out reward by sampling steps", HEALTHY, x="sampling steps, deterministic", y="reward", height=250)
    chart.update_layout(showlegend=True, hovermode="closest")
    chart.update_xaxes(type="category", rangemode="normal")
    counts = sorted({int(steps) for item in history.evaluations for steps in item.data["measures"]})
    found = {steps: points for steps in counts if (points := held_out_reward(history, config, steps))}
    before = {steps: points[0] for steps, points in found.items() if points[0][0] == 0}
    now = {steps: points[-1] for steps, points in found.items() if points[-1][0] > 0}
    if before:
        _line(chart, "before", QUIET, before, "circle-open")
    if now:
        _line(chart, f"iteration {max(point[0] for point in now.values())}", HELD_OUT, now, "circle")
    return chart


def _line(chart: go.Figure, name: str, colour: str, points: Mapping[int, Point], symbol: str) -> None:
    """A curve with its 95 % bars; the hover names the iteration, since not every evaluation measures every number of steps."""
    chart.add_scatter(
        x=[str(steps) for steps in points],
        y=[value for _, value, _, _ in points.values()],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - value for _, value, _, high in points.values()],
            "arrayminus": [value - low for _, value, low, _ in points.values()],
            "thickness": 1.4,
            "width": 5,
        },
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 2},
        marker={"size": 9, "symbol": symbol},
        customdata=[iteration for iteration, *_ in points.values()],
        hovertemplate="%{y:.3f} at %{x} steps, iteration %{customdata}<extra></extra>",
    )
