"""What the tests need to know of a family of pipelines, to put it through everything that every family has to pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.config import configure
from workbench.evaluate import deployed_sampler
from workbench.models import MODELS
from workbench.models.pipeline import PipelineModel
from workbench.models.tiny import TOKENS
from workbench.settings import RunConfig

CPU = torch.device("cpu")
PROMPTS = ("a red fox", "two boats at sunrise", "an old lighthouse")
SIDE = 16  # pixels

TINY: dict[str, Any] = {
    "model.resolution": SIDE,
    "model.max_tokens": TOKENS,
    "model.dtype": "fp32",
    "iterations": 4,
    "rewards": [{"reward": {"name": "jpeg_size"}, "weight": 1.0}],
    "eval_rewards": [],
    "task.name": "prompts",
    "sampler.noise": 0.7,
    "rollout.mode": "window",
    "rollout.steps": 4,
    "grpo.groups": 2,
    "grpo.group_size": 4,
    "grpo.epochs": 1,
    "objective.kl_weight": 0,
    "adapter.rank": 4,
    "adapter.alpha": 8,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup": 5,
    "optimizer.final_share": 0.1,
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


@dataclass(frozen=True)
class Family:
    """A family of pipelines, with random weights.

    Args:
        name: of its model.
        preset: of a run of it.
        make: saves a random pipeline in a folder.
        drawn: what diffusers draws: (folder, prompts, noise in our shape, steps, LoRA file or None) -> images [N, 3, H, W]
            and the times that it went through, in ours. One that adds noise between its steps draws it from `step_noise`.
        settings: of its model, beside those of every tiny one.
        changes: of its run, beside those of every tiny one.
        learning: changes that make twenty iterations learn.
        detached: passes of the network that come with each one of a rollout or of the reference, as guidance asks for.
        label: of its tests, where its model has several.
    """

    name: str
    preset: str
    make: Callable[[Path], Path]
    drawn: Callable[[Path, list[str], Tensor, int, Path | None], tuple[Tensor, tuple[float, ...]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    learning: Mapping[str, Any] = field(default_factory=dict)
    detached: int = 0
    label: str = ""

    @property
    def side(self) -> int:
        """Of its pictures, pixels."""
        return self.settings.get("resolution", SIDE)

    def model(self, folder: Path, **settings: Any) -> PipelineModel:
        """The tiny model; it loads on `CPU`."""
        plain = {"source": str(folder), "resolution": SIDE, "max_tokens": TOKENS, "dtype": "fp32"}
        return MODELS[self.name](**plain | self.settings | settings)  # type: ignore[return-value]

    def run(self, folder: Path, **changes: Any) -> RunConfig:
        """A run of it that takes seconds; `a__b=1` sets a.b."""
        own = {f"model.{name}": value for name, value in self.settings.items()} | dict(self.changes)
        given = {key.replace("__", "."): value for key, value in changes.items()}
        return configure(self.preset, TINY | own | {"model.source": str(folder)} | given)


def sampled(generator: Any, latents: Tensor, times: tuple[float, ...], prompts: tuple[str, ...] = PROMPTS) -> Tensor:
    """Images as they are drawn when it counts, from latents that are given."""
    flow_map, kernel, fresh = generator.bind(generator.embed(prompts)), deployed_sampler(generator.kind), step_noise()
    with torch.no_grad():
        for t, s in pairwise(times):
            latents = kernel.step(flow_map, latents, t, s).sample(torch.randn(latents.shape, generator=fresh))
        return generator.decode(latents)


def step_noise() -> torch.Generator:
    """Where noise comes from that is added between steps, ours and diffusers'."""
    return torch.Generator().manual_seed(1)


def noise(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
