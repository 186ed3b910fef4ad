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

_Draw = Callable[[History, Mapping[str, Any]], go.Figure]

_TRAINING: dict[str, _Draw] = {
    "reward": reward_curve,
    "advantages": advantage_distribution,
    "steps": reward_by_steps,
    "skills": success_by_skill,
    "drift": drift,
    **GAUGES,
    "throughput": throughput,
}

FIGURES: dict[str, dict[str, _Draw]] = {
    "train": _TRAINING,
    "notebook": _TRAINING,  # of the training that is a part of it
    "pretrain": {"reward": loss_curve, "gradient_norm": GAUGES["gradient_norm"]},
}
"""What the page draws for each kind of run, by the place it takes there."""
