"""`execute`: drive a queued run in this process; what every executor begins."""

from typing import Annotated

import typer

from workbench.cli.drive import Interrupts, conclude
from workbench.cli.options import Json, Runs, StoreUrl, bad_arguments, open_store


def execute(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run that waits in the queue")],
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Drive a queued run in this process until it is over; the first Ctrl-C stops it with a checkpoint."""
    from workbench.experiments.execute import execute as drive

    record = open_store(runs, store)
    with Interrupts() as interrupts, bad_arguments():
        end = drive(record, run, lambda: interrupts.asked)
    conclude({"run": end.id, "status": end.status, "iteration": end.iteration, "seconds": 0.0, "error": end.error}, as_json)
