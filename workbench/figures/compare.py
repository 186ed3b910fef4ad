"""Two policies side by side: their held-out rewards over the iterations, and what blind votes say of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import HELD_OUT, QUIET, SERIES, faded, figure
from workbench.health import held_out_reward
from workbench.history import History
from workbench.votes import Tally

CURVES = (
    "The reward on held-out prompts with its 95 % band. The dashed line is A, the solid one is B: move the slider, and "
    "pictures and line move together. The curves of two runs compare only where both train on the same rewards."
)
VOTES = (
    "The share of decided pairs that B won, with its 95 % Clopper-Pearson interval; ties are left out, and several votes on one "
    "pair count once. B is preferred if the whole bar lies right of one half, A if it lies left: otherwise, vote on."
)


def curves(runs: Sequence[tuple[str, History, Mapping[str, Any]]]) -> go.Figure:
    """The held-out reward of one or two runs, each with its title, history and configuration."""
    chart = figure("Reward over the iterations", CURVES, y="held-out reward", height=230)
    chart.update_layout(showlegend=len(runs) > 1)
    for (title, history, config), colour in zip(runs, (HELD_OUT, SERIES[1]), strict=False):
        points = held_out_reward(history, config)
        if not points:
            continue
        x, value, low, high = zip(*points, strict=True)
        chart.add_scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=faded(colour, 0.16),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=title,
            name=f"{title}, band",
        )
        chart.add_scatter(
            x=x,
            y=value,
            mode="lines+markers",
            name=title,
            legendgroup=title,
            line={"color": colour, "width": 2},
            marker={"size": 7},
            hovertemplate="%{y:.4g}<extra></extra>",
        )
    return chart


def win_rate(tally: Tally) -> go.Figure:
    """The share of decided pairs that B won, as a bar from the low to the high end of its interval."""
    chart = figure("Blind vote: share won by B", VOTES, x="share of decided pairs won by B", height=110)
    chart.update_layout(hovermode="closest")
    chart.update_xaxes(range=[0, 1], tickformat=".0%", rangemode="normal")
    chart.update_yaxes(visible=False, range=[-1, 1])
    chart.add_vline(x=0.5, line={"color": QUIET, "width": 1.5, "dash": "dash"})
    if tally.rate is not None and tally.low is not None and tally.high is not None:
        chart.add_scatter(
            x=[tally.rate],
            y=[0],
            mode="markers",
            name="B",
            marker={"color": SERIES[0], "size": 13, "symbol": "diamond"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [tally.high - tally.rate],
                "arrayminus": [tally.rate - tally.low],
                "color": SERIES[0],
                "thickness": 3,
                "width": 9,
            },
            hovertemplate="B won %{x:.0%} of the decided pairs<extra></extra>",
        )
    return chart
