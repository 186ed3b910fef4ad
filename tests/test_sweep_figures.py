"""Figures of sweeps, by their data: from no point at all to hundreds of them."""

import itertools
import math
import random

import pytest

from workbench.config import validated
from workbench.experiments.points import Point, Results
from workbench.experiments.search import Search
from workbench.experiments.space import SweepSettings
from workbench.figures.sweeps import SWEEP_FIGURES, sweep_importance, sweep_plane

RATE, NOISE = "optimizer.learning_rate", "sampler.noise"
GRID = {RATE: "1e-4..1e-2:log:3", NOISE: [0.2, 0.8]}


def point(number, parameters, status="done", value=0.5, seeds=3, error=""):
    values = tuple(value + 0.01 * (seed - 1) for seed in range(seeds))
    low, high = (value - 0.02, value + 0.02) if seeds > 1 and status == "done" else (None, None)
    curve = [(i, value * i / 30) for i in range(1, 11 if status == "pruned" else 31)]
    shown = None if status == "failed" else value
    return Point(number, parameters, status, shown, low, high, values, (0, 1, 2)[:seeds], ("r",) * seeds, 30, 9.0, error, curve)


def results(space, statuses, **values):
    settings = validated(SweepSettings, {"target": {"preset": "shapes"}, "space": space, **values})
    search, draw = Search(settings), random.Random(0)
    points = []
    for number, status in enumerate(statuses):
        parameters = search.propose()
        search.tell(number, "failed", None)
        value = 1 - abs(math.log10(parameters.get(RATE, 1e-3)) + 3) / 4 + draw.uniform(0, 0.01)
        points.append(point(number, parameters, status, value, error="it was made to fail" if status == "failed" else ""))
    return Results("s", "running", settings, len(statuses), tuple(points))


def trace(chart, name):
    return next(item for item in chart.data if item.name == name)


SOME = results(GRID, ["done", "done", "pruned", "failed", "done", "running"])
MANY = results({RATE: "1e-5..1e-1:log", "grpo.epochs": [1, 2]}, ["done", "pruned"] * 100, search="random", points=200)


@pytest.mark.parametrize("name", SWEEP_FIGURES)
@pytest.mark.parametrize(
    "found", [results(GRID, []), results({RATE: [1e-3]}, ["done"]), SOME, MANY], ids=["none", "1", "6", "200"]
)
def test_every_figure_takes_any_number_of_points(name, found):
    chart = SWEEP_FIGURES[name](found)
    assert chart.layout.title.text
    assert len(chart.layout.meta["healthy"]) > 40
    assert bool(chart.data) == bool(found.points)
    assert len(chart.to_json()) < 80_000


def test_points_show_their_intervals_the_best_so_far_and_what_failed():
    chart = SWEEP_FIGURES["points"](SOME)
    done = trace(chart, "ran to its end")
    assert list(done.x) == [1, 2, 5]
    assert list(done.y) == [SOME.points[i].value for i in (0, 1, 4)]
    assert list(done.error_y.array) == pytest.approx([0.02] * 3)
    assert list(done.error_y.arrayminus) == pytest.approx([0.02] * 3)
    assert list(trace(chart, "ended early").x) == [3]
    assert list(trace(chart, "goes on").x) == [6]
    assert "it was made to fail" in trace(chart, "without a value").text[0]
    best = trace(chart, "best so far").y
    assert all(later >= earlier for earlier, later in itertools.pairwise(best))
    assert best[-1] == SOME.best.value


def test_curves_are_joined_by_how_they_ended_where_there_are_many():
    chart = SWEEP_FIGURES["curves"](MANY)
    assert [item.name for item in chart.data if item.mode.startswith("lines")] == ["ended early", "other points", "the best"]
    assert list(trace(chart, "the best").y[:-1]) == pytest.approx([value for _, value in MANY.best.curve], rel=1e-4)
    crosses = next(item for item in chart.data if item.mode == "markers")
    assert len(crosses.x) == 100
    assert set(crosses.x) == {10}
    assert len(SWEEP_FIGURES["curves"](SOME).data) == 7


def test_slices_have_a_panel_for_each_setting_with_its_own_scale():
    chart = SWEEP_FIGURES["slices"](SOME)
    assert (chart.layout.xaxis.type, chart.layout.xaxis2.type) == ("log", "linear")
    assert (chart.layout.xaxis.title.text, chart.layout.xaxis2.title.text) == (RATE, NOISE)
    assert {item.xaxis for item in chart.data} == {"x", "x2"}


def test_a_plane_is_a_heat_map_of_a_grid_and_a_cloud_of_what_was_drawn():
    (heat,) = sweep_plane(SOME).data
    assert (list(heat.x), list(heat.y)) == (["0.0001", "0.001", "0.01"], ["0.2", "0.8"])
    assert heat.z[0][0] == SOME.points[0].value
    assert heat.z[0][1] is None
    (cloud,) = sweep_plane(MANY).data
    assert len(cloud.x) == 100


def test_a_plane_averages_over_what_else_was_varied():
    found = results({RATE: [1e-3, 1e-2], NOISE: [0.2], "grpo.epochs": [1, 2]}, ["done"] * 4)
    (heat,) = sweep_plane(found).data
    assert heat.z[0][0] == pytest.approx((found.points[0].value + found.points[1].value) / 2)


def test_a_plane_needs_two_settings_that_were_varied():
    with pytest.raises(ValueError, match=r"only optimizer\.learning_rate"):
        sweep_plane(results({RATE: [1e-3]}, ["done"]))
    with pytest.raises(ValueError, match=r"'seed' is not varied; choose from: optimizer\.learning_rate, sampler\.noise"):
        sweep_plane(SOME, "seed")


def test_parallel_coordinates_name_categories_and_real_values():
    found = results({RATE: [1e-4, 1e-2], "sampler.name": ["asfmc", "cps"]}, ["done"] * 4)
    rate, name, reward = SWEEP_FIGURES["parallel"](found).data[0].dimensions
    assert list(rate.ticktext) == ["0.0001", "0.01"]
    assert list(rate.values) == [-4, -4, -2, -2]
    assert list(name.ticktext) == ["asfmc", "cps"]
    assert list(reward.values) == [each.value for each in found.points]


def test_importances_are_sorted_with_the_longest_on_top():
    (bars,) = sweep_importance({RATE: 0.2, NOISE: 0.8}).data
    assert list(bars.y) == [RATE, NOISE]
    assert list(bars.text) == ["20%", "80%"]
