"""A pipeline in shape alone: its networks as their settings describe them, without a single weight, on torch's device `meta`.

What a run of it would take can be worked out before anything is fetched or loaded.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.diffusers_folder import HEAD, cached_folder, quietly
from workbench.models.pipeline import DTYPES, PipelineGenerator, PipelineModel

META = torch.device("meta")

Described = Mapping[str, Mapping[str, Any]]
"""The settings of a pipeline's networks by part; `_class_name` says what each is."""


def described(model: PipelineModel) -> Described:
    """What a pipeline's folder says of its networks; what is published of the model where it is not on this machine.

    Raises: ValueError: if neither is known, saying how to fetch it.
    """
    folder = cached_folder(model.source)
    if folder is None or not (folder / "transformer" / "config.json").is_file():
        if model.source == type(model).model_fields["source"].default and model.published:
            return model.published
        raise ValueError(
            f"what {model.source or 'the model'} is made of is not known, since it is not on this machine: run "
            f"`hf download {model.source}`, or let model.source name a folder"
        )
    try:
        head = json.loads((folder / HEAD).read_text())
        found = {part: json.loads((folder / part / "config.json").read_text()) for part in model.parts if _has(folder, part)}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read: {error}; fetch it again") from error
    return {part: {**settings, "_class_name": head[part][1]} for part, settings in found.items()}


def outline(model: PipelineModel) -> PipelineGenerator:
    """The generator that `model.load` would give, without weights. Raises: ValueError: as `described`, or as `load`."""
    parts, dtype = described(model), DTYPES[model.dtype]
    with quietly(), META:
        transformer = model.made(parts["transformer"]).to(dtype)
        vae: Any = network(parts["vae"]).to(dtype)
    if model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if model.vae_slicing:
        vae.enable_slicing()
    shapes = model.prompt_shapes(transformer.config)
    return PipelineGenerator(model, transformer, vae, Unread(shapes, dtype), META)  # type: ignore[arg-type]


def encoders(model: PipelineModel) -> list[nn.Module]:
    """The networks that read its prompts, without weights. Raises: ValueError: as `described`."""
    parts, dtype = described(model), DTYPES[model.dtype]
    with quietly(), META:
        return [network(parts[part]).to(dtype) for part in model.encoders if part in parts]


class Unread:
    """Stands for encoders where embeddings need only have the right shape; itself the cache that they are read from."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.shapes, self.dtype, self.device, self.cache = shapes, dtype, device, self

    def missing(self, prompts: Sequence[str]) -> list[str]:
        return []

    def cramped(self) -> bool:
        return False

    def prepare(self, prompts: Sequence[str]) -> None:
        """Nothing has to be read."""

    def read(self, prompt: str) -> dict[str, Tensor]:
        return {name: torch.ones(shape, dtype=self.dtype, device=self.device) for name, shape in self.shapes.items()}


def _has(folder: Path, part: str) -> bool:
    return (folder / part / "config.json").is_file()


def network(settings: Mapping[str, Any]) -> nn.Module:
    """A network of diffusers or transformers as its settings describe it. Raises: ValueError: if neither has it."""
    import diffusers
    import transformers

    name = settings["_class_name"]
    if hasattr(diffusers, name):
        return getattr(diffusers, name).from_config(settings)
    if not hasattr(transformers, name):
        raise ValueError(f"{name} is no class of this version of diffusers or transformers")
    kind = getattr(transformers, name)
    return kind(kind.config_class.from_dict({key: value for key, value in settings.items() if key != "_class_name"}))
