"""Schedules: each time happens once whoever watches, and what is missed, spent, held back or broken is told."""

import os
import time
from datetime import datetime
from multiprocessing import get_context
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event, update
from toy_notebooks import PARAMETERS, write_notebook
from toy_run import SMALL, toy_config

from workbench.config import validated
from workbench.events import Started
from workbench.experiments.durations import seconds_at_work
from workbench.experiments.notebooks import VARIABLE
from workbench.experiments.queue import Queue
from workbench.experiments.schedules import MOST_CAUGHT_UP, Schedule, Schedules, preview
from workbench.store import Store, StoreError
from workbench.tables import RUNS, SCHEDULES

TINY = toy_config(1, **SMALL).model_dump(mode="json")
NOON = datetime(2026, 11, 21, 12, tzinfo=ZoneInfo("UTC")).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def planned(name="often", *, minutes=10, **settings):
    trigger = {"name": "every", "amount": minutes, "unit": "minutes"}
    work = {"kind": "train", "config": TINY}
    return validated(Schedule, {"name": name, "work": work, "trigger": trigger, "timezone": "UTC"} | settings)


@pytest.fixture
def schedules(any_store):
    return Schedules(any_store)


def states(schedules, name=None):
    return [(firing.state, firing.due - NOON, firing.missed) for firing in reversed(schedules.firings(name))]


def finish(store, run, begun, hours):
    """Record that a run was at work for some hours."""
    with store.writing() as connection:
        changes = {"status": "done", "updated": begun + hours * HOUR, "worked": hours * HOUR}
        connection.execute(update(RUNS).where(RUNS.c.id == run).values(changes))


def test_a_schedule_fires_when_it_is_due_and_its_run_waits_in_the_queue(any_store, schedules):
    schedules.add(planned(), now=NOON)
    assert schedules.fire_due(NOON + 9 * MINUTE) == []
    (run,) = schedules.fire_due(NOON + 10 * MINUTE)
    found = any_store.run(run)
    assert (found.kind, found.origin, found.status) == ("train", "schedule often", "queued")
    assert [entry.run for entry in Queue(any_store).entries()] == [run]
    assert schedules.fire_due(NOON + 10 * MINUTE) == []
    (firing,) = schedules.firings("often")
    assert (firing.state, firing.due, firing.run, firing.missed) == ("begun", NOON + 10 * MINUTE, run, 0)
    assert schedules.get("often").next == NOON + 20 * MINUTE


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ("latest", [("begun", 50 * MINUTE, 4)]),
        ("all", [("begun", k * 10 * MINUTE, 0) for k in range(1, 6)]),
        ("skip", [("skipped", 50 * MINUTE, 4)]),
    ],
)
def test_times_that_nobody_saw_to_are_caught_up_with_as_the_schedule_says(schedules, catch_up, expected):
    schedules.add(planned(catch_up=catch_up), now=NOON)
    begun = schedules.fire_due(NOON + 55 * MINUTE)
    assert states(schedules) == expected
    assert len(begun) == sum(state == "begun" for state, _, _ in expected)
    assert schedules.get("often").next == NOON + 60 * MINUTE
    assert len(schedules.fire_due(NOON + 60 * MINUTE + 1)) == 1


def test_making_up_for_every_time_has_a_bound(schedules):
    schedules.add(planned(minutes=1, catch_up="all"), now=NOON)
    begun = schedules.fire_due(NOON + 150 * MINUTE)
    assert len(begun) == MOST_CAUGHT_UP
    found = states(schedules)
    assert found[0] == ("begun", 51 * MINUTE, 50)
    assert found[-1] == ("begun", 150 * MINUTE, 0)


def test_years_of_sleep_are_caught_up_with_at_once(schedules):
    schedules.add(planned(trigger={"name": "cron", "line": "* * * * *"}), now=NOON)
    assert len(schedules.fire_due(NOON + 3 * 365 * DAY)) == 1
    assert states(schedules) == [("begun", 3 * 365 * DAY, 999)]


