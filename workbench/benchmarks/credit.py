"""How well a method tells which step's noise was good: its advantages against the true effect of that noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from workbench.benchmarks.counting import counted
from workbench.config import RunConfig, configure
from workbench.contracts import Generator
from workbench.evaluate import load_policy
from workbench.flow import seed_stream, seeded_noise
from workbench.rollout import Plan, Rollout, Transition, sample_rollout
from workbench.samplers.ode import deterministic_step
from workbench.scoring import Rewards

BATCH = 1024
"""Samples of a forward pass when completions are drawn."""


@dataclass(frozen=True)
class _Scene:
    """What all estimates share."""

    config: RunConfig
    generator: Generator
    rewards: Rewards
    key: tuple[int | str, ...]


def bench_credit(
    prompts: int = 96,
    group_size: int = 8,
    completions: int = 24,
    preset: str = "shapes",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Correlation of a step's advantage with the true effect of its noise, for uniform credit and for branching.

    The true effect of the noise that led from x_t to x_s is Q(x_s) - V(x_t): the mean reward of many fresh stochastic
    completions from x_s, less that of as many from x_t. Uniform credit gives every step of a trajectory the trajectory's
    advantage in its group, as Flow-GRPO does; branching gives it the advantage among the children of x_t, each completed once
    without noise, step by step or in one jump. Estimates of the effect have noise of their own, the same for all, so the
    correlations are lower bounds. Also counts the forward passes that each way of drawing takes.

    Args:
        completions: for each of the two estimates.
    """
    config = configure(preset, {"grpo.group_size": group_size})
    policy = load_policy(config)
    scene = _Scene(config, policy.generator, Rewards(config.rewards, torch.device("cpu")), (seed, "credit"))
    names = [config.task.prompts("train")[i] for i in range(prompts)]
    every = config.training_steps
    plan = Plan(config.times, group_size, steps=every)
    plans = {
        "uniform": replace(plan, structure="chain"),
        "uniform, one initial noise": replace(plan, structure="chain", shared_noise=True),
        "branching, composed": replace(plan, completion="compose"),
        "branching, one jump": replace(plan, completion="jump"),
        "tree": replace(plan, structure="tree", completion="compose"),
    }
    found: dict[str, Any] = {}
    for name, own in plans.items():
        with counted(policy.generator.network) as evaluations:
            rollout = sample_rollout(scene.generator, config.sampler, names, own, key=(seed, "credit"))
        found[name] = _judge(scene, rollout, completions) | {
            "forwards": evaluations.total,
            "forwards_per_scored_noise": evaluations.total / sum(t.log_probs.numel() for t in rollout.transitions),
        }
        if progress is not None:
            progress(f"credit: {name} {found[name]['correlation']['value']:.3f}")
    steps = len(every)
    return {
        "preset": preset,
        "sampler": config.sampler.model_dump(),
        "prompts": prompts,
        "group_size": group_size,
        "completions": completions,
        "steps": config.rollout.steps,
        "expected_completion_forwards": {  # of the children alone, for k children of each prompt at each step
            "branching, one jump": prompts * group_size * steps,
            "branching, composed": prompts * group_size * steps * (steps + 1) // 2,
        },
        "methods": found,
    }


def _judge(scene: _Scene, rollout: Rollout, completions: int) -> dict[str, Any]:
    """Correlations for one rollout, over all steps and step by step, with 95 % intervals from the prompts' bootstrap."""
    images = scene.generator.decode(rollout.final)
    rewards = scene.rewards.total(scene.rewards.score(images, rollout.prompts))
    credits, effects, owners, by_step = [], [], [], {}
    for transition in rollout.transitions:
        nodes = rewards[transition.leaves].mean(-1)  # [M, C]
        prompts = len(set(transition.rows.tolist()))
        grouped = nodes.view(prompts, -1)
        credit = (grouped - grouped.mean(1, keepdim=True)).flatten().numpy()
        effect = _effect(scene, rollout, transition, completions).flatten().numpy()
        owner = transition.rows.repeat_interleave(nodes.shape[1]).numpy()
        by_step[str(transition.step)] = _correlation(credit, effect, owner)
        credits.append(credit)
        effects.append(effect)
        owners.append(owner)
    return {"correlation": _correlation(*map(np.concatenate, (credits, effects, owners))), "by_step": by_step}


def _effect(scene: _Scene, rollout: Rollout, transition: Transition, completions: int) -> Tensor:
    """Q(x_s) - V(x_t) for every child, [M, C]."""
    children, rows = transition.children, transition.rows
    count = children.shape[1]
    after = _value(scene, rollout, children.flatten(0, 1), rows.repeat_interleave(count), transition.step + 1, completions, "Q")
    before = _value(scene, rollout, transition.states, rows, transition.step, completions, "V")
    return after.view(-1, count) - before[:, None]


@torch.no_grad()
def _value(
    scene: _Scene, rollout: Rollout, x: Tensor, rows: Tensor, step: int, completions: int, name: str
) -> Tensor:
    """Mean reward of stochastic completions of x [N, ...] from a step of the grid on, [N]."""
    names = dict(zip(rollout.rows.tolist(), rollout.prompts, strict=True))
    starts = x.repeat_interleave(completions, 0)
    owners = rows.repeat_interleave(completions)
    rewards = []
    for start in range(0, len(starts), BATCH):
        part, own = starts[start : start + BATCH], owners[start : start + BATCH]
        flow_map = scene.generator.bind(rollout.embeddings[own])
        for place, (t, s) in enumerate(pairwise(rollout.times[step:-1]), step):
            seeds = [seed_stream(*scene.key, name, step, place, start + i) for i in range(len(part))]
            gaussian = scene.config.sampler.step(flow_map, part, t, s)
            part = gaussian.sample(seeded_noise(seeds, part.shape[1:], part.device))
        images = scene.generator.decode(deterministic_step(flow_map, part, rollout.times[-2], 0.0))
        rewards.append(scene.rewards.total(scene.rewards.score(images, [names[row] for row in own.tolist()])))
    return torch.cat(rewards).view(-1, completions).mean(1)


def _correlation(credit: np.ndarray, effect: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Pearson's correlation with a 95 % interval; prompts, not samples, are drawn again."""
    order = np.argsort(owner, kind="stable")
    credits, effects = (values[order].reshape(owner.max() + 1, -1) for values in (credit, effect))

    def pearson(index: np.ndarray) -> float:
        return float(np.corrcoef(credits[index].ravel(), effects[index].ravel())[0, 1])

    drawn = stats.bootstrap(
        (np.arange(len(credits)),), pearson, vectorized=False, n_resamples=499, method="percentile", rng=np.random.default_rng(0)
    )
    interval = drawn.confidence_interval
    return {"value": pearson(np.arange(len(credits))), "low": float(interval.low), "high": float(interval.high)}
