"""Rewards before training: how their values are spread, and which of them say the same."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from workbench.figures.style import TRAIN, figure

SPREAD = (
    "Many different values tell pictures apart; one tall bar means that most pictures look alike to this reward, so that few "
    "groups learn from it. Add a reward with partial credit, or harder prompts."
)
AGREEMENT = (
    "Spearman's rank correlation: 1 ranks all pictures alike, 0 has nothing in common, below 0 they pull apart. Two rewards "
    "near 1 count twice; a pair below 0 makes the run choose. A dash: one of the two is constant."
)


def histogram(name: str, values: Sequence[float]) -> go.Figure:
    """How the finite values of one reward are spread over the pictures, in at most 24 bins."""
    chart = figure(f"Values of {name.replace('_', ' ')}" if name else "Values", SPREAD, x="reward", y="pictures", height=230)
    numbers = np.array(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers):
        edges = np.histogram_bin_edges(numbers, bins=min(24, max(1, len(np.unique(numbers)))))
        counts, _ = np.histogram(numbers, edges)
        chart.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges) * 0.94,
            marker={"color": TRAIN},
            customdata=np.stack([edges[:-1], edges[1:]], 1),
            hovertemplate="%{customdata[0]:.3g} to %{customdata[1]:.3g}: %{y} pictures<extra></extra>",
        )
        chart.update_layout(hovermode="closest", xaxis={"rangemode": "normal"})
    return chart


def agreement(names: Sequence[str], matrix: NDArray[np.float64]) -> go.Figure:
    """The rank correlation of every two rewards, [R, R]; NaN is left empty."""
    chart = figure("Which rewards agree", AGREEMENT, x="", height=max(200, 64 + 46 * len(names)))
    if len(names):
        labels = [name.replace("_", " ") for name in names]
        text = [["–" if np.isnan(value) else f"{value:.2f}" for value in row] for row in matrix]
        chart.add_heatmap(
            x=labels,
            y=labels,
            z=[[None if np.isnan(value) else float(value) for value in row] for row in matrix],
            text=text,
            texttemplate="%{text}",
            zmin=-1,
            zmax=1,
            colorscale=[[0, "#d9730d"], [0.5, "#e8eaee"], [1, "#3f7fd6"]],
            showscale=False,
            hoverongaps=True,
            xgap=3,
            ygap=3,
            textfont={"color": "#151a22"},
            hovertemplate="%{y} and %{x}: %{text}<extra></extra>",
        )
        chart.update_layout(hovermode="closest", xaxis={"rangemode": "normal"}, yaxis={"autorange": "reversed"})
    return chart
