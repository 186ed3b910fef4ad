"""A run as a folder that is ready for the hub: weights, and a card that says what was done, how it went and how to use it."""

import json
import shutil
import zipfile
from collections.abc import Generator as Stream
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from workbench.card_text import Card, card_text, hub_base, slug, without_places
from workbench.events import CheckpointReady, Progress
from workbench.export import averaged, export_folder, made_of, write_lora, write_weights
from workbench.figures import FIGURES
from workbench.figures.painted import paint
from workbench.history import History, Recorded
from workbench.merging import merge
from workbench.models.lora import DIFFUSERS
from workbench.models.pipeline import PipelineModel
from workbench.pictures import read_sprite
from workbench.store import Store
from workbench.whole_file import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8
"""Most prompts that are shown before and after."""
ENOUGH = 4
"""Pairs that are shown where there are no more prompts than this."""
SETTINGS = "workbench.json"
"""The file with all settings of the run."""

_CURVES = {
    "reward": "What was trained on, and the same on held-out prompts with its 95 % interval.",
    "steps": "The held-out reward of the base and of this model at each number of sampling steps, with 95 % intervals.",
    "drift": "Measures of the pictures that no reward saw, as times the base's value.",
    "kl": "How far the policy is from what it was held to.",
}
"""The curves of a card, and what is said of each."""

_SMALLEST = 256  # pixels of a picture's side; smaller ones are enlarged without smoothing


def write_card(
    store: Store,
    run: str,
    iteration: int | None = None,
    *,
    pipeline: bool = False,
    base: str = "",
    repo: str = "",
    out: Path | None = None,
) -> Stream[Progress, None, Path]:
    """A folder for `hf upload`, there whole or not at all: a card, its pictures, the settings, and the averaged weights.

    Yields progress, returns the folder. Weights are a LoRA where one was trained, else all of them.

    Args:
        iteration: of the checkpoint; the last one without.
        pipeline: a whole pipeline with the adapters merged into it, instead of a LoRA.
        base: id of the base on the hub, where the run was given a folder; by default as its files say.
        repo: id that the folder will have on the hub, for the code that loads it.
        out: where to write it, instead of the run's exports; must not be there yet.
    Raises: ValueError: if the run has no such checkpoint, or its base is wanted and not here; StoreError: if the disk refuses.
    """
    found, checkpoint, config = averaged(store, run, iteration)
    if out is not None and out.exists():
        raise ValueError(f"{out} is there already; name a place where nothing is, or remove it")
    if pipeline and not isinstance(config.model, PipelineModel):
        raise ValueError(f"model {config.model.name!r} is part of no pipeline of diffusers; leave out --pipeline")
    whole = pipeline or config.adapter.kind == "full"
    at = checkpoint.iteration
    history = History().extended(row for row in store.events(found.id) if row.iteration <= at)
    card = Card(store, found, config, history, at, base or hub_base(config), repo or f"YOUR_NAME/{slug(found.title)}", whole)
    path = out or export_folder(store, found.id) / f"{found.id}-{at:06d}-card"
    with store.disk(path.absolute().parent), whole_folder(path) as folder:
        yield from _add_weights(folder, card, checkpoint)
        pairs, curves = _add_pictures(folder, card), _add_curves(folder, card)
        settings = {"run": found.id, "iteration": at, "config": without_places(config.model_dump(mode="json"))}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card_text(card, pairs, curves), encoding="utf-8")
    return path


# What lies beside the card


def _add_weights(folder: Path, card: Card, checkpoint: CheckpointReady) -> Stream[Progress, None, None]:
    config, made = card.config, made_of(card.run, card.iteration, card.config)
    if config.model.component and card.whole:
        yield from merge(folder, checkpoint.tensors["ema"], config, made, pipeline=True)
    elif config.model.component:
        write_lora(folder / DIFFUSERS, checkpoint.tensors["ema"], config, made)
    else:
        file = write_weights(card.store, card.run.id, card.iteration)
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder, [name for name in archive.namelist() if name.startswith("adapter_")])
        else:
            shutil.copyfile(file, folder / "model.safetensors")


def _add_pictures(folder: Path, card: Card) -> list[dict[str, Any]]:
    """The same prompts and seeds before and after, as files; none where the pictures are gone."""
    first, last = card.history.evaluations[:1], card.measured
    if not first or last is None:
        return []
    sides = [_recorded(card, item) for item in (first[0], last)]
    if sides[0] is None or sides[1] is None or first[0].data["seeds"] != last.data["seeds"]:
        return []
    prompts, seeds = last.data["prompts"], last.data["seeds"]
    order = sorted(range(min(len(sides[0]), len(sides[1]))), key=lambda index: prompts[:index].count(prompts[index]))
    chosen = order[: min(SHOWN, max(len(set(prompts)), ENOUGH))]  # each prompt once; other seeds only where prompts are few
    pairs = []
    (folder / "images").mkdir()
    for number, index in enumerate(chosen, 1):
        prompt = prompts[index]
        pair = {"prompt": prompt, "seed": seeds[index]}
        for name, images in zip(("before", "after"), sides, strict=True):
            pair[name] = f"images/{number:02d}-{name}.webp"
            _save(images[index], folder / pair[name])  # type: ignore[index]
        pairs.append(pair)
    return pairs


def _recorded(card: Card, item: Recorded) -> "Tensor | None":
    preview = item.data["preview"]
    try:
        return read_sprite(card.store.image_path(card.run.id, preview["sprite"]), preview) if preview["sprite"] else None
    except ValueError:
        return None  # a missing file leaves a card without pictures, which is better than none


def _save(image: "Tensor", path: Path) -> None:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    times = -(-_SMALLEST // max(picture.size))
    if times > 1:
        picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    picture.save(path, "WEBP", lossless=times > 1, quality=92)


def _add_curves(folder: Path, card: Card) -> list[dict[str, str]]:
    curves = []
    for name, note in _CURVES.items():
        figure = FIGURES["train"][name](card.history, card.run.config)
        flat_line = name == "kl" and not any(value for _, value in card.history.metric("kl"))
        if not figure.data or flat_line:
            continue
        path = folder / "curves" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        paint(figure).save(path)
        curves.append({"title": escape(figure.layout.title.text), "path": f"curves/{name}.png", "note": note})
    return curves
