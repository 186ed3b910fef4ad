"""How long runs have been at work, as the record tells it."""

from collections.abc import Collection

from sqlalchemy import func, select

from workbench.records import Run, read_run
from workbench.store import Store
from workbench.tables import EVENTS, RUNS


def seconds_at_work(store: Store, runs: Collection[str], now: float) -> dict[str, float]:
    """Seconds from each run's first event to its last sign of life, or to `now` while it goes on; its waiting does not count.

    A run that is made of others, as a sweep is, has worked as long as they have, together.
    """
    if not runs:
        return {}
    made_of = RUNS.c.parent.in_(runs) & RUNS.c.branched.is_(None)  # a branch has a parent too, but does its own work
    found = [read_run(row) for row in store.read(select(RUNS).where(RUNS.c.id.in_(runs) | made_of))]
    first = select(func.min(EVENTS.c.id)).where(EVENTS.c.run.in_([run.id for run in found])).group_by(EVENTS.c.run)
    begun = {row.run: row.time for row in store.read(select(EVENTS.c.run, EVENTS.c.time).where(EVENTS.c.id.in_(first)))}
    parts: dict[str, list[Run]] = {}
    for run in found:
        if run.parent in runs and run.branched is None:
            parts.setdefault(str(run.parent), []).append(run)

    def alone(run: Run) -> float:
        until = run.updated if run.over else now
        return max(0.0, until - begun[run.id]) if run.id in begun else 0.0

    return {run.id: sum(map(alone, parts.get(run.id, [run]))) for run in found if run.id in runs}
