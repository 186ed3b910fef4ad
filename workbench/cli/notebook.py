"""`notebook`: run a notebook as a recorded run, here or from the queue; and what notebooks there are."""

import select
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workbench.cli.drive import INTERRUPTED, Interrupts, command_line
from workbench.cli.options import BadArguments, Json, Runs, StoreUrl, bad_arguments, open_store, read_changes
from workbench.cli.screen import Screen, say, show, show_json

if TYPE_CHECKING:
    from workbench.experiments.notebooks import Notebook
    from workbench.store import Store

_POLL_SECONDS = 0.25


def notebook(
    action: Annotated[Literal["list", "show", "run"], typer.Argument(help="what to do")] = "list",
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="notebook to show or run")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="KEY=VALUE", help="set one parameter; may be repeated")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, metavar="S", help="seconds that one attempt may take")] = None,
    retries: Annotated[int, typer.Option(min=0, max=20, metavar="N", help="more attempts after a failure")] = 0,
    title: Annotated[str, typer.Option(help="name shown on the page; by default the notebook's and what is set")] = "",
    queue: Annotated[bool, typer.Option("--queue", help="only queue it, for the app or a dispatcher to begin")] = False,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Run a notebook as a recorded run with checked parameters; the last line of stdout is a JSON summary.

    Ctrl-C stops it, a training in it at its next iteration with a checkpoint; a second one ends it at once.
    """
    from rich.markup import escape

    from workbench.experiments.notebooks import notebook as find
    from workbench.experiments.notebooks import notebooks

    if action == "list":
        if name or parameters:
            raise BadArguments(f"notebook list takes nothing more; got {' '.join([name or '', *(parameters or ())]).strip()}")
        found = notebooks()
        show_json([_described(each) for each in found]) if as_json else show(_table(found))
        return
    if name is None:
        raise BadArguments(
            f"notebook {action} needs a NAME; choose from: {', '.join(each.name for each in notebooks()) or 'none'}"
        )
    with bad_arguments():
        one = find(name)
        given = read_changes(parameters, "-p", "iterations=20")
    if action == "show":
        if given:
            raise BadArguments("notebook show takes no parameters; they are for notebook run")
        show_json(_described(one)) if as_json else _show(one)
        return
    from workbench.experiments.work import Work, submit

    with bad_arguments():
        config: dict[str, Any] = {"notebook": name, "parameters": given}
        work = Work(kind="notebook", config=config, title=title, timeout=timeout, retries=retries)
        record = open_store(runs, store)
        run = submit(record, work, origin="command line", command=command_line())
    if queue:
        say(f"queued run {run}; it is begun by: python app.py, or another dispatcher")
        show_json({"run": run, "status": "queued", "directory": str(record.folder(run))})
        return
    summary = _follow(record, run)
    if not as_json and summary["status"] == "done":
        show(escape(f"done in {summary['seconds']:.0f} s; its notebook is {summary['notebook']}"))
    show_json(summary)
    if summary["status"] != "done":
        raise typer.Exit(INTERRUPTED if summary["status"] == "stopped" else 1)


def _follow(store: "Store", run: str) -> dict[str, Any]:
    """Begin a queued run and show how it goes until its end is settled; returns its summary."""
    from workbench.events import IterationDone, Started
    from workbench.experiments.dispatch import Dispatcher
    from workbench.experiments.papermilling import NOTEBOOK, end_at_once

    dispatcher, started, cursor, asked, told = Dispatcher(store, only={run}), time.monotonic(), 0, False, 0
    found = store.run(run)
    say(f"run {run} in {store.folder(run)}")
    with Interrupts() as interrupts, Screen(found.title, None) as screen:
        while dispatcher.queue.entry(run) is not None:
            try:
                dispatcher.tick()
                for row in store.events(run, after=cursor, kinds=("Started", "IterationDone")):
                    cursor, data = row.id, row.data
                    begins = row.kind == "Started"
                    screen.event(
                        Started(row.iteration, data["facts"])
                        if begins
                        else IterationDone(row.iteration, data["metrics"], data["seconds"])
                    )
                found = store.run(run)
                if found.training is None and found.iterations and found.iteration != told:
                    told = found.iteration
                    screen.cells(told, found.iterations)
                if interrupts.asked and not asked:
                    asked = True
                    if not found.over:
                        store.wish(run, "stop")
                    screen.say("stopping; Ctrl-C again ends it now")
                select.select([], [], [], _POLL_SECONDS)  # a second Ctrl-C ends it early
            except KeyboardInterrupt:
                end_at_once(store, run)
    found = store.run(run)
    if found.error:
        say(f"{found.status}: {found.error}")
    made = store.folder(run) / NOTEBOOK
    summary = {"run": run, "status": found.status, "iteration": found.iteration, "seconds": round(time.monotonic() - started, 3)}
    summary |= {"directory": str(store.folder(run)), "notebook": str(made) if made.is_file() else None, "error": found.error}
    return summary | {"metrics": {name: points[-1][1] for name, points in store.metrics(run).items()}}


def _described(found: "Notebook") -> dict[str, Any]:
    own = {"name": found.name, "title": found.title, "summary": found.summary, "problem": found.problem or None}
    return own | {"path": str(found.path), "parameters": [vars(each) for each in found.parameters]}


def _table(found: "list[Notebook]") -> Any:
    from rich.markup import escape
    from rich.table import Table

    from workbench.experiments.notebooks import folder

    if not found:
        return escape(f"no notebooks in {folder()}")
    table = Table("notebook", "title", "parameters", box=None, pad_edge=False)
    for each in found:
        told = f"[red]{escape(each.problem)}[/]" if each.problem else ", ".join(parameter.name for parameter in each.parameters)
        table.add_row(escape(each.name), escape(each.title), told)
    return table


def _show(found: "Notebook") -> None:
    from rich.markdown import Markdown
    from rich.markup import escape
    from rich.table import Table

    show(Markdown(f"# {found.title}\n\n{found.summary}"))
    if found.problem:
        show(f"[red]{escape(found.problem)}[/]")
        return
    table = Table("parameter", "type", "default", "what it is", box=None, pad_edge=False)
    for each in found.parameters:
        table.add_row(each.name, escape(each.type), escape(repr(each.default)), escape(each.help))
    show(table)
