"""What all figures share: colours that people with any colour vision tell apart, smoothing, thinning, and the plain layout."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

# Okabe and Ito's palette, darkened or lightened to hold 3:1 contrast on white as well as on near-black
TRAIN, HELD_OUT, UP, DOWN, QUIET = "#3f7fd6", "#0f9d78", "#3f7fd6", "#d9730d", "#8a8f98"
SERIES = ("#3f7fd6", "#d9730d", "#0f9d78", "#b65fa8", "#a8892a", "#4ba7c9")
LIMIT = 400
"""Most points of one line; more cannot be told apart on a screen and only cost time to send and draw."""

Points = Sequence[tuple[int, float]]


def columns(points: Points) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Iterations and values as arrays; NaN where a value is missing."""
    x = np.array([point[0] for point in points], np.int32)
    y = np.array([point[1] for point in points], np.float64)
    return x, y


def smooth(values: NDArray[np.float64], half_life: float = 4.0) -> NDArray[np.float64]:
    """Exponential moving average without start-up bias; it looks only backward, so its past does not change as a run goes on.

    Args:
        values: [N]; missing ones (NaN) repeat the average so far.
        half_life: iterations after which a value counts half.
    """
    decay = 0.5 ** (1.0 / half_life)
    total, weight, out = 0.0, 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        if np.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1.0
        out[i] = total / weight if weight else np.nan
    return out


def thin(x: NDArray[np.int32], *ys: NDArray[np.float64], limit: int = LIMIT) -> tuple[NDArray[np.float32], ...]:
    """At most about `limit` points of one line, keeping the first, the last, and the extremes of the first series between them.

    Returns: x as int32 and each y as float32, which travel as compact binary.
    """
    if len(x) > limit:
        edges = np.linspace(0, len(x), limit // 2 + 1).astype(int)
        lead = np.where(np.isfinite(ys[0]), ys[0], 0.0)
        keep = {0, len(x) - 1}
        for start, end in pairwise(edges):
            keep |= {start + int(lead[start:end].argmin()), start + int(lead[start:end].argmax())}
        index = np.array(sorted(keep))
        x, ys = x[index], tuple(y[index] for y in ys)
    return (x.astype(np.int32), *(y.astype(np.float32) for y in ys))


def faded(colour: str, alpha: float) -> str:
    """A hex colour with transparency, as a CSS colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def figure(title: str, healthy: str, *, x: str = "iteration", y: str = "", height: int = 240) -> go.Figure:
    """An empty figure with the common layout.

    Args:
        title: what is shown, with its unit; the page sets it as the card's heading.
        healthy: one plain sentence on what good looks like and what to do otherwise.
    """
    chart = go.Figure()
    chart.update_layout(
        template="none",
        title={"text": title},
        meta={"healthy": healthy},
        height=height,
        margin={"l": 52, "r": 12, "t": 10, "b": 44 if x else 26},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified",
        uirevision="kept",
        showlegend=False,
        xaxis={"title": {"text": x, "standoff": 10}, "zeroline": False, "rangemode": "tozero", "automargin": True},
        yaxis={"title": {"text": y, "standoff": 6}, "zeroline": False, "automargin": True},
    )
    return chart


def mark_changes(chart: go.Figure, changes: Sequence[tuple[int, str]]) -> None:
    """A thin line at each iteration after which settings were changed; what they were shows on hovering.

    Args:
        changes: iteration, and what was set, in words.
    """
    for iteration, _ in changes:
        chart.add_vline(x=iteration, line={"color": QUIET, "width": 1, "dash": "dash"})
    if changes:
        chart.add_scatter(
            x=[iteration for iteration, _ in changes],
            y=[1.0] * len(changes),
            yaxis="y2",
            mode="markers",
            marker={"symbol": "triangle-down", "size": 9, "color": QUIET},
            text=[told for _, told in changes],
            hovertemplate="%{text}<extra>changed</extra>",
            showlegend=False,
        )
        chart.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})


def mark_parting(chart: go.Figure, iteration: int | None) -> None:
    """Where the reward and what it stands for parted, if they did."""
    if iteration is not None:
        label = {"text": "they part here", "font": {"color": DOWN}}
        chart.add_vline(x=iteration, line={"color": DOWN, "width": 2, "dash": "dot"}, annotation=label)


def raw_and_smooth(chart: go.Figure, points: Points, name: str, colour: str) -> None:
    """A thin line of every value and a strong one of its moving average."""
    if not points:
        return
    x, y = columns(points)
    x_thin, raw, average = thin(x, y, smooth(y))
    chart.add_scatter(
        x=x_thin,
        y=raw,
        mode="lines",
        name=f"{name}, raw",
        line={"color": faded(colour, 0.35), "width": 1},
        showlegend=False,
        legendgroup=name,
        hoverinfo="skip",
    )
    chart.add_scatter(
        x=x_thin,
        y=average,
        mode="lines",
        name=name,
        legendgroup=name,
        line={"color": colour, "width": 2.4},
        hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
    )
