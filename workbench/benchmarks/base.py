"""What ships: the size of the generator, how well it draws at 1, 2, 4 and 8 steps before any alignment, and how fast."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.config import RunConfig, configure
from workbench.evaluate import HeldOut, breakdown, generate, held_out, load_policy, measure
from workbench.events import Measure
from workbench.models.embedded import load_weights, shipped_weights
from workbench.models.policy import Policy
from workbench.models.shapes import ShapesModel
from workbench.rewards import REWARDS
from workbench.tasks.shapes_scenes import parse, render, sample_scenes

NOISE_SEED = 1_000_000
"""First seed of the images that benchmarks look at: far from those of any run's own evaluation."""


def fresh_sample(config: RunConfig, prompts: int, per_prompt: int, seed: int = NOISE_SEED) -> HeldOut:
    """Held-out prompts, balanced over the skills, with noise that no run has been evaluated on."""
    return held_out(config.task, prompts * per_prompt, per_prompt, seed)


def measure_images(images: Tensor, sample: HeldOut, config: RunConfig) -> dict[str, Measure]:
    """Every reward and statistic of the domain for images [N, 3, H, W] of `sample`, also those that a run does not train on."""
    device = torch.device("cpu")
    fitting = {name: reward for name, reward in REWARDS.items() if reward.domain in ("", config.task.domain)}
    quick = {name: reward().load(device) for name, reward in fitting.items() if not reward.background}
    return measure(images, sample, config.task, quick)


def draw(policy: Policy, sample: HeldOut, config: RunConfig, steps: int) -> Tensor:
    """Images of a sample with the deterministic sampler on the run's grid, [N, 3, H, W] in [0, 1]."""
    return generate(policy, sample.prompts, sample.seeds, times=config.rollout.grid_of(steps))


def bench_base(
    prompts: int = 512,
    per_prompt: int = 4,
    steps: Sequence[int] = (1, 2, 4, 8),
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The shipped weights: bytes, parameters, model card, and held-out figures by number of steps with 95 % intervals."""
    config = configure("shapes")
    sample = fresh_sample(config, prompts, per_prompt)
    policy = load_policy(config)
    by_steps = {}
    for count in steps:
        by_steps[str(count)] = _figures(policy, sample, config, count)
        if progress is not None:
            progress(f"base: {len(sample.prompts)} images with {count} steps")
    return {
        "weights": _weights(),
        "held_out_prompts": prompts,
        "images": len(sample.prompts),
        "shift": config.rollout.shift,
        "threads": torch.get_num_threads(),
        "steps": by_steps,
        "drawn_by_the_renderer": _reference_figures(policy, sample, config),
    }


def _weights() -> dict[str, Any]:
    """Size and contents of the file, and what it says of its own making."""
    path, networks = shipped_weights("shapes"), ShapesModel.networks()
    card = load_weights(path, networks._asdict())
    return {
        "megabytes": path.stat().st_size / 1e6,
        "network_parameters": sum(p.numel() for p in networks.network.parameters()),
        "autoencoder_parameters": sum(p.numel() for p in networks.autoencoder.parameters()),
        "model_card": card,
    }


def _figures(policy: Policy, sample: HeldOut, config: RunConfig, steps: int) -> dict[str, Any]:
    draw(policy, HeldOut(sample.prompts[:8], sample.seeds[:8], sample.group_size), config, steps)  # warm caches
    began = time.perf_counter()
    images = draw(policy, sample, config, steps)
    seconds = time.perf_counter() - began
    exact = REWARDS["shapes_exact"]().load(torch.device("cpu"))(images, sample.prompts)
    return {
        **as_figures(measure_images(images, sample, config)),
        "exact_by_skill": as_figures(breakdown(exact, sample, config.task)),
        "images_per_second": len(images) / seconds,
    }


def _reference_figures(policy: Policy, sample: HeldOut, config: RunConfig) -> dict[str, Any]:
    """The same prompts drawn by the renderer, as they are and through the generator's autoencoder: the best that it could do."""
    rendered = render(sample_scenes([parse(prompt) for prompt in sample.prompts], np.random.default_rng(0)))
    with torch.no_grad():
        passed = policy.generator.decode(policy.generator.encode(rendered))
    return {
        "rendered": as_figures(measure_images(rendered, sample, config)),
        "rendered_and_autoencoded": as_figures(measure_images(passed, sample, config)),
    }


def as_figures(measures: Mapping[str, Measure]) -> dict[str, dict[str, float]]:
    """Measures as plain numbers: value, low and high."""
    return {name: asdict(value) for name, value in measures.items()}
