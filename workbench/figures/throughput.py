"""How fast a run goes."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.figures.style import TRAIN, figure, raw_and_smooth
from workbench.history import History

HEALTHY = "Healthy: flat. A drop means that something else uses the machine; larger compute batches help until memory is full."


def throughput(history: History, config: Mapping[str, Any]) -> go.Figure:
    """Images sampled and trained on per second of each iteration."""
    chart = figure("Throughput (images/s)", HEALTHY, x="", height=170)
    raw_and_smooth(chart, images_per_second(history, config), "smoothed", TRAIN)
    return chart


def images_per_second(history: History, config: Mapping[str, Any]) -> list[tuple[int, float]]:
    """As reported by the run; otherwise what its groups and the duration of each iteration say."""
    reported = history.metric("images_per_second")
    if reported or "grpo" not in config:
        return reported
    images = config["grpo"]["groups"] * config["grpo"]["group_size"]
    return [(at, images / seconds) for at, seconds in history.seconds if seconds > 0]
