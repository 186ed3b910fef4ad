"""Sweeps: runs over the points of a space, queued a few at a time, recorded so that any process can go on with them."""

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from workbench.exact_json import fields_of, from_json, to_json
from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.executors import Executor
from workbench.experiments.points import (
    PointDone,
    PointPruned,
    PointQueued,
    RecordedPoint,
    Status,
    finite,
    fold,
    fold_in,
    mean,
    mean_curve,
    recorded_sweep,
    runs_by_id,
    runs_of,
    settings_of,
    thinned,
)
from workbench.experiments.queue import Entry, enqueue
from workbench.experiments.search import Search
from workbench.experiments.space import SweepSettings, check_sweep, number_of_points, value_of
from workbench.experiments.work import submit
from workbench.processes import this_process
from workbench.records import DRIVEN, Row, Run, numbers_of, read_run
from workbench.store import Store, StoreError
from workbench.tables import EVENTS, QUEUE, RUNS, WISHES

_HEARTBEAT_SECONDS = 2.0
_MEASURED = ("IterationDone", "Evaluated", "Reported")  # the events that hold numbers


def begin_sweep(
    store: Store,
    settings: SweepSettings,
    *,
    origin: str,
    command: str = "",
    along: Callable[[Connection, str], None] | None = None,
) -> str:
    """Record a sweep, which whoever dispatches then advances; returns its id.

    Args: as `Store.create`.
    Raises: ValueError: one line for each mistake in the settings, before anything is recorded.
    """
    settings = settings.pinned()
    check_sweep(settings)
    total = number_of_points(settings)

    def count(connection: Connection, run: str) -> None:
        connection.execute(update(RUNS).where(RUNS.c.id == run).values(iterations=total))
        if along is not None:
            along(connection, run)

    title = settings.title or f"{settings.target.name}: {' x '.join(settings.space)}"
    config = settings.model_dump(mode="json")
    return store.create("sweep", config, title=title[:200], origin=origin, command=command, along=count)


def resume_sweep(store: Store, sweep: str) -> str:
    """Let a sweep that was stopped, or whose process died, go on; returns its id.

    Its runs that were stopped with it, or died with the machine, go on from their last checkpoint.

    Raises: ValueError: if it is no sweep, is done, or goes on already.
    """
    found = recorded_sweep(store, sweep)
    if not found.over:
        raise ValueError(f"sweep {found.id} is {found.status} already; it goes on as long as something dispatches")
    settings = settings_of(found)
    points = fold(store.events(found.id))
    if len(points) == number_of_points(settings) and all(point.settled for point in points):
        raise ValueError(f"sweep {found.id} is {found.status} and has all its {len(points)} points; there is nothing to resume")
    open_runs = [run for point in points if not point.settled and point.pruned is None for run in point.runs.values()]
    with store.writing() as connection:
        for run in map(read_run, connection.execute(select(RUNS).where(RUNS.c.id.in_(open_runs))).all()):
            if run.status in ("stopped", "crashed") and run.deleted is None:
                for table in (QUEUE, WISHES):
                    connection.execute(delete(table).where(table.c.run == run.id))
                enqueue(connection, Entry(run.id, settings.lane, settings.timeout, settings.retries))
                _wait_again(connection, run.id)
        connection.execute(delete(WISHES).where(WISHES.c.run == found.id))
        _wait_again(connection, found.id)
    return found.id


class Sweeps:
    """The sweeps of a store that this process advances: those that wait, and those whose process died.

    Args:
        only: advance none but these.
    """

    def __init__(self, store: Store, only: Collection[str] | None = None) -> None:
        self._store = store
        self._only = only
        self._mine: dict[str, Sweep] = {}

    def advance(self) -> None:
        """One step of each; nothing is waited for."""
        driven = (RUNS.c.kind == "sweep") & RUNS.c.status.in_(DRIVEN) & RUNS.c.deleted.is_(None)
        for run in map(read_run, self._store.read(select(RUNS).where(driven).order_by(RUNS.c.created))):
            if run.id in self._mine or not _is_free(run) or (self._only is not None and run.id not in self._only):
                continue
            with contextlib.suppress(ValueError):  # another process was quicker
                self._mine[run.id] = Sweep(self._store, run.id)
        for sweep in list(self._mine):
            if not self._mine[sweep].advance():
                del self._mine[sweep]

    def close(self) -> None:
        """Let other processes go on with them at once."""
        for sweep in self._mine.values():
            sweep.release()
        self._mine.clear()


