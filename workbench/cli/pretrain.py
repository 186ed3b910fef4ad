"""`pretrain`: make one of the embedded networks by its recipe, or a two-time map of FLUX; write its weights and their log."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.drive import command_line, conclude, drive, reopen
from workbench.cli.options import (
    BadArguments,
    Changes,
    Checkpoint,
    Json,
    Resume,
    Runs,
    StoreUrl,
    bad_arguments,
    open_store,
    read_changes,
)
from workbench.cli.screen import say


def pretrain(
    model: Annotated[str, typer.Argument(help="shapes, shapes_fm, shapes_cm, glyphs, flux_meanflow or preference")] = "shapes",
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="weights to write; of flux_meanflow a folder")] = None,
    resume: Resume = None,
    checkpoint: Checkpoint = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Pretrain an embedded generator: shapes and glyphs from nothing, shapes_fm and shapes_cm from the shipped shapes.

    flux_meanflow makes a two-time map of a FLUX checkpoint, the folder of a whole pipeline: --set source=FOLDER names the
    checkpoint, --set pictures=FOLDER what it is distilled on beside its own samples; --set steps=0 leaves it undistilled.
    preference makes the scorer behind the reward glyphs_preference instead.

    Ctrl-C stops after the current step with a checkpoint; a second one ends it now.
    """
    from workbench.jobs import Job
    from workbench.pretrain import configure_recipe, recorded_recipe
    from workbench.pretrain import pretrain as start
    from workbench.pretrained import write_pretrained

    if resume is not None and changes:
        raise BadArguments("--resume goes on with the run's own settings; leave out --set")
    with bad_arguments():
        if out is not None and out.is_dir():
            raise BadArguments(f"--out {out} is a folder that is there already; name a place where nothing is")
        if resume is None:
            recipe, record, last = configure_recipe(model, read_changes(changes)), open_store(runs, store), None
            title = recipe.title or f"Pretrain {recipe.name}"
            run = record.create(
                "pretrain", recipe.model_dump(mode="json"), title=title, origin="command line", command=command_line()
            )
        else:
            record = open_store(runs, store)
            run, last = reopen(record, resume, checkpoint, "pretrain")
            recipe = recorded_recipe(record.run(run).config)
    job = Job(record, run, lambda checkpoint, controls: start(recipe, resume=checkpoint, controls=controls), resume=last)
    summary = drive(record, run, job, "pretrain")
    if summary["status"] == "done":
        summary["weights"] = str(write_pretrained(record, run, out))
        say(f"weights in {summary['weights']}, their log beside them")
    conclude(summary, as_json)
