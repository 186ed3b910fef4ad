"""`control`: ask a run, in whatever process it is, to do something."""

from typing import Annotated, Literal

import typer

from workbench.cli.options import Json, Runs, StoreUrl, bad_arguments, open_store
from workbench.cli.screen import show, show_json

_WISHES = {"pause": "pause", "resume": "run", "stop": "stop", "save": "save", "sample": "sample"}


def control(
    run: Annotated[str, typer.Argument(help="id of the run, its beginning, or 'latest'")],
    wish: Annotated[Literal["pause", "resume", "stop", "save", "sample"], typer.Argument(help="what it should do")],
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Pause, resume, stop, save or sample a run at its next iteration, from any process."""
    record = open_store(runs, store)
    with bad_arguments():
        found = record.run(run)
        record.wish(found.id, _WISHES[wish])
    if as_json:
        show_json({"run": found.id, "wanted": _WISHES[wish], "status": found.status})
    else:
        show(f"asked run {found.id} to {wish}")
