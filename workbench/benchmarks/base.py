"""What ships: the size of each generator, how well it draws by number of steps before any alignment, and how fast."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.contracts import Generator, Task
from workbench.evaluate import HeldOut, breakdown, generate, held_out, measure, stream_images
from workbench.events import Measure
from workbench.flow import time_grid
from workbench.models.embedded import load_weights, shipped_weights
from workbench.models.policy import Policy
from workbench.recipes import RECIPES
from workbench.recipes.base import Recipe
from workbench.rewards import REWARDS
from workbench.rollout import drain

NOISE_SEED = 1_000_000
"""First seed of the images that benchmarks look at: far from those of any run's own evaluation."""


def wait(device: torch.device) -> None:
    """Until the device has done what it was given, as a clock that is read next takes for granted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fresh_sample(config: RunConfig, prompts: int, per_prompt: int, seed: int = NOISE_SEED) -> HeldOut:
    """Held-out prompts, balanced over the skills, with noise that no run has been evaluated on."""
    return held_out(config.task, prompts * per_prompt, per_prompt, seed)


def measure_images(images: Tensor, sample: HeldOut, config: RunConfig) -> dict[str, Measure]:
    """Every reward and statistic of the domain for images [N, 3, H, W] of `sample`, also those that a run does not train on."""
    return measure(images, sample, config.task, _quick_scores(config.task, images, sample))


def draw(policy: Policy, sample: HeldOut, config: RunConfig, steps: int) -> Tensor:
    """Images of a sample with the deterministic sampler on the run's grid, [N, 3, H, W] in [0, 1]."""
    return generate(policy, sample.prompts, sample.seeds, times=config.rollout.grid_of(steps))


def bench_base(
    models: Sequence[str] = tuple(RECIPES),
    prompts: int = 512,
    per_prompt: int = 4,
    steps: Sequence[int] = (),
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The shipped weights of each model: bytes, parameters, model card, and held-out figures by number of steps.

    Sampled as deployed, on the grid of its recipe; figures have 95 % intervals over prompts.

    Args:
        models: names of recipes.
        steps: numbers of sampling steps; those that the recipe itself is judged by where none are given.
    """
    return {
        "held_out_prompts": prompts,
        "images": prompts * per_prompt,
        "threads": torch.get_num_threads(),
        "models": {name: _model_figures(RECIPES[name](), prompts, per_prompt, steps, progress) for name in models},
    }


def _model_figures(
    recipe: Recipe, prompts: int, per_prompt: int, steps: Sequence[int], progress: Callable[[str], None] | None
) -> dict[str, Any]:
    task = recipe.domain.task
    generator = recipe.model().load(torch.device("cpu"))
    sample = held_out(task, prompts * per_prompt, per_prompt, NOISE_SEED)
    by_steps = {}
    for count in steps or recipe.stages()[-1].evaluated_with:
        by_steps[str(count)] = _figures(recipe, generator, sample, count)
        if progress is not None:
            progress(f"base: {recipe.name}, {len(sample.prompts)} images with {count} steps")
    return {
        "kind": generator.kind,
        "weights": _weights(recipe),
        "shift": recipe.shift,
        "steps": by_steps,
        "drawn_by_the_renderer": _reference_figures(recipe, generator, sample),
    }


def _weights(recipe: Recipe) -> dict[str, Any]:
    """Size and contents of the file, and what it says of its own making."""
    path, networks = shipped_weights(recipe.name), recipe.model.networks()
    card = load_weights(path, networks._asdict())
    return {
        "megabytes": path.stat().st_size / 1e6,
        "network_parameters": sum(p.numel() for p in networks.network.parameters()),
        "autoencoder_parameters": sum(p.numel() for p in networks.autoencoder.parameters()),
        "model_card": card,
    }


def _figures(recipe: Recipe, generator: Generator, sample: HeldOut, steps: int) -> dict[str, Any]:
    times, task = time_grid(steps, recipe.shift), recipe.domain.task
    drain(stream_images(generator, sample.prompts[:8], sample.seeds[:8], times=times))  # warm caches
    began = time.perf_counter()
    images = drain(stream_images(generator, sample.prompts, sample.seeds, times=times))
    seconds = time.perf_counter() - began
    success = REWARDS[recipe.domain.rewards[0]]().load(generator.device)(images, sample.prompts)
    return {
        **as_figures(measure(images, sample, task, _quick_scores(task, images, sample))),
        "success_by_skill": as_figures(breakdown(success, sample, task)),
        "images_per_second": len(images) / seconds,
    }


def _reference_figures(recipe: Recipe, generator: Generator, sample: HeldOut) -> dict[str, Any]:
    """The same prompts drawn by the renderer, as they are and through the generator's autoencoder: the best that it could do."""
    task = recipe.domain.task
    rendered = recipe.domain.draw(sample.prompts, np.random.default_rng(0))
    with torch.no_grad():
        passed = generator.decode(generator.encode(rendered))
    return {
        "rendered": as_figures(measure(rendered, sample, task, _quick_scores(task, rendered, sample))),
        "rendered_and_autoencoded": as_figures(measure(passed, sample, task, _quick_scores(task, passed, sample))),
    }


def _quick_scores(task: Task, images: Tensor, sample: HeldOut) -> dict[str, Tensor]:
    """What every reward says that is made for the task's images and quick enough to train on, by name."""
    fitting = {name: kind for name, kind in REWARDS.items() if kind.domain == task.domain and not kind.background}
    return {name: kind().load(torch.device("cpu"))(images, sample.prompts) for name, kind in fitting.items()}


def as_figures(measures: Mapping[str, Measure]) -> dict[str, dict[str, float]]:
    """Measures as plain numbers: value, low and high."""
    return {name: asdict(value) for name, value in measures.items()}
