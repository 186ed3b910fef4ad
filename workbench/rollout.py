"""Rollouts: prompts -> groups of samples, and the stochastic transitions that a policy gradient needs."""

from collections.abc import Generator as Stream
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from workbench.contracts import Generator, Sampler
from workbench.events import Progress
from workbench.flow import Gaussian, seed_stream, seeded_noise
from workbench.samplers.ode import deterministic_step

T = TypeVar("T")


@dataclass(frozen=True)
class Transition:
    """One stochastic step of a rollout: M states x_t, each with C children x_s that share the state's Gaussian.

    Branching draws many children of few states; a plain trajectory has one child per state. Either way an update costs one
    forward pass per *state*.
    """

    step: int  # index into the time grid
    t: float
    s: float
    std: float  # data units
    embeddings: Any  # of the states' prompts, row for row
    states: Tensor  # [M, ...]
    children: Tensor  # [M, C, ...]
    means: Tensor  # [M, ...], of the policy that sampled
    log_probs: Tensor  # [M, C], mean over dimensions, of the policy that sampled


@dataclass(frozen=True)
class Rollout:
    """N = P * G samples, those of one prompt contiguous."""

    prompts: tuple[str, ...]  # [N]
    seeds: tuple[int, ...]  # [N], the stream of each sample
    group_size: int
    times: tuple[float, ...]
    transitions: tuple[Transition, ...]
    final: Tensor  # [N, ...], latents at t = 0

    @property
    def latents(self) -> tuple[Tensor, ...]:
        """The states [M, ...] before each stochastic step."""
        return tuple(transition.states for transition in self.transitions)

    @property
    def means(self) -> tuple[Tensor, ...]:
        """The Gaussians' means [M, ...] of each stochastic step."""
        return tuple(transition.means for transition in self.transitions)

    @property
    def log_probs(self) -> tuple[Tensor, ...]:
        """[N] for each stochastic step: means over dimensions, of the policy that sampled."""
        return tuple(transition.log_probs.flatten() for transition in self.transitions)


@dataclass(frozen=True)
class Plan:
    """How one rollout is drawn."""

    times: tuple[float, ...]
    group_size: int
    branch_step: int | None = 0  # the one stochastic step; None makes every step but the last stochastic
    completion: Literal["jump", "compose"] = "jump"
    antithetic: bool = True
    shared_noise: bool = False
    sample_batch: int = 512  # samples per forward pass
    train_batch: int = 64  # states per forward pass of a stochastic step, as in the update: it makes the first ratio exactly 1


def sample_rollout(
    generator: Generator,
    sampler: Sampler,
    prompts: Sequence[str],
    plan: Plan,
    *,
    key: tuple[int | str, ...],
    first_prompt: int = 0,
) -> Rollout:
    """`stream_rollout`, run to its end."""
    return drain(stream_rollout(generator, sampler, prompts, plan, key=key, first_prompt=first_prompt))


def drain(stream: Stream[Any, None, T]) -> T:
    """Run a stream to its end, for what it returns."""
    while True:
        try:
            next(stream)
        except StopIteration as stop:
            return stop.value


@torch.no_grad()
def stream_rollout(
    generator: Generator,
    sampler: Sampler,
    prompts: Sequence[str],
    plan: Plan,
    *,
    key: tuple[int | str, ...],
    first_prompt: int = 0,
) -> Stream[Progress, None, Rollout]:
    """Draw a group of samples for each prompt; yields progress, returns the rollout.

    Args:
        prompts: [P], one per group.
        key: names the streams of randomness, for example (run seed, iteration).
        first_prompt: index of prompts[0] in the whole batch, so that processes sharing a batch draw the samples that one would.
    """
    size, groups = plan.group_size, len(prompts)
    names = tuple(prompt for prompt in prompts for _ in range(size))
    seeds = tuple(seed_stream("rollout", *key, first_prompt + p, j) for p in range(groups) for j in range(size))
    embeddings = generator.embed(prompts)
    if plan.branch_step is None:
        embeddings = embeddings[torch.arange(groups).repeat_interleave(size)]
        draw = _trajectories(generator, sampler, embeddings, plan, seeds)
    else:
        draw = _branches(generator, sampler, embeddings, plan, seeds)
    transitions, final = yield from draw
    return Rollout(names, seeds, size, plan.times, transitions, final)


