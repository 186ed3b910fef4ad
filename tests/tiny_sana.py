"""A random SANA and SANA-Sprint on disk for tests, and diffusers' own pipelines over the same folders."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SCMScheduler
from tiny_family import Family, step_noise
from torch import Tensor

from workbench.models.tiny import TOKENS
from workbench.models.tiny.sana import tiny_sana, tiny_sana_sprint

GUIDANCE = 4.5
SIDE = 32  # pixels; the pipelines draw nothing smaller


def pipeline(folder: Path) -> DiffusionPipeline:
    """diffusers' own, loaded as anybody would."""
    made = DiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe: DiffusionPipeline, prompts: list[str], latents: Tensor, steps: int, **asked: Any) -> Tensor:
    """Its images [N, 3, H, W] from latents, by its own schedule."""
    if isinstance(pipe.scheduler, SCMScheduler):
        asked["intermediate_timesteps"] = 1.3 if steps == 2 else None
    return pipe(
        prompt=prompts,
        latents=latents,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        max_sequence_length=TOKENS,
        use_resolution_binning=False,
        generator=step_noise(),
        output_type="pt",
        **{"guidance_scale": GUIDANCE} | asked,
    ).images


def times_of(scheduler: Any) -> tuple[float, ...]:
    """What it goes through, as our times: sigmas as they are, or TrigFlow's angles."""
    if not isinstance(scheduler, SCMScheduler):
        return tuple(scheduler.sigmas.tolist())
    angles = scheduler.timesteps
    return tuple((torch.sin(angles) / (torch.sin(angles) + torch.cos(angles))).tolist())


def _drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None) -> tuple[Tensor, tuple[float, ...]]:
    pipe = pipeline(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    return drawn(pipe, prompts, latents, steps), times_of(pipe.scheduler)


SANA = Family(
    name="sana",
    preset="flux",
    make=tiny_sana,
    drawn=_drawn,
    settings={"resolution": SIDE, "guidance": GUIDANCE},
    changes={"model.name": "sana"},
    learning={"optimizer.learning_rate": 2e-2},
    detached=1,
)
SANA_SPRINT = Family(
    name="sana_sprint",
    preset="sana_sprint_pickscore",
    make=tiny_sana_sprint,
    drawn=_drawn,
    settings={"resolution": SIDE, "guidance": GUIDANCE},
    changes={"task.packaged": "none"},
    learning={
        "rollout.mode": "all",
        "optimizer.learning_rate": 2e-2,
        "rewards": [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}],
    },
)
