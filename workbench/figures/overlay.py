"""The same number of several runs in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from workbench.figures.style import SERIES, columns, faded, figure, smooth, thin

HEALTHY = (
    "Higher is better for rewards, and lower for KL. Curves that differ by less than their own noise do not differ: "
    "judge the held-out reward, and start again with other seeds before you believe a small gain."
)
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Curve:
    """One run's line.

    Args:
        points: iteration and value; iteration by iteration, or only where the run was evaluated.
        seconds: since the run was first started, for each point.
        sparse: every point is a measurement to be shown; otherwise its moving average is.
    """

    name: str
    points: Sequence[tuple[int, float]]
    seconds: Sequence[float]
    sparse: bool


def overlay(curves: Sequence[Curve], metric: str, by_time: bool) -> go.Figure:
    """Curves of several runs over iterations, or over minutes since each began; colour and dash go by place."""
    chart = figure(metric, HEALTHY, x="minutes since the run began" if by_time else "iteration", y=metric, height=400)
    chart.update_layout(showlegend=True)
    chart.update_xaxes(uirevision=str(by_time))  # a zoom belongs to what the axis shows
    chart.update_yaxes(uirevision=metric)
    for place, curve in enumerate(curves):
        if not curve.points:
            continue
        colour, dash = SERIES[place % len(SERIES)], _DASHES[place // len(SERIES) % len(_DASHES)]
        x, y = columns(curve.points)
        along = columns([(0, at / 60) for at in curve.seconds])[1] if by_time else x.astype(float)
        _, raw, average, at = thin(x, y, y if curve.sparse else smooth(y), along)
        if not curve.sparse:
            chart.add_scatter(
                x=at,
                y=raw,
                mode="lines",
                line={"color": faded(colour, 0.22), "width": 1},
                name=f"{curve.name}, raw",
                legendgroup=curve.name,
                showlegend=False,
                hoverinfo="skip",
            )
        chart.add_scatter(
            x=at,
            y=average,
            mode="lines+markers" if curve.sparse else "lines",
            line={"color": colour, "width": 2.2, "dash": dash},
            marker={"size": 6},
            name=curve.name,
            legendgroup=curve.name,
            hovertemplate="%{y:.4g}<extra>" + curve.name + "</extra>",
        )
    return chart