def steps(
    store: Store, sweep: str, executors: Mapping[str, Executor] | None = None, devices: Sequence[str] = ()
) -> Iterator[Run]:
    """Advance one sweep and begin its runs, step by step, until it is over; yields it after each step.

    Whoever iterates owns the clock: half a second between two steps is right. Where another process advances the sweep already,
    this one only begins its runs, and takes over if that one dies.

    Args: as `Dispatcher`.
    """
    children: set[str] = set()
    sweeps, dispatcher = Sweeps(store, only=(sweep,)), Dispatcher(store, executors, devices=devices, only=children)
    while (found := store.run(sweep)).status not in ("done", "stopped", "failed"):
        sweeps.advance()
        children.update(runs_of(store, sweep))
        dispatcher.tick()
        yield found


class _Lost(Exception):
    """Another process advances the sweep."""


@dataclass(frozen=True)
class _Child:
    """A run of a point, and whether it has a place in the queue, where it may be tried again."""

    run: Run | None  # None once it was removed for good
    waiting: bool

    @property
    def ended(self) -> bool:
        return self.run is None or (self.run.over and not self.waiting)

    @property
    def status(self) -> str:
        return "stopped" if self.run is None or self.run.deleted is not None else self.run.status

    @property
    def error(self) -> str:
        return (self.run and self.run.error) or "it does not say why"

    @property
    def iteration(self) -> int:
        return self.run.iteration if self.run else 0

    @property
    def iterations(self) -> int | None:
        return self.run.iterations if self.run else None


