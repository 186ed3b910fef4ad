"""`runs`: what was run, newest first; and runs that come, go and come back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workbench.cli.options import BadArguments, Json, Runs, StoreUrl, bad_arguments, open_store, read_changes
from workbench.cli.screen import say, show, show_json

if TYPE_CHECKING:
    from workbench.records import Run
    from workbench.store import Store

_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "crashed": "red", "paused": "yellow", "stopped": "yellow"}


def runs_of_the_record(
    action: Annotated[
        Literal["list", "import", "delete", "restore", "trash", "empty-trash"], typer.Argument(help="what to do")
    ] = "list",
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN|FILE]...", help="runs to delete or restore, or archives and LoRAs to import"),
    ] = None,
    places: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="of an import: where something lies here, as in model.source=DIR"),
    ] = None,
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="of an imported LoRA: a run of its model, where the file does not say it")
    ] = "",
    kind: Annotated[str | None, typer.Option(help="only runs of this kind, such as train or pretrain")] = None,
    limit: Annotated[int, typer.Option(min=1, help="most runs shown")] = 20,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """List the runs of the record, whoever started them; import archives and LoRAs; delete runs, bring them back."""
    takes = action in ("import", "delete", "restore")
    if takes and not targets:
        raise BadArguments(f"runs {action} needs {'a FILE' if action == 'import' else 'a RUN'}")
    if targets and not takes:
        raise BadArguments(f"runs {action} takes nothing more; got {' '.join(targets)}")
    if (places or preset) and action != "import":
        raise BadArguments(f"--set and --preset are for an import; runs {action} has no use for them")
    record = open_store(runs, store)
    if action in ("list", "trash"):
        found = record.trash() if action == "trash" else record.runs(kind)[:limit]
        if as_json:
            show_json([_described(run) for run in found])
        elif not found:
            show(
                f"no runs in {record.location}; start one with: python -m workbench train"
                if action == "list"
                else "the trash is empty"
            )
        else:
            show(_table(found))
        return
    with bad_arguments():
        done = (
            record.purge()
            if action == "empty-trash"
            else [_do(record, action, target, places, preset) for target in targets or ()]
        )
        wanting = {run: _needs(record, run) for run in done} if action == "import" else {}
    if as_json:
        show_json({"action": action, "runs": done, **({"needs": wanting} if wanting else {})})
    else:
        said = {"import": "imported run {}", "delete": "run {} is in the trash", "restore": "run {} is back"}
        for run in done:
            show(said.get(action, "removed run {} for good").format(run))
            for sentence in wanting.get(run, ()):
                say(f"note: {sentence}")
        if not done:
            show("the trash is empty")


def _needs(record: "Store", run: str) -> list[str]:
    """What an imported run lacks here."""
    from workbench.needs import needs

    return needs(record, record.run(run))


def _do(record: "Store", action: str, target: str, places: list[str] | None, preset: str) -> str:
    """One action on one run or file; returns the run."""
    if action == "import":
        from workbench.export import read_archive
        from workbench.lora_runs import is_lora, take_lora

        changes = read_changes(places, "--set", "model.source=DIR")
        if is_lora(Path(target)):
            return take_lora(record, Path(target), preset, changes)
        return read_archive(record, Path(target), changes)
    if action == "restore":
        record.restore(target)
        return target
    found = record.run(target).id
    record.delete(found)
    return found


def _described(run: "Run") -> dict[str, Any]:
    from workbench.exact_json import fields_of

    return {key: value for key, value in fields_of(run).items() if key != "config"}


def _table(found: "list[Run]") -> Any:
    from rich.markup import escape
    from rich.table import Table

    from workbench.records import when

    table = Table("run", "kind", "title", "status", "iteration", "started", "from", box=None, pad_edge=False)
    for run in found:
        colour = _COLOURS.get(run.status, "default")
        done = f"{run.iteration}/{run.iterations}" if run.iterations else str(run.iteration)
        table.add_row(
            run.id, run.kind, escape(run.title), f"[{colour}]{run.status}[/]", done, when(run.created), escape(run.origin)
        )
        if run.error:
            table.add_row("", "", f"[{colour}]{escape(run.error)}[/]")
    return table
