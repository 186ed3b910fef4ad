"""A notebook's side of its run: it trains, measures and reports into the record, and shows what the dashboard shows."""

import atexit
import base64
import io
import math
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from IPython import get_ipython
from IPython.display import HTML, DisplayHandle

from workbench.config import RunConfig, parse_config
from workbench.events import CheckpointReady, Controls, Evaluated, Event, IterationDone, Reported, Started
from workbench.experiments.notebooks import checked_notebook, notebook
from workbench.experiments.papermilling import FOLDER, LISTENS, RUN
from workbench.figures import FIGURES
from workbench.history import History
from workbench.jobs import Job, Start
from workbench.pictures import read_sprite
from workbench.png import compose
from workbench.policies import Chosen
from workbench.provenance import record_provenance
from workbench.records import Run
from workbench.rollout import drain
from workbench.store import Store, StoreError
from workbench.train import train

if TYPE_CHECKING:
    from torch import Tensor

warnings.filterwarnings("ignore", "IProgress not found")  # of a bar that nobody draws; accelerate's import looks for it

_SHOW_SECONDS = 1.0  # between two drawings of what is live
_LINES = 10  # that a training prints, about, where nothing is live


class Stopped(RuntimeError):
    """Somebody stopped the training. The cells below would work with half of it, so the notebook ends here."""


