"""Rollouts: prompts -> groups of samples, and the stochastic transitions that a policy gradient needs."""

from collections.abc import Callable, Sequence
from collections.abc import Generator as Stream
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from workbench.contracts import Detaching, Generator, Sampler
from workbench.events import Progress
from workbench.flow import Gaussian, seed_stream, seeded_noise
from workbench.samplers.ode import deterministic_step

T = TypeVar("T")

Finished = Callable[[Tensor, Tensor], None]
"""Takes latents [n, ...] at t = 0, and which of the prompts each is of, [n]."""


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
    rows: Tensor  # [M], which of the rollout's embeddings each state is conditioned on
    states: Tensor  # [M, ...]
    children: Tensor  # [M, C, ...]
    means: Tensor  # [M, ...], of the policy that sampled
    log_probs: Tensor  # [M, C], mean over dimensions, of the policy that sampled
    leaves: Tensor  # [M, C, L], which of the rollout's samples descend from each child
    kept: tuple[Tensor, ...] = ()  # [M, ...] each, what the map of `Detaching` worked out without a gradient, call by call


@dataclass(frozen=True)
class Rollout:
    """N samples in groups that are compared with one another, the samples of a group contiguous."""

    prompts: tuple[str, ...]  # [N]
    seeds: tuple[int, ...]  # [N], the stream of each sample
    group_size: int
    times: tuple[float, ...]
    embeddings: Any  # of the P distinct prompts
    rows: Tensor  # [N], which of the embeddings each sample is conditioned on
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
        """[N] for each stochastic step: means over dimensions, of the policy that sampled; NaN where a sample took no part."""
        return tuple(self.by_sample(transition, transition.log_probs) for transition in self.transitions)

    def by_sample(self, transition: Transition, values: Tensor) -> Tensor:
        """Values [M, C] of a step's children for the samples that descend from them, [N]; NaN for the others."""
        found = torch.full((len(self.prompts),), torch.nan)
        found[transition.leaves] = values[..., None].expand(transition.leaves.shape).cpu()
        return found


@dataclass(frozen=True)
class Plan:
    """How one rollout is drawn.

    chain: every sample is a trajectory of its own, stochastic at `steps`. branch: for each of `steps` the children of one state
    of the prompt's deterministic trunk, a group for each step. tree: every node splits at each of `steps` into equally many
    children, so that a group has children ** len(steps) leaves.
    """

    times: tuple[float, ...]
    group_size: int  # trajectories of a prompt, children of a branching state, or leaves of a tree
    structure: Literal["chain", "branch", "tree"] = "branch"
    steps: tuple[int, ...] = (0,)  # the stochastic ones, ascending; never the last of the grid
    completion: Literal["jump", "compose"] = "jump"
    antithetic: bool = True
    shared_noise: bool = False
    sample_batch: int = 512  # samples per forward pass
    train_batch: int = 64  # states per forward pass of a stochastic step, as in the update: it makes the first ratio exactly 1

    @property
    def children(self) -> int:
        """How many a state has."""
        if self.structure == "tree":
            return children_of_a_tree(self.group_size, len(self.steps))
        return self.group_size if self.structure == "branch" else 1


