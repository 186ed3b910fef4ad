"""The points of a sweep: as they are recorded, and as results."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from sqlalchemy import func, select

from workbench.config import validated
from workbench.evaluate import interval
from workbench.experiments.durations import seconds_at_work
from workbench.experiments.search import Search
from workbench.experiments.space import SweepSettings, value_of
from workbench.records import Row, Run, read_run
from workbench.store import Store
from workbench.tables import EVENTS, RUNS

Status = Literal["queued", "running", "done", "pruned", "failed", "stopped"]
Curve = list[tuple[int, float]]  # iteration, value

_CURVE_LENGTH = 100  # points of a recorded curve


@dataclass(frozen=True)
class PointQueued:
    """A run of a sweep's point waits for its turn. `iteration` counts the points that are settled, as in the events below."""

    iteration: int
    point: int
    parameters: dict[str, Any]
    seed: int | None  # None: that of the sweep's target
    run: str


@dataclass(frozen=True)
class PointPruned:
    """A point ends early."""

    iteration: int
    point: int
    step: int  # iteration of its first run at which that was decided


@dataclass(frozen=True)
class PointDone:
    """A point is settled. Its runs, their seeds and their values are in the same order."""

    iteration: int
    point: int
    parameters: dict[str, Any]
    status: Status
    runs: tuple[str, ...]
    seeds: tuple[int | None, ...]
    values: tuple[float | None, ...]  # None where a run has none
    error: str  # why the point has no value; empty where it has one
    curve: tuple[tuple[int, float], ...]  # iteration, mean over the seeds; thinned


@dataclass(frozen=True)
class Point:
    """One point of a sweep as far as it has come. Its value is the mean over its seeds; of one that ended early, the last.

    `low` and `high` are the ends of the 95 % t-interval; None with fewer than two seeds. A point of which any run failed has no
    value: the seeds that are left would flatter it.
    """

    number: int
    parameters: dict[str, Any]
    status: Status
    value: float | None
    low: float | None
    high: float | None
    values: tuple[float | None, ...]  # by seed
    seeds: tuple[int | None, ...]
    runs: tuple[str, ...]
    iterations: int  # of the training in all its runs
    seconds: float  # for which its runs were at work, added up
    error: str
    curve: Curve


@dataclass(frozen=True)
class Results:
    """What is known of a sweep: its points in the order in which they were asked for."""

    sweep: str
    status: str
    settings: SweepSettings
    total: int
    points: tuple[Point, ...]

    @property
    def best(self) -> Point | None:
        """The best of the points that are done."""
        done = [point for point in self.points if point.status == "done" and point.value is not None]
        sign = 1 if self.settings.direction == "max" else -1
        return max(done, key=lambda point: sign * (point.value or 0.0), default=None)

    def count(self, *statuses: Status) -> int:
        """How many points have one of these statuses."""
        return sum(point.status in statuses for point in self.points)


def results(store: Store, sweep: str) -> Results:
    """Every point of a sweep as far as it has come. Raises: ValueError: if there is no such sweep."""
    found = recorded_sweep(store, sweep)
    settings = settings_of(found)
    points = fold(store.events(found.id))
    runs = [run for point in points for run in point.runs.values()]
    children = runs_by_id(store, runs)
    seconds = seconds_at_work(store, runs, time.time())
    updates = select(EVENTS.c.run, func.max(EVENTS.c.iteration)).where(EVENTS.c.run.in_(runs), EVENTS.c.kind == "IterationDone")
    reached = dict(store.read(updates.group_by(EVENTS.c.run))) if runs else {}
    rows = tuple(_described(store, point, children, seconds, reached, settings) for point in points)
    return Results(found.id, found.status, settings, found.iterations or len(rows), rows)


def rebuilt_search(store: Store, sweep: str) -> Search:
    """The search of a recorded sweep, whose `study` is Optuna's. Raises: ValueError: if there is no such sweep."""
    found = recorded_sweep(store, sweep)
    search = Search(settings_of(found))
    for point in fold(store.events(found.id)):
        search.adopt(point.parameters)
        if point.done is not None:
            search.tell(point.number, point.done["status"], mean(point.done["values"]))
    return search


def recorded_sweep(store: Store, run: str) -> Run:
    """The run that is this sweep, or the "latest" of them. Raises: ValueError: if there is none, or it is no sweep."""
    sweeps = store.runs("sweep") if run == "latest" else []
    found = sweeps[0] if sweeps else store.run(run)
    if found.kind != "sweep":
        known = ", ".join(run.id for run in store.runs("sweep")[:8]) or "none"
        raise ValueError(f"run {found.id} is of kind {found.kind!r}, no sweep; the sweeps are: {known}")
    return found


