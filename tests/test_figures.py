"""Figures and verdicts, by their data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from plotly.graph_objects import Figure
from toy_run import toy_config, toy_events

from workbench.config import PRESETS
from workbench.events import CheckpointReady, Event, IterationDone, Progress
from workbench.exact_json import fields_of, from_json, to_json
from workbench.figures import FIGURES
from workbench.figures.style import HELD_OUT, LIMIT, TRAIN, columns, smooth, thin
from workbench.health import held_out_reward, quiet_groups, verdicts
from workbench.history import History, Recorded


@dataclass(frozen=True)
class ToyRow:
    id: int
    kind: str
    iteration: int
    time: float
    data: dict[str, Any]


def rows_of(events: list[Event]) -> list[ToyRow]:
    """Events as the store hands them out, without their pictures."""
    kept = [event for event in events if not isinstance(event, Progress | CheckpointReady)]
    sheet = {"sprite": "toy.webp", "tile": [40, 40], "columns": 8, "count": 24}
    described = [fields_of(event) | ({"preview": sheet} if hasattr(event, "preview") else {}) for event in kept]
    return [
        ToyRow(i + 1, type(event).__name__, event.iteration, 100.0 + i, from_json(to_json(data)))
        for i, (event, data) in enumerate(zip(kept, described, strict=True))
    ]


def history_of(events: list[Event]) -> History:
    history = History().extended(rows_of(events))
    last = max((row for row in rows_of(events) if row.kind == "GroupsScored"), key=lambda row: row.id, default=None)
    return (
        history
        if last is None
        else history.extended([]).__class__(**{**fields_of(history), "groups": Recorded(last.id, last.iteration, last.data)})
    )


def trace(chart: Figure, name: str) -> Any:
    return next(item for item in chart.data if item.name == name)


CONFIG = toy_config(30)
SETTINGS = CONFIG.model_dump(mode="json")
HISTORY = history_of(list(toy_events(CONFIG)))
EVERY = [(kind, name) for kind, figures in FIGURES.items() for name in figures]


def verdict_titles(
    history: History, config: Mapping[str, Any] = SETTINGS, status: str = "running", error: str | None = None
) -> list[str]:
    return [verdict.title for verdict in verdicts(history, config, status, error)]


def altered(**changes: float) -> History:
    """A run whose last evaluation differs from the toy's in some measures, by factors."""
    rows = rows_of(list(toy_events(CONFIG)))
    for measures in rows[-2].data["measures"].values():
        for name, factor in changes.items():
            measures[name] = {key: value * factor for key, value in measures[name].items()}
    return History().extended(rows)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_figure_says_what_healthy_looks_like(kind: str, name: str) -> None:
    chart = FIGURES[kind][name](HISTORY, SETTINGS)
    assert chart.layout.title.text
    assert len(chart.layout.meta["healthy"]) > 40
    assert chart.layout.uirevision == "kept"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_figure_of_a_run_that_has_only_begun_is_empty(kind: str, name: str) -> None:
    assert not FIGURES[kind][name](History(), SETTINGS).data


def test_the_reward_curve_shows_every_value_and_its_average() -> None:
    chart = FIGURES["train"]["reward"](HISTORY, SETTINGS)
    raw, average = trace(chart, "training, raw"), trace(chart, "training")
    expected = [value for _, value in HISTORY.metric("reward")]
    assert np.allclose(raw.y, expected)
    assert list(average.x) == list(range(1, 31))
    assert np.std(np.diff(average.y)) < np.std(np.diff(raw.y))


def test_the_held_out_reward_is_exact_and_lies_in_its_band() -> None:
    chart = FIGURES["train"]["reward"](HISTORY, SETTINGS)
    line, band = trace(chart, "held-out"), trace(chart, "held-out, band")
    assert list(line.x) == [0, 10, 20, 30]
    assert np.allclose(line.y, [value for _, value, _, _ in held_out_reward(HISTORY, SETTINGS)])
    high, low = band.y[:4], band.y[4:][::-1]
    assert all(lower < value < upper for lower, value, upper in zip(low, line.y, high, strict=True))


def test_parts_of_the_reward_can_be_switched_on() -> None:
    chart = FIGURES["train"]["reward"](HISTORY, SETTINGS)
    assert trace(chart, "shapes exact").visible == "legendonly"


def test_the_held_out_reward_is_the_weighted_sum_of_its_parts() -> None:
    measures = HISTORY.evaluations[0].data["measures"]["4"]
    expected = sum(item["weight"] * measures[item["reward"]["name"]]["value"] for item in SETTINGS["rewards"])
    assert held_out_reward(HISTORY, SETTINGS)[0][1] == pytest.approx(expected)


def test_advantages_are_counted_once_and_quiet_groups_apart() -> None:
    chart = FIGURES["train"]["advantages"](HISTORY, SETTINGS)
    size, groups = CONFIG.grpo.group_size, CONFIG.grpo.groups
    assert sum(int(np.sum(bar.y)) for bar in chart.data) == size * groups
    assert int(np.sum(trace(chart, f"no gradient {size}").y)) == size


def test_steps_compare_the_base_with_the_latest_evaluation() -> None:
    chart = FIGURES["train"]["steps"](HISTORY, SETTINGS)
    assert list(trace(chart, "before").x) == ["1", "2", "4", "8"]
    assert trace(chart, "iteration 30").y[2] > trace(chart, "before").y[2]


def test_drift_is_relative_to_the_base() -> None:
    chart = FIGURES["train"]["drift"](history_of(list(toy_events(CONFIG, drift=4.0))), SETTINGS)
    assert trace(chart, "palette distance").y[0] == 1
    assert trace(chart, "palette distance").y[-1] == pytest.approx(4.0)


