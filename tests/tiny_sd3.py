"""A random Stable Diffusion 3.5 on disk for tests, and diffusers' own pipeline over the same folder."""

from pathlib import Path
from typing import Any

from diffusers import StableDiffusion3Pipeline
from tiny_family import SIDE, Family
from torch import Tensor

from workbench.models.tiny import TOKENS
from workbench.models.tiny.sd3 import tiny_sd3

GUIDANCE = 3.0


def pipeline(folder: Path) -> StableDiffusion3Pipeline:
    """diffusers' own, loaded as anybody would."""
    absent = {part: None for part in ("text_encoder_3", "tokenizer_3") if not (folder / part).is_dir()}
    made = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(
    pipe: StableDiffusion3Pipeline, prompts: list[str], latents: Tensor, steps: int, guidance: float, **call: Any
) -> Tensor:
    """Its images [N, 3, H, W] from latents, at its own sigmas."""
    return pipe(
        prompt=prompts,
        latents=latents,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        output_type="pt",
        **call,
    ).images


def _drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None) -> tuple[Tensor, tuple[float, ...]]:
    pipe = pipeline(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    images = drawn(pipe, prompts, latents, steps, GUIDANCE)
    return images, tuple(pipe.scheduler.sigmas.tolist())


SD3 = Family(
    name="sd3",
    preset="flow_grpo_sd35_ocr",
    make=tiny_sd3,
    drawn=_drawn,
    settings={"guidance": GUIDANCE},
    changes={"task.packaged": "none"},
    learning={"rewards": [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}]},
    detached=1,
)
