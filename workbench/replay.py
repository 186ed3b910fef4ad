"""What somebody did to a run while it went on, done again at the same iterations to a run that repeats it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.events import CheckpointReady, Controls, Event, IterationDone
from workbench.provenance import read_provenance
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from workbench.jobs import Start
    from workbench.provenance import Provenance
    from workbench.records import Row, Run
    from workbench.store import Store

FILE = "replay.json"
"""In the directory of a run that repeats another."""


class Replay(BaseModel):
    """What is to be done again, by iteration: 0 is before the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str = Field(description="the run that is repeated")
    begins: tuple[str, int] | None = Field(None, description="the run, and its iteration, whose checkpoint that one began from")
    until: int | None = Field(None, ge=0, description="the iteration after which that run ended early")
    threads: tuple[tuple[int, int], ...] = Field((), description="from which iteration on torch worked with how many threads")
    changes: dict[int, dict[str, Any]] = Field({}, description="settings that changed after an iteration, by dotted key")
    samples: tuple[int, ...] = Field((), description="iterations after which somebody asked for images")
    saves: tuple[int, ...] = Field((), description="iterations after which there was a checkpoint")

    def threads_after(self, iteration: int) -> int | None:
        """How many threads torch worked with in the update that follows `iteration`; None where it is not known."""
        return next((count for start, count in reversed(self.threads) if start <= iteration), None)

    def at(self, iteration: int, controls: Controls) -> None:
        """Ask of the loop what holds for the update that follows this iteration."""
        if count := self.threads_after(iteration):
            import torch  # only where something computes: looking at runs needs none of it

            torch.set_num_threads(count)
        if iteration in self.changes:
            controls.changes = controls.changes | self.changes[iteration]
        controls.stop = controls.stop or self.until == iteration

    def after(self, iteration: int, controls: Controls) -> None:
        """Ask of the loop what was asked of the other run at the end of this iteration."""
        controls.sample = controls.sample or iteration in self.samples
        controls.save = controls.save or iteration in self.saves
        self.at(iteration, controls)


def beginning(store: "Store", run: "Run") -> tuple[str, int] | None:
    """The run, and the iteration of it, whose checkpoint a run began from; None for one that began from nothing.

    Raises: ValueError: if it repeats another, and how cannot be read.
    """
    if run.branched is not None and run.parent is not None:
        return run.parent, run.branched
    replay = read_replay(store.folder(run.id) / FILE)
    return replay.begins if replay else None


def replay_of(store: "Store", run: "Run") -> Replay:
    """What must be done to a run with the same settings so that it becomes this one, from what was recorded of it.

    Raises: ValueError: if what was recorded is damaged.
    """
    rows = store.events(run.id)
    changes: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row.kind == "Changed":
            changes[row.iteration] = changes.get(row.iteration, {}) | row.data["changes"]
    reached = max((row.iteration for row in rows if row.kind == "IterationDone"), default=0)
    ended_early = run.status != "done" and reached != run.iterations
    fails_again = run.kind == "notebook" and run.status == "failed"
    return Replay(
        of=run.id,
        begins=beginning(store, run),
        until=reached if ended_early and not fails_again else None,
        threads=_threads(read_provenance(store, run.id), rows),
        changes=changes,
        samples=() if run.kind == "pretrain" else _iterations(rows, "Sampled"),  # that draws its sheets by itself
        saves=_iterations(rows, "CheckpointReady"),
    )


def replayed(store: "Store", run: str, start: "Start") -> "Start":
    """The loop of a run, and where it repeats another what was done to that one; any other run's loop is left as it is.

    Raises: ValueError: if it says that it repeats another, and what was done to that one cannot be read.
    """
    replay = read_replay(store.folder(run) / FILE)
    if replay is None:
        return start
    plan = replay

    def begin(resume: CheckpointReady | None, controls: Controls) -> Iterator[Event]:
        events = start(resume, controls)
        first = resume.iteration if resume else 0
        plan.at(first, controls)
        if plan.until == first:
            store.wish(run, "stop")
        return following(events, controls)

    def following(events: Iterator[Event], controls: Controls) -> Iterator[Event]:
        for event in events:
            if isinstance(event, IterationDone):
                plan.after(event.iteration, controls)
                if plan.until == event.iteration:
                    store.wish(run, "stop")  # so that the record says that it did not come to its end
            yield event

    return begin


def read_replay(path: Path) -> Replay | None:
    """What a file says; None where there is none. Raises: ValueError: if it is damaged."""
    try:
        return Replay.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        first = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} is damaged, so it is not known what this run repeats: {first}; reproduce it again") from None


def write_replay(replay: Replay, folder: Path) -> None:
    """Write it into a run's directory, all of it or nothing. Raises: OSError: if the disk refuses."""
    with whole_file(folder / FILE) as hidden:
        hidden.write_text(replay.model_dump_json(indent=1, exclude_defaults=True) + "\n")  # earlier versions read it too


def _threads(drivers: "Sequence[Provenance]", rows: "Sequence[Row]") -> tuple[tuple[int, int], ...]:
    """The last driver's word counts from where it began: what others did past that was superseded."""
    told = [(driver.iteration, driver.machine.threads) for driver in drivers]
    told = told or [(row.iteration, row.data["facts"]["threads"]) for row in rows if _says_threads(row)]
    known: list[tuple[int, int]] = []
    for iteration, count in told:
        known = [(start, other) for start, other in known if start < iteration]
        if not known or known[-1][1] != count:
            known.append((iteration, count))
    return tuple(known)


def _says_threads(row: "Row") -> bool:
    facts: Mapping[str, Any] = row.data["facts"] if row.kind == "Started" else {}
    return isinstance(facts.get("threads"), int)


def _iterations(rows: "Sequence[Row]", kind: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(row.iteration for row in rows if row.kind == kind and row.iteration))