def test_a_gauge_shows_its_bound_only_when_it_is_near() -> None:
    near = FIGURES["train"]["kl"](HISTORY, {"guard": {"max_kl": 0.5}})
    far = FIGURES["train"]["kl"](HISTORY, {"guard": {"max_kl": 10.0}})
    assert len(near.layout.shapes) == 1
    assert not far.layout.shapes


def test_smoothing_keeps_a_constant_and_never_looks_ahead() -> None:
    assert np.allclose(smooth(np.full(20, 3.0)), 3.0)
    values = np.random.default_rng(0).normal(size=50)
    assert np.array_equal(smooth(values)[:30], smooth(values[:30]))


def test_thinning_keeps_ends_and_extremes() -> None:
    values = np.sin(np.arange(5000) / 50)
    values[1234], values[2345] = 9.0, -9.0
    x, y = thin(np.arange(5000, dtype=np.int32), values)
    assert len(x) <= LIMIT + 2
    assert (x[0], x[-1]) == (0, 4999)
    assert (y.max(), y.min()) == (9.0, -9.0)


def test_a_long_run_is_sent_in_few_bytes() -> None:
    done = [IterationDone(i, {"reward": 0.1, "kl": 0.1, "gradient_norm": 1.0, "update_size": 1e-3}, 0.5) for i in range(1, 5001)]
    history = History().extended(rows_of(list(done)))
    sizes = {name: len(make(history, SETTINGS).to_json()) for name, make in FIGURES["train"].items()}
    assert sum(sizes.values()) < 60_000, sizes


@pytest.mark.parametrize("background", [(255, 255, 255), (21, 25, 32)])
def test_lines_stand_out_on_light_and_on_dark(background: tuple[int, int, int]) -> None:
    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (TRAIN, HELD_OUT):
        pair = sorted((luminance(tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))), luminance(background)))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 3.0


def test_a_history_grows_by_rows_as_if_read_at_once() -> None:
    rows = rows_of(list(toy_events(CONFIG)))
    halves = History().extended(rows[:40]).extended(rows[40:])
    assert fields_of(halves) == fields_of(History().extended(rows))


def test_a_snapshot_is_not_changed_by_what_comes_later() -> None:
    rows = rows_of(list(toy_events(CONFIG)))
    early = History().extended(rows[:40])
    known = len(early.metric("reward"))
    early.extended(rows[40:])
    assert len(early.metric("reward")) == known


def test_iterations_come_as_integers_and_missing_values_as_gaps() -> None:
    x, y = columns([(1, 0.5), (2, float("nan"))])
    assert x.dtype == np.int32
    assert np.isnan(y[1])


def test_a_run_that_learns_is_called_healthy() -> None:
    assert verdict_titles(HISTORY) == ["Healthy"]


def test_drifting_pictures_under_a_rising_reward_are_called_hacking() -> None:
    found = verdicts(history_of(list(toy_events(CONFIG, drift=4.0))), SETTINGS, "running")
    assert found[0].title == "Reward hacking suspected"
    assert found[0].level == "red"
    assert "palette distance is 4.0 times" in found[0].sentence
    assert "kl_weight" in found[0].remedy


def test_drift_within_three_times_the_base_is_not_called_hacking() -> None:
    assert verdict_titles(history_of(list(toy_events(CONFIG, drift=2.8)))) == ["Healthy"]


def test_drift_without_a_rising_reward_is_not_called_hacking() -> None:
    rows = rows_of(list(toy_events(CONFIG, drift=4.0)))
    for row in rows:
        if row.kind == "IterationDone":
            row.data["metrics"]["reward"] = 0.5
    assert "Reward hacking suspected" not in verdict_titles(History().extended(rows))


def test_images_that_grow_alike_are_told() -> None:
    assert verdict_titles(altered(layouts=0.7)) == ["Diversity is shrinking"]


def test_a_reward_that_falls_back_is_told_with_where_it_was_best() -> None:
    history = altered(shapes_dense=0.3, shapes_exact=0.1)
    assert "The reward has fallen back" in verdict_titles(history)


def test_a_run_that_paused_by_itself_gives_its_reason() -> None:
    found = verdicts(HISTORY, SETTINGS, "paused", "kl is nan at iteration 7")
    assert found[0].title == "Paused by itself"
    assert found[0].sentence == "kl is nan at iteration 7"


@pytest.mark.parametrize(("status", "title"), [("crashed", "Crashed"), ("failed", "Failed")])
def test_a_run_that_ended_badly_is_never_called_healthy(status: str, title: str) -> None:
    assert verdict_titles(HISTORY, status=status, error="out of memory") == [title]


def test_groups_without_spread_are_counted_and_told() -> None:
    groups = Recorded(1, 1, {"group_size": 2, "advantages": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0]})
    assert quiet_groups(groups.data["advantages"], 2) == 4
    assert "Little to learn from" in verdict_titles(History(groups=groups))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_of_any_preset_has_something_to_say_at_once(preset: str) -> None:
    assert verdict_titles(History(), PRESETS[preset].model_dump(mode="json")) == ["Starting"]


def test_hacking_is_told_even_where_the_reward_fell_back_later() -> None:
    rows = rows_of(list(toy_events(CONFIG, drift=4.0)))
    updates = [row for row in rows if row.kind == "IterationDone"]
    for place, row in enumerate(updates):
        row.data["metrics"]["reward"] = 0.9 if len(updates) // 3 <= place < 2 * len(updates) // 3 else 0.5
    assert "Reward hacking suspected" in verdict_titles(History().extended(rows))
