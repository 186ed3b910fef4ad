"""The list of all runs: what a line says, and that only what changed is told again."""

import json

from toy_run import toy_config, toy_events

from workbench.events import Evaluated, IterationDone
from workbench.figures.overlay import Curve, overlay
from workbench.figures.style import LIMIT
from workbench.shelf import MOST_BYTES, SPARK, Shelf
from workbench.store import Store


def begin(store: Store, iterations: int = 20, **values: object) -> str:
    config = toy_config(iterations)
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="test", **values)  # type: ignore[arg-type]
    store.claim(run)
    store.set_status(run, "running")
    return run


def lines(shelf: Shelf) -> dict[str, dict]:
    shelf.look()
    return {line["id"]: line for line in shelf.news("", most=None)["rows"]}


def test_a_line_says_what_became_of_the_reward(store: Store) -> None:
    run = begin(store)
    shelf = Shelf(store)
    assert (lines(shelf)[run]["base"], lines(shelf)[run]["spark"]) == (None, [])
    for event in toy_events(toy_config(20)):
        store.record(run, event)
    store.set_status(run, "done")
    line = lines(shelf)[run]
    assert line["base"] < line["now"] == line["best"]
    assert line["best_at"] == 20
    assert len(line["spark"]) == 3
    assert (line["iteration"], line["status"], line["preset"], line["checkpoint"]) == (20, "done", "", 20)
    assert line["method"] == ["shapes", "asfmc", "grpo", "branch"]
    assert not line["resumable"]  # it is done


def test_a_run_that_was_stopped_while_it_waited_can_be_resumed(store: Store) -> None:
    run = store.create("train", toy_config(3).model_dump(mode="json"), title="waiting", origin="test")
    store.set_status(run, "stopped")
    assert lines(Shelf(store))[run]["resumable"]


def test_a_long_curve_is_sent_in_few_points(store: Store) -> None:
    run = begin(store)
    (base,) = [event for event in toy_events(toy_config(1)) if isinstance(event, Evaluated)]
    for iteration in range(100):
        store.record(run, Evaluated(iteration, *list(vars(base).values())[1:]))
    assert len(lines(Shelf(store))[run]["spark"]) == SPARK


def test_only_what_changed_is_told(store: Store) -> None:
    first, second = begin(store), begin(store)
    shelf = Shelf(store)
    held = shelf.news(shelf.look(), most=None)["version"]
    assert shelf.look() == held
    assert shelf.news(held) == {"version": held, "rows": [], "order": None}
    store.record(second, IterationDone(1, {"reward": 0.5}, 0.1))
    assert shelf.look() != held
    news = shelf.news(held)
    assert [line["id"] for line in news["rows"]] == [second]
    assert news["order"] is None
    held = news["version"]
    store.set_status(first, "stopped")
    store.delete(first)
    shelf.look()
    assert shelf.news(held)["order"] == [second]
    assert shelf.news("of an earlier process.7")["order"] == [second]


def test_a_browser_that_is_far_behind_catches_up_in_small_answers(store: Store) -> None:
    ids = [begin(store) for _ in range(90)]
    for run in ids:
        store.annotate(run, note="x" * 900)
    shelf = Shelf(store)
    version, held, got, answers = shelf.look(), "", set(), 0
    while held != version:
        news = shelf.news(held)
        assert len(json.dumps(news["rows"])) < 1.1 * MOST_BYTES
        got |= {line["id"] for line in news["rows"]}
        held, answers = news["version"], answers + 1
    assert got == set(ids)
    assert answers > 2


def test_a_resumed_run_forgets_the_evaluations_that_were_superseded(store: Store) -> None:
    run = begin(store)
    shelf = Shelf(store)
    for event in toy_events(toy_config(20)):
        store.record(run, event)
    assert len(lines(shelf)[run]["spark"]) == 3
    store.record(run, next(toy_events(toy_config(20), start=10)))
    assert len(lines(shelf)[run]["spark"]) == 2


def test_a_branch_names_its_parent_and_what_it_changed(store: Store) -> None:
    parent = begin(store)
    run = begin(store, 40, parent=parent, branched=10)
    line = lines(Shelf(store))[run]
    assert (line["parent"], line["branched"], line["changed"]) == (parent, 10, ["iterations: 20 → 40"])


def test_curves_lie_over_each_other_by_iteration_or_by_the_clock() -> None:
    dense = Curve("long", [(i, i / 5000) for i in range(5000)], [2.0 * i for i in range(5000)], sparse=False)
    sparse = Curve("short", [(0, 0.2), (10, 0.4)], [0.0, 120.0], sparse=True)
    chart = overlay([dense, sparse, Curve("nothing", [], [], sparse=True)], "reward", by_time=False)
    assert {trace.name for trace in chart.data} == {"long, raw", "long", "short"}
    assert all(len(trace.x) <= LIMIT + 2 for trace in chart.data)
    assert list(chart.data[-1].x) == [0, 10]
    timed = overlay([sparse], "reward", by_time=True)
    assert [round(float(x), 6) for x in timed.data[0].x] == [0, 2]
    assert "minutes" in timed.layout.xaxis.title.text
    assert timed.data[0].line.color == chart.data[1].line.color  # the first of those that are chosen
