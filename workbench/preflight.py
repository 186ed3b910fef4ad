"""Questions worth a minute before hours of training: is the ratio 1, is there anything to learn from, does it fit?"""

import math
from collections.abc import Generator as Stream
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from workbench.events import Check, Level, Progress
from workbench.grpo import constant_groups
from workbench.memory import GIB, RESERVE, advised, device_memory, memory_plan
from workbench.planning import StepNoise, noise_of_steps
from workbench.update import first_ratios

if TYPE_CHECKING:
    from workbench.config import RunConfig
    from workbench.learner import Learner


def preflight(learner: "Learner") -> Stream[Progress, None, tuple[Check, ...]]:
    """Draw one rollout that is not trained on, and answer each question in a sentence; changes nothing."""
    from workbench.evaluate import stream_images

    config = learner.config
    with learner.ranks.together():
        rollout, _, scores = yield from learner.draw(learner.plan(), (config.seed, "preflight"))
        parts = yield from scores.collect()
    own = len(rollout.prompts)
    seeds = [config.evaluation.seed + own * learner.ranks.index + place for place in range(own)]
    scores, batch = learner.rewards.begin(), config.compute.sample_batch
    with learner.ranks.together():  # no longer the block above: the network asks the others, where its weights are divided
        yield from stream_images(
            learner.policy.generator, rollout.prompts, seeds, times=config.times, batch=batch, finished=scores.add
        )
        deployed = learner.rewards.total((yield from scores.collect()))
    rewards, deployed = learner.gather(learner.rewards.total(parts)), learner.gather(deployed)
    lesson = learner.lesson(rollout, parts)
    with learner.ranks.together():
        ratios = list(first_ratios(learner, lesson))
    return (
        *([ratio_check(learner.gather(torch.cat(ratios)))] if ratios else []),
        spread_check(rewards, rollout.group_size),
        noise_check(rewards, deployed),
        *([scale_check(noise_of_steps(config))] if rollout.transitions else []),
        memory_check(learner.device, config if _is_large(learner) else None),
    )


def ratio_check(ratios: Tensor) -> Check:
    """The policy that updates must be the policy that sampled: the first ratio is exactly 1."""
    worst = float((ratios - 1).abs().max())
    if worst == 0:
        return Check(
            "ratio",
            "green",
            f"All {ratios.numel()} first ratios are exactly 1: sampling and training see the same policy.",
            worst,
        )
    level: Level = "amber" if worst < 1e-5 else "red"
    return Check(
        "ratio",
        level,
        f"First ratios differ from 1 by up to {worst:.2g}: sampling and training disagree. "
        "Look for dropout, another precision or another grid.",
        worst,
    )


def spread_check(rewards: Tensor, group_size: int) -> Check:
    """Groups whose samples all score the same teach nothing."""
    constant = float(constant_groups(rewards, group_size).float().mean())
    spread = float(rewards.view(-1, group_size).std(1, correction=0).mean())
    told = (
        f"The reward varies by {spread:.3g} inside a group on average; "
        f"{constant:.0%} of the groups are constant and give no gradient."
    )
    if constant <= 0.25:
        return Check("reward spread", "green", told, spread)
    if constant < 0.9:
        return Check("reward spread", "amber", f"{told} Larger groups, more noise or a denser reward would waste less.", spread)
    return Check(
        "reward spread",
        "red",
        f"{told} There is next to nothing to learn from: use a denser reward, easier prompts or more noise.",
        spread,
    )


def noise_check(rewards: Tensor, deployed: Tensor) -> Check:
    """Samples that are trained on should resemble those that are deployed, which `deployed_sampler` draws."""
    noisy, plain = float(rewards.mean()), float(deployed.mean())
    lost = plain - noisy
    told = f"Rollouts score {noisy:.3f} on average, and samples as they are deployed {plain:.3f}."
    spread = float(deployed.std()) + 1e-12
    if lost <= 0.25 * spread:
        return Check("noise", "green", f"{told} The noise costs little.", lost)
    if lost <= spread:
        return Check(
            "noise",
            "amber",
            f"{told} The noise costs some quality; less of it, or a later step, would train closer to what is deployed.",
            lost,
        )
    return Check("noise", "red", f"{told} The noise ruins the samples that are trained on: lower sampler.noise.", lost)


def scale_check(steps: Sequence[StepNoise]) -> Check:
    """The kernel's noise in the units that all kernels share, step by step; never a fault."""
    told = f"Share of the noise that each stochastic step draws afresh: {', '.join(f'{step.share:.2g}' for step in steps)}."
    if len(steps) > 1:  # from pure noise every rate is 0 or infinite
        rates = ", ".join("all" if math.isinf(step.rate) else f"{step.rate:.2g}" for step in steps[1:])
        told += f" In the common unit lambda, from the second step on: {rates}."
    return Check("noise scale", "green", told, max(step.std for step in steps))


_LARGE = 100_000_000  # numbers in a network: what a smaller one takes is not worth the seconds that its prediction would


def _is_large(learner: "Learner") -> bool:
    return sum(parameter.numel() for parameter in learner.policy.generator.network.parameters()) > _LARGE


def memory_check(device: torch.device, config: "RunConfig | None" = None) -> Check:
    """What was in use so far, and what a run with these settings will take at most, against what the device has."""
    whole, where = device_memory(device), "GPU memory" if device.type == "cuda" else "memory"
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    told = f"{used / GIB:.1f} of {whole / GIB:.0f} GiB of {where} in use after a rollout"
    plan = None
    if config is not None:
        with suppress(ValueError):  # of a pipeline that is only known once it is loaded
            plan = memory_plan(config, whole, accelerator=device.type != "cpu")
    peak = max(used, plan.total) if plan else used
    share = peak / whole
    if plan:
        stage = max(plan.stages, key=lambda name: plan.stages[name])
        told += f", and {plan.total / GIB:.1f} expected at most ({stage})"
    level: Level = "green" if share < 0.6 else "amber" if share < 1 - RESERVE else "red"
    if level == "green":
        return Check("memory", level, f"{told}.", share)
    lower = [advised(each) for each in plan.advice] if plan and plan.advice else ["compute.train_batch", "compute.sample_batch"]
    return Check("memory", level, f"{told}. If it does not fit, lower: {', '.join(lower)}.", share)
