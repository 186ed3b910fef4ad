"""Drives one run in the main thread: a job's events to the screen, and Ctrl-C to a clean stop."""

import select
import shlex
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

from workbench.cli.screen import Screen, say, show, show_json

if TYPE_CHECKING:
    from workbench.events import CheckpointReady
    from workbench.experiments.launching import Team
    from workbench.jobs import Job
    from workbench.store import Store

INTERRUPTED = 130


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into `asked`, and the second into KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._woken_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken_before)
        self._woken.close()
        self._waker.close()

    def wait(self, seconds: float) -> None:
        """Let time pass; ends early when asked, once for each time."""
        if select.select([self._woken], [], [], seconds)[0]:
            self._woken.recv(64)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def drive(store: "Store", run: str, job: "Job", command: str) -> dict[str, Any]:
    """Take events until the run is over, paused by itself, or interrupted; returns its summary.

    Args:
        command: the command that resumes this kind of run, such as "train".
    """
    found = store.run(run)
    started = time.monotonic()
    say(f"run {run} in {store.folder(run)}")
    with Interrupts() as interrupts, Screen(found.title, found.iterations) as screen:
        try:
            finished = _take_events(job, interrupts, screen)
        except KeyboardInterrupt:
            finished = {}  # the job has recorded that it was stopped
    return _summary(store, run, command, started, finished)


def drive_together(store: "Store", run: str, team: "Team", command: str) -> dict[str, Any]:
    """Watch the processes that drive a run until they have ended, and show what they record; returns the run's summary."""
    from workbench.experiments.launching import settle

    found = store.run(run)
    started, cursor, told = time.monotonic(), store.cursor(run), False
    say(f"run {run} in {store.folder(run)}, driven by {team.count} processes")
    with Interrupts() as interrupts, Screen(found.title, found.iterations) as screen:
        try:
            while team.goes_on():
                if interrupts.asked and not told:
                    told = True
                    team.interrupt()
                    screen.say("stopping after this iteration with a checkpoint; Ctrl-C again ends it now")
                cursor = show_news(store, run, cursor, screen)
        except KeyboardInterrupt:
            team.end()
            store.correct(run, team.pid, None, died="stopped")
        finally:
            team.close()
    settle(store, run, team)
    finished = store.events(run, after=cursor, kinds=("Finished",))
    return _summary(store, run, command, started, finished[-1].data["summary"] if finished else {})


def show_news(store: "Store", run: str, cursor: int, screen: Screen) -> int:
    """Show what a run that another process drives has recorded past the cursor; returns the new one."""
    from workbench.events import IterationDone, Started

    for row in store.events(run, after=cursor, kinds=("Started", "IterationDone")):
        cursor = row.id
        if row.kind == "Started":
            screen.event(Started(row.iteration, row.data["facts"]))
        else:
            screen.event(IterationDone(row.iteration, row.data["metrics"], row.data["seconds"]))
    return cursor


def _summary(store: "Store", run: str, command: str, started: float, finished: dict[str, Any]) -> dict[str, Any]:
    end = store.run(run)
    if end.error:
        say(f"{end.status}: {end.error}")
    if end.status != "done":
        say(f"resume with: {resume_command(command, store, run)}")
    summary = {"run": run, "status": end.status, "iteration": end.iteration, "seconds": round(time.monotonic() - started, 3)}
    summary |= {"directory": str(store.folder(run)), "error": end.error} | finished
    return summary | {"held_out": _before_and_after(store, run)}


def _take_events(job: "Job", interrupts: Interrupts, screen: Screen) -> dict[str, Any]:
    finished: dict[str, Any] = {}
    told = False
    while not job.over:
        if interrupts.asked and not told:
            told = True
            job.ask("stop")
            screen.say("stopping after this iteration with a checkpoint; Ctrl-C again ends it now")
        event = job.advance()
        if event is not None:
            screen.event(event)
            finished = getattr(event, "summary", finished)
        elif job.paused and not job.over:
            job.wait()
    return finished


def _before_and_after(store: "Store", run: str) -> dict[str, Any]:
    """The first and the last held-out evaluation of a run, by number of sampling steps and name."""
    evaluations = store.events(run, kinds=("Evaluated",))
    return {
        when: {
            steps: {name: figure["value"] for name, figure in figures.items()}
            for steps, figures in evaluation.data["measures"].items()
        }
        for when, evaluation in zip(("before", "after"), evaluations[:1] + evaluations[-1:], strict=False)
    }


def resume_command(command: str, store: "Store", run: str) -> str:
    """What to type to go on with a run."""
    default = store.location == Path("runs").absolute()
    return f"python -m workbench {command} --resume {run}" + ("" if default else f" --runs {store.location}")


def command_line() -> str:
    """The command that this process is running, to be typed again."""
    return shlex.join(["python", "-m", "workbench", *sys.argv[1:]])


def reopen(store: "Store", run: str, iteration: int | None, kind: str) -> "tuple[str, CheckpointReady | None]":
    """The id of a run that is to go on, and the checkpoint it goes on from: after `iteration`, or its last one.

    Raises:
        ValueError: if it is unknown, of another kind, done, or driven by a living process.
        CheckpointError: if the checkpoint is missing or damaged.
    """
    found = store.run(run)
    if found.kind != kind:
        raise ValueError(
            f"run {found.id} is of kind {found.kind!r}; resume it with: {resume_command(found.kind, store, found.id)}"
        )
    if found.status == "done":
        raise ValueError(f"run {found.id} is done after {found.iteration} iterations; there is nothing to resume")
    if found.pid is not None and not found.over:
        raise ValueError(f"run {found.id} is {found.status} in process {found.pid} on {found.host}; stop it there first")
    if iteration is None and not store.checkpoints(found.id):
        return found.id, None
    return found.id, store.load_checkpoint(found.id, iteration)


def conclude(summary: dict[str, Any], as_json: bool) -> None:
    """The summary as the last line of stdout, and the exit status that belongs to it."""
    if not as_json and summary["status"] == "done":
        show(f"done after {summary['iteration']} iterations in {summary['seconds']:.0f} s; see it with: python app.py")
    show_json(summary)
    if summary["status"] == "stopped":
        raise typer.Exit(INTERRUPTED)
    if summary["status"] != "done":
        raise typer.Exit(1)
