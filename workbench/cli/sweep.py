"""`sweep`: a preset or a notebook at many points of a space; live in the foreground, queued, resumed, or looked at again."""

import contextlib
import time
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from workbench.cli.drive import INTERRUPTED, Interrupts, command_line, resume_command
from workbench.cli.options import BadArguments, Changes, Json, Runs, StoreUrl, bad_arguments, open_store, read_changes
from workbench.cli.screen import say, show, show_json

if TYPE_CHECKING:
    from workbench.experiments.points import Point, Results
    from workbench.store import Store

_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "pruned": "yellow", "stopped": "yellow"}
_SHOWN = 12  # points of the live table
_SPACE, _SEARCH, _VALUE, _EARLY, _RUNNING = "Space", "Search", "What is compared", "Early stopping", "Running"


def sweep(
    preset: Annotated[str | None, typer.Argument(metavar="[PRESET]", help="ready-made configuration that is varied")] = None,
    notebook: Annotated[str | None, typer.Option(metavar="NAME", help="vary a notebook instead", rich_help_panel=_SPACE)] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="vary one setting: KEY=0,0.5,1 or KEY=LOW..HIGH, with :log, :step=S or :N for N values; may be repeated",
            rich_help_panel=_SPACE,
        ),
    ] = None,
    changes: Changes = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="KEY=VALUE", help="of the notebook, for all points", rich_help_panel=_SPACE),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(metavar="N", help="runs of each point, for an error bar; or their seeds: 3,5,8", rich_help_panel=_SPACE),
    ] = "1",
    search: Annotated[
        Literal["grid", "random", "tpe"],
        typer.Option(help="all points; some, drawn evenly; some, drawn where it is good", rich_help_panel=_SEARCH),
    ] = "grid",
    points: Annotated[int | None, typer.Option(help="how many, for random and tpe", rich_help_panel=_SEARCH)] = None,
    search_seed: Annotated[int, typer.Option(help="what random and tpe draw follows from it", rich_help_panel=_SEARCH)] = 0,
    metric: Annotated[str, typer.Option(help="curve that is compared", rich_help_panel=_VALUE)] = "reward",
    minimise: Annotated[bool, typer.Option("--minimise", help="less of it is better", rich_help_panel=_VALUE)] = False,
    value: Annotated[
        Literal["last", "best", "mean"], typer.Option(help="which of its values; mean: of the last ones", rich_help_panel=_VALUE)
    ] = "last",
    window: Annotated[int, typer.Option(help="how many values the mean takes", rich_help_panel=_VALUE)] = 10,
    halving: Annotated[bool, typer.Option("--halving", help="successive halving", rich_help_panel=_EARLY)] = False,
    median: Annotated[bool, typer.Option("--median", help="what is below the median ends", rich_help_panel=_EARLY)] = False,
    pruning_metric: Annotated[str, typer.Option(help="curve that points are judged by", rich_help_panel=_EARLY)] = "",
    min_iterations: Annotated[int | None, typer.Option(help="before the first judgement", rich_help_panel=_EARLY)] = None,
    reduction: Annotated[int, typer.Option(help="one point in so many goes on", rich_help_panel=_EARLY)] = 3,
    parallel: Annotated[int, typer.Option(help="runs that wait or go on at once", rich_help_panel=_RUNNING)] = 1,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="of one attempt", rich_help_panel=_RUNNING)] = None,
    retries: Annotated[int, typer.Option(help="more attempts after a failure", rich_help_panel=_RUNNING)] = 0,
    lane: Annotated[
        str | None, typer.Option(metavar="LANE", help="local, or slurm:partition=gpu", rich_help_panel=_RUNNING)
    ] = None,
    devices: Annotated[
        str, typer.Option(metavar="LIST", help="spread runs over these, as in 0,1", rich_help_panel=_RUNNING)
    ] = "",
    title: Annotated[str, typer.Option(help="name shown on the page", rich_help_panel=_RUNNING)] = "",
    queue: Annotated[
        bool, typer.Option("--queue", help="only record it: the app or a scheduler runs it", rich_help_panel=_RUNNING)
    ] = False,
    resume: Annotated[str | None, typer.Option(metavar="SWEEP", help="go on with this sweep, or the 'latest'")] = None,
    shown: Annotated[
        str | None, typer.Option("--results", metavar="SWEEP", help="only show the points of this sweep, or of the 'latest'")
    ] = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Run a preset or a notebook at many points and compare them; the last line of stdout is JSON with the best one.

    Ctrl-C stops with checkpoints, and --resume goes on; a point that is finished is never run again.
    """
    from workbench.config import validated
    from workbench.experiments.clusters import read_lane
    from workbench.experiments.points import results, settings_of
    from workbench.experiments.space import SweepSettings
    from workbench.experiments.sweeps import begin_sweep, resume_sweep

    given = [text for text in (preset, notebook, over, changes, parameters) if text]
    if sum(map(bool, (given, resume, shown))) > 1:
        raise BadArguments("--resume and --results take a sweep as it is; leave out what is swept, and one of the two")
    if not (given or resume or shown):
        raise BadArguments("name a preset, or --notebook NAME, and what to vary: --over optimizer.learning_rate=1e-4,3e-4,1e-3")
    if halving and median:
        raise BadArguments("--halving and --median exclude each other; choose one")
    record = open_store(runs, store)
    with bad_arguments():
        executor = read_lane(lane or "local")
        if shown is not None:
            return _show(results(record, shown), as_json)
        if resume is not None:
            run = resume_sweep(record, resume)
            executor = read_lane(lane or settings_of(record.run(run)).lane)
        else:
            target: dict[str, Any] = {"preset": preset} if notebook is None else {"notebook": notebook, "preset": preset}
            if changes or parameters:
                target |= {"changes": read_changes(changes), "parameters": read_changes(parameters, "-p", "iterations=20")}
            settings = {
                "title": title,
                "target": target,
                "space": read_changes(over, "--over", "optimizer.learning_rate=1e-4,1e-3"),
                "search": search,
                "points": points,
                "search_seed": search_seed,
                "seeds": _read_seeds(seeds),
                "metric": metric,
                "direction": "min" if minimise else "max",
                "value": value,
                "window": window,
                "pruning": "halving" if halving else "median" if median else "none",
                "pruning_metric": pruning_metric,
                "min_iterations": min_iterations,
                "reduction": reduction,
                "parallel": parallel,
                "timeout": timeout,
                "retries": retries,
                "lane": executor[0],
            }
            run = begin_sweep(record, validated(SweepSettings, settings), origin="command line", command=command_line())
    if queue:
        if as_json:
            show_json({"run": run, "status": "queued"})
        else:
            show(f"sweep {run} waits: the app and `schedule serve` run it; see how it does with: sweep --results {run}")
        return
    _drive(record, run, dict([executor]), [device.strip() for device in devices.split(",") if device.strip()], as_json)


def _read_seeds(text: str) -> int | tuple[int, ...]:
    """`"3"` as a number of seeds, `"3,5,8"` as the seeds. Raises: ValueError: names the option and the value."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--seeds takes how many, as in 3, or which, as in 3,5,8; got {text!r}")
    return int(parts[0]) if "," not in text else tuple(map(int, parts))


