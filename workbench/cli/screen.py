"""What a person at a terminal sees: results on stdout, progress on stderr. Knows events, nothing of where they come from."""

import sys
import time
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from workbench.events import Evaluated, Event, PreflightDone
    from workbench.events import Progress as Portion

T = TypeVar("T")

_QUIET_SECONDS = 10.0  # between lines where stderr is no terminal
_COLOURS = {"green": "green", "amber": "yellow", "red": "red"}


def say(text: str) -> None:
    """One line on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def show(renderable: Any) -> None:
    """Text or a table on stdout; as wide as it needs where stdout is no terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(renderable)


def show_json(value: Any) -> None:
    """One line of JSON on stdout."""
    from workbench.exact_json import to_json

    print(to_json(value), flush=True)


def finish(title: str, stream: "Generator[Portion, None, T]") -> T:
    """Run a stream of progress to its end under a bar, where stderr is a terminal; returns what it returns."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(escape(title), total=None)
        while True:
            try:
                event = next(stream)
            except StopIteration as end:
                done: T = end.value
                return done
            bars.update(task, completed=event.done, total=event.total)


class Screen:
    """Bars for a run's iterations and for the work inside one; plain lines where stderr is no terminal.

    Args:
        title: shown in front of the bar.
        total: iterations of the run.
    """

    def __init__(self, title: str, total: int | None) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._live, transient=True)
        self._run = self._progress.add_task(escape(title), total=total, note="")
        self._stage = self._progress.add_task("starting", total=None, note="")
        self._total = total
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays, above the bars."""
        self._console.print(text, markup=False)

    def cells(self, done: int, total: int) -> None:
        """Show how far a notebook has come."""
        self._progress.update(self._run, completed=done, total=total)
        self._progress.update(self._stage, description=f"cell {min(done + 1, total)}")
        if not self._live and (done == total or time.monotonic() - self._last_line > _QUIET_SECONDS):
            self._last_line = time.monotonic()
            self.say(f"{done} of {total} cells are done")

    def event(self, event: "Event") -> None:
        """Show what happened. Events are told apart by name, so that this file stays light to import."""
        match type(event).__name__:
            case "Progress":
                self._progress.update(self._stage, description=event.stage, completed=event.done, total=event.total)  # type: ignore[union-attr]
            case "Started":
                self._total = event.facts.get("iterations", self._total)  # type: ignore[union-attr]
                self._progress.update(self._run, completed=event.iteration, total=self._total)  # type: ignore[union-attr]
            case "IterationDone":
                self._iteration(event.iteration, event.metrics)  # type: ignore[union-attr]
            case "Evaluated":
                self._evaluated(event)  # type: ignore[arg-type]
            case "PreflightDone":
                self._preflight(event)  # type: ignore[arg-type]

    def _iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        names = [name for name in metrics if name == "reward" or name.startswith("loss_")] or list(metrics)[:1]
        note = "  ".join(f"{name} {metrics[name]:.4g}" for name in names)
        self._progress.update(self._run, completed=iteration, note=escape(note))
        if not self._live and (iteration == self._total or time.monotonic() - self._last_line > _QUIET_SECONDS):
            self._last_line = time.monotonic()
            self.say(f"iteration {iteration}/{self._total or '?'}  {note}")

    def _evaluated(self, event: "Evaluated") -> None:
        for steps, measures in event.measures.items():
            figures = "  ".join(f"{name} {measure.value:.3f}" for name, measure in measures.items())
            self.say(f"held out after {event.iteration}, {steps} steps, {event.images} images: {figures}")

    def _preflight(self, event: "PreflightDone") -> None:
        for check in event.checks:
            self._console.print(f"[{_COLOURS[check.level]}]{check.level:5}[/] {escape(check.name)}: {escape(check.sentence)}")