def test_a_clock_that_is_set_back_fires_nothing_twice(schedules):
    schedules.add(planned(), now=NOON)
    assert schedules.fire_due(NOON + 10 * MINUTE)
    assert schedules.fire_due(NOON - HOUR) == []
    schedules.pause("often")
    schedules.resume("often", now=NOON)
    assert schedules.get("often").next == NOON + 10 * MINUTE
    assert schedules.fire_due(NOON + 10 * MINUTE) == []
    assert schedules.get("often").next == NOON + 20 * MINUTE
    assert len(schedules.fire_due(NOON + 20 * MINUTE)) == 1


def test_a_moment_fires_once_and_a_moment_past_is_refused(schedules):
    moment = {"name": "at", "moment": "2026-11-21 18:00"}
    schedules.add(planned("once", trigger=moment), now=NOON)
    assert len(schedules.fire_due(NOON + 7 * HOUR)) == 1
    assert schedules.get("once").next is None
    assert schedules.fire_due(NOON + 9 * HOUR) == []
    with pytest.raises(ValueError, match=r"2026-11-21 18:00:00 in UTC is past"):
        schedules.add(planned("late", trigger=moment), now=NOON + 7 * HOUR)
    assert [each.schedule.name for each in schedules.all()] == ["once"]


def test_nothing_fires_after_the_end(schedules):
    schedules.add(planned(until="2026-11-21 12:20"), now=NOON)
    assert len(schedules.fire_due(NOON + 10 * MINUTE) + schedules.fire_due(NOON + 20 * MINUTE)) == 2
    assert schedules.get("often").next is None
    with pytest.raises(ValueError, match="never fire: its end, 2026-11-21 12:05, comes first"):
        schedules.add(planned("short", until="2026-11-21 12:05"), now=NOON)


def test_a_schedule_pauses_itself_once_its_hours_are_spent_and_says_why(any_store, schedules):
    schedules.add(planned(budget_hours=2), now=NOON)
    (first,) = schedules.fire_due(NOON + 10 * MINUTE)
    finish(any_store, first, NOON + 10 * MINUTE, 1.5)
    (second,) = schedules.fire_due(NOON + 20 * MINUTE)
    finish(any_store, second, NOON + 20 * MINUTE, 0.75)
    assert schedules.fire_due(NOON + 30 * MINUTE) == []
    assert schedules.get("often").paused == "its runs have taken 2.25 of 2 hours"
    assert states(schedules)[-1] == ("skipped", 30 * MINUTE, 0)
    assert schedules.hours("often") == pytest.approx(2.25)
    with pytest.raises(ValueError, match="larger budget"):
        schedules.resume("often", now=NOON + 31 * MINUTE)
    schedules.change("often", {"budget_hours": 3}, now=NOON + 31 * MINUTE)
    schedules.resume("often", now=NOON + 31 * MINUTE)
    assert len(schedules.fire_due(NOON + 40 * MINUTE)) == 1


def test_no_more_runs_go_on_at_once_than_may(any_store, schedules):
    schedules.add(planned(max_active=1), now=NOON)
    (first,) = schedules.fire_due(NOON + 10 * MINUTE)
    assert schedules.fire_due(NOON + 20 * MINUTE) == []
    assert schedules.firings()[0].reason == "1 of its runs still wait or go on, and no more than 1 may"
    finish(any_store, first, NOON + 10 * MINUTE, 0.1)
    assert len(schedules.fire_due(NOON + 30 * MINUTE)) == 1


def test_work_that_cannot_be_done_any_more_fails_its_firing_and_the_schedule_goes_on(any_store, schedules):
    schedules.add(planned("broken"), now=NOON)
    schedules.add(planned("whole"), now=NOON)
    gone = planned("broken").model_copy(update={"work": planned().work.model_copy(update={"config": {"iteration": 3}})})
    with any_store.writing() as connection:
        connection.execute(update(SCHEDULES).where(SCHEDULES.c.name == "broken").values(settings=gone.model_dump_json()))
    for minutes in (10, 20):
        assert len(schedules.fire_due(NOON + minutes * MINUTE)) == 1
    assert [firing.state for firing in schedules.firings("broken")] == ["failed", "failed"]
    assert "unknown setting" in schedules.firings("broken")[0].reason
    assert [run.origin for run in any_store.runs()] == ["schedule whole"] * 2


