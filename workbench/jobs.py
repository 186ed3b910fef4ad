"""The life of a run, apart from its work: its events are recorded one by one, and wishes obeyed between two of them."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, finalize

from workbench.contracts import OutOfMemory, RewardFailed
from workbench.events import CheckpointReady, Controls, Evaluated, Event, Finished, IterationDone, Started
from workbench.health import parted
from workbench.history import History
from workbench.provenance import record_provenance
from workbench.records import Wish
from workbench.replay import replayed
from workbench.store import Store, StoreError

T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])
Start = Callable[[CheckpointReady | None, Controls], Iterator[Event]]

POLL_SECONDS = 0.2
"""Wishes are looked for at most this often, and after every iteration."""

_HEARTBEAT_SECONDS = 2.0


class Job:
    """One run being driven, event by event, by whichever thread calls `advance`; a thread of its own only says that it lives.

    A pause takes effect at the next event; stop, save and sample at the end of the iteration, for which a paused run goes on.
    A job that was silent for so long that another process drives its run now ends, and leaves the run as it is.
    A run that pauses by itself is over for the job: it is resumed from its last checkpoint by a new one.

    Args:
        start: begins the run from a checkpoint or from nothing; called at the first `advance`, since it may load a model.
        resume: where to go on from; None begins anew.
        fresh: only where the run waits for its first driver, or for the next one after a failure.
        part: of a run that is more than this and that somebody else drives, such as a notebook: its end is not the run's.
    Raises: ValueError: if a living process drives the run already, or it does not wait.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        start: Start,
        resume: CheckpointReady | None = None,
        fresh: bool = False,
        part: bool = False,
    ) -> None:
        if not part:
            store.claim(run, fresh)
        self.run = run
        self.over = False
        self.ended = ""  # done, stopped, failed, or paused by itself, once it is over
        self.failure: BaseException | None = None  # what it failed of
        self.error: str | None = None  # the same in words
        self._part = part
        self._store = store
        self._start = start
        self._resume = resume
        self._controls = Controls()
        self._events: Iterator[Event] | None = None
        self._status = "queued"
        self._pausing = self._stopping = False
        self._iteration = 0
        self._asked: deque[str] = deque()
        self._woken = threading.Event()
        self._polled = time.monotonic() - POLL_SECONDS
        self._watches = store.run(run).config.get("guard", {}).get("pause_when_hacked", False)
        self._history = History()
        self._ending = self._trace = ""  # the final status and a traceback, as long as the disk refuses them
        self._reason = ""  # why it counts as failed if it is stopped
        self._lost = threading.Event()
        self._pulse = Ticker(partial(_beat, store, run, self._lost), _HEARTBEAT_SECONDS)
        finalize(self, self._pulse.stop)

    @property
    def paused(self) -> bool:
        """Somebody asked for a pause, and nothing is left to do before it."""
        wanted = self._controls.stop or self._controls.save or self._controls.sample
        return self._pausing and not wanted and not self.over

    def advance(self) -> Event | None:
        """Take one event and record it. None where the run is paused or has just ended.

        Every exception of a run ends here: the status says what became of it, and `error` why.
        """
        with self._to_its_end():
            if not self.over:
                self._obey()
            if not (self.over or self.paused):
                return self._take()
        return None

    @property
    def begun(self) -> bool:
        """Whether it has taken its first event."""
        return self._events is not None

    def wait_its_turn(self) -> None:
        """Obey wishes while another run has the device: one that is stopped before it begins ends here."""
        with self._to_its_end():
            if not self.over:
                self._obey()
            if self._stopping and not self.over:
                self._end("stopped")

    def ask(self, wanted: str) -> None:
        """Wish without the store, from any thread or signal handler of this process; the words of `Store.wish`."""
        self._asked.append(wanted)
        self._woken.set()

    def give_up(self, reason: str) -> None:
        """Stop at the end of the iteration with a checkpoint; the run then counts as failed, unless it was stopping already."""
        if not self._stopping:
            self._reason = reason
        self.ask("stop")

    def wait(self, timeout: float = POLL_SECONDS) -> None:
        """Let a little time pass while paused; ends early when asked something."""
        self._woken.wait(timeout)

    def settle(self) -> bool:
        """Write down how the run ended, if the disk refused that before; whether it is written."""
        try:
            if self._ending:
                self._store.set_status(self.run, self._ending, self.error)
                self._ending = ""
            if self._trace:
                self._store.write_traceback(self.run, self._trace)
                self._trace = ""
        except StoreError:
            return False
        self._pulse.stop()
        return True

    @contextmanager
    def _to_its_end(self) -> Iterator[None]:
        """What is raised inside ends the run, and the status says what became of it."""
        try:
            yield
        except (FloatingPointError, RewardFailed) as error:
            self._end("paused", error)
        except (Exception, SystemExit) as error:
            self._end("failed", error)
        except KeyboardInterrupt:
            self._end("stopped")
            raise

    def _take(self) -> Event | None:
        if self._events is None:
            self._say("running")
            try:
                self._events = replayed(self._store, self.run, self._start)(self._resume, self._controls)
            finally:  # also of a run that cannot even begin
                record_provenance(self._store, self.run, iteration=self._resume.iteration if self._resume else 0)
            self._resume = None
        event = next(self._events, None)
        if event is None:
            self._end("stopped" if self._stopping and not self._complete() else "done")
            return None
        self._expect_to_drive()
        self._store.record(self.run, event)
        if isinstance(event, Started | IterationDone | Finished):
            self._iteration = event.iteration
        if isinstance(event, Evaluated) and self._watches:
            self._look_for_hacking()
        if isinstance(event, IterationDone):
            self._obey(at_once=True)
        return event

    def _look_for_hacking(self) -> None:
        """Wish for a pause where the latest evaluation is the first that shows it; whoever resumes has seen it."""
        config = self._store.run(self.run).config
        rows = self._store.events(self.run, after=self._history.cursor, kinds=("Started", "IterationDone", "Evaluated"))
        before = self._history.extended(rows[:-1])
        self._history = before.extended(rows[-1:])
        if parted(before, config) is None and parted(self._history, config) is not None:
            self._store.wish(self.run, "pause")
            self._obey(at_once=True)

    def _expect_to_drive(self) -> None:
        if self._lost.is_set() and not self._part:
            raise _Lost(f"run {self.run} was taken for dead while this process was silent; another one may drive it now")

    def _obey(self, at_once: bool = False) -> None:
        self._expect_to_drive()
        now = time.monotonic()
        self._woken.clear()
        wishes = [Wish(self._asked.popleft(), {}) for _ in range(len(self._asked))]
        if at_once or now - self._polled >= POLL_SECONDS:
            self._polled = now
            wishes += self._store.take_wishes(self.run)
        for wanted, changes in wishes:
            if wanted in ("run", "pause"):
                self._pausing = wanted == "pause"
            elif wanted == "stop":
                self._stopping = self._controls.stop = True
            elif wanted == "change":
                self._controls.changes = self._controls.changes | changes
            else:
                setattr(self._controls, wanted, True)
        if self.paused or self._events is not None:
            self._say("paused" if self.paused else "running")

    def _say(self, status: str) -> None:
        if status != self._status:
            self._store.set_status(self.run, status, part=self._part)
            self._status = status

    def _complete(self) -> bool:
        total = self._store.run(self.run).iterations
        return total is not None and self._iteration >= total

    def _end(self, status: str, error: BaseException | None = None) -> None:
        if error is not None:
            told = isinstance(error, FloatingPointError | RewardFailed | OutOfMemory | StoreError | _Lost) and str(error)
            self.error = str(error) if told else f"{type(error).__name__}: {error}"
        elif status == "stopped" and self._reason:
            status, self.error = "failed", self._reason
        self.ended, self.failure = status, error
        self._events = self._resume = None  # closes a generator that was left in the middle, so that it cleans up
        if not (self._part or isinstance(error, _Lost)):
            self._ending = status
            self._trace = "".join(traceback.format_exception(error)) if error is not None else ""
        try:
            self.settle()
        finally:
            self.over = True  # only now, so that whoever sees it finds the status written