def settings_of(run: Run) -> SweepSettings:
    """The settings of a recorded sweep."""
    return validated(SweepSettings, run.config)


@dataclass
class RecordedPoint:
    """A point as it is recorded, and what its judge has seen."""

    number: int
    parameters: dict[str, Any]
    runs: dict[int | None, str] = field(default_factory=dict)  # by seed, in their order
    pruned: int | None = None  # the iteration at which it was ended early
    done: dict[str, Any] | None = None
    refused: str = ""  # why it cannot be run
    judged: Curve = field(default_factory=list)
    poor: int | None = None  # the iteration at which its judge found it so
    cursor: int = 0  # the last row of its first run that was read

    @property
    def settled(self) -> bool:
        return self.done is not None


def fold(rows: Iterable[Row]) -> list[RecordedPoint]:
    """The points of a sweep from its events."""
    points: list[RecordedPoint] = []
    for row in rows:
        fold_in(points, row)
    return points


def fold_in(points: list[RecordedPoint], row: Row) -> None:
    """Add what one event of a sweep says to its points."""
    if row.kind not in ("PointQueued", "PointPruned", "PointDone"):
        return
    number = row.data["point"]
    if number == len(points):
        points.append(RecordedPoint(number, row.data["parameters"], cursor=row.id))
    if row.kind == "PointQueued":
        points[number].runs[row.data["seed"]] = row.data["run"]
    elif row.kind == "PointPruned":
        points[number].pruned = row.data["step"]
    else:
        points[number].done = row.data


def runs_of(store: Store, sweep: str) -> list[str]:
    """The ids of the runs of a sweep, in the order in which they were queued."""
    return [row.id for row in store.read(select(RUNS.c.id).where(RUNS.c.parent == sweep).order_by(RUNS.c.created))]


def runs_by_id(store: Store, runs: Sequence[str]) -> dict[str, Run]:
    """The runs that are still there, in the trash or not."""
    return {row.id: read_run(row) for row in store.read(select(RUNS).where(RUNS.c.id.in_(runs)))} if runs else {}


def _described(
    store: Store,
    point: RecordedPoint,
    children: Mapping[str, Run],
    seconds: Mapping[str, float],
    reached: Mapping[str, int],
    settings: SweepSettings,
) -> Point:
    """A point for people; one that is not settled shows what its runs have reached."""
    runs = tuple(point.runs.values())
    end = point.done or {}
    if not end:
        curves = [store.metrics(run).get(settings.metric, []) for run in runs]
        begun = any(run in children and children[run].status != "queued" for run in runs)
        values = [finite(value_of(curve, settings)) for curve in curves]
        end = {"status": "running" if begun else "queued", "values": values, "error": point.refused, "curve": mean_curve(curves)}
    shown = end["status"] not in ("failed", "stopped")
    spread = _interval(end["values"]) if shown else None
    return Point(
        number=point.number,
        parameters=point.parameters,
        status=end["status"],
        value=mean(end["values"]) if shown else None,
        low=spread[0] if spread else None,
        high=spread[1] if spread else None,
        values=tuple(end["values"]),
        seeds=tuple(point.runs),
        runs=runs,
        iterations=sum(reached.get(run, 0) for run in runs),
        seconds=sum(seconds.get(run, 0.0) for run in runs),
        error=end["error"],
        curve=[(iteration, value) for iteration, value in end["curve"]],
    )


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _interval(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The 95 % t-interval of the mean over seeds; None with fewer than two."""
    present = [value for value in values if value is not None]
    if len(present) < 2:
        return None
    found = interval(torch.tensor(present, dtype=torch.float64))
    return found.low, found.high


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs, at the iterations that all of them have."""
    by_iteration = [dict(curve) for curve in curves if curve]
    if not by_iteration:
        return []
    common = sorted(set.intersection(*(set(curve) for curve in by_iteration)))
    return [(iteration, sum(curve[iteration] for curve in by_iteration) / len(by_iteration)) for iteration in common]


def thinned(curve: Curve) -> Curve:
    """At most about a hundred points of a curve, the first and the last among them."""
    every = max(1, math.ceil(len(curve) / _CURVE_LENGTH))
    return [*curve[:-1:every], curve[-1]] if curve else []
