"""The anchored kernel's two knobs on a learned map: what its samples score, how far they explore, and what the map gets wrong."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.config import RunConfig, configure
from workbench.contracts import Generator, Sampler
from workbench.energy import mean_distance
from workbench.evaluate import HeldOut, held_out, image_noise, interval, load_policy, measure
from workbench.flow import noise_to_signal, seed_stream, seeded_noise, time_of_ratio
from workbench.recipes import RECIPES
from workbench.samplers.asfmc import AnchoredSampler

KNOBS = (0.0, 0.25, 0.5, 0.75, 1.0)
IMAGE_SEED = 2_000_000
"""First seed of the groups' initial noise."""


def bench_anchor_noise(
    preset: str = "shapes",
    anchors: Sequence[float] = KNOBS,
    noises: Sequence[float] = KNOBS,
    prompts: int = 64,
    per_prompt: int = 8,
    changes: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What the base model of a preset does at each anchor and noise, on the preset's grid and held-out prompts.

    With an exact map neither the reward nor the energy distance would depend on the knobs, and the path error would be 0.

    Args:
        per_prompt: samples of a group, at least 2.
        changes: dotted settings, as `configure` takes them.
    Returns: tables with a row for each noise and a column for each anchor.
        `reward`: the preset's weighted rewards, mean over samples that share nothing; `reward_half_width`, of its 95 % interval
        over prompts; and a table for each reward by its name.
        `diversity`: mean distance of two images of a group that also shares its initial noise, so that whatever differs is the
        kernel's doing; root mean square over pixels.
        `path_error`: see there.
        `energy_distance`: between the latents of the samples that share nothing and those of pictures drawn for the same
        prompts; beside it `energy_distance_of_data`, that of other such pictures.
    Raises: ValueError: if the model is no two-time map, or nobody can draw pictures for its prompts.
    """
    config = configure(preset, changes)
    if config.model.kind != "two_time":
        raise ValueError(f"anchor and noise are knobs of a two-time map, but {config.model.name} is {config.model.kind}")
    if config.model.name not in RECIPES:
        raise ValueError(f"nothing draws pictures for {config.model.name}; choose a model from: {', '.join(RECIPES)}")
    sample = held_out(config.task, prompts * per_prompt, per_prompt, IMAGE_SEED)
    generator = load_policy(config).generator
    data = [_drawn(config, generator, sample, seed) for seed in (0, 1)]
    rewards = {item.reward.name: (item.weight, item.reward.load(generator.device)) for item in config.rewards}
    silent: dict[str, float] | None = None
    cells: dict[str, list[list[float]]] = {}
    for row, (noise, anchor) in enumerate(itertools.product(noises, anchors)):
        if noise * anchor > 0 or silent is None:
            sampler = AnchoredSampler(noise=noise, anchor=anchor)
            latents = roll_out(generator, sampler, sample, config.times)
            images = _decoded(generator, latents)
            values = {name: reward(images, sample.prompts) for name, (_, reward) in rewards.items()}
            total = sum(rewards[name][0] * value for name, value in values.items())
            mean = interval(total.double().view(-1, per_prompt).mean(1))
            shared = _decoded(generator, roll_out(generator, sampler, sample, config.times, shared_noise=True))
            found = {name: float(value.mean()) for name, value in values.items()} | {
                "reward": mean.value,
                "reward_half_width": mean.high - mean.value,
                "diversity": measure(shared, sample, config.task, {})["diversity"].value,
                "path_error": path_error(generator, sample, config.times, noise, anchor),
                "energy_distance": energy_distance(latents, data[0]),
            }
            silent = found if noise * anchor == 0 else silent
        else:
            found = silent  # without noise, or with none to add, the kernel is plain composition
        for name, value in found.items():
            table = cells.setdefault(name, [[] for _ in noises])
            table[row // len(anchors)].append(value)
        if progress is not None:
            progress(f"anchor_noise: noise {noise:g}, anchor {anchor:g}")
    return {
        "preset": preset,
        "model": config.model.name,
        "steps": config.rollout.steps,
        "held_out_prompts": prompts,
        "images": len(sample.prompts),
        "anchors": list(anchors),
        "noises": list(noises),
        **cells,
        "energy_distance_of_data": energy_distance(data[1], data[0]),
    }


@torch.no_grad()
def roll_out(
    generator: Generator, sampler: Sampler, sample: HeldOut, times: Sequence[float], *, shared_noise: bool = False
) -> Tensor:
    """Latents [N, *latent_shape] of a sample; every row draws its own noise, the initial one too unless its group shares that."""
    size = sample.group_size
    seeds = [sample.seeds[index - index % size] for index in range(len(sample.seeds))] if shared_noise else sample.seeds
    flow_map = generator.bind(generator.embed(sample.prompts))
    x = image_noise(seeds, generator.latent_shape, generator.device)
    for step, (t, s) in enumerate(pairwise(times)):
        transition = sampler.step(flow_map, x, t, s)
        streams = [seed_stream("anchor noise", seed, step) for seed in sample.seeds]
        x = transition.sample(seeded_noise(streams, generator.latent_shape, generator.device))
    return x


@torch.no_grad()
def path_error(generator: Generator, sample: HeldOut, times: Sequence[float], noise: float, anchor: float) -> float:
    """How far the jump that the kernel trains and the jump that is deployed disagree about where a sample ends.

    From each x_t of a deterministic rollout the map goes to the effective anchor r and on to the data, psi(psi(x, t, r), r, 0),
    and to the target s and on to the data, psi(psi(x, t, s), s, 0). With an exact map both are psi(x, t, 0).

    Returns: their difference, root mean square over latent numbers, samples, and all steps but the last.
    """
    flow_map = generator.bind(generator.embed(sample.prompts))
    x = image_noise(sample.seeds, generator.latent_shape, generator.device)
    squares = []
    for t, s in pairwise(times[:-1]):
        k_s, k_anchor = noise_to_signal(s), noise_to_signal(s * (1.0 - anchor))
        r = min(time_of_ratio(((1.0 - noise**2) * k_s**2 + noise**2 * k_anchor**2) ** 0.5), s)
        deployed = flow_map(x, t, s)
        squares.append((flow_map(flow_map(x, t, r), r, 0.0) - flow_map(deployed, s, 0.0)).square().mean())
        x = deployed
    return float(torch.stack(squares).mean().sqrt())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Squared energy distance of two samples of latents, [n, ...] and [m, ...]: 2 E|X-Y| - E|X-X'| - E|Y-Y'|, unbiased."""
    a, b = x.flatten(1), y.flatten(1)
    within = (mean_distance(z, z) * len(z) / (len(z) - 1) for z in (a, b))  # its own point aside
    return 2 * mean_distance(a, b) - sum(within)


@torch.no_grad()
def _decoded(generator: Generator, latents: Tensor) -> Tensor:
    return generator.decode(latents).cpu()


@torch.no_grad()
def _drawn(config: RunConfig, generator: Generator, sample: HeldOut, seed: int) -> Tensor:
    """Latents of pictures drawn for the sample's prompts."""
    return generator.encode(RECIPES[config.model.name].domain.draw(sample.prompts, np.random.default_rng(seed)))
