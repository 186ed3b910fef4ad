"""A random FLUX on disk for tests, and diffusers' own pipeline over the same folder."""

from pathlib import Path

from diffusers import FluxPipeline
from tiny_family import SIDE, Family
from torch import Tensor

from workbench.models.flux import pack
from workbench.models.tiny import TOKENS
from workbench.models.tiny.flux import tiny_flux

GUIDANCE = 3.5


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


def _drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None) -> tuple[Tensor, tuple[float, ...]]:
    pipe = pipeline(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    images = drawn(pipe, prompts, latents, steps, GUIDANCE)
    return images, tuple(pipe.scheduler.sigmas.tolist())


FLUX = Family(
    name="flux",
    preset="flux",
    make=tiny_flux,
    drawn=_drawn,
    settings={"guidance": GUIDANCE},
    learning={"rewards": [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}]},
)
