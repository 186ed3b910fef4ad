"""Quality against the number of sampling steps, before and after."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import HELD_OUT, QUIET, figure
from workbench.history import History

HEALTHY = (
    "Healthy: the new curve lies above the old one at every number of steps. If it gains only at the trained number, the map has "
    "specialised: train on fewer steps too, or stop earlier."
)


def reward_by_steps(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Held-out reward at 1, 2, 4, 8 steps: the base against the latest evaluation that measured each."""
    chart = figure("Held-out reward by sampling steps", HEALTHY, x="sampling steps (deterministic)", y="reward")
    chart.update_layout(showlegend=True, hovermode="closest")
    chart.update_xaxes(type="category", rangemode="normal")
    if not history.evaluations:
        return chart
    first = _reward_of(history.evaluations[0].data)
    latest: dict[int, tuple[int, dict[str, float]]] = {}
    for item in history.evaluations[1:]:
        latest.update({steps: (item.iteration, m) for steps, m in _reward_of(item.data).items()})
    _line(chart, "before", QUIET, {steps: (0, m) for steps, m in first.items()}, "circle-open")
    if latest:
        _line(chart, f"iteration {max(at for at, _ in latest.values())}", HELD_OUT, latest, "circle")
    return chart


def _reward_of(data: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    return {int(steps): measures["reward"] for steps, measures in data["measures"].items() if "reward" in measures}


def _line(chart: go.Figure, name: str, colour: str, found: Mapping[int, tuple[int, Mapping[str, float]]], symbol: str) -> None:
    steps = sorted(found)
    values = [found[n][1]["value"] for n in steps]
    chart.add_scatter(
        x=[str(n) for n in steps],
        y=values,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [found[n][1]["high"] - v for n, v in zip(steps, values, strict=True)],
            "arrayminus": [v - found[n][1]["low"] for n, v in zip(steps, values, strict=True)],
            "thickness": 1.4,
            "width": 5,
        },
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 2},
        marker={"size": 9, "symbol": symbol},
        customdata=[found[n][0] for n in steps],
        hovertemplate="%{y:.3f} at %{x} steps (iteration %{customdata})<extra></extra>",
    )
