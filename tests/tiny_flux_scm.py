"""A random FLUX read as a consistency map, and multistep sampling with diffusers' own networks and TrigFlow scheduler."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, SCMScheduler
from tiny_family import Family, step_noise
from tiny_flux import GUIDANCE, pipeline
from tiny_sana import times_of
from torch import Tensor

from workbench.models.flux import pack, unpack
from workbench.models.tiny import TOKENS
from workbench.models.tiny.flux import tiny_flux

SIGMA = 0.5
"""Standard deviation of the data as TrigFlow counts it."""


@torch.no_grad()
def drawn(pipe: FluxPipeline, prompts: list[str], latents: Tensor, steps: int, guidance: float = GUIDANCE) -> tuple[Tensor, Any]:
    """Images [N, 3, H, W] by sCM's multistep sampling on the arc, as T2I-Distill asks FLUX for it; and the scheduler."""
    hidden, pooled, places = pipe.encode_prompt(prompts, max_sequence_length=TOKENS)
    rows = latents.shape[-1] // 2
    scheduler, fresh = SCMScheduler(sigma_data=SIGMA), step_noise()
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.set_begin_index(0)
    arc = found = SIGMA * latents
    for angle in scheduler.timesteps[:-1]:
        t = torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))
        norm = (t**2 + (1 - t) ** 2).sqrt()
        asked = norm * arc / SIGMA
        answer = pipe.transformer(
            hidden_states=pack(asked),
            timestep=t.expand(len(latents)),
            guidance=torch.full((len(latents),), guidance),
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=places,
            img_ids=pipe._prepare_latent_image_ids(len(latents), rows, rows, "cpu", latents.dtype),
            return_dict=False,
        )[0]
        on_arc = ((1 - 2 * t) * asked + (1 - 2 * t + 2 * t**2) * unpack(answer, *latents.shape[-2:])) / norm
        arc, found = scheduler.step(SIGMA * on_arc, angle, arc, generator=fresh, return_dict=False)
    vae = pipe.vae
    pixels = vae.decode(found / SIGMA / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
    return pipe.image_processor.postprocess(pixels, output_type="pt"), scheduler


def _drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None) -> tuple[Tensor, tuple[float, ...]]:
    pipe = pipeline(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    images, scheduler = drawn(pipe, prompts, latents, steps)
    return images, times_of(scheduler)


FLUX_SCM = Family(
    name="flux_scm",
    preset="flux_scm_pickscore",
    make=tiny_flux,
    drawn=_drawn,
    settings={"guidance": GUIDANCE},
    changes={"task.packaged": "none"},
    learning={
        "rollout.mode": "all",
        "optimizer.learning_rate": 2e-2,
        "rewards": [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}],
    },
)