def children_of_a_tree(leaves: int, splits: int) -> int:
    """How many children every node has. Raises: ValueError: if no whole number, at least 2, gives so many leaves."""
    children = round(leaves ** (1 / splits)) if splits else 0
    if children < 2 or children**splits != leaves:
        fitting = ", ".join(str(count**splits) for count in (2, 3, 4)) if splits else "none without a split"
        raise ValueError(f"a tree that splits {splits} times cannot have {leaves} leaves; possible are: {fitting}")
    return children


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
    finished: Finished | None = None,
) -> Stream[Progress, None, Rollout]:
    """Draw a group of samples for each prompt, and where several steps branch one for each of these; yields progress.

    Args:
        prompts: [P].
        key: names the streams of randomness, for example (run seed, iteration).
        first_prompt: index of prompts[0] in the whole batch, so that processes sharing a batch draw the samples that one would.
        finished: told of each portion of samples as soon as it is drawn, in their order.
    """
    size, turns = plan.group_size, len(plan.steps) if plan.structure == "branch" else 1
    seeds = [
        seed_stream("rollout", *key, first_prompt + p, turn * size + j)
        for turn in range(turns)
        for p in range(len(prompts))
        for j in range(size)
    ]
    drawing = _Drawing(generator, sampler, generator.embed(prompts), plan, finished)
    draw = {"chain": drawing.chains, "branch": drawing.branches, "tree": drawing.tree}[plan.structure]
    transitions, final = yield from draw(seeds)
    rows = torch.arange(len(prompts)).repeat_interleave(size).repeat(turns)
    return Rollout(
        tuple(prompts[row] for row in rows.tolist()),
        tuple(seeds),
        size,
        plan.times,
        drawing.embeddings,
        rows,
        tuple(transitions),
        final,
    )


_Drawn = Stream[Progress, None, tuple[list[Transition], Tensor]]  # the transitions and the finished samples