def _trajectories(
    generator: Generator, sampler: Sampler, embeddings: Any, plan: Plan, seeds: Sequence[int]
) -> Stream[Progress, None, tuple[tuple[Transition, ...], Tensor]]:
    """Every step but the last is stochastic; each state has one child."""
    times, last = plan.times, len(plan.times) - 2
    sources = [seeds[i - i % plan.group_size] for i in range(len(seeds))] if plan.shared_noise else seeds
    x = _noise(sources, -1, generator)
    transitions = []
    for step in range(last):
        transition = yield from _stochastic_step(
            generator, sampler, embeddings, plan, step, x, _noise(seeds, step, generator)[:, None]
        )
        transitions.append(transition)
        x = transition.children[:, 0]
    x = yield from _finish(generator, embeddings, x, times[last:], plan.sample_batch)
    return tuple(transitions), x


def _branches(
    generator: Generator, sampler: Sampler, embeddings: Any, plan: Plan, seeds: Sequence[int]
) -> Stream[Progress, None, tuple[tuple[Transition, ...], Tensor]]:
    """A deterministic trunk for each prompt, children at one stochastic step, each finished deterministically.

    Source: TempFlow-GRPO (arXiv:2508.04324), trajectory branching; a flow map finishes a child in one jump.
    """
    size, step = plan.group_size, plan.branch_step
    assert step is not None
    trunk = yield from _finish(
        generator, embeddings, _noise(seeds[::size], -1, generator), plan.times[: step + 1], plan.sample_batch
    )
    noise = _noise(seeds, step, generator).unflatten(0, (-1, size))
    if plan.antithetic:
        half = noise[:, : size // 2]
        noise = torch.cat([half, -half], dim=1)
    transition = yield from _stochastic_step(generator, sampler, embeddings, plan, step, trunk, noise)
    rows = torch.arange(len(trunk)).repeat_interleave(size)
    rest = (plan.times[step + 1], 0.0) if plan.completion == "jump" else plan.times[step + 1 :]
    final = yield from _finish(generator, embeddings[rows], transition.children.flatten(0, 1), rest, plan.sample_batch)
    return (transition,), final


def _stochastic_step(
    generator: Generator, sampler: Sampler, embeddings: Any, plan: Plan, step: int, x: Tensor, noise: Tensor
) -> Stream[Progress, None, Transition]:
    """One scored step from x [M, ...] with noise [M, C, ...]."""
    t, s = plan.times[step], plan.times[step + 1]
    means, std = [], 0.0
    for start in range(0, len(x), plan.train_batch):
        rows = slice(start, start + plan.train_batch)
        gaussian = sampler.step(generator.bind(embeddings[rows]), x[rows], t, s)
        means.append(gaussian.mean)
        std = gaussian.std
        yield Progress("rollout", start, len(x))
    gaussian = Gaussian(torch.cat(means), std)
    children = gaussian.mean[:, None] + std * noise
    return Transition(step, t, s, std, embeddings, x, children, gaussian.mean, child_log_probs(gaussian, children))


def child_log_probs(gaussian: Gaussian, children: Tensor) -> Tensor:
    """Log-density [M, C], a mean over dimensions, of children [M, C, ...] under their states' Gaussians."""
    means = gaussian.mean[:, None].expand_as(children).flatten(0, 1)
    return Gaussian(means, gaussian.std).log_prob(children.flatten(0, 1)).unflatten(0, children.shape[:2])


def _finish(
    generator: Generator, embeddings: Any, x: Tensor, times: Sequence[float], batch: int
) -> Stream[Progress, None, Tensor]:
    """Deterministic steps along `times`, from its first to its last."""
    parts = []
    for start in range(0, len(x), batch):
        part, flow_map = x[start : start + batch], generator.bind(embeddings[start : start + batch])
        for t, s in pairwise(times):
            part = deterministic_step(flow_map, part, t, s)
            yield Progress("rollout", start, len(x))
        parts.append(part)
    return torch.cat(parts)


def _noise(seeds: Sequence[int], step: int, generator: Generator) -> Tensor:
    """The noise of each sample at a step; step -1 is the initial noise."""
    return seeded_noise([seed_stream(seed, step) for seed in seeds], generator.latent_shape, generator.device)
