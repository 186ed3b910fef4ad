"""Begins what waits: settles runs that ended, then starts those whose turn it is. Whoever calls `tick` owns the clock."""

from collections.abc import Collection, Mapping, Sequence

from workbench.experiments.executors import Executor, Local, Started
from workbench.experiments.queue import LANE, Queue
from workbench.records import Run
from workbench.store import Store

TICK_SECONDS = 0.5
"""How often `tick` should be called."""


class Dispatcher:
    """One of any number of dispatchers of a store; a run is begun by exactly one of them.

    Args:
        executors: by lane; a subprocess of this machine for the lane "local" by default.
        slots: most runs going on at once.
        devices: those that runs are spread over, as CUDA_VISIBLE_DEVICES names them.
        only: begin none but these runs.
    """

    def __init__(
        self,
        store: Store,
        executors: Mapping[str, Executor] | None = None,
        slots: int = 1,
        devices: Sequence[str] = (),
        only: Collection[str] | None = None,
    ) -> None:
        self.queue = Queue(store)
        self._store = store
        self._executors = dict(executors or {LANE: Local()})
        self._slots = slots
        self._devices = devices
        self._only = only
        self._started: dict[str, tuple[int, Started]] = {}  # by run: the attempt that it was begun for

    def tick(self) -> list[Run]:
        """One round; returns the runs that it found finished."""
        for run in self.queue.withdraw():
            if run in self._started:  # it may wait for hours in a cluster's own queue, or be about to begin here
                self._started.pop(run)[1].cancel()
        self._give_up_on_those_that_never_began()
        settled = self.queue.settle()
        while entry := self.queue.take(self._executors, self._slots, self._devices, self._only):
            try:
                started = self._executors[entry.lane].start(self._store, entry.run, entry.device)
                self._started[entry.run] = (entry.attempt, started)
            except Exception as error:  # of a cluster's library there is no telling; the queue goes on
                self._store.set_status(entry.run, "failed", f"no process could be begun for it: {error}")
        return settled

    def _give_up_on_those_that_never_began(self) -> None:
        for run, (attempt, started) in list(self._started.items()):
            said = started.ended()
            if said is None:
                continue
            del self._started[run]
            entry = self.queue.entry(run)
            if entry is None or entry.attempt != attempt:  # it has begun, failed and waits for its next attempt
                continue
            found = self._store.run(run)
            if found.status == "queued" and found.pid is None:
                self._store.set_status(run, "failed", f"its process ended before it began: {said or 'it said nothing'}")
