"""Sweeps: what they accept, which points they try, how poor ones end early; that a process that dies costs nothing."""

import json
import math
import os
import time
from pathlib import Path

import pytest
from sqlalchemy import update
from toy_notebooks import write_notebook

from workbench.__main__ import main
from workbench.config import configure, validated
from workbench.events import IterationDone
from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.durations import seconds_at_work
from workbench.experiments.points import rebuilt_search, results
from workbench.experiments.search import Search
from workbench.experiments.space import Range, SweepSettings, read_axis, resolved_axes, value_of
from workbench.experiments.sweeps import Sweep, Sweeps, begin_sweep, resume_sweep
from workbench.store import Store
from workbench.tables import QUEUE, RUNS

ROOT = Path(__file__).parent.parent
RATE, SIZE = "optimizer.learning_rate", "grpo.group_size"
SHORT = {"iterations": 9}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    yield store
    store.close()


def settings(space=None, **values):
    target = values.pop("target", {"preset": "shapes", "changes": SHORT})
    return validated(
        SweepSettings, {"target": target, "space": space if space is not None else {RATE: [1e-4, 1e-3, 1e-2]}, **values}
    )


def begin(store, space=None, **values):
    return begin_sweep(store, settings(space, **values), origin="test")


def goodness(config):
    """A made-up reward after one iteration: best at a learning rate of 0.001, and a little different with each seed."""
    return 1.0 - abs(math.log10(config["optimizer"]["learning_rate"]) + 3) / 4 + 0.01 * config["seed"]


class Toy:
    """A made-up run: each `step` is one iteration of every run that goes on, whose reward grows evenly."""

    def __init__(self, store, fails=()):
        self.store = store
        self.fails = fails  # learning rates
        self.going = {}  # iterations that are done
        self.begun = []

    def start(self, store, run, device):
        self.begun.append(run)
        self.going[run] = self.store.run(run).iteration
        return self

    def ended(self):
        return None

    def step(self):
        for run in list(self.going):
            found = self.store.run(run)
            if found.status == "queued":
                self.store.claim(run, fresh=True)
                self.store.set_status(run, "running")
            if self.store.run(run).wanted == "stop":
                self.end(run, "stopped")
            elif found.config["optimizer"]["learning_rate"] in self.fails:
                self.end(run, "failed", "it was made to fail")
            else:
                self.going[run] += 1
                reward = goodness(found.config) * self.going[run]
                self.store.record(run, IterationDone(self.going[run], {"reward": reward, "empty": math.nan}, 0.5))
                if self.going[run] == found.iterations:
                    self.end(run, "done")

    def end(self, run, status, error=None):
        self.store.set_status(run, status, error)
        del self.going[run]


def finish(store, toy, sweeps=None, steps=400, until=lambda: False):
    """Advance and dispatch, with one iteration of the made-up runs at a time, until all sweeps are over."""
    sweeps = sweeps or Sweeps(store)
    dispatcher = Dispatcher(store, {"local": toy}, slots=99)
    for _ in range(steps):
        sweeps.advance()
        dispatcher.tick()
        if until() or all(run.over for run in store.runs("sweep")):
            return sweeps
        toy.step()
    raise AssertionError("it takes too long")


# What is accepted


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("0,0.5,1", (0, 0.5, 1)),
        ("asfmc, flow_sde", ("asfmc", "flow_sde")),
        ("true,false", (True, False)),
        ("[1,2],[4]", ([1, 2], [4])),
        ("1e-4..1e-2:log", Range(low=1e-4, high=1e-2, log=True)),
        ("1e-4..1e-2:log:5", Range(low=1e-4, high=1e-2, log=True, count=5)),
        ("-1..1:step=0.25", Range(low=-1, high=1, step=0.25)),
        ("8..64", Range(low=8, high=64)),
    ],
)
def test_axes_read_as_people_type_them(text, axis):
    assert read_axis(text) == axis