class Experiment:
    """The run that a notebook is.

    One that the queue began is watched over from outside, and its record is there already. One that somebody opened, in
    JupyterLab or as a script, becomes a new run, which this process drives until it ends.
    """

    _by_hand: ClassVar["Experiment | None"] = None  # the last one of this process

    def __init__(self, store: Store, run: str, by_hand: bool) -> None:
        self.store = store
        self.run = run
        self.by_hand = by_hand
        self._history = History()
        self._trains = False

    @classmethod
    def here(cls) -> "Experiment":
        """The run that this notebook is; opened by hand, a new one, which ends the one before."""
        run = os.environ.get(RUN)
        store = Store(os.environ.get(FOLDER, "runs"), os.environ.get("WORKBENCH_STORE"))
        experiment = cls(store, run or "", by_hand=run is None)
        if run is None:
            if cls._by_hand is not None:
                cls._by_hand.finish()
            cls._by_hand = experiment
            experiment._begin()
            atexit.register(experiment.finish)
        return experiment

    def other(self, run: str = "") -> "Experiment":
        """Another run of this record that has aligned a model, to look at: the newest, or the one with this id or prefix.

        Raises: ValueError: if there is none.
        """
        found = self.store.run(run) if run else next((each for each in self.store.runs() if self._is_other(each)), None)
        if found is None or found.training is None:
            told = f"no run in {self.store.location} has aligned" if found is None else f"run {found.id} has not aligned"
            raise ValueError(f"{told} a model; start one with: python -m workbench train")
        return Experiment(self.store, found.id, by_hand=False)

    @property
    def config(self) -> RunConfig:
        """The settings of its training. Raises: ValueError: if it has not trained."""
        settings = self.store.run(self.run).training
        if settings is None:
            raise ValueError(f"run {self.run} has not trained yet; call train first")
        return parse_config(settings)

    @property
    def history(self) -> History:
        """What the record holds of the run."""
        rows = self.store.events(self.run, after=self._history.cursor)
        if self._history.cursor and any(row.kind == "Started" for row in rows):
            self._history, rows = History(), self.store.events(self.run)  # it has superseded some of the earlier rows
        self._history = self._history.extended(rows)
        return self._history

    def train(self, config: RunConfig) -> History:
        """Align a generator as a part of this run; curves and pictures are live on the page, and its controls work.

        Where an earlier attempt at this run left a checkpoint, it goes on from there, with the same numbers. By hand, a second
        training is a new run.

        Raises:
            Stopped: if somebody stopped it; it has kept a checkpoint.
            ValueError: if this run has trained already.
        """
        if self._trains:
            if not self.by_hand:
                raise ValueError("this run has trained already, and its curves are those of one training; begin another run")
            self.finish()
            self._begin()
        self._trains = True
        self.store.add_settings(self.run, config.model_dump(mode="json"))
        last = self.store.load_checkpoint(self.run) if self.store.checkpoints(self.run) else None

        def begin(resume: CheckpointReady | None, controls: Controls) -> Iterator[Event]:
            for event in train(config, resume=resume, controls=controls):
                if isinstance(event, Started):
                    event = replace(event, facts=event.facts | {"iterations": config.iterations})
                yield event

        shown = _Shown(self, config.iterations)
        self.drive(begin, last, shown.event)
        shown.end()
        return self.history

    def drive(
        self, start: Start, resume: CheckpointReady | None = None, show: Callable[[Event], object] = lambda event: None
    ) -> None:
        """Let a loop go on as a part of this run until it ends; the page's controls work. By hand, how it ends is the run's end.

        Args:
            start: begins it, from a checkpoint where there is one to go on from.
            show: is given every event.
        Raises: Stopped: if somebody stopped it; and what else ended it early.
        """
        job = Job(self.store, self.run, start, resume=resume, part=True)
        with self._listening():
            try:
                while not job.over:
                    event = job.advance()
                    if event is not None:
                        show(event)
                    elif job.paused:
                        job.wait()
            finally:
                if self.by_hand and job.ended != "done":
                    self._end(job)
        if job.failure is not None:
            raise job.failure
        if job.ended == "stopped":
            run = self.store.run(self.run)
            raise Stopped(f"the training was stopped after iteration {run.iteration} of {run.iterations}")

    def evaluate(
        self, steps: Sequence[int] = (1, 2, 4, 8), images: int | None = None, seed: int | None = None, base: bool = False
    ) -> Evaluated:
        """The policy on held-out prompts, as evaluations of runs measure it.

        Args:
            steps: numbers of sampling steps.
            images: for each of them; by default as at a run's end.
            seed: of the first image; by default the noise that the run's own evaluations use.
            base: measure the model that the training began from instead.
        Raises: ValueError: if the run has not trained.
        """
        config = self.config
        checkpoint = None if base else self.store.load_checkpoint(self.run)
        return drain(Chosen(config, None if base else self.run, checkpoint).evaluate(steps, images, seed))

    def report(self, metrics: Mapping[str, float], iteration: int | None = None) -> None:
        """Write numbers into the record, by name: the result of this run, for its page, for sweeps and for comparisons.

        Args:
            iteration: of the training that they belong to; the last one by default.
        Raises: ValueError: naming a number that is none.
        """
        numbers = {}
        for name, value in metrics.items():
            try:
                numbers[str(name)] = float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name} = {value!r} is no number, so it cannot be reported") from None
            if not math.isfinite(numbers[str(name)]):
                raise ValueError(f"{name} = {value!r} is not finite, so it cannot be reported")
        if iteration is None:
            done = self.store.events(self.run, kinds=("IterationDone",))
            iteration = done[-1].iteration if done else 0
        self.store.record(self.run, Reported(iteration, numbers))

    def figure(self, name: str = "reward") -> Any:
        """One of the page's figures of this run. Raises: ValueError: lists them where there is none of this name."""
        if name not in FIGURES["train"]:
            raise ValueError(f"unknown figure {name!r}; choose from: {', '.join(FIGURES['train'])}")
        drawn = FIGURES["train"][name](self.history, self.store.run(self.run).config)
        drawn.update_layout(margin_t=44)  # a notebook shows the title, no card does it for it
        return drawn

    def before_and_after(self, count: int = 8) -> HTML:
        """Held-out prompts at the same seeds, by the model as it was and as it is now.

        Raises: ValueError: if the run has recorded no evaluation.
        """
        evaluations = self.history.evaluations
        if not evaluations:
            raise ValueError(f"run {self.run} has recorded no evaluation, so there is nothing before and after")
        rows = {}
        for label, each in (("before", evaluations[0]), ("after", evaluations[-1])):
            sheet = each.data["preview"]
            rows[label] = read_sprite(self.store.image_path(self.run, sheet["sprite"]), sheet)[:count]
        return picture_table(rows, evaluations[0].data["prompts"])

    def finish(self) -> None:
        """End a run by hand, which is otherwise done when this process ends; one that has ended stays as it is."""
        if self.by_hand and not self.store.run(self.run).over:
            self.store.set_status(self.run, "done")

    def _end(self, job: Job) -> None:
        """Write down how a training that did not come to its end was left; the cells below may never run."""
        self.store.set_status(self.run, job.ended or "stopped", job.error)
        if job.failure is not None:
            with suppress(StoreError):
                self.store.write_traceback(self.run, "".join(traceback.format_exception(job.failure)))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """While a training obeys wishes, whoever watches over this process knows it, and waits when it asks for something."""
        sign = self.store.folder(self.run) / LISTENS
        try:
            with suppress(OSError):  # nobody watches over a notebook by hand, which has no such folder
                sign.touch()
            yield
        finally:
            sign.unlink(missing_ok=True)

    def _is_other(self, run: Run) -> bool:
        return run.id != self.run and run.training is not None

    def _begin(self) -> None:
        """A new run, which this process drives."""
        config, title = _opened()
        self.run = self.store.create("notebook", config, title=title, origin="notebook")
        self.store.claim(self.run, fresh=True)
        self.store.set_status(self.run, "running")
        record_provenance(self.store, self.run)
        self._history, self._trains = History(), False


