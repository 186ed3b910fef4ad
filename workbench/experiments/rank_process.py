"""One of the processes that train a run together: the first drives it and keeps its record, the others follow.

Nothing but the environment of torchrun says which one it is.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from workbench.events import CheckpointReady, Controls, Event
from workbench.store import Store
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from torch.distributed import Store as Words

    from workbench.jobs import Start

WAIT = "WORKBENCH_WAIT"
"""In the environment: the seconds in which all processes have to come up; as `ranks.WAIT`."""

SILENT_SECONDS = 60.0
"""After which a process of another machine counts as lost."""

_PULSE_SECONDS = 2.0
_ENDED = b"ended"

_OVER = "over"  # in the common words: the first process has written down what became of the run
_FOREVER = timedelta(days=30)  # what ended so for all of them, it surely writes down
_MAYBE = timedelta(seconds=60)  # it may have run out of memory as well, or it waits for the one that has

_ALONE_SECONDS = 1.0  # between two looks whether whoever began this process still lives


@dataclass(frozen=True)
class Told:
    """The last words of a process that failed."""

    at: float  # seconds since 1970
    error: str
    trace: str
    recorded: bool  # the run's record says so already

    def write(self, path: Path) -> None:
        """Leave them to whoever watches over the process."""
        with whole_file(path) as hidden:
            hidden.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What a process left; None where it left nothing that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def main(told: Path, task: dict[str, Any] | None) -> int:
    """Do this process's part. Exit status 0 also where the run failed for all of them alike, which the record then says.

    Args:
        told: the file for its last words, if it fails.
        task: of the first process: the folder of `runs`, the `run`, the `checkpoint` and `changes` to go on with, and whether it
            must be `fresh`.
    """
    from workbench.jobs import Ticker

    interrupts = _Interrupts()
    parent = os.getppid()
    watch = Ticker(lambda: interrupts.ask() if os.getppid() != parent else None, _ALONE_SECONDS)
    try:
        if task is None:
            follow(interrupts)
            return 0
        failed = _drive(task, interrupts)
        if failed is None:
            return 0
        failed.write(told)
    except Exception as error:
        traceback.print_exc()
        _last_words(error, recorded=False).write(told)
    finally:
        watch.stop()
    return 1


def leading(store: Store, run: str, config: dict[str, Any], start: "Start") -> "Start":
    """The loop of a run, which first tells the processes that follow what to do; that of a process alone is left as it is."""
    from workbench.ranks import here, meet

    if here()[1] == 1:
        return start

    def begin(resume: CheckpointReady | None, controls: Controls) -> Iterator[Event]:
        task: dict[str, Any] = {"run": run, "config": config, "folder": str(store.folder(run) / "checkpoints")}
        task |= {"iteration": None if resume is None else resume.iteration, "state": None if resume is None else resume.state}
        meet().set("task", json.dumps(task))
        return within(start(resume, controls))

    def within(events: Iterator[Event]) -> Iterator[Event]:
        with _pulsing():
            yield from events

    return begin


def follow(interrupts: "Callable[[], bool]") -> None:
    """Train along with the first process, until it ends.

    Raises: ValueError: if the first process was begun with another number of them, or its checkpoint is not to be seen here.
    """
    from workbench.checkpoints import read_checkpoint
    from workbench.config import parse_config
    from workbench.contracts import OutOfMemory, RewardFailed
    from workbench.ranks import OneOutOfMemory, here, meet
    from workbench.train import train

    task = json.loads(meet().get("task"))
    config, count = parse_config(task["config"]), here()[1]
    if config.compute.processes != count:
        raise ValueError(f"this process is one of {count}, and the run wants compute.processes = {config.compute.processes}")
    resume = None
    if task["iteration"] is not None:
        folder = Path(task["folder"])
        if not folder.is_dir():
            raise ValueError(f"{folder} is not to be seen here; a run is resumed where all machines share the folder of runs")
        resume = replace(read_checkpoint(folder, task["run"], task["iteration"]), state=task["state"])
    controls = Controls()
    with _pulsing():
        try:
            for _ in train(config, resume=resume, controls=controls):
                controls.stop = controls.stop or interrupts()
        except (FloatingPointError, RewardFailed, OutOfMemory) as error:
            alike = not isinstance(error, OutOfMemory) or isinstance(error.__cause__, OneOutOfMemory)
            if not _first_is_over(_FOREVER if alike else _MAYBE):
                raise


def _first_is_over(most: timedelta) -> bool:
    """Whether the first process has written down what became of the run, for which it may have to wait for judges."""
    from torch.distributed import DistStoreError

    from workbench.ranks import meet

    try:
        meet().wait([_OVER], most)
    except DistStoreError:
        return False
    except RuntimeError:  # it kept the common words, and has ended
        return True
    return True


class Pulse:
    """Says again and again that this process lives, and listens whether the others say so.

    On one machine whoever began the processes sees them die. Of another machine nothing is heard when it is lost, and what waits
    for its numbers would wait for days. So would `beat`, where it is the machine of the common words: `look` is for another
    thread, and asks nobody but the clock.

    Args:
        store: where processes leave words for each other, one of `keys` for each of them, which is there already.
        lost: what to do, with words for people, when one of the others has been silent for too long.
    """

    def __init__(
        self,
        store: "Words",
        keys: Sequence[str],
        index: int,
        lost: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._keys, self._index, self._lost, self._clock = store, list(keys), index, lost, clock
        self._beats = 0
        self._heard: list[tuple[bytes, float]] = [(b"", clock())] * len(keys)

    def beat(self) -> None:
        """Say it once, and listen."""
        self._beats += 1
        with suppress(RuntimeError):  # the first process keeps the words: where they are not to be had, all are silent
            self._store.set(self._keys[self._index], str(self._beats))
            for other, said in enumerate(self._store.multi_get(self._keys)):
                if said != self._heard[other][0]:
                    self._heard[other] = (said, self._clock())

    def look(self) -> None:
        """Say who has been silent for too long."""
        now = self._clock()
        for other, (said, when) in enumerate(self._heard):
            if other != self._index and said != _ENDED and now - when > SILENT_SECONDS:
                self._lost(
                    f"process {other} of {len(self._keys)} has not been heard of for {SILENT_SECONDS:g} s: its machine or the "
                    "network between is down"
                )

    def end(self) -> None:
        """Say that this process has ended well."""
        with suppress(RuntimeError):
            self._store.set(self._keys[self._index], _ENDED.decode())


@contextmanager
def _pulsing() -> Iterator[None]:
    """While the processes of several machines work together, one that hears nothing of another ends at once."""
    from workbench.jobs import Ticker
    from workbench.ranks import here, keys, listening

    index, count = here()
    if count <= int(os.environ.get("LOCAL_WORLD_SIZE", count)):
        yield
        return

    def lost(said: str) -> None:
        print(said, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may be waiting for numbers that never come

    pulse = Pulse(listening(), keys(), index, lost)
    tickers = [Ticker(act, _PULSE_SECONDS) for act in (pulse.beat, pulse.look)]
    try:
        yield
        pulse.end()
    finally:
        for ticker in tickers:
            ticker.stop()


def _drive(task: dict[str, Any], interrupts: "_Interrupts") -> Told | None:
    """Drive the run; returns what it failed of, unless that is recorded and holds for all processes alike."""
    from workbench.config import change_live, parse_config
    from workbench.contracts import RewardFailed
    from workbench.experiments.execute import attend, loop
    from workbench.experiments.queue import Entry, Queue
    from workbench.jobs import Job
    from workbench.ranks import meet

    store = Store(task["runs"], os.environ["WORKBENCH_STORE"])
    run = store.run(task["run"])
    config, last = change_live(parse_config(run.config), task["changes"]).model_dump(mode="json"), None
    if task["checkpoint"] is not None or store.checkpoints(run.id):
        last = store.load_checkpoint(run.id, task["checkpoint"])
        last = replace(last, state=last.state | {"changes": last.state.get("changes", {}) | task["changes"]})
    start = leading(store, run.id, config, loop(run.kind, config))
    job = Job(store, run.id, start, resume=last, fresh=task["fresh"])
    attend(job, (Queue(store).entry(run.id) or Entry(run.id)).timeout, interrupts)
    recorded = job.settle()
    meet().set(_OVER, "")
    if job.failure is None or (recorded and isinstance(job.failure, FloatingPointError | RewardFailed)):
        return None
    return _last_words(job.failure, recorded)


def _last_words(error: BaseException, recorded: bool) -> Told:
    said = f"{type(error).__name__}: {str(error).strip() or 'it said nothing'}"
    return Told(time.time(), said.splitlines()[0], "".join(traceback.format_exception(error)), recorded)


class _Interrupts:
    """Whether somebody asked for a stop. A second one ends the process at once; so does SIGTERM."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGINT, self._handle)

    def __call__(self) -> bool:
        return self._asked

    def ask(self) -> None:
        """As if somebody had."""
        self._asked = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else None))