def test_a_range_with_a_step_or_a_count_lists_its_values():
    assert Range(low=0, high=1, step=0.3).values(whole=False) == (0, 0.3, 0.6, 0.9)
    assert Range(low=1e-4, high=1e-2, log=True, count=3).values(whole=False) == (1e-4, 1e-3, 1e-2)
    assert Range(low=2, high=16, log=True, count=4).values(whole=True) == (2, 4, 8, 16)
    assert Range(low=0, high=1).values(whole=False) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"space": {}}, "at least 1"),
        ({"space": {RATE: []}}, "at least one choice"),
        ({"space": {RATE: [0.1, 0.1]}}, "0.1 is given twice"),
        ({"space": {RATE: {"low": 1, "high": 0.1}}}, "from a smaller to a larger"),
        ({"space": {RATE: {"low": 0, "high": 1, "log": True}}}, "above 0"),
        ({"space": {RATE: {"low": 0, "high": 1, "step": 2}}}, "longer than the range"),
        ({"space": {RATE: {"low": 0, "high": 1, "stepp": 2}}}, "'stepp'.*step"),
        ({"space": {RATE: "1e-4..1e-2:lin"}}, "log, step=NUMBER"),
        ({"target": {}}, "one preset or one notebook"),
        ({"target": {"preset": "shapes", "notebook": "rings"}}, "one preset or one notebook"),
        ({"target": {"preset": "shapes", "parameters": {"a": 1}}}, "a notebook has parameters"),
        ({"target": {"preset": "shapes", "changes": {RATE: 0.1}}}, "both fixed and varied"),
        ({"points": 4}, "a grid has all its points"),
        ({"search": "random"}, "set points"),
        ({"search": "annealing"}, "'annealing'.*'grid', 'random' or 'tpe'"),
        ({"seeds": 0}, "from 1 to 100"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"seeds": 3, "space": {"seed": [1, 2]}}, "'seed'"),
        ({"parallel": 0}, "parallel"),
        ({"metrics": "reward"}, "unknown setting 'metrics'.*metric"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"target": {"preset": "shape"}}, "unknown preset 'shape'; choose from: shapes"),
        ({"target": {"notebook": "nobody"}}, "there is no notebook 'nobody'"),
        ({"space": {"optimizer.learning_rat": [1]}}, "unknown setting 'optimizer.learning_rat'; choose from: .*learning_rate"),
        ({"space": {SIZE: [4, "many"]}}, "group_size = 'many'"),
        ({"space": {RATE: [0.1, 3.0]}}, "learning_rate = 3.0: .*less than or equal to 1"),
        ({"space": {"sampler.name": ["asfmc", "gama"]}}, "unknown sampler 'gama'; choose from: .*asfmc"),
        ({"space": {"sampler.name": ["asfmc", "ode"], "rollout.completion": ["compose"]}}, "ode"),
        ({"space": {RATE: "1e-4..1e-2:log"}}, "a grid needs to know which values.*random or tpe"),
        ({"space": {RATE: "1e-4..1e-2:log:100", SIZE: "4..64:step=2"}}, "100 x 31 = 3100 points, more than 1000"),
        ({"search": "random", "points": 4}, "the space has only 3; try them all with the search grid"),
        ({"search": "random", "points": 4, "space": {RATE: "0.1..3.0"}}, "learning_rate = 3.0"),
        ({"pruning": "halving", "min_iterations": 9}, "a run has 9 iterations"),
        ({"metric": "held_out/shapes_exact@3"}, "nothing is measured with 3 steps; evaluation.steps has 1, 2, 4, 8"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_before_anything_is_recorded(store, changes, told):
    with pytest.raises(ValueError, match=told):
        begin(store, **changes)
    assert store.runs() == []


# Which points are tried


def test_a_grid_has_every_combination_once_in_order():
    space = {SIZE: [4, 8], RATE: "1e-4..1e-2:log:3", "evaluation.steps": [[1, 2], [4]]}
    search = Search(settings(space))
    points = []
    while (point := search.propose()) is not None:
        points.append(tuple(point.values()))
    assert points == [(size, rate, steps) for size in (4, 8) for rate in (1e-4, 1e-3, 1e-2) for steps in ([1, 2], [4])]


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_search_is_reproducible_and_goes_on_where_it_was_interrupted(kind):
    given = settings({RATE: "1e-4..1e-2:log", SIZE: "4..64:step=4", "grpo.epochs": "1..4"}, search=kind, points=12)

    def walk(search, numbers):
        found = []
        for number in numbers:
            point = search.propose()
            found.append(point)
            search.tell(number, "done", point[RATE])
        return found

    whole = walk(Search(given), range(12))
    assert len({point[RATE] for point in whole}) == 12
    assert all(1e-4 <= point[RATE] <= 1e-2 and point[SIZE] in range(4, 65, 4) for point in whole)
    assert {type(point["grpo.epochs"]) for point in whole} == {int}
    again = Search(given)
    for i, point in enumerate(whole[:7]):
        again.adopt(point)
        again.tell(i, "done", point[RATE])
    assert walk(again, range(7, 12)) == whole[7:]
    assert again.propose() is None


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_search_never_tries_a_point_twice(kind):
    search = Search(settings({SIZE: [4, 8, 16], "grpo.epochs": [1, 2, 3]}, search=kind, points=9))
    points = []
    for number in range(9):
        points.append(tuple(search.propose().values()))
        search.tell(number, "done", 1.0)
    assert len(set(points)) == 9


def test_tpe_looks_where_points_were_good():
    given = settings({RATE: "1e-5..1:log"}, search="tpe", points=40)
    search = Search(given)
    rates = []
    for _ in range(40):
        rates.append(math.log10(search.propose()[RATE]))
        search.tell(len(rates) - 1, "done", -abs(rates[-1] + 3))
    early, late = ([abs(rate + 3) for rate in part] for part in (rates[:10], rates[30:]))
    assert sum(late) < 0.75 * sum(early)


def test_the_value_that_counts_can_be_chosen():
    curve = [(0, 9.0), (1, 1.0), (2, 3.0), (3, 2.0)]
    assert value_of(curve, settings()) == 2.0
    assert value_of(curve, settings(value="best")) == 3.0
    assert value_of(curve, settings(value="best", direction="min")) == 1.0
    assert value_of(curve, settings(value="mean", window=2)) == 2.5
    assert value_of([(0, 9.0)], settings()) == 9.0
    assert math.isnan(value_of([], settings()))


# The life of a sweep


def test_a_grid_runs_every_point_once_a_few_at_a_time_and_finds_the_best(store):
    sweep, toy = begin(store, seeds=3, parallel=2), Toy(store)
    most = 0

    def watch():
        nonlocal most
        most = max(most, sum(not run.over for run in store.runs("train")))
        return False

    finish(store, toy, until=watch)
    found = results(store, sweep)
    assert most == 2
    assert len(toy.begun) == len(set(toy.begun)) == 9
    assert [point.parameters[RATE] for point in found.points] == [1e-4, 1e-3, 1e-2]
    assert [point.seeds for point in found.points] == [(0, 1, 2)] * 3
    assert sum(point.seconds for point in found.points) == pytest.approx(seconds_at_work(store, [sweep], 0.0)[sweep])
    best = found.best
    assert best.parameters == {RATE: 1e-3}
    assert best.values == pytest.approx((9.0, 9.09, 9.18))
    assert best.value == pytest.approx(9.09)
    assert best.high - best.value == pytest.approx(4.302653 * 0.09 / math.sqrt(3), rel=1e-5)
    assert (best.iterations, best.status) == (27, "done")
    end = store.run(sweep)
    assert (end.status, end.iteration, end.iterations, end.pid) == ("done", 3, 3, None)
    assert all(run.parent == sweep and run.origin == f"sweep {sweep}" for run in store.runs("train"))
    assert store.run(toy.begun[0]).title == f"{RATE} = 0.0001, seed 0"
    assert store.run(toy.begun[0]).command.endswith(f"--set iterations=9 --set {RATE}=0.0001 --set seed=0")


def test_one_seed_is_the_targets_own_and_has_no_interval(store):
    target = {"preset": "shapes", "changes": {**SHORT, "seed": 7}}
    sweep, toy = begin(store, {RATE: [1e-3]}, target=target), Toy(store)
    finish(store, toy)
    (point,) = results(store, sweep).points
    assert (point.seeds, point.low, point.high) == ((None,), None, None)
    assert store.run(toy.begun[0]).config["seed"] == 7


def test_a_sweep_that_minimises_finds_the_smallest(store):
    sweep = begin(store, direction="min")
    finish(store, Toy(store))
    assert results(store, sweep).best.parameters == {RATE: 1e-2} or results(store, sweep).best.parameters == {RATE: 1e-4}
    assert results(store, sweep).best.value == min(point.value for point in results(store, sweep).points)


def test_halving_ends_poor_points_early_and_spends_less_than_the_grid(store):
    rates = [1e-3, 1e-4, 2e-3, 1e-5, 1e-2, 3e-3]
    sweep, toy = begin(store, {RATE: rates}, pruning="halving", min_iterations=2, reduction=2, seeds=2), Toy(store)
    finish(store, toy)
    found = results(store, sweep)
    status = {point.parameters[RATE]: point.status for point in found.points}
    assert status == {rate: "done" if rate == 1e-3 else "pruned" for rate in rates}
    assert found.best.parameters == {RATE: 1e-3}
    pruned = [point for point in found.points if point.status == "pruned"]
    assert all(len(point.runs) == 1 and point.value is not None for point in pruned)
    assert all(store.run(point.runs[0]).status == "stopped" for point in pruned)
    assert len(found.best.runs) == 2
    assert sum(point.iterations for point in found.points) < 6 * 9
    assert store.run(sweep).status == "done"


def test_the_median_ends_what_is_worse_than_half_of_the_finished_points(store):
    rates = [1e-3, 2e-3, 3e-3, 4e-3, 1e-2, 1.1e-3]
    sweep = begin(store, {RATE: rates}, pruning="median", min_iterations=3)
    finish(store, Toy(store))
    found = results(store, sweep)
    assert [point.status for point in found.points] == ["done"] * 4 + ["pruned", "done"]
    assert found.points[4].iterations < 9


def test_a_point_of_which_a_run_fails_has_no_value_and_the_sweep_goes_on(store):
    sweep = begin(store, seeds=2)
    finish(store, Toy(store, fails=(1e-3,)))
    found = results(store, sweep)
    assert [point.status for point in found.points] == ["done", "failed", "done"]
    failed = found.points[1]
    assert failed.value is None
    assert "it was made to fail" in failed.error
    assert failed.runs[0] in failed.error
    assert store.run(sweep).status == "done"
    assert found.best.parameters == {RATE: 1e-4}


def test_a_sweep_fails_if_every_point_does(store):
    sweep = begin(store)
    finish(store, Toy(store, fails=(1e-4, 1e-3, 1e-2)))
    end = store.run(sweep)
    assert (end.status, end.iteration) == ("failed", 3)
    assert "no point was finished; the first: run" in end.error
    assert results(store, sweep).best is None


def test_a_failed_run_is_tried_again_before_its_point_is_given_up(store):
    sweep, toy = begin(store, {RATE: [1e-3]}, retries=1), Toy(store, fails=(1e-3,))
    sweeps = finish(store, toy, until=lambda: bool(toy.begun) and not toy.going)
    toy.fails = ()
    with store.writing() as connection:
        connection.execute(update(QUEUE).values(not_before=0.0))
    finish(store, toy, sweeps)
    (point,) = results(store, sweep).points
    assert (point.status, len(toy.begun), len(point.runs)) == ("done", 2, 1)


def test_a_point_whose_values_do_not_go_together_is_told_and_costs_no_run(store):
    space = {"sampler.name": ["asfmc", "flow_sde"], "rollout.steps": [4, 6]}
    given = settings(space, search="random", points=4, target={"preset": "shapes", "changes": SHORT | {"sampler.noise": 1}})
    wrong = given.target.model_copy(update={"changes": SHORT | {"grpo.groups": 3, "compute.processes": 2}})
    sweep = store.create("sweep", given.model_copy(update={"target": wrong}).model_dump(mode="json"), title="x", origin="test")
    finish(store, Toy(store))
    found = results(store, sweep)
    assert [point.status for point in found.points] == ["failed"] * 4
    assert "does not divide" in found.points[0].error
    assert store.run(sweep).status == "failed"
    assert store.runs("train") == []


@pytest.mark.parametrize("metric", ["rewardd", "held_out/beauty@4"])
def test_a_metric_that_nothing_measures_ends_the_sweep_at_once_and_lists_those_there_are(store, metric):
    sweep, toy = begin(store, metric=metric, parallel=2), Toy(store)
    finish(store, toy)
    end = store.run(sweep)
    assert end.status == "failed"
    assert f"metric '{metric}'" in end.error
    assert "it has: empty, reward, seconds" in end.error
    assert len(toy.begun) == 2


def test_a_metric_that_is_never_finite_fails_the_points(store):
    sweep = begin(store, metric="empty")
    finish(store, Toy(store))
    assert {point.status for point in results(store, sweep).points} == {"failed"}
    assert "not a finite number" in results(store, sweep).points[0].error


def test_a_stopped_sweep_stops_its_runs_and_goes_on_without_repeating_a_point(store):
    sweep, toy = begin(store, parallel=2), Toy(store)
    sweeps = finish(store, toy, until=lambda: store.run(sweep).iteration == 2)
    first = toy.begun[0]
    toy.step()
    store.wish(sweep, "stop")
    finish(store, toy, sweeps)
    assert store.run(sweep).status == "stopped"
    assert not [run for run in store.runs("train") if not run.over]
    before = results(store, sweep)
    assert before.count("done") == 2
    assert resume_sweep(store, sweep) == sweep
    finish(store, toy, sweeps)
    found = results(store, sweep)
    assert [point.status for point in found.points] == ["done"] * 3
    assert [point.runs for point in found.points[:2]] == [point.runs for point in before.points[:2]]
    assert toy.begun.count(first) == 1
    assert [store.events(run, kinds=("IterationDone",))[-1].iteration for point in found.points for run in point.runs] == [9] * 3
    assert len(store.events(sweep, kinds=("PointDone",))) == 3
    with pytest.raises(ValueError, match="is done and has all its 3 points"):
        resume_sweep(store, sweep)


def test_a_stopped_sweep_keeps_the_run_that_was_stopped_with_it(store):
    sweep, toy = begin(store), Toy(store)
    sweeps = finish(store, toy, until=lambda: any(done >= 4 for done in toy.going.values()))
    (run,) = toy.going
    store.wish(sweep, "stop")
    finish(store, toy, sweeps)
    assert (store.run(run).status, store.run(run).iteration) == ("stopped", 4)
    assert results(store, sweep).points[0].status == "running"
    resume_sweep(store, sweep)
    finish(store, toy, sweeps)
    assert results(store, sweep).points[0].runs == (run,)
    assert [row.iteration for row in store.events(run, kinds=("IterationDone",))] == list(range(1, 10))


def test_a_paused_sweep_queues_nothing_new(store):
    sweep, toy = begin(store), Toy(store)
    sweeps = finish(store, toy, until=lambda: bool(toy.begun))
    store.wish(sweep, "pause")
    finish(store, toy, sweeps, until=lambda: store.run(sweep).iteration == 1)
    for _ in range(5):
        sweeps.advance()
    assert store.run(sweep).status == "paused"
    assert len(toy.begun) == 1
    store.wish(sweep, "run")
    finish(store, toy, sweeps)
    assert len(toy.begun) == 3


def test_a_run_that_somebody_stops_or_deletes_is_told_and_the_sweep_goes_on(store):
    sweep, toy = begin(store), Toy(store)
    sweeps = finish(store, toy, until=lambda: bool(toy.begun))
    store.wish(toy.begun[0], "stop")
    sweeps = finish(store, toy, sweeps, until=lambda: store.run(sweep).iteration == 2)
    for run in toy.begun[:2]:
        store.delete(run)
    store.purge()
    finish(store, toy, sweeps)
    found = results(store, sweep)
    assert [point.status for point in found.points] == ["stopped", "done", "done"]
    assert "was stopped or deleted" in found.points[0].error
    assert found.points[1].value == pytest.approx(9.0)


def test_one_process_at_a_time_advances_a_sweep_and_another_takes_over_when_it_lets_go(store):
    sweep, toy = begin(store), Toy(store)
    first, second = Sweeps(store), Sweeps(store)
    finish(store, toy, first, until=lambda: store.run(sweep).iteration == 1)
    second.advance()
    with pytest.raises(ValueError, match="running in process"):
        Sweep(store, sweep)
    with pytest.raises(ValueError, match="running already"):
        resume_sweep(store, sweep)
    first.close()
    assert store.run(sweep).status == "queued"
    finish(store, toy, second)
    assert results(store, sweep).count("done") == 3
    assert len(toy.begun) == 3


def test_a_process_that_lost_its_sweep_queues_nothing_more(store):
    sweep = begin(store)
    mine = Sweep(store, sweep)
    with store.writing() as connection:
        connection.execute(update(RUNS).where(RUNS.c.id == sweep).values(host="elsewhere", updated=time.time()))
    assert not mine.advance()
    assert store.runs("train") == []


@pytest.mark.parametrize("pruning", ["none", "halving"])
def test_a_sweep_whose_process_dies_at_any_moment_ends_as_if_it_had_not(store, pruning):
    values = {"space": {RATE: [1e-3, 1e-4, 2e-3, 1e-2]}, "pruning": pruning, "reduction": 2, "min_iterations": 2, "seeds": 2}
    values["target"] = {"preset": "shapes", "changes": {"iterations": 5}}
    whole, cut = begin(store, **values), begin(store, **values)
    finish(store, Toy(store), Sweeps(store, only={whole}), until=lambda: store.run(whole).over)
    toy, dispatcher = Toy(store), None
    for _ in range(400):
        if store.run(cut).over and store.run(cut).status != "crashed":
            break
        dispatcher = dispatcher or Dispatcher(store, {"local": toy}, slots=9)
        Sweep(store, cut).advance()
        dead = {"pid": 2**22 - 1, "process_started": 1.0}  # as if the process had ended right after its step
        with store.writing() as connection:
            connection.execute(update(RUNS).where(RUNS.c.id == cut, RUNS.c.pid == os.getpid()).values(dead))
        dispatcher.tick()
        toy.step()
    one, other = results(store, whole), results(store, cut)
    assert store.run(cut).status == "done"
    assert [(p.parameters, p.status, p.values) for p in one.points] == [(p.parameters, p.status, p.values) for p in other.points]
    assert len(toy.begun) == len(set(toy.begun)) == sum(len(point.runs) for point in one.points)
    assert len(store.events(cut, kinds=("PointDone",))) == 4


def test_a_sweep_in_a_shared_database_is_advanced_by_one_process_at_a_time(tmp_path, postgresql_database):
    store = Store(tmp_path / "runs", postgresql_database)
    values = {"pruning": "halving", "min_iterations": 2, "reduction": 2, "seeds": 2, "parallel": 2}
    sweep, toy = begin(store, {RATE: [1e-3, 1e-4, 2e-3, 1e-2]}, **values), Toy(store)
    first, second = Sweeps(store), Sweeps(store)
    finish(store, toy, first, until=lambda: store.run(sweep).iteration == 1)
    second.advance()
    with store.writing() as connection:  # the first process has died, on another host
        connection.execute(update(RUNS).where(RUNS.c.id == sweep).values(host="elsewhere", updated=0.0))
    second.advance()
    finish(store, toy, second)
    found = results(store, sweep)
    assert store.run(sweep).status == "done"
    assert found.best.parameters == {RATE: 1e-3}
    assert len(toy.begun) == len(set(toy.begun)) == sum(len(point.runs) for point in found.points)
    assert len(store.events(sweep, kinds=("PointDone",))) == 4
    store.close()


def test_a_sweep_whose_settings_cannot_be_read_any_more_fails_and_says_why(store):
    sweep = store.create("sweep", {"target": {"preset": "shapes"}, "spaces": {}}, title="x", origin="test")
    Sweeps(store).advance()
    assert store.run(sweep).status == "failed"
    assert "unknown setting 'spaces'" in store.run(sweep).error


def test_the_search_of_a_sweep_can_be_looked_into(store):
    space = {RATE: "1e-5..1e-1:log", "grpo.epochs": [1, 2]}
    sweep = begin(store, space, search="tpe", points=12)
    assert rebuilt_search(store, sweep).importances() == {}
    finish(store, Toy(store))
    search = rebuilt_search(store, sweep)
    assert search.study.best_params[RATE] == results(store, sweep).best.parameters[RATE]
    found = search.importances()
    assert found[RATE] > 0.9
    assert sum(found.values()) == pytest.approx(1.0)


def test_what_is_no_sweep_is_refused(store):
    run = store.create("train", configure("shapes").model_dump(mode="json"), title="x", origin="test")
    for ask in (results, resume_sweep, Sweep):
        with pytest.raises(ValueError, match="of kind 'train', no sweep"):
            ask(store, run)


# Notebooks

CELLS = (
    "x: int = 1  # a number\nrate: float = 0.5  # a share\nseed: int = 0  # of the noise",
    "from workbench.experiment import Experiment\nExperiment.here().report({'score': -(x - 3) ** 2 + 0.1 * seed})",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_notebook(tmp_path / "notebooks", "toy", *CELLS)
    write_notebook(tmp_path / "notebooks", "plain", "x: int = 1  # a number")
    return tmp_path / "notebooks"


@pytest.mark.parametrize(
    ("target", "space", "changes", "told"),
    [
        ({"notebook": "nobody"}, {"x": [1]}, {}, "there is no notebook 'nobody'.*choose from: plain, toy"),
        ({"notebook": "toy"}, {"y": [1]}, {}, "'y'.*choose from: x, rate, seed"),
        ({"notebook": "toy"}, {"x": [1, "two"]}, {}, "x = 'two'"),
        ({"notebook": "toy"}, {"x": [0.5]}, {}, "x = 0.5"),
        ({"notebook": "toy", "parameters": {"rate": "much"}}, {"x": [1]}, {}, "rate = 'much'"),
        ({"notebook": "plain"}, {"x": [1]}, {"seeds": 2}, "'seed'"),
    ],
)
def test_a_sweep_of_a_notebook_is_checked_by_its_parameters(store, folder, target, space, changes, told):
    with pytest.raises(ValueError, match=told):
        begin(store, space, target=target, **changes)
    assert store.runs() == []


def test_a_range_of_a_notebooks_parameter_has_the_type_of_the_parameter(folder):
    given = settings({"x": "1..9:3", "rate": "1..9:3"}, target={"notebook": "toy"})
    assert resolved_axes(given) == {"x": (1, 5, 9), "rate": (1.0, 5.0, 9.0)}
    assert {type(value) for value in resolved_axes(given)["x"]} == {int}


def test_a_notebook_that_changes_while_it_is_swept_is_not_mixed_with_what_it_was(store, folder):
    sweep = begin(store, {"x": [1, 2]}, target={"notebook": "toy"}, metric="score")
    write_notebook(folder, "toy", *CELLS, "print('more')")
    for _ in range(4):
        Sweeps(store).advance()
    found = results(store, sweep)
    assert (found.status, [point.status for point in found.points]) == ("failed", ["failed"] * 2)
    assert "has changed" in found.points[0].error
    assert store.runs("notebook") == []


# The command


def ask(capsys, *arguments):
    """Run a command in this process: exit status, stdout and stderr."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], ["name a preset", "--over"]),
        (["shapes"], ["at least 1"]),
        (["shapes", "--over", RATE], ["--over takes KEY=VALUE"]),
        (["shapes", "--over", f"{RATE}="], ["none that is empty"]),
        (["shapes", "--over", f"{RATE}=1e-4..1e-2:log"], [RATE, "0.0001..0.01:log:5", "random"]),
        (["shapes", "--over", "sampler.ancor=0,1"], ["'sampler.ancor'", "anchor"]),
        (["shapes", "--notebook", "rings", "--over", "steps=1,2"], ["one preset or one notebook"]),
        (["shapes", "--over", f"{RATE}=1e-4,1e-3", "-p", "steps=1"], ["a preset has changes, a notebook has parameters"]),
        (["shapes", "--over", f"{RATE}=1e-4,1e-3", "--seeds", "few"], ["--seeds", "'few'"]),
        (["shapes", "--over", f"{RATE}=1e-4,1e-3", "--halving", "--median"], ["exclude each other"]),
        (["shapes", "--over", f"{RATE}=1e-4,1e-3", "--lane", "moon"], ["'moon'", "local"]),
        (["shapes", "--over", f"{RATE}=1e-4,1e-3", "--search", "annealing"], ["annealing", "grid"]),
        (["shapes", "--over", f"{RATE}=1e-4,1e-3", "--parallel", "0"], ["parallel = 0"]),
        (["--resume", "latest", "--over", f"{RATE}=1e-4,1e-3"], ["leave out"]),
        (["--resume", "nobody"], ["'nobody'"]),
        (["--results", "latest"], ["'latest'"]),
    ],
)
def test_the_command_refuses_what_cannot_be_done_in_a_line(arguments, told, tmp_path, capsys):
    status, out, err = ask(capsys, "sweep", *arguments, "--runs", tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert all(word in err for word in told), err
    assert Store(tmp_path).runs() == []


def test_a_queued_sweep_waits_until_something_dispatches_and_its_results_can_be_asked_for(store, capsys):
    over = ["--over", f"{RATE}=1e-4..1e-2:log:3", "--set", "iterations=9", "--seeds", "2", "--minimise"]
    status, out, _ = ask(capsys, "sweep", "shapes", *over, "--queue", "--json", "--runs", store.location)
    sweep = json.loads(out)["run"]
    assert (status, store.run(sweep).status) == (0, "queued")
    finish(store, Toy(store, fails=(1e-4,)))
    status, out, _ = ask(capsys, "sweep", "--results", "latest", "--runs", store.location)
    assert status == 0
    lines = out.splitlines()
    assert RATE in lines[0]
    assert "0.01" in lines[1]
    assert "(best)" in lines[1]
    assert "failed" in lines[3]
    assert "it was made to fail" in out
    status, out, _ = ask(capsys, "sweep", "--results", sweep, "--json", "--runs", store.location)
    told = json.loads(out)
    assert told["best"]["parameters"] == {RATE: 1e-2}
    assert [point["status"] for point in told["all"]] == ["failed", "done", "done"]
    assert (told["points"], told["done"], told["failed"]) == (3, 2, 1)
