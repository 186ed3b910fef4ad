"""What happens by itself in a store: schedules fire, sweeps go on, and the queue begins what waits."""

import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.schedules import Schedules
from workbench.experiments.sweeps import Sweeps
from workbench.records import Run
from workbench.store import Store

T = TypeVar("T")


class Service:
    """One of any number of them; each thing happens once, whoever sees to it. Whoever calls `tick` owns the clock."""

    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self._schedules, self._sweeps = Schedules(store), Sweeps(store)
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """What cannot go on, and why; empty where all is well."""
        return "; ".join(f"{what} cannot go on: {said}" for what, said in dict(self._problems).items())

    def tick(self) -> list[Run]:
        """One round; nothing is waited for, and what goes wrong with one thing does not hold up the others.

        Returns: the queued runs that were found finished.
        """
        self._try("schedules", lambda: self._schedules.fire_due(time.time()))
        self._try("sweeps", self._sweeps.advance)
        return self._try("the queue", self.dispatcher.tick) or []

    def close(self) -> None:
        """Let other processes go on at once; runs that were begun go on by themselves."""
        self._sweeps.close()

    def _try(self, what: str, step: Callable[[], T]) -> T | None:
        try:
            done = step()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if self._problems.get(what) != said:
                traceback.print_exc()
            self._problems[what] = said
            return None
        self._problems.pop(what, None)
        return done
