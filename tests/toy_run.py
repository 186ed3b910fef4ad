"""A made-up run for tests of the page: real events with random pictures, no model and no training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from workbench.config import RunConfig, configure
from workbench.events import (
    Check,
    CheckpointReady,
    Evaluated,
    Event,
    Finished,
    GroupsScored,
    IterationDone,
    Measure,
    PreflightDone,
    Preview,
    Progress,
    Started,
)

COLOURS = torch.tensor([[226, 55, 50], [60, 180, 75], [64, 112, 240], [245, 200, 40]], dtype=torch.uint8)
PROMPTS = tuple(
    f"{number} {colour} {shape}s"
    for number in ("two", "three")
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("square", "circle")
)


SMALL = {"grpo.groups": 2, "evaluation.images": 8, "evaluation.final_images": 8, "evaluation.preview": 4}
SMALL |= {"evaluation.steps": (4,)}
"""Settings with which a real iteration takes a fraction of a second."""


def toy_config(iterations: int = 30, **changes: Any) -> RunConfig:
    return configure("shapes", {"title": "Toy run", "iterations": iterations, "grpo.groups": 16, **changes})


def toy_events(config: RunConfig, *, drift: float = 1.0, start: int = 0) -> Iterator[Event]:
    """The events of a run whose reward rises; `drift` is how far the palette distance has grown at its end."""
    yield Started(start, {"device": "cpu", "parameters": 12})
    if start == 0:
        yield _evaluation(config, 0, drift)
        yield PreflightDone(
            0,
            (
                Check("first ratio", "green", "The first ratio is exactly 1.", 1.0),
                Check("spread", "amber", "A third of the groups agree.", 0.3),
            ),
        )
        yield CheckpointReady(0, {}, {"iteration": 0})
    for iteration in range(start + 1, config.iterations + 1):
        yield Progress("rollout", 1, 2)
        yield _groups(config, iteration)
        yield IterationDone(iteration, _metrics(config, iteration), 0.5)
        if iteration % 10 == 0:
            yield _evaluation(config, iteration, drift)
    yield CheckpointReady(config.iterations, {}, {"iteration": config.iterations})
    yield Finished(config.iterations, {})


def toy_images(count: int, seed: int) -> Tensor:
    """Dark pictures with a few coloured blocks, uint8 [count, 3, 40, 40]."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, 40, 40, dtype=torch.uint8) + 18
    for image in images:
        for _ in range(int(torch.randint(1, 4, (), generator=draw))):
            y, x = (int(v) for v in torch.randint(1, 31, (2,), generator=draw))
            image[:, y : y + 8, x : x + 8] = COLOURS[int(torch.randint(4, (), generator=draw))][:, None, None]
    return images


def _noise(*key: int) -> float:
    return float(torch.randn((), generator=torch.Generator().manual_seed(hash(key) % 2**31)))


def _metrics(config: RunConfig, iteration: int) -> dict[str, float]:
    share = iteration / config.iterations
    wave = 0.03 * _noise(iteration)
    return {
        "reward": 0.3 + 0.4 * share + wave,
        "reward_std": 0.25 - 0.1 * share + wave / 5,
        "kl": 0.4 * share + abs(wave),
        "clip_fraction": 0.05 + abs(wave),
        "ratio": 1.0 + wave * 1e-4,
        "gradient_norm": 0.6 + wave * 4,
        "update_size": 4e-4 + abs(wave) * 1e-3,
        "images_per_second": 520 + 300 * wave,
    }


def _groups(config: RunConfig, iteration: int) -> GroupsScored:
    size, count = config.grpo.group_size, config.grpo.groups
    draw = torch.Generator().manual_seed(iteration)
    rewards = torch.rand(count, size, generator=draw)
    rewards[1] = 0.5
    spread = rewards.std(1, correction=0, keepdim=True)
    advantages = torch.where(spread > 0, (rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-6), 0.0).clamp(-3, 3)
    advantages[1] = 0.0
    shown = tuple(range(min(config.record.groups_shown, count)))
    flat = tuple(rewards.flatten().tolist())
    return GroupsScored(
        iteration,
        PROMPTS[:count],
        size,
        tuple(1000 * iteration + i for i in range(count * size)),
        flat,
        {"shapes_dense": flat, "shapes_exact": tuple(float(r > 0.7) for r in flat), "shapes_fidelity": tuple(0.9 for _ in flat)},
        tuple(advantages.flatten().tolist()),
        (0,),
        (tuple((-1.4 + 0.01 * torch.randn(count * size, generator=draw)).tolist()),),
        (0.62,),
        shown,
        Preview(toy_images(len(shown) * size, iteration)),
    )


def _evaluation(config: RunConfig, iteration: int, drift: float) -> Evaluated:
    share = iteration / config.iterations

    def around(value: float, half: float = 0.03) -> Measure:
        return Measure(value, value - half, value + half)

    def measures(steps: int) -> dict[str, Measure]:
        level = {1: 0.6, 2: 0.8, 4: 1.0, 8: 1.02}[steps]
        return {
            "shapes_dense": around(level * (0.4 + 0.3 * share)),
            "shapes_exact": around(level * (0.15 + 0.4 * share)),
            "shapes_fidelity": around(0.9),
            "palette_distance": around(0.011 * (1 + (drift - 1) * share), 0.001),
            "saturation": around(0.2),
            "diversity": around(0.3),
            "layouts": around(0.97, 0.01),
            "distance_to_base": around(0.2 * share),
        }

    count = config.evaluation.preview
    every = config.evaluation.steps if iteration in (0, config.iterations) else (config.rollout.steps,)
    return Evaluated(
        iteration,
        {steps: measures(steps) for steps in every},
        256,
        tuple(PROMPTS[i % len(PROMPTS)] for i in range(count)),
        tuple(20_000 + i for i in range(count)),
        Preview(toy_images(count, 7 if iteration == 0 else 100 + iteration)),
    )
