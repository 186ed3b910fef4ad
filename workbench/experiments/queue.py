"""The queue of runs that wait for a process of their own; any number of dispatchers on any host may take from it."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from workbench.exact_json import from_json
from workbench.processes import is_alive, this_process
from workbench.records import Run, read_run
from workbench.store import Store, clock_stopped
from workbench.tables import QUEUE, RUNS

LANE = "local"

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 2.0, 600.0

_BEGIN_SECONDS, _FORSAKEN_SECONDS = 120.0, 3600.0
"""A run that nothing has begun may be taken again this long after a dispatcher took it: one that is gone, or may be.

Where a job for it waits in a cluster after all, Slurm's is found again, and of two tasks only the first can claim the run.
"""


@dataclass(frozen=True)
class Entry:
    """A run's place in the queue. Times are seconds since 1970; `timeout` is the seconds that one attempt may take."""

    run: str
    lane: str = LANE
    timeout: float | None = None
    retries: int = 0
    attempt: int = 1
    not_before: float = 0.0
    taken: float | None = None  # when a dispatcher took it to begin it
    device: str | None = None


def enqueue(connection: Connection, entry: Entry) -> None:
    """Put a run at the end of the queue, within a transaction."""
    connection.execute(insert(QUEUE).values(**vars(entry)))