class Sweep:
    """One sweep, advanced by this process.

    All that it knows is in the record, so that another process can go on where this one ends: each run is recorded together with
    the point and the seed that it stands for, and a point's end is recorded once.

    Raises: ValueError: if it is no sweep, is over, or a living process advances it.
    """

    def __init__(self, store: Store, run: str) -> None:
        self.run = recorded_sweep(store, run).id
        self._store = store
        self._claim()
        found = store.run(self.run)
        try:
            self._settings = settings_of(found)
        except ValueError as error:  # recorded by another version, where settings were others
            store.set_status(self.run, "failed", str(error))
            raise
        self._status = found.status
        self._total = found.iterations or number_of_points(self._settings)
        self._points: list[RecordedPoint] = []
        self._search: Search | None = None  # it and the points are rebuilt at the first step
        self._exhausted = self._measured = False
        self._heard = time.monotonic()

    def advance(self) -> bool:
        """One step, which waits for nothing; whether there are more to come.

        Looks at the runs, ends those of poor points, settles the points whose runs have ended, and queues new runs while fewer
        than `parallel` are open. A mistake ends the sweep, and its status says why.

        Raises: StoreError: if the record cannot be written; the step can be tried again.
        """
        try:
            return self._step()
        except StoreError:
            raise
        except _Lost:
            return False
        except Exception as error:
            self._end_with(error)
            return False

    def release(self) -> None:
        """Let another process go on with it at once."""
        with contextlib.suppress(_Lost), self._writing() as connection:
            values = {"status": "queued", "pid": None, "process_started": None}
            connection.execute(update(RUNS).where(RUNS.c.id == self.run).values(values))

    # One step

    def _step(self) -> bool:
        wanted = self._obey()
        if self._search is None:
            self._search = self._rebuild()
        open_points = [point for point in self._points if not point.settled]
        children = self._look([run for point in open_points for run in point.runs.values()])
        if not self._measured:
            self._expect_metrics(children)
        self._judge(open_points, children)
        for point in open_points:
            if self._has_ended(point, children, stopping=wanted == "stop"):
                self._settle(point, children)
        if wanted == "stop":
            return self._stop(children)
        if wanted == "run":
            self._queue(sum(not child.ended for child in children.values()), children)
        if all(point.settled for point in self._points) and (self._exhausted or len(self._points) >= self._total):
            self._finish()
            return False
        return True

    def _obey(self) -> str:
        """What is wanted; says that the sweep lives."""
        found = self._store.run(self.run)
        host, pid, _ = this_process()
        if (found.host, found.pid) != (host, pid):
            raise _Lost
        self._store.take_wishes(self.run)  # what is wanted of a sweep, its row says
        status = "paused" if found.wanted == "pause" else "running"
        if status != self._status:
            self._store.set_status(self.run, status)
            self._status = status
        if time.monotonic() - self._heard > _HEARTBEAT_SECONDS:
            self._store.heartbeat(self.run)
            self._heard = time.monotonic()
        return found.wanted

    def _look(self, runs: Sequence[str]) -> dict[str, _Child]:
        """How the runs do. The queue is read first: a run that is over and had no entry before will not be tried again."""
        waiting = {row.run for row in self._store.read(select(QUEUE.c.run).where(QUEUE.c.run.in_(runs)))} if runs else set()
        found = runs_by_id(self._store, runs)
        return {run: _Child(found.get(run), run in waiting) for run in runs}

    def _judge(self, points: Sequence[RecordedPoint], children: Mapping[str, _Child]) -> None:
        """Hear how the first runs of points do, and end those that do poorly."""
        if self._settings.pruning == "none":
            return
        leads = {next(iter(point.runs.values())): point for point in points if point.runs}
        for run, point in leads.items():
            self._end_if_poor(point, children[run])  # as it turned out while the search was rebuilt
        for heard in self._measured_since(leads, min((point.cursor for point in leads.values()), default=0)):
            point = leads[heard.run]
            if heard.id > point.cursor and point.pruned is None:
                self._hear(self._searching, point, heard)
                self._end_if_poor(point, children[heard.run])
        for run, point in leads.items():
            if point.pruned is not None:
                self._ask_to_stop(children[run])

    def _measured_since(self, runs: Collection[str], after: int) -> "list[_Heard]":
        """What is measured of runs past the cursor `after`, in the order in which it was."""
        query = select(EVENTS.c.id, EVENTS.c.run, EVENTS.c.kind, EVENTS.c.iteration, EVENTS.c.data).order_by(EVENTS.c.id)
        query = query.where(EVENTS.c.run.in_(runs), EVENTS.c.id > after, EVENTS.c.kind.in_(_MEASURED))
        heard = []
        for row in self._store.read(query) if runs else ():
            value = numbers_of(row.kind, from_json(row.data)).get(self._settings.judged_by)
            if value is not None:
                heard.append(_Heard(row.id, row.run, row.iteration, value))
        return heard

    def _hear(self, search: Search, point: RecordedPoint, heard: "_Heard") -> None:
        """Report a value, as it would count if the run ended there."""
        point.cursor = heard.id
        if heard.iteration > (point.judged[-1][0] if point.judged else 0):  # not again what a run repeats after a failure
            point.judged.append((heard.iteration, heard.value))
            poor = search.report(point.number, heard.iteration, value_of(point.judged, self._settings))
            if poor and point.poor is None:
                point.poor = heard.iteration

    def _end_if_poor(self, point: RecordedPoint, child: _Child) -> None:
        if point.poor is None or point.pruned is not None or child.ended:
            return
        if self._settings.target.kind == "train" and point.poor >= (child.iterations or math.inf):
            return  # it is as good as done
        self._record(PointPruned(self._settled, point.number, point.poor))
        point.pruned = point.poor

    def _has_ended(self, point: RecordedPoint, children: Mapping[str, _Child], stopping: bool) -> bool:
        """Whether nothing of a point is still to come."""
        mine = [children[run] for run in point.runs.values()]
        if not all(child.ended for child in mine):
            return False
        if point.pruned is not None:
            return True
        if stopping and any(child.status == "stopped" for child in mine):  # with the sweep: it goes on when the sweep does
            return False
        complete = len(mine) == len(self._settings.run_seeds)
        return complete or bool(point.refused) or any(child.status != "done" for child in mine)

    def _settle(self, point: RecordedPoint, children: Mapping[str, _Child]) -> None:
        """Record how a point ended."""
        curves = {run: self._store.metrics(run).get(self._settings.metric, []) for run in point.runs.values()}
        values = tuple(finite(value_of(curve, self._settings)) for curve in curves.values())
        status, error = self._how_it_ended(point, children, values)
        done = PointDone(
            iteration=self._settled + 1,
            point=point.number,
            parameters=point.parameters,
            status=status,
            runs=tuple(point.runs.values()),
            seeds=tuple(point.runs),
            values=values,
            error=error,
            curve=tuple(thinned(mean_curve(list(curves.values())))),
        )
        self._record(done)
        point.done = fields_of(done)
        self._searching.tell(point.number, status, mean(values))

    def _how_it_ended(
        self, point: RecordedPoint, children: Mapping[str, _Child], values: Sequence[float | None]
    ) -> tuple[Status, str]:
        """A point's status, and why it has no value."""
        if point.pruned is not None:
            return "pruned", ""
        if point.refused:
            return "failed", point.refused
        for run in point.runs.values():
            if children[run].status == "stopped":
                return "stopped", f"run {run} was stopped or deleted"
            if children[run].status != "done":
                return "failed", f"run {run} {children[run].status}: {children[run].error}"
        for run, value in zip(point.runs.values(), values, strict=True):
            if value is None:
                return "failed", f"{self._settings.metric} of run {run} is missing or not a finite number"
        return "done", ""

    def _expect_metrics(self, children: Mapping[str, _Child]) -> None:
        """That there is what is compared, as soon as a run has shown what it measures.

        Raises: ValueError: names the metric and lists the curves.
        """
        for run, child in children.items():
            if self._measured or not (child.iteration or child.ended):
                continue
            curves = self._store.metrics(run)
            trained = "reward" in curves and any(name.startswith("held_out/") for name in curves)
            if child.status == "done" or (trained and self._settings.target.kind == "train"):
                for metric in (self._settings.metric, self._settings.judged_by):
                    if metric not in curves:
                        names = ", ".join(sorted(curves)) or "none at all"
                        raise ValueError(f"metric {metric!r}: run {run} has no such curve; it has: {names}")
                self._measured = True

    def _queue(self, going_on: int, children: Mapping[str, _Child]) -> None:
        """Queue runs while there is room: first the further seeds of points that were begun, then new points."""
        while going_on < self._settings.parallel and (place := self._next(children)) is not None:
            point, seed = place
            try:
                self._submit(point, seed)
                going_on += 1
            except ValueError as error:
                point.refused = str(error)
                if not point.runs:
                    self._settle(point, {})

    def _next(self, children: Mapping[str, _Child]) -> tuple[RecordedPoint, int | None] | None:
        seeds = self._settings.run_seeds
        for point in self._points:
            begun = [children.get(run) for run in point.runs.values()]  # None: queued in this very step
            if point.settled or point.refused or point.pruned is not None or len(begun) == len(seeds):
                continue
            if any(child is not None and child.ended and child.status != "done" for child in begun):
                continue
            if self._settings.pruning != "none" and any(child is None or not child.ended for child in begun):
                continue
            return point, seeds[len(begun)]
        if self._exhausted or len(self._points) >= self._total:
            return None
        parameters = self._searching.propose()
        if parameters is None:
            self._exhausted = True
            return None
        self._points.append(RecordedPoint(len(self._points), parameters))
        return self._points[-1], seeds[0]

    def _submit(self, point: RecordedPoint, seed: int | None) -> None:
        """Queue one run; that it is this point's is recorded with it or not at all."""
        work = self._settings.work(point.parameters, seed)

        def along(connection: Connection, run: str) -> None:
            self._hold(connection)
            row = _insert(connection, self.run, PointQueued(self._settled, point.number, point.parameters, seed, run))
            point.cursor = point.cursor or row

        command = self._settings.target.command(point.parameters | ({} if seed is None else {"seed": seed}))
        point.runs[seed] = submit(self._store, work, origin=f"sweep {self.run}", command=command, parent=self.run, along=along)

    # Its end

    def _stop(self, children: Mapping[str, _Child]) -> bool:
        for child in children.values():
            self._ask_to_stop(child)
        if all(child.ended for child in children.values()):
            self._store.set_status(self.run, "stopped")
            return False
        return True

    def _finish(self) -> None:
        ends = [point.done or {} for point in self._points]
        if any(end["status"] in ("done", "pruned") for end in ends):
            self._store.set_status(self.run, "done")
        else:
            self._store.set_status(self.run, "failed", f"no point was finished; the first: {ends[0]['error']}")

    def _end_with(self, error: Exception) -> None:
        """Stop what goes on, and say why the sweep cannot go on."""
        told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        self._store.write_traceback(self.run, "".join(traceback.format_exception(error)))
        for child in self._look([run for point in self._points if not point.settled for run in point.runs.values()]).values():
            self._ask_to_stop(child)
        self._store.set_status(self.run, "failed", told)

    def _ask_to_stop(self, child: _Child) -> None:
        """Ask once; and again where a process that was just being begun has not heard it."""
        if child.run is not None and not child.run.over and child.run.wanted != "stop":
            with contextlib.suppress(ValueError):  # it has just ended
                self._store.wish(child.run.id, "stop")

    # The record

    @property
    def _settled(self) -> int:
        return sum(point.settled for point in self._points)

    @property
    def _searching(self) -> Search:
        assert self._search is not None, "rebuilt at the first step"
        return self._search

    def _claim(self) -> None:
        """Make this process the one that advances the sweep, whatever is wanted of it."""
        with self._store.writing() as connection:
            row = connection.execute(select(RUNS).where(RUNS.c.id == self.run).with_for_update()).one()
            found = read_run(row)
            if not _is_free(found):
                where = f" in process {found.pid} on {found.host}" if found.pid is not None else ""
                raise ValueError(f"sweep {found.id} is {found.status}{where}")
            host, pid, started = this_process()
            values = {"host": host, "pid": pid, "process_started": started, "updated": time.time()}
            values |= {"status": "running", "error": None}
            connection.execute(update(RUNS).where(RUNS.c.id == self.run).values(values))

    def _hold(self, connection: Connection) -> None:
        """That this process still is the one that advances the sweep; nobody else can become it before the transaction ends.

        Raises: _Lost: if another is.
        """
        host, pid, _ = this_process()
        mine = (RUNS.c.id == self.run) & (RUNS.c.host == host) & (RUNS.c.pid == pid)
        if not connection.execute(update(RUNS).where(mine).values(updated=time.time())).rowcount:
            raise _Lost

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._store.writing() as connection:
            self._hold(connection)
            yield connection

    def _record(self, event: PointPruned | PointDone) -> None:
        with self._writing() as connection:
            _insert(connection, self.run, event)
            connection.execute(update(RUNS).where(RUNS.c.id == self.run).values(iteration=event.iteration))

    def _rebuild(self) -> Search:
        """The search and the points as they were, from what was recorded, in the order in which it happened."""
        search, self._points = Search(self._settings), []
        own = self._store.events(self.run)
        first = self._settings.run_seeds[0]
        leads = {row.data["run"]: row.data["point"] for row in own if row.kind == "PointQueued" and row.data["seed"] == first}
        ends = {row.data["point"]: row.data["step"] for row in own if row.kind == "PointPruned"}
        heard = self._measured_since(leads, 0) if self._settings.pruning != "none" else []
        happened: list[Row | _Heard] = sorted([*own, *heard], key=lambda each: each.id)
        for each in happened:
            if isinstance(each, _Heard):
                point = self._points[leads[each.run]]
                if not point.settled and each.iteration <= ends.get(point.number, math.inf):
                    self._hear(search, point, each)
                continue
            known = len(self._points)
            fold_in(self._points, each)
            if len(self._points) > known:
                search.adopt(self._points[-1].parameters)
            if each.kind == "PointDone":
                search.tell(each.data["point"], each.data["status"], mean(each.data["values"]))
        return search


@dataclass(frozen=True)
class _Heard:
    """A value that a run has reported, and the row that it stands in."""

    id: int
    run: str
    iteration: int
    value: float


def _is_free(run: Run) -> bool:
    """Whether a sweep waits for a process: it has none yet, or the one that it had has died."""
    return run.status == "crashed" or (run.status == "queued" and run.pid is None)


def _wait_again(connection: Connection, run: str) -> None:
    values = {"status": "queued", "wanted": "run", "error": None, "pid": None, "process_started": None}
    connection.execute(update(RUNS).where(RUNS.c.id == run).values(values))


def _insert(connection: Connection, sweep: str, event: PointQueued | PointPruned | PointDone) -> int:
    """Write an event of a sweep; returns its row's id."""
    values = {"run": sweep, "kind": type(event).__name__, "iteration": event.iteration, "time": time.time()}
    written = connection.execute(insert(EVENTS).values(values | {"data": to_json(event)}).returning(EVENTS.c.id))
    return int(written.scalar_one())
