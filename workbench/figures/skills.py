"""Which skills of the task have been learned."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import HELD_OUT, QUIET, figure
from workbench.history import History

HEALTHY = (
    "Healthy: every skill gains. One that stays behind while the others rise is too hard for the rewards you give: "
    "give it a denser reward or more prompts."
)


def success_by_skill(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Held-out success of each skill, base against latest evaluation, with 95 % bars; empty where a task names no skills."""
    chart = figure("Held-out success by skill", HEALTHY, x="share of images that show what was asked", height=250)
    chart.update_layout(showlegend=True, hovermode="closest", barmode="group", bargap=0.3)
    chart.update_yaxes(type="category", autorange="reversed", showgrid=False)
    measured = [item for item in history.evaluations if item.data.get("breakdown")]
    for item, name, colour in zip(measured[:1] + measured[1:][-1:], ("before", "now"), (QUIET, HELD_OUT), strict=False):
        skills = item.data["breakdown"]
        chart.add_bar(
            y=list(skills),
            x=[m["value"] for m in skills.values()],
            orientation="h",
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [m["high"] - m["value"] for m in skills.values()],
                "arrayminus": [m["value"] - m["low"] for m in skills.values()],
                "thickness": 1.2,
                "width": 3,
                "color": QUIET,
            },
            name=name if name == "before" else f"iteration {item.iteration}",
            marker={"color": colour},
            hovertemplate="%{x:.3f} %{y}<extra></extra>",
        )
    return chart
