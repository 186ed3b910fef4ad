"""Files that take a while to make, one after another beside everything else; who asked looks how far they are."""

import secrets
from collections.abc import Callable
from collections.abc import Generator as Stream
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from workbench.events import Progress

KEPT = 16
"""Most finished ones that are remembered."""

Make = Callable[[], Stream[Progress, None, Path]]


@dataclass(eq=False)
class Making:
    """One file or folder that is made; written by its maker alone, but for `unwanted`."""

    title: str
    result: "Future[Path] | None" = None
    done: int = 0
    total: int = 0  # 0: not known yet
    unwanted: bool = False  # it ends at its next portion, and leaves nothing

    @property
    def waits(self) -> bool:
        """Others are made before it."""
        return self.result is not None and not self.result.running() and not self.result.done()

    @property
    def path(self) -> Path | None:
        """What was made; None while it is not done.

        Raises: ValueError: if it was not wanted any more; or what its maker raised.
        """
        assert self.result is not None
        return self.result.result() if self.result.done() else None


class Makings:
    """Makes one after another on a thread of its own, so that neither a page nor the device waits for a disk."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="making")
        self._known: dict[str, Making] = {}

    def begin(self, title: str, make: Make) -> str:
        """Make something as soon as it is its turn; returns the name by which to ask for it."""
        making, name = Making(title), secrets.token_hex(4)
        making.result = self._thread.submit(_made, making, make)
        over = [key for key, each in self._known.items() if each.result is not None and each.result.done()]
        for key in over[: max(0, len(over) - KEPT)]:
            self._known.pop(key)
        self._known[name] = making
        return name

    def find(self, name: str) -> Making:
        """Raises: ValueError: if nothing of this name is known, as after the app was begun anew."""
        if name not in self._known:
            raise ValueError("nothing is known of this file any more: the app was begun anew; make it again")
        return self._known[name]

    def close(self) -> None:
        """End what is being made; nothing of it is left."""
        for making in self._known.values():
            making.unwanted = True
        self._thread.shutdown(cancel_futures=True)


def _made(making: Making, make: Make) -> Path:
    with closing(make()) as stream:
        while True:
            if making.unwanted:
                raise ValueError(f"{making.title} was cancelled; nothing of it is left")
            try:
                event = next(stream)
            except StopIteration as end:
                path: Path = end.value
                return path
            making.done, making.total = event.done, event.total