@dataclass(frozen=True)
class _Drawing:
    """One rollout being drawn."""

    generator: Generator
    sampler: Sampler
    embeddings: Any  # of the distinct prompts
    plan: Plan
    finished: Finished | None = None

    def chains(self, seeds: Sequence[int]) -> _Drawn:
        """A trajectory for each seed; where no step is stochastic they differ by their initial noise alone."""
        plan, last = self.plan, len(self.plan.times) - 1
        sources = [seeds[i - i % plan.group_size] for i in range(len(seeds))] if plan.shared_noise else seeds
        rows, leaves = torch.arange(len(seeds)) // plan.group_size, torch.arange(len(seeds))[:, None, None]
        x, at, transitions = self._noise(sources, -1), 0, []
        for step in plan.steps:
            x = yield from self._carry(x, rows, plan.times[at : step + 1])
            transitions.append((yield from self._draw(x, rows, step, self._noise(seeds, step)[:, None], leaves)))
            x, at = transitions[-1].children[:, 0], step + 1
        x = yield from self._carry(x, rows, plan.times[at : last + 1], self.finished)
        return transitions, x

    def branches(self, seeds: Sequence[int]) -> _Drawn:
        """A deterministic trunk for each prompt; at each stochastic step children leave it and are finished deterministically.

        Source: TempFlow-GRPO (arXiv:2508.04324), trajectory branching; a flow map can finish a child in one jump.
        """
        per_step = len(seeds) // len(self.plan.steps)
        rows = torch.arange(per_step // self.plan.group_size)
        trunk, at = self._noise(seeds[: per_step : self.plan.group_size], -1), 0
        transitions, finals = [], []
        for turn, step in enumerate(self.plan.steps):
            trunk = yield from self._carry(trunk, rows, self.plan.times[at : step + 1])
            at, first = step, turn * per_step
            grown, final = yield from self._grow(trunk, rows, (step,), seeds[first : first + per_step], first)
            transitions += grown
            finals.append(final)
        return transitions, torch.cat(finals)

    def tree(self, seeds: Sequence[int]) -> _Drawn:
        """A trunk for each prompt that splits at every stochastic step.

        Source: BranchGRPO (arXiv:2509.06040), TreeGRPO (arXiv:2512.08153).
        """
        rows = torch.arange(len(seeds) // self.plan.group_size)
        first = self.plan.steps[0]
        trunk = yield from self._carry(self._noise(seeds[:: self.plan.group_size], -1), rows, self.plan.times[: first + 1])
        return (yield from self._grow(trunk, rows, self.plan.steps, seeds, 0))

    def _grow(self, x: Tensor, rows: Tensor, splits: tuple[int, ...], seeds: Sequence[int], first: int) -> _Drawn:
        """Split states x [M, ...], which stand at the first of `splits`, into `children` at each; finish the leaves.

        Args:
            first: the number of the first leaf among the rollout's samples.
        """
        plan, transitions = self.plan, []
        for place, step in enumerate(splits):
            leaves = first + torch.arange(len(seeds)).view(len(x), plan.children, -1)
            noise = self._noise([seeds[leaf - first] for leaf in leaves[:, :, 0].flatten().tolist()], step)
            noise = noise.unflatten(0, leaves.shape[:2])
            if plan.antithetic:
                half = noise[:, : plan.children // 2]
                noise = torch.cat([half, -half], dim=1)
            transitions.append((yield from self._draw(x, rows, step, noise, leaves)))
            x, rows = transitions[-1].children.flatten(0, 1), rows.repeat_interleave(plan.children)
            last = place + 1 == len(splits)
            after = plan.times[step + 1 :] if last else plan.times[step + 1 : splits[place + 1] + 1]
            if last and plan.completion == "jump":
                after = (plan.times[step + 1], 0.0)
            x = yield from self._carry(x, rows, after, self.finished if last else None)
        return transitions, x

    def _draw(self, x: Tensor, rows: Tensor, step: int, noise: Tensor, leaves: Tensor) -> Stream[Progress, None, Transition]:
        """One scored step from x [M, ...] with noise [M, C, ...]."""
        t, s = self.plan.times[step], self.plan.times[step + 1]
        means, std, kept = [], 0.0, []
        for start in range(0, len(x), self.plan.train_batch):
            part = slice(start, start + self.plan.train_batch)
            gaussian, detached = self._step(x[part], rows[part], t, s)
            means.append(gaussian.mean)
            kept.append(detached)
            std = gaussian.std
            yield Progress("rollout", start, len(x))
        gaussian = Gaussian(torch.cat(means), std)
        children = gaussian.mean[:, None] + std * noise
        log_probs = child_log_probs(gaussian, children)
        calls = tuple(torch.cat(call) for call in zip(*kept, strict=True))
        return Transition(step, t, s, std, rows, x, children, gaussian.mean, log_probs, leaves, calls)

    def _step(self, x: Tensor, rows: Tensor, t: float, s: float) -> tuple[Gaussian, list[Tensor]]:
        """The sampler's, and what an update need not work out again for it."""
        flow_map, kept = self.generator.bind(self.embeddings[rows]), list[Tensor]()
        if isinstance(flow_map, Detaching):
            flow_map = flow_map.keeping(kept)
        return self.sampler.step(flow_map, x, t, s), kept

    def _carry(
        self, x: Tensor, rows: Tensor, times: Sequence[float], finished: Finished | None = None
    ) -> Stream[Progress, None, Tensor]:
        """Deterministic steps along `times`, from its first to its last; `finished` is told of each portion that is there."""
        if len(times) < 2:
            return x
        parts, batch = [], self.plan.sample_batch
        for start in range(0, len(x), batch):
            part, flow_map = x[start : start + batch], self.generator.bind(self.embeddings[rows[start : start + batch]])
            for t, s in pairwise(times):
                part = deterministic_step(flow_map, part, t, s)
                yield Progress("rollout", start, len(x))
            parts.append(part)
            if finished is not None:
                finished(part, rows[start : start + batch])
        return torch.cat(parts)

    def _noise(self, seeds: Sequence[int], step: int) -> Tensor:
        """The noise of each seed at a step; step -1 is the initial noise."""
        return seeded_noise([seed_stream(seed, step) for seed in seeds], self.generator.latent_shape, self.generator.device)


def child_log_probs(gaussian: Gaussian, children: Tensor) -> Tensor:
    """Log-density [M, C], a mean over dimensions, of children [M, C, ...] under their states' Gaussians."""
    means = gaussian.mean[:, None].expand_as(children).flatten(0, 1)
    return Gaussian(means, gaussian.std).log_prob(children.flatten(0, 1)).unflatten(0, children.shape[:2])
