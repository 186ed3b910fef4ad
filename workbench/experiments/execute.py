"""Drives a queued run in the process that was begun for it, whatever its kind.

What trains is loaded only where something is trained: a notebook's supervisor has to begin at once.
"""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from workbench.events import CheckpointReady, Controls, Event
from workbench.experiments.queue import Entry, Queue
from workbench.records import Run
from workbench.store import Store

if TYPE_CHECKING:
    from workbench.jobs import Job, Start


def execute(store: Store, run: str, interrupted: Callable[[], bool] = lambda: False) -> Run:
    """Drive a run that waits in the queue until it is over; returns how it ended.

    Args:
        interrupted: whether this process was asked to end; the run then stops with a checkpoint.
    Raises: ValueError: if the run does not wait: another process drives it, or it is over.
    """
    found = store.run(run)
    entry = Queue(store).entry(found.id) or Entry(found.id)
    if found.kind == "notebook":
        from workbench.experiments.papermilling import supervise

        supervise(store, found, entry, interrupted)
    elif processes_of(found.config) > 1:
        _watch(store, found.id, interrupted)
    else:
        _drive(store, found, entry, interrupted)
    return store.run(found.id)


def processes_of(config: dict[str, Any]) -> int:
    """How many processes drive a run with these settings together."""
    return int(config.get("compute", {}).get("processes", 1))


def _watch(store: Store, run: str, interrupted: Callable[[], bool]) -> None:
    """Begin the processes that drive a run together, and see them through."""
    from workbench.experiments.launching import settle, team_of

    team, asked = team_of(store, run, fresh=True), False
    try:
        while team.goes_on():
            if interrupted() and not asked:
                asked = True
                team.interrupt()
    finally:
        team.close()
    settle(store, run, team)
    failure = team.failure()
    if failure is not None and not store.run(run).over:
        raise ValueError(failure.error)  # nobody had begun to drive it, so whoever queued it says so


def _drive(store: Store, run: Run, entry: Entry, interrupted: Callable[[], bool]) -> None:
    from workbench.jobs import Job

    last = store.load_checkpoint(run.id) if store.checkpoints(run.id) else None  # an attempt goes on where the one before ended
    attend(Job(store, run.id, loop(run.kind, run.config), resume=last, fresh=True), entry.timeout, interrupted)
    if run.kind == "pretrain" and store.run(run.id).status == "done":
        from workbench.pretrained import write_pretrained

        write_pretrained(store, run.id)


def attend(job: "Job", timeout: float | None, interrupted: Callable[[], bool]) -> None:
    """Drive a job until it is over, or has taken `timeout` seconds, or was interrupted; then it stops with a checkpoint."""
    deadline = time.monotonic() + timeout if timeout else None
    asked = False
    while not job.over:
        late = deadline is not None and time.monotonic() > deadline
        if (late or interrupted()) and not asked:
            asked = True
            if late:
                job.give_up(f"it took longer than {timeout:g} s; it can be resumed from its last checkpoint")
            else:
                job.ask("stop")
        if job.advance() is None and job.paused:
            job.wait()


def loop(kind: str, config: dict[str, Any]) -> "Start":
    """What yields the events of a run of this kind; the loops are loaded when they are needed.

    Raises: ValueError: if the settings are not valid.
    """
    if kind == "train":
        from workbench.config import parse_config

        settings = parse_config(config)

        def begin_training(resume: CheckpointReady | None, controls: Controls) -> Iterator[Event]:
            from workbench.train import train

            return train(settings, resume=resume, controls=controls)

        return begin_training

    if kind == "pretrain":

        def begin_pretraining(resume: CheckpointReady | None, controls: Controls) -> Iterator[Event]:
            from workbench.pretrain import pretrain, recorded_recipe

            return pretrain(recorded_recipe(config), resume=resume, controls=controls)

        return begin_pretraining
    raise ValueError(f"a run of kind {kind!r} has no loop of its own")
