"""A random SANA-Sprint on disk for tests, and diffusers' own pipeline over the same folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import SanaSprintPipeline, SCMScheduler
from tiny_family import Family, step_noise
from torch import Tensor

from workbench.models.tiny import TOKENS
from workbench.models.tiny.sana import tiny_sana_sprint

GUIDANCE = 4.5
SIDE = 32  # pixels; its pipeline draws nothing smaller


def pipeline(folder: Path) -> SanaSprintPipeline:
    """diffusers' own, loaded as anybody would."""
    made = SanaSprintPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe: SanaSprintPipeline, prompts: list[str], latents: Tensor, steps: int, **asked: Any) -> Tensor:
    """Its images [N, 3, H, W] from latents, by its own schedule."""
    return pipe(
        prompt=prompts,
        latents=latents,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        intermediate_timesteps=1.3 if steps == 2 else None,
        max_sequence_length=TOKENS,
        use_resolution_binning=False,
        generator=step_noise(),
        output_type="pt",
        **{"guidance_scale": GUIDANCE} | asked,
    ).images


def times_of(scheduler: SCMScheduler) -> tuple[float, ...]:
    """The angles that it goes through, as our times."""
    angles = scheduler.timesteps
    return tuple((torch.sin(angles) / (torch.sin(angles) + torch.cos(angles))).tolist())


def _drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None) -> tuple[Tensor, tuple[float, ...]]:
    pipe = pipeline(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    return drawn(pipe, prompts, latents, steps), times_of(pipe.scheduler)


SANA_SPRINT = Family(
    name="sana_sprint",
    preset="sana_sprint_pickscore",
    make=tiny_sana_sprint,
    drawn=_drawn,
    settings={"resolution": SIDE, "guidance": GUIDANCE},
    learning={"rollout.mode": "all"},
)
