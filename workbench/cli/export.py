"""`export`: a run as a file for people, for another workbench, or for another program."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import BadArguments, Checkpoint, Json, Runs, StoreUrl, bad_arguments, open_store
from workbench.cli.screen import show, show_json


def export(
    run: Annotated[str, typer.Argument(help="id of the run, its beginning, or 'latest'")],
    report: Annotated[bool, typer.Option("--report", help="one HTML file for people, which opens offline")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="averaged weights: safetensors, or a LoRA adapter in peft's format")
    ] = False,
    archive: Annotated[bool, typer.Option("--archive", help="one zip with everything, for: runs import FILE")] = False,
    notebook: Annotated[bool, typer.Option("--notebook", help="a notebook with parameters that repeats the run")] = False,
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="where to put it instead of the run's folder")] = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Write a report, the weights, an archive or a notebook of a run to a file; --checkpoint is for --weights."""
    if report + weights + archive + notebook != 1:
        raise BadArguments("choose one of --report, --weights, --archive and --notebook")
    if checkpoint is not None and not weights:
        raise BadArguments("--checkpoint chooses the weights; all else is of the whole run")
    record = open_store(runs, store)
    with bad_arguments():
        found = record.run(run)
        if weights:
            from workbench.export import write_weights

            path = write_weights(record, found.id, checkpoint)
        elif archive:
            from workbench.export import write_archive

            path = write_archive(record, found.id)
        elif notebook:
            from workbench.experiments.as_notebook import write_notebook

            path = write_notebook(record, found.id)
        else:
            from workbench.report import write_report

            path = write_report(record, found)
    if out is not None:
        path = Path(shutil.move(path, out))
    if as_json:
        show_json({"run": found.id, "path": path, "bytes": path.stat().st_size})
    else:
        show(str(path))