def test_a_notebook_that_vanishes_while_it_is_scheduled_fails_its_firings_until_it_is_back(
    any_store, schedules, tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "notebooks"))
    path = write_notebook(tmp_path / "notebooks", "nightly", PARAMETERS, "print(x)")
    schedules.add(planned(work={"kind": "notebook", "config": {"notebook": "nightly", "parameters": {"x": 5}}}), now=NOON)
    (run,) = schedules.fire_due(NOON + 10 * MINUTE)
    assert any_store.run(run).config["parameters"]["x"] == 5
    path.rename(tmp_path / "gone")
    assert schedules.fire_due(NOON + 20 * MINUTE) == []
    assert "there is no notebook 'nightly'" in schedules.firings()[0].reason
    write_notebook(tmp_path / "notebooks", "nightly", "y: int = 1  # another", "print(y)")
    assert schedules.fire_due(NOON + 30 * MINUTE) == []
    assert "x" in schedules.firings()[0].reason
    (tmp_path / "gone").rename(path)
    assert len(schedules.fire_due(NOON + 40 * MINUTE)) == 1


SWEEP = {"target": {"preset": "shapes"}, "space": {"optimizer.learning_rate": [0.0001, 0.001]}}


def test_a_sweep_is_begun_and_its_runs_count_among_the_hours(any_store, schedules):
    schedules.add(planned(work={"kind": "sweep", "config": SWEEP}, budget_hours=1), now=NOON)
    (sweep,) = schedules.fire_due(NOON + 10 * MINUTE)
    found = any_store.run(sweep)
    assert (found.kind, found.origin, found.iterations) == ("sweep", "schedule often", 2)
    point = any_store.create("train", TINY, title="x", origin="test", parent=sweep)
    finish(any_store, point, NOON, 1.25)
    assert schedules.fire_due(NOON + 20 * MINUTE) == []
    assert schedules.get("often").paused == "its runs have taken 1.25 of 1 hours"
    with pytest.raises(ValueError, match="learning_rat"):
        schedules.add(planned("wrong", work={"kind": "sweep", "config": SWEEP | {"space": {"optimizer.learning_rat": [1]}}}))


def test_settings_that_nobody_understands_any_more_pause_their_schedule_alone(any_store, schedules):
    schedules.add(planned("odd"), now=NOON)
    schedules.add(planned("whole"), now=NOON)
    with any_store.writing() as connection:
        connection.execute(update(SCHEDULES).where(SCHEDULES.c.name == "odd").values(settings='{"name": "odd"}'))
    assert len(schedules.fire_due(NOON + 10 * MINUTE)) == 1
    assert [firing.state for firing in schedules.firings("odd")] == ["failed"]
    assert len(schedules.fire_due(NOON + 20 * MINUTE)) == 1


def test_a_disk_that_refuses_leaves_what_is_due_for_later(any_store, schedules, monkeypatch):
    schedules.add(planned(), now=NOON)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        with pytest.raises(StoreError, match="No space left"):
            schedules.fire_due(NOON + 10 * MINUTE)
    assert schedules.firings() == []
    assert len(schedules.fire_due(NOON + 11 * MINUTE)) == 1
    assert len(any_store.runs()) == 1