class _Lost(RuntimeError):
    """Another process drives the run now, or has done so."""


def _beat(store: Store, run: str, lost: threading.Event) -> None:
    """Say that the run's driver lives, or note that this process is its driver no more."""
    try:
        if not store.heartbeat(run):
            lost.set()
    except StoreError:
        return  # the next beat may get through


class Worker:
    """One thread, which owns the device: it takes one event from each job in turn, and runs calls between two events.

    A job begins once those before it have ended or are paused; jobs that have begun share the device.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._closing = self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Drive a job until it is over, beside the others."""
        with self._changed:
            self._refuse_if_closing()
            self._jobs.append(job)
            self._changed.notify()

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function on the worker's thread before the next event; its result or its exception goes to the future."""
        future: Future[T] = Future()
        with self._changed:
            self._refuse_if_closing()
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Ask every job to stop with a checkpoint, and wait; whether all had ended within `timeout` seconds."""
        with self._changed:
            self._closing = True
            for job in self._jobs:
                job.ask("stop")
            self._changed.notify()
        self._thread.join(timeout)
        self._abandoned = True
        return not self._thread.is_alive()

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise RuntimeError("the worker is closing and takes nothing more")

    def _work(self) -> None:
        while (jobs := self._wait()) is not None:
            self._answer_calls()
            for job in jobs:
                if self._abandoned:
                    break
                if not job.begun and any(other.begun and not (other.over or other.paused) for other in jobs):
                    job.wait_its_turn()
                else:
                    job.advance()
                self._answer_calls()
            with self._changed:
                self._jobs = [job for job in self._jobs if not (job.over and job.settle())]
        for future, _ in self._calls:
            future.cancel()

    def _wait(self) -> list[Job] | None:
        """The jobs to take an event from; None once everything has ended and more is not to come."""
        with self._changed:
            self._changed.wait_for(self._has_work, timeout=POLL_SECONDS if self._jobs else None)
            ended = self._abandoned or all(job.over for job in self._jobs)
            return None if self._closing and ended else list(self._jobs)

    def _has_work(self) -> bool:
        return self._closing or bool(self._calls) or any(not (job.over or job.paused) for job in self._jobs)

    def _answer_calls(self) -> None:
        for _ in range(len(self._calls)):  # those that arrive meanwhile wait for an event, or runs would starve
            future, function = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)


def one_at_a_time(method: M) -> M:
    """A method that two threads never run at once on the same object."""

    @wraps(method)
    def alone(self: Any, *arguments: Any, **named: Any) -> Any:
        with _guards.setdefault(self, threading.RLock()):
            return method(self, *arguments, **named)

    return cast(M, alone)


_guards: "WeakKeyDictionary[Any, threading.RLock]" = WeakKeyDictionary()


class Ticker:
    """One thread that calls a function again and again, with a pause of some seconds between; it must not raise."""

    def __init__(self, tick: Callable[[], object], seconds: float) -> None:
        self._ended = threading.Event()
        self._tick, self._seconds = tick, seconds
        self._thread = threading.Thread(target=self._work, name="ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Call it no more."""
        self._ended.set()

    def close(self) -> None:
        """Call it no more, and wait for the call that is under way."""
        self.stop()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(self._seconds):
            self._tick()
