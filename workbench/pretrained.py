"""What a finished pretraining leaves: weights as the model loads them, and their log beside them."""

from collections.abc import Mapping
from pathlib import Path

from workbench import __version__
from workbench.events import CheckpointReady
from workbench.merging import Learned, merge_component
from workbench.models.embedded import save_weights
from workbench.pretrain import recorded_recipe
from workbench.recipes.distillation import DistillationRecipe
from workbench.rollout import drain
from workbench.store import Store
from workbench.two_time import copy_pipeline, two_time_pipeline


def write_pretrained(store: Store, run: str, out: Path | None = None) -> Path:
    """Write the averaged weights of a pretraining that is done; returns the file, or the pipeline's folder of a distillation.

    Args:
        out: what to write, without which it lies in the run's directory; the log has its name and ends in .log.
    Raises: ValueError: if a folder is there already; StoreError: if the disk refuses.
    """
    found, last = store.run(run), store.load_checkpoint(run)
    recipe = recorded_recipe(found.config)
    ending = "" if isinstance(recipe, DistillationRecipe) else ".safetensors"
    path = out or store.folder(run) / f"{recipe.name}{ending}"
    with store.disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(recipe, DistillationRecipe):
            write_distilled(recipe, last, path)
        else:
            metadata = {"run": run, "iteration": last.iteration, "config": found.config, "version": __version__}
            save_weights(path, recipe.modules(last), metadata)
        path.with_suffix(".log").write_text("".join(f"{line}\n" for line in _log(store, run)))
    return path


def write_distilled(recipe: DistillationRecipe, checkpoint: CheckpointReady, out: Path) -> Path:
    """Write what a distillation made as a pipeline with the averaged weights, one in memory at a time; whole or not at all.

    Raises: ValueError: if `out` is there already, or there is no room.
    """
    folder = recipe.beginning()
    if not recipe.steps:
        return copy_pipeline(folder, out)
    with two_time_pipeline(folder, out, f"Distilled from {recipe.source} by MeanFlow, {checkpoint.iteration} steps.") as made:
        learned = Learned(checkpoint.tensors["average"], recipe.alpha / recipe.rank)
        drain(merge_component(made, folder / made.name, learned, {}, trained="fp32"))
    return out


def _log(store: Store, run: str) -> list[str]:
    """A run's losses and evaluations as text; times are seconds since it was created, pauses included."""
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
    return lines


def _told(figures: Mapping[str, float], digits: int) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.{digits}f}" for name, value in figures.items())
