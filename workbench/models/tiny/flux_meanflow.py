"""A random FLUX.1 as a two-time map."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from workbench.models.flux_meanflow import HEAD_ENTRY
from workbench.models.tiny import saved
from workbench.models.tiny.flux import random_flux

SLOW = 6.0
"""Highest frequency of a time that the random map hears, radians over all of time; trained networks are smooth in it too."""


def tiny_flux_meanflow(
    folder: Path | str | None = None, *, kind: Literal["interval", "target"] = "interval", guidance: bool = True, seed: int = 0
) -> Path:
    """A FluxPipeline in a folder whose random transformer makes jumps: no Euler steps, and none that was ever distilled.

    Args:
        folder: where; in the user's cache by default, where it is found again.
        kind: what its second timestep embedder reads: T2I-Distill's interval, or AnyFlow's target.
    Returns: the folder, which is there whole or not at all.
    """
    return saved(partial(_flux_meanflow, kind == "interval", guidance), f"flux-meanflow-{kind}", folder, seed)


def smooth_in_time(transformer: Any) -> None:
    """Make a FLUX deaf to all but the slow sinusoids of a time, as far as it has timestep embedders."""
    frequencies = 1000.0 * 10_000.0 ** -(torch.arange(128) / 128)
    embedding = transformer.time_text_embed
    for part in ("timestep_embedder", "delta_embedder"):
        if hasattr(embedding, part):
            with torch.no_grad():
                getattr(embedding, part).linear_1.weight[:, (frequencies > SLOW).repeat(2)] = 0.0


def _flux_meanflow(interval: bool, guidance: bool) -> Any:
    from workbench.models.flux_two_time import FluxTwoTimeTransformer2DModel, second_embedder, two_time_settings

    pipeline = random_flux(guidance)
    plain = pipeline.transformer
    smooth_in_time(plain)
    network = FluxTwoTimeTransformer2DModel.from_config(two_time_settings(plain.config, interval=interval, scale=SLOW))
    tensors = plain.state_dict()
    second = second_embedder(tensors, interval=interval)
    for name, value in second.items():
        second[name] = value + 0.2 * torch.randn_like(value) * (name.endswith("linear_2.weight"))
    network.load_state_dict(tensors | second)
    pipeline.register_modules(transformer=network.eval())
    pipeline.register_to_config(transformer=HEAD_ENTRY)
    return pipeline