def _drive(record: "Store", run: str, executors: dict[str, Any], devices: list[str], as_json: bool) -> None:
    """Advance a sweep and begin its runs until it is over."""
    from workbench.experiments.dispatch import TICK_SECONDS
    from workbench.experiments.points import results
    from workbench.experiments.sweeps import steps

    started = time.monotonic()
    say(f"sweep {run} with {record.run(run).iterations} points in {record.folder(run)}")
    told = False
    with Interrupts() as interrupts, _Screen(record.run(run).title) as screen:
        try:
            for reached in steps(record, run, executors, devices):
                screen.show(lambda: results(record, run), reached.iteration)
                if interrupts.asked and not told:
                    told = True
                    with contextlib.suppress(ValueError):  # it has just ended
                        record.wish(run, "stop")
                    screen.say("stopping its runs after their iterations, with checkpoints; Ctrl-C again ends this now")
                interrupts.wait(TICK_SECONDS)
        except KeyboardInterrupt:
            screen.say("ended now; the runs that go on end by themselves")
        found = results(record, run)
        screen.show(lambda: found, -1)
    end = record.run(run)
    if not as_json:
        _show_points(found)
    if end.error:
        say(f"{end.status}: {end.error}")
    if end.status not in ("done", "failed"):
        say(f"go on with: {resume_command('sweep', record, run)}")
    summary = _summary(found) | {"seconds": round(time.monotonic() - started, 3), "error": end.error}
    show_json(summary)
    if end.status != "done":
        raise typer.Exit(1 if end.status == "failed" else INTERRUPTED)