def test_a_transaction_that_breaks_begins_nothing_and_is_done_again(any_store, schedules):
    schedules.add(planned(), now=NOON)

    def broken(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO firings"):
            raise KeyboardInterrupt

    event.listen(any_store._engine, "before_cursor_execute", broken)
    with pytest.raises(KeyboardInterrupt):
        schedules.fire_due(NOON + 10 * MINUTE)
    event.remove(any_store._engine, "before_cursor_execute", broken)
    assert any_store.runs() == []
    assert Queue(any_store).entries() == []
    assert len(schedules.fire_due(NOON + 10 * MINUTE)) == 1


def test_pausing_removing_and_restoring(schedules):
    schedules.add(planned(), now=NOON)
    schedules.pause("often")
    assert schedules.fire_due(NOON + HOUR) == []
    schedules.resume("often", now=NOON + HOUR + 1)
    assert schedules.get("often").next == NOON + 70 * MINUTE
    schedules.remove("often")
    assert schedules.all() == []
    assert schedules.fire_due(NOON + 80 * MINUTE) == []
    with pytest.raises(ValueError, match="no schedule 'often'; there is none yet"):
        schedules.get("often")
    schedules.restore("often", now=NOON + 81 * MINUTE)
    assert len(schedules.fire_due(NOON + 90 * MINUTE)) == 1
    with pytest.raises(ValueError, match="was removed"):
        schedules.restore("often")


def test_a_name_is_taken_once_and_free_again_when_its_schedule_was_removed(schedules):
    schedules.add(planned(), now=NOON)
    with pytest.raises(ValueError, match="there is a schedule 'often' already"):
        schedules.add(planned(minutes=5), now=NOON)
    schedules.fire_due(NOON + 10 * MINUTE)
    schedules.remove("often")
    assert schedules.add(planned(minutes=5), now=NOON).next == NOON + 5 * MINUTE
    assert schedules.firings("often") == []
    assert len(schedules.firings()) == 1


def test_another_time_plans_anew_and_other_settings_leave_what_is_due(schedules):
    schedules.add(planned(), now=NOON)
    assert schedules.change("often", {"max_active": 3}, now=NOON + 12 * MINUTE).next == NOON + 10 * MINUTE
    every = {"name": "every", "amount": 1, "unit": "hours"}
    assert schedules.change("often", {"trigger": every}, now=NOON + 12 * MINUTE).next == NOON + 72 * MINUTE
    with pytest.raises(ValueError, match="keeps its name"):
        schedules.change("often", {"name": "rarely"})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "Two words"}, "name"),
        ({"timezone": "Europe/Berln"}, "Europe/Berlin"),
        ({"trigger": {"name": "cron", "line": "0 25 * * *"}}, "hour"),
        ({"trigger": {"name": "every", "amount": 0, "unit": "hours"}}, "amount"),
        ({"until": "never"}, "'never' is no date"),
        ({"budget_hours": 0}, "budget_hours"),
        ({"work": {"kind": "train", "config": {"iteration": 3}}}, "unknown setting"),
        ({"work": {"kind": "dance", "config": {}}}, "dance"),
    ],
)
def test_what_cannot_be_planned_is_refused(schedules, settings, told):
    with pytest.raises(ValueError, match=told):
        schedules.add(planned(**settings), now=NOON)
    assert schedules.all() == []


def test_a_preview_shows_the_next_times_on_the_clock_of_the_schedule():
    nightly = planned(trigger={"name": "cron", "line": "0 2 * * *"}, timezone="Asia/Tokyo", until="2026-11-23 12:00")
    assert [str(each) for each in preview(nightly, 5, NOON)] == ["2026-11-22 02:00:00+09:00", "2026-11-23 02:00:00+09:00"]


@pytest.fixture
def clock(monkeypatch):
    """The store's clock, which goes on by hand."""

    class Clock:
        now = NOON
        strftime, localtime = staticmethod(time.strftime), staticmethod(time.localtime)

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("workbench.store.time", clock)
    return clock


def test_the_work_of_a_run_is_that_of_its_drivers_and_no_idle_time(any_store, clock):
    run = any_store.create("notebook", {"notebook": "quiet"}, title="x", origin="test")
    clock.now += HOUR
    any_store.claim(run)
    for status, hours in (("running", 1), ("paused", 9), ("running", 2)):
        any_store.set_status(run, status)
        clock.now += hours * HOUR
    assert seconds_at_work(any_store, [run], clock.now) == {run: 3 * HOUR}
    any_store.heartbeat(run)
    with any_store.writing() as connection:
        connection.execute(update(RUNS).values(pid=2**22 + 1))  # which no process has
    clock.now += 9 * HOUR
    assert any_store.run(run).status == "crashed"
    assert seconds_at_work(any_store, [run], clock.now) == {run: 3 * HOUR}
    any_store.claim(run)
    any_store.set_status(run, "running")
    clock.now += HOUR
    any_store.set_status(run, "done")
    assert any_store.events(run) == []
    assert seconds_at_work(any_store, [run], clock.now + DAY) == {run: 4 * HOUR}


