"""`diff`: what is not the same in two runs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import Json, Runs, StoreUrl, bad_arguments, open_store
from workbench.cli.screen import show, show_json

if TYPE_CHECKING:
    from workbench.experiments.differences import Differences

_TITLES = {"config": "Settings", "code": "Code", "environment": "Environment"}
_TITLES |= {"packages": "Packages", "prompts": "Prompts", "weights": "Weights"}


def diff(
    one: Annotated[str, typer.Argument(metavar="RUN", help="id of a run, its beginning, or 'latest'")],
    other: Annotated[str, typer.Argument(metavar="RUN", help="the run to hold beside it")],
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two runs: settings, code, environment, packages, prompts and weights."""
    from workbench.experiments.differences import difference

    record = open_store(runs, store)
    with bad_arguments():
        ids = [record.run(name).id for name in (one, other)]
        found = difference(record, *ids)
    if as_json:
        groups = {name: [each._asdict() for each in each_of] for name, each_of in found.groups.items()}
        show_json({"runs": ids, "same": found.nothing, **groups, "diffstat": found.diffstat, "notes": list(found.notes)})
    else:
        _show(found, ids)


def _show(found: "Differences", ids: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    for name, each_of in found.groups.items():
        table = Table(_TITLES[name], *ids, title_justify="left", box=None, pad_edge=False)
        for each in each_of:
            table.add_row(*(escape(_told(value)) for value in (each.name, each.one, each.other)))
        show(table)
        show("")
    if found.diffstat:
        show(escape(found.diffstat))
    if found.nothing:
        show("nothing differs" + (" in what could be compared" if found.notes else ""))
    for note in found.notes:
        show(escape(note))


def _told(value: Any) -> str:
    return "–" if value is None else str(value)