def picture_table(rows: "Mapping[str, Tensor]", captions: Sequence[str]) -> HTML:
    """Pictures for a notebook: a row for each set, uint8 [N, 3, H, W], by its name, and a caption below each column."""
    lines = []
    for label, images in rows.items():
        tiles = "".join(f"<td>{_image(image, caption)}</td>" for image, caption in zip(images, captions, strict=False))
        lines.append(f"<tr><th>{escape(label)}</th>{tiles}</tr>")
    widest = max((len(images) for images in rows.values()), default=0)
    below = "".join(f"<td>{escape(caption)}</td>" for caption in captions[:widest])
    return HTML(f"<table>{''.join(lines)}<tr><th></th>{below}</tr></table>")


def _image(image: "Tensor", caption: str) -> str:
    content = io.BytesIO()
    compose(image[None].float() / 255, 1).save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" width="96" style="min-width: 96px" alt="{escape(caption)}">'


def _opened() -> tuple[dict[str, Any], str]:
    """What is known of a notebook that somebody opened: its name, and its parameters as they are in the kernel now."""
    shell = get_ipython()
    values = shell.user_ns if shell is not None else {}
    name = Path(os.environ.get("JPY_SESSION_NAME") or "notebook").stem
    try:
        known = {each.name: values[each.name] for each in notebook(name).parameters if each.name in values}
        return checked_notebook({"notebook": name, "parameters": known})
    except ValueError:
        return {"notebook": name, "parameters": {}}, name


class _Shown:
    """A training as it goes on: a bar and the reward curve where somebody looks on, else a few lines."""

    def __init__(self, experiment: Experiment, total: int) -> None:
        self._experiment, self._total = experiment, total
        self._live = experiment.by_hand and get_ipython() is not None
        self._bar, self._curve = DisplayHandle(), DisplayHandle()
        self._drawn = 0.0
        self._said = 0
        if self._live:
            self._bar.display(self._told(0, ""))
            self._curve.display(experiment.figure())

    def event(self, event: Event) -> None:
        """Show what happened."""
        if isinstance(event, IterationDone):
            note = f"reward {event.metrics['reward']:.3f}"
            every = max(1, self._total // _LINES)
            if self._live and time.monotonic() - self._drawn > _SHOW_SECONDS:
                self._draw(event.iteration, note)
            elif not self._live and (event.iteration >= self._said + every or event.iteration == self._total):
                self._said = event.iteration
                print(f"iteration {event.iteration} of {self._total}: {note}", flush=True)

    def end(self) -> None:
        """Show how it ended."""
        if self._live:
            self._draw(self._total, "")

    def _draw(self, iteration: int, note: str) -> None:
        self._bar.update(self._told(iteration, note))
        self._curve.update(self._experiment.figure())
        self._drawn = time.monotonic()

    def _told(self, iteration: int, note: str) -> HTML:
        bar = f'<progress value="{iteration}" max="{self._total}" style="width: 20em"></progress>'
        return HTML(f"{bar} iteration {iteration} of {self._total} {escape(note)}")
