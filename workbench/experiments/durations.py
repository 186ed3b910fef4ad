"""How long runs have been at work, as the record tells it."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, func, select

from workbench.records import Run, read_run
from workbench.store import Store
from workbench.tables import EVENTS, RUNS


def seconds_at_work(store: Store, runs: Collection[str], now: float) -> dict[str, float]:
    """Seconds for which each run was running, by all its drivers together; until `now` where it is. Waiting does not count.

    A sweep has worked as long as its runs have, together. Of a run from before this was recorded, and of one from elsewhere,
    it is the time from its first event to its last sign of life.
    """
    found = _read(store, RUNS.c.id.in_(runs)) if runs else []
    sweeps = [run.id for run in found if run.kind == "sweep"]
    points = _read(store, RUNS.c.parent.in_(sweeps)) if sweeps else []
    untold = [run.id for run in (*found, *points) if run.worked is None]
    first = select(EVENTS.c.run, func.min(EVENTS.c.time)).where(EVENTS.c.run.in_(untold)).group_by(EVENTS.c.run)
    first_events = dict(store.read(first)) if untold else {}

    def alone(run: Run) -> float:
        began = run.began if run.worked is not None else first_events.get(run.id)
        until = now if run.status == "running" else run.updated
        return (run.worked or 0.0) + (max(0.0, until - began) if began is not None else 0.0)

    seconds = {run.id: 0.0 if run.kind == "sweep" else alone(run) for run in found}
    for run in points:
        seconds[str(run.parent)] += alone(run)
    return seconds


def _read(store: Store, wanted: ColumnElement[bool]) -> list[Run]:
    return [read_run(row) for row in store.read(select(RUNS).where(wanted))]
