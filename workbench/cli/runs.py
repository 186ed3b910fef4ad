"""`runs`: what was run, newest first."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import Json, Runs, StoreUrl, open_store
from workbench.cli.screen import show, show_json

if TYPE_CHECKING:
    from workbench.store import Run

_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "crashed": "red", "paused": "yellow", "stopped": "yellow"}


def list_runs(
    kind: Annotated[str | None, typer.Option(help="only runs of this kind, such as train or pretrain")] = None,
    limit: Annotated[int, typer.Option(min=1, help="most runs shown")] = 20,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """List the runs of the record, whoever started them."""
    record = open_store(runs, store)
    found = record.runs(kind)[:limit]
    if as_json:
        show_json([_described(run) for run in found])
    elif not found:
        show(f"no runs in {record.location}; start one with: python -m workbench train")
    else:
        show(_table(found))


def _described(run: "Run") -> dict[str, Any]:
    from workbench.exact_json import fields_of

    return {key: value for key, value in fields_of(run).items() if key != "config"}


def _table(found: "list[Run]") -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "kind", "title", "status", "iteration", "started", "from", box=None, pad_edge=False)
    for run in found:
        colour = _COLOURS.get(run.status, "default")
        done = f"{run.iteration}/{run.iterations}" if run.iterations else str(run.iteration)
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created))
        table.add_row(run.id, run.kind, escape(run.title), f"[{colour}]{run.status}[/]", done, created, escape(run.origin))
        if run.error:
            table.add_row("", "", f"[{colour}]{escape(run.error)}[/]")
    return table
