"""`pretrain`: make one of the embedded networks by its recipe, or a two-time map of FLUX; write its weights and their log."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from workbench.pretrain import AnyRecipe
    from workbench.store import Store


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
    from workbench.distillation import DistillationRecipe
    from workbench.jobs import Job
    from workbench.pretrain import configure_recipe, recorded_recipe
    from workbench.pretrain import pretrain as start

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
        ending = "" if isinstance(recipe, DistillationRecipe) else ".safetensors"
        made = export_weights(record, run, recipe, out or record.folder(run) / f"{recipe.name}{ending}")
        summary["weights"] = str(made)
        export_log(record, run, made.with_suffix(".log"))
        say(f"weights in {summary['weights']}, their log beside them")
    conclude(summary, as_json)


def export_weights(store: "Store", run: str, recipe: "AnyRecipe", path: Path) -> Path:
    """Write the averaged weights of a finished pretraining as the model loads them: a file, or a pipeline's folder."""
    from workbench import __version__
    from workbench.distillation import DistillationRecipe, write_distilled
    from workbench.models.embedded import save_weights

    last = store.load_checkpoint(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe, DistillationRecipe):
        return write_distilled(recipe, last, path)
    metadata = {"run": run, "iteration": last.iteration, "config": store.run(run).config, "version": __version__}
    save_weights(path, recipe.modules(last), metadata)
    return path


def export_log(store: "Store", run: str, path: Path) -> None:
    """Write a run's losses and evaluations as text; times are seconds since it was created, pauses included."""
    created, lines = store.run(run).created, []
    for event in store.events(run):
        began = f"{event.time - created:8.1f} s"
        if event.kind == "IterationDone":
            lines.append(f"{began}  step {event.iteration:5d}  {_told(event.data['metrics'], 5)}")
        if event.kind == "Evaluated":
            for steps, measures in event.data["measures"].items():
                values = {name: measure["value"] for name, measure in measures.items()}
                lines.append(f"{began}  held-out, {int(steps):2d} steps: {_told(values, 4)}")
            if skills := event.data["breakdown"]:
                lines.append(f"{began}  by skill: {_told({name: skill['value'] for name, skill in skills.items()}, 3)}")
    path.write_text("\n".join(lines) + "\n")


def _told(figures: Mapping[str, float], digits: int) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.{digits}f}" for name, value in figures.items())
