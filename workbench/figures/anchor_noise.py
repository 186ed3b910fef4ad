"""The plane of anchor and noise: what a learned map pays for exploration."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.style import figure

HEALTHY = (
    "Choose where diversity is high while the reward is still near that of the row without noise and the path error small: there "
    "a group explores what the deployed sampler also draws."
)
TITLES = {
    "reward": "Reward",
    "diversity": "Diversity in a group",
    "path_error": "Path error",
    "energy_distance": "Energy distance to data",
}
SCALE = "Cividis"  # even in lightness, and the same to people with any colour vision


def anchor_noise_maps(
    plane: Mapping[str, Any], panels: Sequence[str] = ("reward", "diversity", "path_error"), height: int = 360
) -> go.Figure:
    """Heat maps over anchor (across) and noise (upward), each with its own scale and its numbers written in.

    Args:
        plane: the figures of the benchmark `anchor_noise`.
        panels: which of its tables to draw; rewards go by their names too.
    Raises: ValueError: naming a table that there is not.
    """
    if missing := [name for name in panels if not isinstance(plane.get(name), list)]:
        tables = [name for name, value in plane.items() if isinstance(value, list) and value and isinstance(value[0], list)]
        raise ValueError(f"no table {missing[0]!r}; choose from: {', '.join(tables)}")
    made = make_subplots(1, len(panels), horizontal_spacing=0.12, subplot_titles=[TITLES.get(name, name) for name in panels])
    chart = figure("Anchor and noise", HEALTHY, height=height)
    chart.layout = made.layout.update(chart.layout, overwrite=False)
    anchors, noises = ([f"{knob:g}" for knob in plane[name]] for name in ("anchors", "noises"))
    for column, name in enumerate(panels, 1):
        axis = made.layout[f"xaxis{column if column > 1 else ''}"]
        chart.add_heatmap(
            x=anchors,
            y=noises,
            z=plane[name],
            colorscale=SCALE,
            texttemplate="%{z:.3~f}",
            colorbar={"x": axis.domain[1] + 0.01, "thickness": 10, "outlinewidth": 0},
            hovertemplate="anchor %{x}, noise %{y}: %{z:.4g}<extra>" + TITLES.get(name, name) + "</extra>",
            xaxis=f"x{column}",
            yaxis=f"y{column}",
        )
    chart.update_xaxes(title={"text": "anchor"}, type="category", rangemode="normal")
    chart.update_yaxes(title={"text": "noise"}, type="category")
    chart.update_layout(hovermode="closest", margin={"t": 64})
    return chart
