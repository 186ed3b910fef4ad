"""Sweeps: how their points did, on the way and at the end, and which setting made the difference."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.experiments.points import Point, Results
from workbench.experiments.space import Range, told
from workbench.figures.style import DOWN, HELD_OUT, LIMIT, QUIET, SERIES, UP, faded, figure

POINTS = (
    "Dots are points that ran to their end, with the 95 % interval over their seeds; the line is the best so far. Where it has "
    "long been level, more points will hardly help; where the bars of the best overlap, more seeds tell them apart."
)
CURVES = (
    "Every line is a point, the strong one the best. Lines that end at a cross were ended early: if one of them was about to "
    "cross the others, judge later. Curves that still rise at the end ask for longer runs."
)
SLICES = (
    "A slope or a hill says that the setting matters; a level cloud, that it does not. If the best dots lie at the edge of an "
    "axis, the best value may lie beyond it: widen the range."
)
PLANE = (
    "A bright region in the middle is what one hopes for. A bright cell at the edge says to look beyond it; a diagonal, that the "
    "two settings only make sense together. Where more settings were varied, a cell is the mean over them."
)
PARALLEL = (
    "Follow the blue lines: where they run through the same place of an axis, good points agree on that setting; where they "
    "fan out, it does not matter. Drag along an axis to keep only the lines that pass there."
)
IMPORTANCE = (
    "How much each setting explains of what tells the good points from the others, by Optuna's PED-ANOVA. Vary the long bars "
    "further and leave the short ones alone; with few points, or points in one corner, take it with care."
)

SCALE = "Cividis"  # even in lightness, and the same to people with any colour vision
LINES = [[0.0, DOWN], [0.5, QUIET], [1.0, UP]]
"""For thin lines, which have to be seen on white as well as on near-black."""
_STATUSES = (
    ("pruned", "x-thin-open", 6, faded(DOWN, 0.7), "ended early"),
    ("done", "circle", 9, SERIES[0], "ran to its end"),
    ("running", "circle-open", 9, SERIES[2], "goes on"),
)
_FEW = len(SERIES)
_DECADES = 50.0  # values that differ by this factor are told apart on a logarithmic axis only
_CELLS = 40  # most values of one axis of a heat map


def sweep_points(found: Results) -> go.Figure:
    """The value of every point in the order in which they were asked for, with the best so far; failures along the bottom."""
    metric = found.settings.metric
    chart = figure(f"{metric} of each point", POINTS, x="point", y=metric, height=300)
    chart.update_layout(hovermode="closest", showlegend=True, margin_t=44)
    chart.update_xaxes(range=[0.4, max(found.total, len(found.points)) + 0.6], rangemode="normal")
    best: list[tuple[int, float]] = []
    for point in _done(found):
        if not best or found.settings.better(point.value or 0.0, best[-1][1]):
            best.append((point.number + 1, point.value or 0.0))
    if best:
        ends = [*best, (len(found.points), best[-1][1])]
        x, y = zip(*ends, strict=True)
        line = {"color": faded(HELD_OUT, 0.8), "width": 2, "shape": "hv"}
        chart.add_scatter(x=x, y=y, mode="lines", name="best so far", line=line, hoverinfo="skip")
    _by_status(chart, found, lambda point: point.number + 1)
    told = {point.number + 1: _settings(point) for point in found.points}
    for trace in chart.select_traces(selector={"mode": "markers"}):  # once, since other figures would only repeat it
        trace.update(text=[told[number] for number in trace.customdata], hovertemplate="%{text}<br>" + trace.hovertemplate)
    if lost := [point for point in found.points if point.status in ("failed", "stopped")]:
        chart.add_scatter(
            x=[point.number + 1 for point in lost],
            y=[0.0] * len(lost),
            yaxis="y2",
            mode="markers",
            name="without a value",
            marker={"symbol": "triangle-up", "size": 9, "color": QUIET},
            text=[f"{_settings(point)}<br>{point.status}: {point.error}" for point in lost],
            hovertemplate="%{text}<extra></extra>",
        )
        chart.update_layout(yaxis2={"overlaying": "y", "range": [-0.03, 1], "visible": False, "fixedrange": True})
    return chart


def sweep_curves(found: Results) -> go.Figure:
    """The curve of every point, the mean over its seeds; a cross where one was ended early."""
    metric = found.settings.metric
    chart = figure(f"{metric} on the way", CURVES, y=metric, height=340)
    chart.update_layout(hovermode="closest", showlegend=True, margin_t=44)
    drawn = [point for point in found.points if point.curve]
    best = found.best
    few = len(drawn) <= _FEW
    for i, (name, points) in enumerate(_bundles(drawn, best, few)):
        strong = best is not None and points == [best]
        colour = SERIES[i % len(SERIES)] if few else HELD_OUT if strong else DOWN if name == "ended early" else SERIES[0]
        x, y, numbers = _joined(points)
        chart.add_scatter(
            x=x,
            y=y,
            customdata=numbers,
            mode="lines" if len(x) > 2 else "lines+markers",
            name=name,
            connectgaps=False,
            line={"color": colour if few or strong else faded(colour, 0.35), "width": 3 if strong else 1.4},
            hovertemplate="point %{customdata}: %{y:.4g} after %{x}<extra>" + (name if few else "") + "</extra>",
        )
    if ended := [point for point in drawn if point.status == "pruned"]:
        chart.add_scatter(
            x=[point.curve[-1][0] for point in ended],
            y=[point.curve[-1][1] for point in ended],
            text=[_settings(point) for point in ended],
            mode="markers",
            name="ended early",
            showlegend=few,
            marker={"symbol": "x-thin-open", "size": 8, "color": DOWN, "line": {"width": 2}},
            hovertemplate="%{text}<br>ended early after %{x}: %{y:.4g}<extra></extra>",
        )
    return chart


def sweep_slices(found: Results) -> go.Figure:
    """The value of every point against each setting, one panel for each."""
    axes, metric = list(found.settings.space), found.settings.metric
    made = make_subplots(1, len(axes), shared_yaxes=True, horizontal_spacing=0.03)
    chart = figure(f"{metric} by setting", SLICES, x="", height=320)
    chart.layout = made.layout.update(chart.layout, overwrite=False)
    chart.update_layout(hovermode="closest", showlegend=True, margin={"t": 44, "b": 56})
    chart.update_xaxes(rangemode="normal", title={"text": ""})
    chart.update_layout(yaxis={"title": {"text": metric}})
    for column, axis in enumerate(axes, 1):
        place = {"xaxis": f"x{column}", "yaxis": f"y{column}" if column > 1 else "y"}
        _by_status(chart, found, partial(_place, found, axis), showlegend=column == 1, **place)
        chart.layout[f"xaxis{column if column > 1 else ''}"].update(
            title={"text": axis}, type=_kind(found, axis), exponentformat="e"
        )
    for each in [*chart.select_xaxes(), *chart.select_yaxes()]:
        each.update(gridcolor=faded(QUIET, 0.25))  # pages colour the first panel only
    return chart


def sweep_plane(found: Results, across: str = "", upward: str = "") -> go.Figure:
    """The value over two settings: a heat map where they take few values, coloured dots where they were drawn from ranges.

    Args:
        across, upward: which settings; by default the first two.
    Raises: ValueError: if the sweep varies fewer than two settings, or not these.
    """
    axes = list(found.settings.space)
    if len(axes) < 2:
        raise ValueError(f"a plane needs two settings, and this sweep varies only {axes[0]}")
    across, upward = across or axes[0], upward or next(axis for axis in axes if axis != (across or axes[0]))
    if unknown := [axis for axis in (across, upward) if axis not in axes]:
        raise ValueError(f"{unknown[0]!r} is not varied; choose from: {', '.join(axes)}")
    metric = found.settings.metric
    chart = figure(f"{metric} by {across} and {upward}", PLANE, x=across, y=upward, height=380)
    chart.update_layout(hovermode="closest", margin={"t": 44, "r": 70})
    chart.update_xaxes(rangemode="normal")
    done = _done(found)
    columns, rows = (_values(found, axis) for axis in (across, upward))
    if not all(_is_listed(found, axis) for axis in (across, upward)):
        return _cloud(chart, found, done, across, upward)
    cells: dict[tuple[str, str], list[float]] = {}
    for point in done:
        cells.setdefault((told(point.parameters[across]), told(point.parameters[upward])), []).append(point.value or 0.0)
    table = [[_mean(cells.get((column, row))) for column in columns] for row in rows]
    chart.add_heatmap(
        x=columns,
        y=rows,
        z=table,
        text=[["" if value is None else f"{value:.3g}" for value in row] for row in table],
        texttemplate="%{text}" if len(columns) * len(rows) <= 100 else None,
        colorscale=SCALE,
        reversescale=found.settings.direction == "min",
        colorbar={"thickness": 10, "outlinewidth": 0},
        hoverongaps=False,
        hovertemplate=f"{across} %{{x}}<br>{upward} %{{y}}<br>%{{z:.4g}}<extra></extra>",
    )
    chart.update_xaxes(type="category")
    chart.update_yaxes(type="category")
    return chart


def sweep_parallel(found: Results) -> go.Figure:
    """One line for each point that is done, through its settings to its value; the bluer, the better."""
    metric = found.settings.metric
    chart = figure(f"Settings and {metric}", PARALLEL, x="", height=340)
    chart.update_layout(margin={"l": 60, "r": 60, "t": 84, "b": 26}, title={"y": 0.98, "yanchor": "top"})
    done = _done(found)
    if not done:
        return chart
    values = [point.value for point in done]
    dimensions = [_dimension(found, axis, done) for axis in found.settings.space]
    chart.add_parcoords(
        dimensions=[*dimensions, {"label": metric, "values": values}],
        line={"color": values, "colorscale": LINES, "reversescale": found.settings.direction == "min", "showscale": True},
        labelfont={"size": 12},
    )
    return chart


def sweep_importance(importances: Mapping[str, float]) -> go.Figure:
    """A bar for each setting, the longest on top.

    Args:
        importances: by setting, as `Search.importances` gives them; they add up to 1.
    """
    chart = figure("Which setting matters", IMPORTANCE, x="share of what is explained", height=90 + 30 * max(1, len(importances)))
    chart.update_layout(hovermode="closest", margin_t=44)
    names = sorted(importances, key=lambda name: importances[name])
    chart.add_bar(
        x=[importances[name] for name in names],
        y=names,
        orientation="h",
        marker={"color": SERIES[0]},
        text=[f"{importances[name]:.0%}" for name in names],
        textposition="auto",
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    chart.update_xaxes(range=[0, 1], tickformat=".0%")
    return chart


SWEEP_FIGURES: dict[str, Callable[[Results], go.Figure]] = {
    "points": sweep_points,
    "curves": sweep_curves,
    "slices": sweep_slices,
    "parallel": sweep_parallel,
}
"""What can be drawn of every sweep; a plane needs two settings."""


def _by_status(chart: go.Figure, found: Results, place: Callable[[Point], Any], **where: Any) -> None:
    """Markers with their intervals, one trace for each status."""
    for status, symbol, size, colour, name in _STATUSES:
        points = [point for point in found.points if point.status == status and point.value is not None]
        if not points:
            continue
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [0.0 if point.high is None else point.high - (point.value or 0.0) for point in points],
            "arrayminus": [0.0 if point.low is None else (point.value or 0.0) - point.low for point in points],
            "thickness": 1.4,
            "width": 0,
        }
        chart.add_scatter(
            x=[place(point) for point in points],
            y=[point.value for point in points],
            error_y=bars if any(point.low is not None for point in points) else None,
            customdata=[point.number + 1 for point in points],
            mode="markers",
            name=name,
            legendgroup=status,
            marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 2} if "open" in symbol else {"width": 0}},
            hovertemplate="point %{customdata}<br>%{y:.4g}<extra>" + name + "</extra>",
            **where,
        )


def _bundles(points: Sequence[Point], best: Point | None, few: bool) -> list[tuple[str, list[Point]]]:
    """Points that share one trace: each its own where they are few, else those that ended alike."""
    if few:
        return [(_settings(point), [point]) for point in points]
    rest = [point for point in points if best is None or point.number != best.number]
    bundles = [
        ("ended early", [point for point in rest if point.status == "pruned"]),
        ("other points", [point for point in rest if point.status != "pruned"]),
        ("the best", [best] if best is not None else []),
    ]
    return [(name, bundle) for name, bundle in bundles if bundle]


def _joined(points: Sequence[Point]) -> tuple[list[int | None], list[float | None], list[int | None]]:
    """The curves of points as one line with gaps, and their numbers; thinner where there are many, for no screen shows them."""
    every = max(1, sum(len(point.curve) for point in points) // (5 * LIMIT))
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for point in points:
        kept = [*point.curve[:-1:every], point.curve[-1]]
        x += [*(iteration for iteration, _ in kept), None]
        y += [*(float(f"{value:.5g}") for _, value in kept), None]
        numbers += [*([point.number + 1] * len(kept)), None]
    return x, y, numbers


def _cloud(chart: go.Figure, found: Results, done: Sequence[Point], across: str, upward: str) -> go.Figure:
    """Dots in the plane, coloured by value."""
    chart.add_scatter(
        x=[_place(found, across, point) for point in done],
        y=[_place(found, upward, point) for point in done],
        text=[_settings(point) for point in done],
        mode="markers",
        marker={
            "size": 12,
            "color": [point.value for point in done],
            "colorscale": SCALE,
            "reversescale": found.settings.direction == "min",
            "colorbar": {"thickness": 10, "outlinewidth": 0},
            "line": {"width": 1, "color": QUIET},
        },
        hovertemplate="%{text}<br>%{marker.color:.4g}<extra></extra>",
    )
    chart.update_xaxes(type=_kind(found, across), exponentformat="e")
    chart.update_yaxes(type=_kind(found, upward), exponentformat="e")
    return chart


def _done(found: Results) -> list[Point]:
    return [point for point in found.points if point.status == "done" and point.value is not None]


def _settings(point: Point) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {told(value)}" for key, value in point.parameters.items())


def _numbers(found: Results, axis: str) -> list[float]:
    """The values of an axis where all of them are numbers; empty otherwise."""
    values = [point.parameters[axis] for point in found.points]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return [float(value) for value in values] if numeric else []


def _kind(found: Results, axis: str) -> str:
    """How the values of an axis are laid out: linear, log or category."""
    numbers, space = _numbers(found, axis), found.settings.space[axis]
    if not numbers:
        return "category"
    wide = min(numbers) > 0 and max(numbers) / min(numbers) >= _DECADES
    return "log" if wide or (isinstance(space, Range) and space.log) else "linear"


def _place(found: Results, axis: str, point: Point) -> Any:
    value = point.parameters[axis]
    return value if _numbers(found, axis) else told(value)


def _values(found: Results, axis: str) -> list[str]:
    """The values that an axis took, in order."""
    values = [point.parameters[axis] for point in found.points]
    ordered = sorted(set(values)) if _numbers(found, axis) else values
    return list(dict.fromkeys(told(value) for value in ordered))


def _is_listed(found: Results, axis: str) -> bool:
    """Whether an axis takes certain values only, few enough for a heat map."""
    space = found.settings.space[axis]
    drawn = isinstance(space, Range) and space.count is None and found.settings.search != "grid"
    return not drawn and len(_values(found, axis)) <= _CELLS


def _dimension(found: Results, axis: str, points: Sequence[Point]) -> dict[str, Any]:
    """An axis of parallel coordinates; logarithmic and categorical ones by the labels of their ticks."""
    kind = _kind(found, axis)
    if kind == "category":
        names = _values(found, axis)
        places = [names.index(told(point.parameters[axis])) for point in points]
        return {"label": axis, "values": places, "tickvals": list(range(len(names))), "ticktext": names}
    values = [float(point.parameters[axis]) for point in points]
    if kind == "linear":
        return {"label": axis, "values": values}
    ticks = sorted(set(values)) if len(set(values)) <= 8 else [min(values), math.sqrt(min(values) * max(values)), max(values)]
    return {
        "label": axis,
        "values": [math.log10(value) for value in values],
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:.3g}" for tick in ticks],
    }


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