def _summary(found: "Results") -> dict[str, Any]:
    best = found.best
    counts = {status: found.count(status) for status in ("done", "pruned", "failed", "stopped")}
    summary: dict[str, Any] = {"run": found.sweep, "status": found.status, "points": found.total, **counts}
    summary |= {"metric": found.settings.metric, "iterations": sum(point.iterations for point in found.points)}
    return summary | {"best": None if best is None else _described(best)}


def _described(point: "Point") -> dict[str, Any]:
    from workbench.exact_json import fields_of

    values = {key: each for key, each in fields_of(point).items() if key not in ("curve", "number")}
    return {"point": point.number + 1} | values


def _show(found: "Results", as_json: bool) -> None:
    if as_json:
        show_json(_summary(found) | {"all": [_described(point) for point in found.points]})
    else:
        _show_points(found)
        settled = found.count("done", "pruned", "failed", "stopped")
        show(f"sweep {found.sweep} is {found.status}: {settled} of {found.total} points are settled")


def _show_points(found: "Results") -> None:
    """All points, the best first; then those that have no value, and why."""
    sign = -1 if found.settings.direction == "max" else 1
    finished = [point for point in found.points if point.status == "done"]
    rest = [point for point in found.points if point.status != "done"]
    show(_rows(found, sorted(finished, key=lambda point: sign * (point.value or 0.0)) + rest))
    for point in rest:
        if point.error:
            show(escape(f"point {point.number + 1} {point.status}: {point.error}"))


def _rows(found: "Results", points: "list[Point]") -> Table:
    from workbench.experiments.space import told

    axes = list(found.settings.space)
    table = Table("point", *(escape(axis) for axis in axes), escape(found.settings.metric), box=None, pad_edge=False)
    for name in ("95 % interval", "status", "iterations", "seconds", "run"):
        table.add_column(name, justify="right" if name in ("iterations", "seconds") else "left")
    best = found.best
    for point in points:
        reached = "" if point.value is None else f"{point.value:.4g}"
        between = "" if point.low is None or point.high is None else f"{point.low:.4g} to {point.high:.4g}"
        colour = _COLOURS.get(point.status, "default")
        status = f"[{colour}]{point.status}[/]" + (" (best)" if best is not None and point.number == best.number else "")
        values = [escape(told(point.parameters[axis])) for axis in axes]
        ids = point.runs[0] if point.runs else ""
        ids += f" and {len(point.runs) - 1} more" if len(point.runs) > 1 else ""
        spent = (str(point.iterations), f"{point.seconds:.0f}", ids)
        table.add_row(str(point.number + 1), *values, reached, between, status, *spent)
    return table


class _Screen:
    """A bar of settled points above a table of the latest ones; a line for each point where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console)
        self._bar = self._progress.add_task(escape(title), total=None)
        self._live = Live(self._progress, console=self._console, transient=True) if self._console.is_terminal else None
        self._settled = -1
        self._told: set[int] = set()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)

    def show(self, ask: Any, settled: int) -> None:
        """Show how the points do. They are asked for only where they can be seen, or where more are settled than before."""
        if self._live:
            found: Results = ask()
            self._progress.update(self._bar, completed=found.count("done", "pruned", "failed", "stopped"), total=found.total)
            self._live.update(Group(self._progress, _rows(found, list(found.points[-_SHOWN:]))))
        elif settled != self._settled:
            self._settled = settled
            found = ask()
            for point in found.points:
                if point.status in ("done", "pruned", "failed", "stopped") and point.number not in self._told:
                    self._told.add(point.number)
                    self.say(_line(found, point))


def _line(found: "Results", point: "Point") -> str:
    from workbench.experiments.space import told

    values = ", ".join(f"{key} = {told(each)}" for key, each in point.parameters.items())
    reached = "" if point.value is None else f", {found.settings.metric} {point.value:.4g}"
    return f"point {point.number + 1}/{found.total} {point.status}: {values}{reached}{f': {point.error}' if point.error else ''}"
