"""Small charts of one number each: whether the update is stable, and how fast it goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import QUIET, TRAIN, figure, mark_changes, raw_and_smooth
from workbench.history import History


@dataclass(frozen=True)
class Gauge:
    """One number of every iteration and what it tells."""

    metric: str
    title: str
    healthy: str
    limit: tuple[str, str] | None = None  # dotted key of the setting that bounds it, and the label of its line

    def __call__(self, history: History, config: Mapping[str, Any]) -> go.Figure:
        chart = figure(self.title, self.healthy, x="", height=170)
        points = history.metric(self.metric)
        raw_and_smooth(chart, points, "smoothed", TRAIN)
        mark_changes(chart, history.changes_told)
        bound = _setting(config, self.limit[0]) if self.limit else None
        # a bound far above the data would flatten the line it is meant to judge
        if bound and self.limit and points and max(value for _, value in points) > 0.3 * bound:
            chart.add_hline(y=bound, line={"color": QUIET, "dash": "dot", "width": 1}, annotation={"text": self.limit[1]})
        return chart


def _setting(config: Mapping[str, Any], key: str) -> float | None:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


GAUGES: dict[str, Callable[[History, Mapping[str, Any]], go.Figure]] = {
    "kl": Gauge(
        "kl",
        "KL to the reference, per dimension",
        "Healthy: rises slowly, then levels off. A steady climb: raise the KL weight or lower the learning rate.",
        ("guard.max_kl", "pauses here"),
    ),
    "clip_fraction": Gauge(
        "clip_fraction",
        "Clipped ratios (share)",
        "Healthy: 0 with one epoch per batch, else below 0.3. Higher: fewer epochs or a smaller learning rate.",
    ),
    "ratio": Gauge(
        "ratio",
        "Policy ratio (mean)",
        "Healthy: stays within a hair of 1. A drift away from 1 at the first epoch means that sampling and training disagree.",
    ),
    "gradient_norm": Gauge(
        "gradient_norm",
        "Gradient norm before clipping",
        "Healthy: settles into a steady band. Spikes or growth come before divergence: lower the learning rate.",
        ("optimizer.max_grad_norm", "scaled down above"),
    ),
    "update_size": Gauge(
        "update_size",
        "Update size, relative",
        "Change over weights. Healthy: 1e-5 to 1e-2 and steady. Far off either way: adjust the learning rate.",
    ),
    "reward_spread": Gauge(
        "reward_std",
        "Reward spread inside groups",
        "Healthy: well above zero, shrinking late. At zero nothing is left to learn: more noise or harder prompts.",
    ),
}
