from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.drift import drift
from workbench.figures.gauges import GAUGES
from workbench.figures.groups import advantage_distribution
from workbench.figures.loss import loss_curve
from workbench.figures.reward import reward_curve
from workbench.figures.skills import success_by_skill
from workbench.figures.steps import reward_by_steps
from workbench.figures.throughput import throughput
from workbench.history import History

FIGURES: dict[str, dict[str, Callable[[History, Mapping[str, Any]], go.Figure]]] = {
    "train": {
        "reward": reward_curve,
        "advantages": advantage_distribution,
        "steps": reward_by_steps,
        "skills": success_by_skill,
        "drift": drift,
        **GAUGES,
        "throughput": throughput,
    },
    "pretrain": {"reward": loss_curve, "gradient_norm": GAUGES["gradient_norm"]},
}
"""What the page draws for each kind of run, by the place it takes there."""