class Queue:
    """The queue of one store. An entry stays until the end of its run is settled: done, given up, or queued again."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> list[Entry]:
        """All of them, in the order in which they are taken."""
        return [_entry(row) for row in self._store.read(select(QUEUE).order_by(QUEUE.c.id))]

    def entry(self, run: str) -> Entry | None:
        """The run's entry; None where it has none any more."""
        rows = self._store.read(select(QUEUE).where(QUEUE.c.run == run))
        return _entry(rows[0]) if rows else None

    def put(self, entry: Entry) -> None:
        """Put a run at the end, and not where it was before."""
        with self._store.writing() as connection:
            connection.execute(delete(QUEUE).where(QUEUE.c.run == entry.run))
            enqueue(connection, entry)

    def take(
        self, lanes: Collection[str], slots: int, devices: Sequence[str] = (), only: Collection[str] | None = None
    ) -> Entry | None:
        """The next run that waits, which nobody else gets now; None where none may begin.

        Args:
            lanes: those that the caller can begin.
            slots: most runs of these lanes that were begun from this host and are going on at once.
            devices: those to share out; the run gets the one with the fewest runs, or one for each of its processes.
            only: take none but these runs, which then need no slot.
        """
        self._let_go()
        now = time.time()
        waiting = QUEUE.c.taken.is_(None) & (QUEUE.c.not_before <= now) & RUNS.c.deleted.is_(None) & (RUNS.c.wanted != "stop")
        waiting &= QUEUE.c.lane.in_(lanes) & (RUNS.c.status == "queued")
        if only is not None:
            waiting &= QUEUE.c.run.in_(only)
        query = select(QUEUE).join(RUNS, QUEUE.c.run == RUNS.c.id).where(waiting).order_by(QUEUE.c.id).limit(1)
        if not self._store.read(query):
            return None
        with self._store.writing() as connection:
            host, pid, started = this_process()
            found = connection.execute(query).one_or_none()  # first: whoever takes it before counts among those that go on
            begun = QUEUE.c.taken.is_not(None) & QUEUE.c.lane.in_(lanes) & (QUEUE.c.host == host)
            going_on = list(connection.execute(select(QUEUE.c.device).where(begun)).scalars())
            if found is None or (only is None and len(going_on) >= slots):
                return None
            values: dict[str, Any] = {"taken": now, "host": host, "pid": pid, "process_started": started}
            config = connection.execute(select(RUNS.c.config).where(RUNS.c.id == found.run)).scalar_one()
            values["device"] = _devices(devices, going_on, config)
            free = QUEUE.c.taken.is_(None)  # another dispatcher may have been quicker, where reading does not lock
            if not connection.execute(update(QUEUE).where(QUEUE.c.id == found.id, free).values(values)).rowcount:
                return None
        return self.entry(found.run)

    def withdraw(self) -> list[str]:
        """End the runs that somebody stopped or deleted before anything had begun them; returns their ids."""
        given_up = (RUNS.c.wanted == "stop") | RUNS.c.deleted.is_not(None)
        waits = (RUNS.c.status == "queued") & RUNS.c.pid.is_(None) & given_up
        found = self._store.read(select(RUNS.c.id).join(QUEUE, QUEUE.c.run == RUNS.c.id).where(waits))
        return [row.id for row in found if self._stop_if(row.id, waits)]

    def _stop_if(self, run: str, waits: ColumnElement[bool]) -> bool:
        """Whether it still waited: a process that claims it from now on is refused."""
        with self._store.writing() as connection:
            values = {"status": "stopped", "updated": time.time()}
            return bool(connection.execute(update(RUNS).where(RUNS.c.id == run, waits).values(values)).rowcount)

    def settle(self) -> list[Run]:
        """Close the entries of runs that are over: one that failed or crashed with attempts left is queued again, after a while.

        Returns: the runs that are finished with.
        """
        settled = []
        rows = self._store.read(select(RUNS).join(QUEUE, QUEUE.c.run == RUNS.c.id).order_by(QUEUE.c.id))
        entries = {entry.run: entry for entry in self.entries()} if rows else {}
        for row in rows:
            run, entry = read_run(row), entries.get(row.id)
            if entry is None:  # another dispatcher has just closed it
                continue
            if not run.over:
                continue
            again = run.status in ("failed", "crashed") and entry.attempt <= entry.retries and run.wanted != "stop"
            if self._close(entry, row if again else None) and not again:
                settled.append(run)
        return settled

    def _close(self, entry: Entry, again: Any | None) -> bool:
        """Remove an entry, or send it back to wait; False where somebody was quicker.

        Args:
            again: the run's row, where it waits from now on if nobody has touched it since: neither another driver, nor one
                that was taken for dead.
        """
        place = (QUEUE.c.run == entry.run) & (QUEUE.c.attempt == entry.attempt)
        with self._store.writing() as connection:
            if again is None:
                return bool(connection.execute(delete(QUEUE).where(place)).rowcount)
            pause = min(FIRST_BACKOFF_SECONDS * 2 ** (entry.attempt - 1), LONGEST_BACKOFF_SECONDS)
            values = {"attempt": entry.attempt + 1, "not_before": time.time() + pause, "taken": None, "device": None}
            if not connection.execute(update(QUEUE).where(place).values(values)).rowcount:
                return False
            queued = {"status": "queued", "pid": None, "process_started": None} | clock_stopped(RUNS.c.updated)
            untouched = (RUNS.c.id == again.id) & (RUNS.c.status == again.status) & (RUNS.c.updated == again.updated)
            untouched &= RUNS.c.pid.is_not_distinct_from(again.pid)
            waits = bool(connection.execute(update(RUNS).where(untouched).values(queued)).rowcount)
            if not waits:
                connection.rollback()
            return waits

    def _let_go(self) -> None:
        """Free the entries whose dispatcher ended before anything had begun the run, or may have."""
        query = select(QUEUE).join(RUNS, QUEUE.c.run == RUNS.c.id).where(QUEUE.c.taken.is_not(None), RUNS.c.status == "queued")
        for row in self._store.read(query.where(RUNS.c.pid.is_(None))):
            lives = is_alive(row.host, row.pid, row.process_started)
            patience = _BEGIN_SECONDS if lives is False else _FORSAKEN_SECONDS  # of another host, nobody knows
            if not lives and time.time() - row.taken > patience:
                with self._store.writing() as connection:
                    same = (QUEUE.c.id == row.id) & (QUEUE.c.taken == row.taken)
                    connection.execute(update(QUEUE).where(same).values(taken=None, device=None))


def _devices(devices: Sequence[str], taken: Sequence[str | None], config: str) -> str | None:
    """Those with the fewest runs, as many as a run has processes, with commas between; None where there are none to share out."""
    if not devices:
        return None
    runs = [device for some in taken if some for device in some.split(",")]
    count = from_json(config).get("compute", {}).get("processes", 1)
    return ",".join(sorted(sorted(devices, key=runs.count)[:count], key=list(devices).index))


def _entry(row: Any) -> Entry:
    return Entry(row.run, row.lane, row.timeout, row.retries, row.attempt, row.not_before, row.taken, row.device)
