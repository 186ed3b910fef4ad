"""How right particles are, by time and by number of steps; and how a policy of the plane learns."""

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.figures.style import DOWN, QUIET, TRAIN, UP, figure, raw_and_smooth
from workbench.pathlab import COUNTS, LEVEL, Accuracy
from workbench.plane import Progressed

SMALLEST = 1e-12
"""p-values below it are drawn here."""

P_VALUES = (
    "Right: dots scattered anywhere above the line, at every time. Dots that sink below it as time runs to data: the kernel's "
    "error adds up on the way."
)
MASS = (
    "Right: on the dashed line at every number of steps. A curve that nears it buys accuracy with steps; one that levels off "
    "beside it is biased for ever."
)
DISTANCE = (
    "Right: about the dashed line, where as many exact samples would be. A curve that falls toward it buys accuracy with "
    "steps; one that levels off above it is biased for ever."
)


def p_values_by_time(times: Sequence[float] = (), p_values: Sequence[float] = (), wrong: Sequence[int] = ()) -> go.Figure:
    """The energy test at each node that is kept, from noise to data.

    Args:
        wrong: places where the family of tests rejects.
    """
    chart = figure("Energy test at every time", P_VALUES, x="time t, from noise (1) to data (0)", y="p-value (log)", height=230)
    chart.update_xaxes(range=[1.04, -0.04], rangemode="normal")
    ticks = {1: "1", 1e-3: "10⁻³", 1e-6: "10⁻⁶", 1e-9: "10⁻⁹", SMALLEST: "≤10⁻¹²"}
    chart.update_yaxes(type="log", range=[-12.6, 0.5], tickvals=list(ticks), ticktext=list(ticks.values()))
    if not times:
        return chart
    chart.add_hline(y=LEVEL, line={"color": QUIET, "width": 1.4, "dash": "dash"})
    marks = [place in wrong for place in range(len(times))]
    chart.add_scatter(
        x=list(times),
        y=[max(p, SMALLEST) for p in p_values],
        mode="lines+markers",
        name="p-value",
        line={"color": QUIET, "width": 1},
        marker={
            "size": 9,
            "color": [DOWN if bad else TRAIN for bad in marks],
            "symbol": ["x" if bad else "circle" for bad in marks],
        },
        customdata=["wrong" if bad else "not told from exact samples" for bad in marks],
        hovertemplate="p = %{y:.2g}: %{customdata}<extra></extra>",
    )
    return chart


def accuracy_by_steps(points: Sequence[Accuracy] = (), steps: int | None = None) -> go.Figure:
    """The final particles at several numbers of steps: mass on the outer ring, or else the energy distance.

    Args:
        steps: that is set on the page, marked by a line.
    """
    rings = not points or points[0].mass is not None
    title = "Mass on the outer ring, by steps" if rings else "Distance to the data, by steps"
    unit = "share of the points" if rings else "energy distance², log"
    chart = figure(title, MASS if rings else DISTANCE, x="steps (log)", y=unit, height=230)
    chart.update_xaxes(type="log", tickvals=list(COUNTS), range=[-0.08, 1.9])
    if rings:
        chart.update_yaxes(range=[0.15, 0.85])
    else:
        chart.update_yaxes(type="log", range=[-3.4, 0.7], tickvals=[1e-3, 1e-2, 0.1, 1])
    if not points:
        return chart
    if steps is not None:
        chart.add_vline(x=steps, line={"color": QUIET, "width": 1, "dash": "dot"})
    bars = {"type": "data", "array": [1.96 * (point.error or 0) for point in points], "thickness": 1.2, "width": 4}
    wanted = 0.5 if rings else sum(point.chance for point in points) / len(points)
    chart.add_hline(y=wanted, line={"color": QUIET, "width": 1.4, "dash": "dash"})
    chart.add_scatter(
        x=[point.steps for point in points],
        y=[point.mass if rings else max(point.distance, 5e-4) for point in points],
        error_y=bars if rings else None,
        mode="lines+markers",
        name="this kernel",
        line={"color": TRAIN, "width": 2},
        marker={"size": 8},
        hovertemplate="%{y:.3g} at %{x} steps<extra></extra>",
    )
    return chart


def plane_reward(history: Sequence[Progressed] = ()) -> go.Figure:
    """Mean reward of the rollouts, update by update."""
    healthy = "Healthy: rises after each move of the reward, then levels off. At 1 every particle sits on the centre."
    chart = figure("Reward", healthy, x="update", y="mean reward", height=200)
    chart.update_yaxes(range=[0, 1.02])
    raw_and_smooth(chart, [(row.update, row.reward) for row in history], "reward", UP)
    return chart


def plane_kl(history: Sequence[Progressed] = ()) -> go.Figure:
    """Distance to the exact map, update by update."""
    healthy = "Healthy: levels off. The price of the reward: how far the policy left the exact map. Not measured at weight 0."
    chart = figure("KL to the exact map, mean over dimensions", healthy, x="update", y="KL", height=200)
    raw_and_smooth(chart, [(row.update, row.kl) for row in history], "KL", DOWN)
    return chart
