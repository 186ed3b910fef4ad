"""The reward curve: what is trained on, raw and smoothed, and what is measured on prompts never trained on."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import HELD_OUT, SERIES, TRAIN, faded, figure, mark_changes, mark_parting, raw_and_smooth
from workbench.health import held_out_reward, judges, parted, rollout_steps
from workbench.history import History

Points = list[tuple[int, float, float, float]]  # iteration, value, low, high

HEALTHY = (
    "Healthy: both lines rise together. If only the training line rises, the policy exploits the reward: raise the KL weight. "
    "A judge that falls while they rise says the same. If neither moves after 30 iterations, raise the learning rate or the "
    "sampler's noise."
)


def reward_curve(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Reward of training and held-out prompts, and what judges say, with 95 % bands; the parts start hidden in the legend."""
    chart = figure("Reward", HEALTHY, y="reward", height=330)
    chart.update_layout(showlegend=True)
    mark_parting(chart, parted(history, config))
    mark_changes(chart, history.changes_told)
    raw_and_smooth(chart, history.metric("reward"), "training", TRAIN)
    _held_out(chart, held_out_reward(history, config), "held-out", HELD_OUT, visible=True)
    for name, colour in zip(reward_names(config), (SERIES[4], SERIES[5], SERIES[1], SERIES[3]), strict=False):
        _held_out(chart, history.measure(rollout_steps(config), name), name.replace("_", " "), colour, visible="legendonly")
    for name, colour in zip(judges(config), (SERIES[3], SERIES[1], SERIES[5], SERIES[4]), strict=False):
        label = f"judge: {name.replace('_', ' ')}"
        _held_out(chart, history.measure(rollout_steps(config), name), label, colour, visible=True, dash="dot")
    return chart


def reward_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the rewards that a run scores, in the order of its configuration."""
    return [weighted["reward"]["name"] for weighted in config.get("rewards", ())]


def _held_out(
    chart: go.Figure, points: Points, label: str, colour: str, *, visible: bool | str, dash: str = "solid"
) -> None:
    """A line through the evaluations with its confidence band; one legend entry switches both."""
    if not points:
        return
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
        legendgroup=label,
        name=f"{label}, band",
        visible=visible,
    )
    chart.add_scatter(
        x=x,
        y=value,
        mode="lines+markers",
        name=label,
        legendgroup=label,
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 7},
        visible=visible,
        hovertemplate="%{y:.4g}<extra>" + label + "</extra>",
    )
