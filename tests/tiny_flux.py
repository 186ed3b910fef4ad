"""A random FLUX on disk for tests, runs of it that take seconds, and diffusers' own pipeline over the same folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from workbench.config import RunConfig, configure
from workbench.models.flux import FluxModel, pack
from workbench.models.tiny import TOKENS

PROMPTS = ("a red fox", "two boats at sunrise", "an old lighthouse")
SIDE = 16  # pixels

TINY: dict[str, Any] = {
    "model.resolution": SIDE,
    "model.max_tokens": TOKENS,
    "model.dtype": "fp32",
    "iterations": 4,
    "sampler.noise": 0.7,
    "rollout.steps": 4,
    "grpo.groups": 2,
    "grpo.group_size": 4,
    "adapter.rank": 4,
    "adapter.alpha": 8,
    "optimizer.learning_rate": 1e-2,
    "evaluation.every": 2,
    "evaluation.images": 8,
    "evaluation.final_images": 8,
    "evaluation.sampling_steps": 4,
    "evaluation.steps": [4],
    "record.checkpoint_every": 2,
    "compute.precision": "no",
    "compute.sample_batch": 64,
    "compute.train_batch": 64,
    "guard.collapse": 0,
}


def tiny_run(folder: Path, **changes: Any) -> RunConfig:
    """A run of the random FLUX in a folder; `a__b=1` sets a.b."""
    return configure("flux", TINY | {"model.source": str(folder)} | {key.replace("__", "."): v for key, v in changes.items()})


def model(folder: Path, **changes: Any) -> FluxModel:
    return FluxModel(**{"source": str(folder), "resolution": SIDE, "max_tokens": TOKENS, "dtype": "fp32"} | changes)


def pipeline(folder: Path) -> FluxPipeline:
    """diffusers' own, loaded as anybody would."""
    made = FluxPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe: FluxPipeline, prompts: list[str], latents: Tensor, steps: int, guidance: float, side: int = SIDE) -> Tensor:
    """Its images [N, 3, H, W] from latents in our shape, at its own sigmas."""
    return pipe(
        prompt=prompts,
        latents=pack(latents),
        height=side,
        width=side,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        output_type="pt",
    ).images


def noise(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
