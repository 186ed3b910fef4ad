"""`reproduce`: run again what was run before, and say whether the same came out."""

import select
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.drive import Interrupts, command_line, show_news
from workbench.cli.options import Json, Runs, StoreUrl, bad_arguments, open_store
from workbench.cli.screen import Screen, say, show, show_json

if TYPE_CHECKING:
    from workbench.experiments.comparison import Comparison
    from workbench.experiments.differences import Differences
    from workbench.experiments.dispatch import Dispatcher
    from workbench.store import Run, Store


def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="id of a run that is over, its beginning, or 'latest'")],
    at_commit: Annotated[
        bool,
        typer.Option("--at-commit", help="run the code of then: its commit and uncommitted changes, in a temporary worktree"),
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0, help="largest relative difference of a number that counts as close")] = 1e-3,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Run a recorded run again and compare the two: exact, close or different. Exit status 0 for exact and close, 1 else.

    Ctrl-C stops the new run after its current iteration; what there is of it is compared.
    """
    from rich.markup import escape

    from workbench.experiments.comparison import compare
    from workbench.experiments.dispatch import Dispatcher
    from workbench.experiments.executors import Local
    from workbench.experiments.queue import LANE
    from workbench.experiments.reproduce import AT_COMMIT, remedy, said_of, since, worktree
    from workbench.experiments.reproduce import reproduce as queue
    from workbench.replay import FILE, read_replay

    record, new = open_store(runs, store), ""

    def goes_on() -> bool:
        return bool(new) and not record.run(new).over

    with bad_arguments(), ExitStack() as stack:
        found = record.run(run)
        if not at_commit:
            _say_what_differs(since(record, found.id), remedy(record, found.id))
        tree = stack.enter_context(worktree(record, found.id, stays=goes_on)) if at_commit else None
        lane = AT_COMMIT if at_commit else LANE
        new = queue(record, found.id, command=command_line(), lane=lane)
        replay = read_replay(record.folder(new) / FILE)
        say(f"run {new} repeats run {found.id} in {record.folder(new)}")
        for line in said_of(replay) if replay else ():
            say(f"  {line}")
        began = time.monotonic()
        try:
            end = _follow(record, new, Dispatcher(record, {lane: Local(tree)}, only={new}))
        except KeyboardInterrupt:
            if tree is not None and goes_on():
                say(f"run {new} goes on in {tree}; once it is over: git worktree remove --force {tree}")
            raise
        comparison = compare(record, found.id, new, tolerance)
    if end.error:
        say(f"{end.status}: {end.error}")
    told = _described(comparison) | {"status": end.status, "error": end.error, "seconds": round(time.monotonic() - began, 3)}
    if not as_json:
        show(escape(comparison.sentence))
        for note in comparison.notes:
            show(escape(f"  {note}"))
    show_json(told)
    if comparison.verdict not in ("exact", "close"):
        raise typer.Exit(1)


def _say_what_differs(apart: "Differences | None", commands: list[str]) -> None:
    """Before anything runs: what is not as it was, and what can be done."""
    if apart is None:
        say("what this run was made with was not recorded; it is repeated with what is here")
        return
    for name, found in apart.groups.items():
        say(f"{name} differ{'' if name in ('packages', 'prompts', 'weights') else 's'} from what the run was made with:")
        for each in found[:12]:
            say(f"  {each.name}: {each.one} then, {each.other} now")
        if len(found) > 12:
            say(f"  and {len(found) - 12} more; see: python -m workbench diff")
    if any(name == "code" for name in apart.groups) and commands:
        say("to run the code of then: reproduce --at-commit, or by hand:")
        for command in commands:
            say(f"  {command}")
    if any(name == "packages" for name in apart.groups):
        say("to install the packages of then, pin the versions above in a new environment")


def _follow(store: "Store", run: str, dispatcher: "Dispatcher") -> "Run":
    """Show a queued run's progress until it is over; Ctrl-C asks it to stop."""
    from workbench.experiments.dispatch import TICK_SECONDS

    found, cursor, asked = store.run(run), 0, False
    with Interrupts() as interrupts, Screen(found.title, found.iterations) as screen:
        while True:
            finished = {each.id: each for each in dispatcher.tick()}
            cursor = show_news(store, run, cursor, screen)
            if run in finished or dispatcher.queue.entry(run) is None:
                return store.run(run)
            if interrupts.asked and not asked and not store.run(run).over:
                asked = True
                store.wish(run, "stop")
                screen.say("stopping after this iteration; Ctrl-C again ends this command and leaves the run to itself")
            select.select((), (), (), TICK_SECONDS)


def _described(comparison: "Comparison") -> dict[str, Any]:
    def place(found: Any) -> dict[str, Any] | None:
        return None if found is None else found._asdict()

    return {
        "run": comparison.one,
        "reproduction": comparison.other,
        "verdict": comparison.verdict,
        "first": place(comparison.first),
        "beyond": place(comparison.beyond),
        "largest": comparison.largest,
        "tolerance": comparison.tolerance,
        "compared": {"events": comparison.events, "pictures": comparison.pictures, "tensors": comparison.tensors},
        "environment": [place(each) for each in comparison.environment],
        "notes": list(comparison.notes),
    }
