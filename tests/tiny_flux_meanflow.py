"""A random two-time FLUX on disk for tests, and diffusers' own pipeline and scheduler around its network."""

from pathlib import Path
from typing import Any

from diffusers import FluxPipeline
from tiny_family import Family
from tiny_flux import GUIDANCE, drawn
from torch import Tensor, nn

from workbench.models.flux_two_time import FluxTwoTimeTransformer2DModel
from workbench.models.tiny.flux_meanflow import tiny_flux_meanflow


def pipeline(folder: Path) -> FluxPipeline:
    """diffusers' own, around our network."""
    network = FluxTwoTimeTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    made = FluxPipeline.from_pretrained(folder, transformer=network)
    made.set_progress_bar_config(disable=True)
    return made


def told_where_steps_end(pipe: FluxPipeline) -> FluxPipeline:
    """Its network, at every step, told the sigma that its scheduler goes to: Euler steps become jumps."""

    def tell(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sigmas = pipe.scheduler.sigmas.to(named["timestep"])
        here = (sigmas - named["timestep"][0]).abs().argmin()
        return args, named | {"target_timestep": sigmas[here + 1].expand_as(named["timestep"])}

    pipe.transformer.register_forward_pre_hook(tell, with_kwargs=True)
    return pipe


def _drawn(folder: Path, prompts: list[str], latents: Tensor, steps: int, lora: Path | None) -> tuple[Tensor, tuple[float, ...]]:
    pipe = told_where_steps_end(pipeline(folder))
    if lora is not None:
        pipe.load_lora_weights(lora)
    images = drawn(pipe, prompts, latents, steps, GUIDANCE)
    return images, tuple(pipe.scheduler.sigmas.tolist())


FLUX_MEANFLOW = Family(
    name="flux_meanflow",
    preset="flux_meanflow_pickscore",
    make=tiny_flux_meanflow,
    drawn=_drawn,
    settings={"guidance": GUIDANCE},
    changes={"rollout.grid": "uniform", "sampler.name": "asfmc", "task.packaged": "none"},
    learning={"rewards": [{"reward": {"name": "jpeg_size", "wanted": "small"}, "weight": 1.0}]},
)
