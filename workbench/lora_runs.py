"""A LoRA from elsewhere as a run that is over: drawn with, compared, branched and exported like any other."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config import PRESETS, configure
from workbench.events import CheckpointReady, Started
from workbench.export import START, write_start
from workbench.models.diffusers_folder import HUB
from workbench.models.lora import PEFT, made_with, read_lora
from workbench.settings import TITLE_LENGTH
from workbench.store import StoreError

if TYPE_CHECKING:
    from workbench.store import Store


def is_lora(path: Path) -> bool:
    """Whether a file or folder may hold adapters, and is not the archive of a run."""
    if not zipfile.is_zipfile(path):
        return path.is_dir() or path.suffix == ".safetensors"
    with zipfile.ZipFile(path) as archive:
        return PEFT[0] in archive.namelist()


def take_lora(store: "Store", path: Path, preset: str = "", changes: Mapping[str, Any] | None = None) -> str:
    """A new run whose only checkpoint is the adapters of a file, which is copied into its folder; returns its id.

    Nothing of the model is loaded: that is left to whoever draws. What the run is held to is the base, so that pages show the
    way from the base to the LoRA.

    Args:
        preset: of the run that it becomes; by default the first of the model that the file says it is for.
        changes: settings by dotted key, as `config.configure` takes them.
    Raises: ValueError: if it is no LoRA, or it is not known of which model; StoreError: if the disk refuses.
    """
    made = made_with(str(path))
    preset = preset or next((name for name, known in PRESETS.items() if known.model.name == made.get("model")), "")
    if not preset:
        raise ValueError(f"{path} does not say which model it is for; choose one of its runs with --preset, such as flux")
    model = configure(preset, {}).model
    lora = read_lora(str(path), model.component)
    own: dict[str, Any] = {
        "title": f"LoRA {made.get('title') or path.stem}"[:TITLE_LENGTH],
        "iterations": made.get("iteration") or 1,
    }
    own |= {"adapter.kind": "lora", "adapter.rank": lora.rank, "adapter.alpha": lora.rank, "adapter.reference": "base"}
    if lora.base and HUB.fullmatch(lora.base.name) and "source" in type(model).model_fields:
        own["model.source"] = lora.base.name
    config = configure(preset, own | dict(changes or {}))
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin=f"LoRA {path.name}")
    copy = store.folder(run).absolute() / START
    try:
        with store.disk(copy.parent):
            write_start(copy, lora, model, made)
        store.add_settings(run, {"adapter": config.adapter.model_dump(mode="json") | {"start": str(copy)}})
        tensors = lora.parameters(config.adapter.alpha / config.adapter.rank)
        store.record(run, Started(config.iterations, {"iterations": config.iterations, "taken from": path.name}))
        store.record(run, CheckpointReady(config.iterations, {"policy": tensors, "ema": tensors}, {"best": config.iterations}))
    except StoreError as error:
        store.set_status(run, "failed", str(error))
        raise
    store.set_status(run, "done")
    return run
