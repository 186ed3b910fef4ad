"""A random FLUX.2 Klein on disk for tests, and diffusers' own pipeline over the same folder."""

from pathlib import Path

from diffusers import Flux2KleinPipeline
from tiny_family import SIDE, Family
from torch import Tensor

from workbench.models.tiny import TOKENS
from workbench.models.tiny.flux2 import tiny_flux2_klein


def pipeline(folder: Path) -> Flux2KleinPipeline:
    """diffusers' own, loaded as anybody would."""
    made = Flux2KleinPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe: Flux2KleinPipeline, prompts: list[str], latents: Tensor, steps: int, guidance: float) -> Tensor:
    """Its images [N, 3, H, W] from latents in our shape, which is the one it packs, at its own sigmas."""
    return pipe(
        prompt=prompts,
        latents=latents,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        output_type="pt",
    ).images


def _drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None) -> tuple[Tensor, tuple[float, ...]]:
    pipe = pipeline(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    images = drawn(pipe, prompts, latents, steps, 1.0)
    return images, tuple(pipe.scheduler.sigmas.tolist())


FLUX2_KLEIN = Family(
    name="flux2_klein",
    preset="precise_flux2_klein",
    make=tiny_flux2_klein,
    drawn=_drawn,
    changes={"task.packaged": "none"},
    learning={"rewards": [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}]},
)
