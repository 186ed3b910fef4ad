"""The loss of a pretraining run."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import SERIES, figure, raw_and_smooth
from workbench.history import History

HEALTHY = (
    "Healthy: falls fast, then slowly. A jump upward that stays means divergence: lower the learning rate. Its level says little."
)


def loss_curve(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Pretraining loss over steps, raw and smoothed, on a logarithmic axis."""
    chart = figure("Loss", HEALTHY, y="loss (log)", height=330)
    chart.update_yaxes(type="log")
    chart.update_layout(showlegend=True)
    names = [name for name in history.metrics if name.startswith("loss")]
    for name, colour in zip(names, SERIES, strict=False):
        raw_and_smooth(chart, history.metric(name), name.removeprefix("loss_").replace("_", " "), colour)
    return chart
