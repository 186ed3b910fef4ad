"""What the app can do, without Gradio: start, resume and control runs, and hand out what a page shows of them."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from workbench.branching import branch_state, flat
from workbench.config import RunConfig, change_live, parse_config
from workbench.events import CheckpointReady, Controls, Event
from workbench.experiments.dispatch import Dispatcher
from workbench.experiments.execute import loop, processes_of
from workbench.experiments.queue import Entry, Queue
from workbench.experiments.service import Service
from workbench.galleries import Galleries
from workbench.history import History, Recorded
from workbench.jobs import Job, Start, Worker, one_at_a_time
from workbench.making import Makings
from workbench.newest import newest
from workbench.plane import PlaneLearners
from workbench.policies import Policies
from workbench.records import Run, permitted
from workbench.retrace import Trace, retrace
from workbench.shelf import Shelf
from workbench.store import Store, StoreError

T = TypeVar("T")

WATCHED = 48
"""Most runs whose history is kept in memory; others are read again from the store."""

_KINDS = ("Started", "PreflightDone", "IterationDone", "Evaluated", "Sampled", "Changed")


@dataclass(frozen=True)
class View:
    """A run at one moment, for a page."""

    run: Run
    history: History
    may: tuple[str, ...]  # the controls that mean something now
    checkpoints: tuple[int, ...]


class Studio:
    """One per process: the record of runs, and the worker that owns the device."""

    def __init__(self, store: Store, worker: Worker, service: Service | None = None) -> None:
        self.store = store
        self.worker = worker
        self.service = service  # begins what waits in the queue; None leaves that to other processes
        self.shelf = Shelf(store)
        self.policies = Policies(store)  # for the worker's thread alone: see `on_device`
        self.planes = PlaneLearners()  # likewise
        self.galleries = Galleries(store, self.policies)
        self.makings = Makings()
        self.served_folders: list[str] = []  # all that the server may hand out: pictures that were looked at, and exports
        self._histories: OrderedDict[str, History] = OrderedDict()

    def runs(self) -> list[Run]:
        """All runs of the store, whoever started them, newest first."""
        return self.store.runs()

    def pick(self, wanted: str = "") -> Run | None:
        """The run with this id or prefix; without one the newest that is going on, or else the newest. None where there is none.

        Raises: ValueError: if the store knows no such run.
        """
        if wanted:
            return self.store.run(wanted)
        runs = self.store.runs()
        return next((run for run in runs if run.status == "running"), runs[0] if runs else None)

    def view(self, run: Run) -> View:
        """What a page shows of a run, read from the store as far as it is new."""
        self.serve(self.store.folder(run.id) / "images")
        checkpoints = tuple(self.store.checkpoints(run.id))
        return View(run, self._history(run.id), permitted(run, bool(checkpoints)), checkpoints)

    def serve(self, folder: Path) -> None:
        """Let the server hand out what lies in a folder."""
        if str(folder) not in self.served_folders:
            self.served_folders.append(str(folder))

    def groups(self, run: str, row: int) -> Recorded | None:
        """The rollouts recorded in one row."""
        found = self.store.events(run, after=row - 1, kinds=("GroupsScored",), limit=1)
        return Recorded(found[0].id, found[0].iteration, found[0].data) if found and found[0].id == row else None

    def ratios(self, run: str, row: int) -> list[list[float | None]]:
        """The policy ratios, in the last epoch, of the rollouts recorded in one row; none where one epoch made all exactly 1."""
        found = self.store.events(run, after=row, kinds=("GroupsScored", "IterationDone"), limit=1)
        return found[0].data.get("ratios", []) if found and found[0].kind == "IterationDone" else []

    def on_device(self, work: Callable[[], T], seconds: float = 60.0) -> T:
        """Do some work on the worker's thread, between two events of the runs that it drives; wait for its result.

        Raises: ValueError: if it takes too long, or what `work` raises.
        """
        future = self.worker.call(work)
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise ValueError(f"the device was busy for {seconds:.0f} s; ask for less, or pause what is running") from None

    def start(self, config: RunConfig, origin: str = "app") -> str:
        """Begin a run in this process, or in several others where it asks for them; returns its id."""
        values = config.model_dump(mode="json")
        run = self.store.create("train", values, title=config.title, origin=origin)
        self._begin(run, "train", values, None)
        return run

    def branch(self, parent: str, iteration: int | None, config: RunConfig, origin: str = "app") -> str:
        """Begin a run, as `start`, that goes on from a checkpoint of another, the last one without `iteration`.

        Raises: ValueError: if there is no such checkpoint, or its weights do not fit these settings.
        """
        found = self.store.run(parent)
        if found.kind != "train":
            raise ValueError(f"run {found.id} is of kind {found.kind!r}; only training runs have branches")
        checkpoint = self.store.load_checkpoint(found.id, iteration)
        state = branch_state(checkpoint, self.settings(found, checkpoint.iteration), config)
        values = config.model_dump(mode="json")
        run = self.store.create("train", values, title=config.title, origin=origin, parent=found.id, branched=state.iteration)
        try:
            self.store.save_checkpoint(run, state)  # its own, so that it can be resumed whatever becomes of its parent
        except StoreError as error:
            self.store.set_status(run, "failed", str(error))
            raise
        self._begin(run, "train", values, state)
        return run

    def resume(self, run: str) -> None:
        """Go on with a run from its last checkpoint, in this process or in several others.

        Raises: ValueError: if it is still being driven, or has no checkpoint that loads.
        """
        found = self.store.run(run)
        if not found.over:
            raise ValueError(f"run {found.id} is {found.status}; it can be resumed once it has ended")
        begun = found.iteration > 0 or self.store.checkpoints(found.id)  # otherwise it was stopped while it waited its turn
        checkpoint = self.store.load_checkpoint(found.id) if begun else None
        self._begin(found.id, found.kind, found.config, checkpoint)

    def control(self, run: str, wish: str) -> None:
        """Pause, resume, stop, save or sample: a wish in the store for whoever drives the run.

        Raises: ValueError: if the wish means nothing for the run as it is.
        """
        found = self.store.run(run)
        if wish == "resume" and found.over:
            self.resume(run)
        else:
            self.store.wish(run, "run" if wish == "resume" else wish)

    def settings(self, run: Run, iteration: int | None = None) -> RunConfig:
        """The settings of a training run in an iteration, or now: those it began with, and what was changed before."""
        config = parse_config(run.training or {})
        for item in self._history(run.id).changes:
            if iteration is None or item.iteration < iteration:
                config = change_live(config, item.data["changes"])
        return config

    def retrace(self, run: Run, row: int, sample: int) -> tuple[Trace, int]:
        """The way of one image of the rollouts in a row, by the averaged weights of the run's last checkpoint; its iteration.

        Raises: ValueError: if there is no such image, or no checkpoint that loads.
        """
        found = self.groups(run.id, row)
        if found is None or not 0 <= sample < len(found.data["seeds"]):
            raise ValueError(f"run {run.id} has no image {sample} in row {row}; choose one that the page shows")
        settings = self.settings(run, found.iteration)

        def work() -> tuple[Trace, int]:
            chosen = self.policies.choose(run.id)
            with self.policies.generator(chosen) as generator:
                return retrace(generator, settings, found.data, sample), chosen.iteration

        return self.on_device(work)

    def change(self, run: str, changes: dict[str, Any]) -> None:
        """Let a run go on with other settings from its next iteration on.

        Raises: ValueError: if they are not valid, not to be changed while it goes on, or nobody drives the run.
        """
        found = self.store.run(run)
        settings = flat(change_live(self.settings(found), changes).model_dump(mode="json"))
        self.store.wish(found.id, "change", {key: settings[key] for key in changes})

    def _begin(self, run: str, kind: str, config: dict[str, Any], resume: CheckpointReady | None) -> None:
        """Drive a run in this process; several that drive one together get a process that watches over them, as in the queue."""
        if processes_of(config) == 1:
            self.worker.submit(Job(self.store, run, _beside_the_page(kind, config), resume=resume))
            return
        queue = Queue(self.store)
        self.store.wait_again(run)
        queue.put(Entry(run))
        if self.service is None:  # nobody here begins what waits in the queue, and a person waits for this run
            Dispatcher(self.store, only={run}).tick()

    @one_at_a_time
    def _history(self, run: str) -> History:
        """The kept snapshot extended by what is new; snapshots are immutable, so two readers at once do no harm."""
        known = self._histories.get(run, History())
        anew, rows = self.store.news(run, known.cursor, _KINDS)
        if anew:
            known = History()
        groups = self.store.index(run, "GroupsScored", after=known.group_rows[-1][1] if known.group_rows else 0)
        if rows:
            known = known.extended(rows)
        if groups:
            last = groups[-1][1]
            known = replace(
                known,
                group_rows=known.group_rows + tuple(groups),
                groups=self.groups(run, last),
                changed={**known.changed, "groups": last},
            )
        self._histories[run] = known
        return newest(self._histories, run, WATCHED)


def _beside_the_page(kind: str, config: dict[str, Any]) -> Start:
    """The loop of a run in this process: unless the run says otherwise, one core stays free for the page."""
    begin = loop(kind, config)

    def start(resume: CheckpointReady | None, controls: Controls) -> Iterator[Event]:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
        return begin(resume, controls)

    return start
