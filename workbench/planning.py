"""How an iteration's rollout is drawn: which steps are stochastic, and in what shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.contracts import FlowMapKind, Sampler, Time
from workbench.flow import noise_rate, noise_share, seeded_uniform
from workbench.rollout import Plan


def plan_rollout(config: RunConfig, iteration: int, stds: Sequence[float], spreads: Sequence[float]) -> Plan:
    """The plan of one iteration, the same on all processes.

    Args:
        stds: of the kernel at every step but the last; steps where it is 0 stay deterministic.
        spreads: reward spread inside groups by branching step; one that branches once does so in proportion to it.
    """
    rollout, compute = config.rollout, config.compute
    noisy = [spread if std > 0 else 0.0 for spread, std in zip(spreads, stds, strict=True)]  # nothing branches without noise
    steps = tuple(step for step in _steps(config, iteration, noisy) if stds[step] > 0)
    return Plan(
        config.times,
        config.grpo.group_size,
        rollout.mode if rollout.mode in ("branch", "tree") else "chain",
        steps,
        rollout.completion,
        rollout.antithetic,
        rollout.shared_noise,
        compute.sample_batch,
        compute.train_batch,
    )


def _steps(config: RunConfig, iteration: int, spreads: Sequence[float]) -> Sequence[int]:
    rollout, every = config.rollout, config.training_steps
    if rollout.mode == "window":
        first = _window(config, iteration)
        return every[first : first + rollout.window]
    if rollout.mode == "tree":
        return rollout.chosen_steps or every
    if rollout.mode == "branch" and rollout.branch_at == "drawn":
        draw = seeded_uniform(config.seed, "branch step", iteration) * sum(spreads)
        return (next((step for step in every if draw < sum(spreads[: step + 1])), every[-1]),)
    return rollout.chosen_steps if rollout.mode == "branch" and rollout.branch_at == "chosen" else every


def _window(config: RunConfig, iteration: int) -> int:
    """The first step of the window.

    Source: sliding, and then staying at the end, MixGRPO (arXiv:2507.21802); jumping, Flow-GRPO-Fast (arXiv:2505.05470).
    """
    rollout = config.rollout
    if rollout.window_moves == "slides":
        return min(iteration // rollout.window_every, len(config.training_steps) - rollout.window)
    places = min(rollout.window_until or rollout.steps, len(config.training_steps)) - rollout.window + 1
    return int(seeded_uniform(config.seed, "window", iteration) * places)


def kernel_stds(sampler: Sampler, kind: FlowMapKind, times: Sequence[float]) -> tuple[float, ...]:
    """The kernel's standard deviation at every step of a grid but the last, in data units; it depends on no network."""
    still, nothing = _Still(kind), torch.zeros(1, 1)
    return tuple(sampler.step(still, nothing, t, s).std for t, s in pairwise(times[:-1]))


@dataclass(frozen=True)
class StepNoise:
    """The noise of one stochastic step, in its own unit and in those that all kernels share."""

    t: float
    s: float
    std: float  # data units
    share: float  # of the noise in x_s, drawn afresh
    rate: float  # lambda; infinite where nothing of the old noise is kept, 0 from pure noise


def noise_of_steps(config: RunConfig) -> list[StepNoise]:
    """The noise of every step of the rollout's grid but the last, whichever of them an iteration makes stochastic."""
    return kernel_noise(config.sampler, config.model.kind, config.times)


def kernel_noise(sampler: Sampler, kind: FlowMapKind, times: Sequence[float]) -> list[StepNoise]:
    """The noise that a kernel draws at every step of a grid but the last."""
    return [
        StepNoise(t, s, std, noise_share(std, s), noise_rate(std, t, s))
        for std, (t, s) in zip(kernel_stds(sampler, kind, times), pairwise(times[:-1]), strict=True)
    ]


@dataclass(frozen=True)
class _Still:
    """A flow map that goes nowhere."""

    kind: FlowMapKind

    def __call__(self, x: Tensor, t: Time, s: Time) -> Tensor:
        return x

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        return torch.zeros_like(x)
