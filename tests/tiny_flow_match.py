"""Random pipelines that have no adapter of their own on disk for tests, and diffusers' own over the same folders."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from tiny_family import SIDE, Family
from torch import Tensor

from workbench.models.tiny import TOKENS
from workbench.models.tiny.flow_match import tiny_auraflow, tiny_z_image

GUIDANCE = 3.0
SMALL = [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}]


def drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None = None, **call: Any) -> Any:
    """Images [N, 3, H, W] of diffusers' own pipeline, loaded as anybody would, and the times that it went through."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    settings = {"height": SIDE, "width": SIDE, "max_sequence_length": TOKENS, "guidance_scale": GUIDANCE, **call}
    images = pipe(prompt=prompts, latents=latents, num_inference_steps=steps, output_type="pt", **settings).images
    return images, tuple(pipe.scheduler.sigmas.tolist())


def _family(label: str, make: Any, **more: Any) -> Family:
    return Family(
        name="flow_match",
        preset="flux",
        make=make,
        drawn=drawn,
        settings={"guidance": GUIDANCE, **more},
        changes={"model.name": "flow_match"},
        learning={"rewards": SMALL},
        label=label,
    )


AURAFLOW = _family(
    "auraflow", tiny_auraflow, adapted=("to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "out_projection")
)
Z_IMAGE = _family("z_image", tiny_z_image, adapted=("to_q", "to_k", "to_v", "to_out.0", "w2"))
