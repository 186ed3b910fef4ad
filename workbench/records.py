"""Runs and recorded events as they are read back."""

import time
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from workbench.exact_json import from_json
from workbench.processes import is_alive

OVER = ("done", "stopped", "failed", "crashed")
"""Statuses in which nothing drives the run."""

DRIVEN = ("queued", "running", "paused")
"""Statuses in which a living process drives the run, or may."""

_RESUMED = ("train", "pretrain")  # kinds with checkpoints to go on from

Choice = Literal["a", "b", "tie"]
_EXCHANGED: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie"}

_NOTEBOOK_KEYS = ("notebook", "parameters", "sha256")

_SILENCE_SECONDS = 30.0  # after which a run on another host counts as crashed


@dataclass(frozen=True)
class Run:
    """One run as the store knows it. Times are seconds since 1970; `iterations` is None where the total is not known.

    `status` is one of queued, running, paused, done, stopped, failed, crashed; "paused" with an `error` means that it paused
    by itself, and that it can be resumed from its last checkpoint.
    """

    id: str
    kind: str
    title: str
    origin: str
    command: str
    parent: str | None
    config: dict[str, Any]
    status: str
    wanted: str
    error: str | None
    iteration: int
    iterations: int | None
    created: float
    updated: float
    host: str | None
    pid: int | None
    branched: int | None = None  # the iteration of `parent` that it began from
    tags: tuple[str, ...] = ()
    note: str = ""
    deleted: float | None = None  # when it was put into the trash
    worked: float | None = None  # seconds at work until `began`; None where that was not recorded
    began: float | None = None  # when it last became running, until it is something else

    @property
    def over(self) -> bool:
        """Nothing drives it, so that wishes are in vain; it may be resumable."""
        return self.status in OVER or (self.status == "paused" and self.pid is None)

    @property
    def training(self) -> dict[str, Any] | None:
        """The settings of the alignment that it is, or that a notebook did as a part of it; None where it has aligned nothing."""
        if self.kind == "train":
            return self.config
        if self.kind == "notebook" and "objective" in self.config:
            return {key: value for key, value in self.config.items() if key not in _NOTEBOOK_KEYS}
        return None


class Wish(NamedTuple):
    """What somebody asks of a run: run, pause, stop, save, sample; or change, with settings by dotted key."""

    wanted: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One recorded event; `data` holds its fields, with the keys of mappings as text.

    A preview reads {"sprite": file name or None once thinned, "tile": [width, height], "columns": ..., "count": ...}.
    """

    id: int
    kind: str
    iteration: int
    time: float
    data: dict[str, Any]


@dataclass(frozen=True)
class Vote:
    """Which of two pictures of one prompt and seed somebody preferred, not knowing whose they were: "a", "b" or "tie"."""

    voter: str
    run_a: str
    iteration_a: int
    run_b: str
    iteration_b: int
    prompt: str
    seed: int
    choice: Choice
    id: int = 0  # given by the store
    time: float = 0.0  # seconds since 1970, given by the store

    def seen_from(self, run: str, iteration: int) -> "Vote":
        """The same vote with this policy as A."""
        if (self.run_a, self.iteration_a) == (run, iteration):
            return self
        return replace(
            self,
            run_a=self.run_b,
            iteration_a=self.iteration_b,
            run_b=self.run_a,
            iteration_b=self.iteration_a,
            choice=_EXCHANGED[self.choice],
        )


def when(seconds: float) -> str:
    """A moment for people, in the local time of this machine."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def resumable(run: Run, saved: bool) -> bool:
    """Whether the app can go on with a run that has ended, from a checkpoint that was `saved` or because it had not yet begun."""
    unbegun = run.status == "stopped" and not run.iteration
    return run.kind in _RESUMED and run.over and run.status != "done" and (saved or unbegun)


def permitted(run: Run, saved: bool) -> tuple[str, ...]:
    """The controls that mean something for a run in its state; `saved` as for `resumable`."""
    if run.over:
        return ("resume",) if resumable(run, saved) else ()
    if run.status == "paused":
        return ("resume", "stop", "save", "sample")
    return ("stop",) if run.wanted == "pause" else ("pause", "stop", "save", "sample")


def read_run(row: Any) -> Run:
    """A run from its SQL row; one whose driver has died reads as crashed."""
    values = dict(row._mapping)
    started = values.pop("process_started")
    if values["status"] in DRIVEN and values["pid"] is not None:
        alive = is_alive(values["host"], values["pid"], started)
        if alive is None:
            alive = time.time() - values["updated"] < _SILENCE_SECONDS
        if not alive:
            error = f"process {values['pid']} on {values['host']} ended while the run was {values['status']}"
            values |= {"status": "crashed", "error": error}
    return Run(**values | {"config": from_json(values["config"]), "tags": tuple(from_json(values["tags"]))})


def read_row(row: Any) -> Row:
    """An event from its SQL row; the preview of one whose picture was thinned names no file."""
    data = from_json(row.data)
    if row.picture is None:
        data |= {name: value | {"sprite": None} for name, value in data.items() if isinstance(value, dict) and "sprite" in value}
    return Row(row.id, row.kind, row.iteration, row.time, data)


def picture_of(row: Row) -> str | None:
    """The file name of the sheet that an event names, if it still has one."""
    return next((value["sprite"] for value in row.data.values() if isinstance(value, dict) and "sprite" in value), None)


def numbers_of(kind: str, data: dict[str, Any]) -> dict[str, float]:
    """What an event of this kind adds to the curves of its run, by name."""
    if kind == "IterationDone":
        return {"seconds": data["seconds"], **data["metrics"]}
    if kind == "Reported":
        return dict(data["metrics"])
    held_out = {
        f"held_out/{name}@{steps}": each["value"] for steps, by_name in data["measures"].items() for name, each in by_name.items()
    }
    return held_out | {f"held_out/skill/{name}": each["value"] for name, each in data.get("breakdown", {}).items()}