def test_the_work_of_a_sweep_is_that_of_its_points_and_other_children_work_for_themselves(any_store):
    sweep = any_store.create("sweep", {}, title="x", origin="test")
    parent = any_store.create("train", TINY, title="x", origin="test")
    points = [any_store.create("train", TINY, title="x", origin="test", parent=sweep) for _ in range(2)]
    branch = any_store.create("train", TINY, title="x", origin="test", parent=parent, branched=1)
    again = any_store.create("train", TINY, title="x", origin="test", parent=parent)
    for run, hours in zip((sweep, parent, *points, branch, again), (32, 4, 1, 2, 8, 16), strict=True):
        finish(any_store, run, NOON, hours)
    assert seconds_at_work(any_store, [sweep, parent], NOON) == {sweep: 3 * HOUR, parent: 4 * HOUR}


def test_the_work_of_a_run_from_before_it_was_recorded_is_told_by_its_events(any_store):
    run = any_store.create("train", TINY, title="x", origin="test")
    any_store.record(run, Started(0, {}))
    (row,) = any_store.events(run)
    with any_store.writing() as connection:
        connection.execute(update(RUNS).values(status="done", updated=row.time + HOUR, worked=None))
    assert seconds_at_work(any_store, [run], NOON) == {run: pytest.approx(HOUR)}


def watch(location, url, turns):
    """A scheduler in a process of its own, which is told what time it is."""
    schedules = Schedules(Store(location, url))
    turns.send("ready")
    while True:
        schedules.fire_due(turns.recv())
        turns.send("done")


def test_two_schedulers_of_which_some_are_killed_fire_each_time_once(any_store, schedules):
    """Both are told the time at the same moment; now and then one is killed on the way, and another takes its place."""
    schedules.add(planned(catch_up="all"), now=NOON)
    context = get_context("forkserver")  # a process that has the library loaded already and begins the others
    context.set_forkserver_preload(["workbench.experiments.schedules", "pytest"])

    def begin():
        here, there = context.Pipe()
        process = context.Process(target=watch, args=(any_store.location, any_store.url, there), daemon=True)
        process.start()
        assert here.poll(60)
        assert here.recv() == "ready"
        return process, here

    pair = [begin(), begin()]
    for turn in range(1, 11):
        for _, turns in pair:
            turns.send(NOON + turn * 10 * MINUTE)
        if turn in (3, 6, 8):
            pair[0][0].kill()
            pair[0][0].join()
        living = [turns for process, turns in pair if process.is_alive()]
        assert [turns.poll(30) and turns.recv() for turns in living] == ["done"] * len(living)
        if len(living) == 1:
            pair = [pair[1], begin()]
    for process, _ in pair:
        process.kill()
        process.join()
    assert states(schedules) == [("begun", k * 10 * MINUTE, 0) for k in range(1, 11)]
    assert sorted(run.id for run in any_store.runs()) == sorted(firing.run for firing in schedules.firings())
    assert len(Queue(any_store).entries()) == 10


def test_a_schedule_that_cannot_be_read_any_more_leaves_the_others_and_can_be_removed(any_store, schedules):
    schedules.add(planned("good"), NOON)
    schedules.add(planned("old"), NOON)
    with any_store.writing() as connection:
        connection.execute(update(SCHEDULES).where(SCHEDULES.c.name == "old").values(settings='{"name": "old"}'))
    assert [each.schedule.name for each in schedules.all()] == ["good"]
    assert list(schedules.unreadable()) == ["old"]
    assert "cannot be read" in schedules.unreadable()["old"]
    schedules.remove("old")
    assert schedules.unreadable() == {}
    with pytest.raises(ValueError, match="there is no schedule 'old'; there are: good"):
        schedules.remove("old")
