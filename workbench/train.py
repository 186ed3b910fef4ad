"""The one training loop. It owns no file, screen or thread: it yields what happens, and whoever drives it decides."""

import platform
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.contracts import RewardFailed
from workbench.evaluate import to_uint8
from workbench.events import (
    CheckpointReady,
    Controls,
    Event,
    Finished,
    GroupsScored,
    IterationDone,
    PreflightDone,
    Preview,
    Started,
)
from workbench.grpo import constant_groups, group_advantages
from workbench.learner import REMEDY, Diverged, Learner
from workbench.preflight import preflight
from workbench.rollout import Rollout, stream_rollout
from workbench.update import update_policy

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    config: RunConfig,
    *,
    resume: CheckpointReady | None = None,
    controls: Controls | None = None,
    accelerator: "Accelerator | None" = None,
) -> Iterator[Event]:
    """Align a flow-map generator with GRPO; yields what happens, touches neither disk nor screen.

    Args:
        resume: where an earlier run of this configuration stopped; the rest is bit for bit what it would have been.
        controls: wishes, read at each iteration boundary.
    Raises:
        FloatingPointError: when a quantity stops being finite or the policy diverges.
        RewardFailed: when a reward raises or gives something else than one finite number per image.
        Before that the last good state is yielded as a checkpoint, unless it is the state itself that went wrong.
    """
    controls = controls or Controls()
    learner = Learner(config, accelerator or _accelerator(config))
    if resume is not None:
        learner.restore(resume)
    yield Started(learner.iteration, _facts(learner))
    try:
        if learner.evaluated < learner.iteration or not learner.checked:  # a new run, or one that a reward has failed in
            yield from _evaluate(learner)
            yield PreflightDone(learner.iteration, (yield from preflight(learner)))
            learner.checked = True
            yield learner.checkpoint()
        wishes = learner.agree(controls)
        while learner.iteration < config.iterations and not wishes.stop:
            yield from _iterate(learner)
            yield from _evaluate(learner)
            wishes = learner.agree(controls)
            if wishes.sample:
                yield from learner.sample()
                controls.sample = False  # only now: a pause waits until the wish is granted
            due = learner.iteration == config.iterations or learner.iteration % config.record.checkpoint_every == 0
            improved = learner.iteration == learner.best_iteration  # otherwise the best would not be kept
            if due or improved or wishes.save or wishes.stop:
                controls.save = False
                yield learner.checkpoint()
    except Diverged:
        raise
    except (FloatingPointError, RewardFailed):
        yield learner.checkpoint()  # the iteration that failed has changed nothing yet
        raise
    yield Finished(
        learner.iteration, {"stopped": learner.iteration < config.iterations, "best_iteration": learner.best_iteration}
    )


def _evaluate(learner: Learner) -> Iterator[Event]:
    """The held-out evaluation, if one is due: the whole of it before the first and after the last update, else a shorter one."""
    settings, steps = learner.config.evaluation, learner.config.rollout.steps
    if learner.evaluated == learner.iteration:
        return
    if learner.iteration in (0, learner.config.iterations):
        yield from learner.evaluate(settings.final_images, sorted({*settings.steps, steps}))
    elif learner.iteration % settings.every == 0:
        yield from learner.evaluate(settings.images, (steps,))
    learner.evaluated = learner.iteration


def _iterate(learner: Learner) -> Iterator[Event]:
    """One policy update: draw, score, compare, improve."""
    grpo, plan = learner.config.grpo, learner.plan()
    began = time.perf_counter()
    prompts, first = learner.draw_prompts()
    rollout = yield from stream_rollout(
        learner.policy.generator,
        learner.config.sampler,
        prompts,
        plan,
        key=(learner.config.seed, learner.iteration),
        first_prompt=first,
    )
    images = yield from learner.decode(rollout.final)
    sampled = time.perf_counter()
    parts = learner.rewards.score(images, rollout.prompts)  # each [N]
    rewards = learner.gather(learner.rewards.total(parts))  # over all processes
    advantages = group_advantages(
        rewards, grpo.group_size, std=grpo.advantage_std, std_floor=grpo.std_floor, clip=grpo.advantage_clip
    )
    scored = time.perf_counter()
    yield _groups(learner, rollout, images, parts, advantages)
    resumed = time.perf_counter()
    rate = learner.learning_rate()
    figures = yield from update_policy(learner, rollout, learner.own(advantages))
    learner.average.update()
    learner.learn_spread(plan.branch_step, rewards)
    learner.iteration += 1
    updated = time.perf_counter()
    seconds = scored - began + updated - resumed
    metrics = figures | {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.view(-1, grpo.group_size).std(1, correction=0).mean()),
        "constant_groups": float(constant_groups(rewards, grpo.group_size).float().mean()),
        "advantage": float(advantages.abs().mean()),
        "learning_rate": rate,
        "images_per_second": len(rewards) / seconds,
        "rollout_seconds": sampled - began,
        "reward_seconds": scored - sampled,
        "update_seconds": updated - resumed,
    }
    metrics |= {f"reward/{name}": float(learner.gather(values).mean()) for name, values in parts.items()}
    if plan.branch_step is not None:
        metrics["branch_step"] = float(plan.branch_step)
    yield IterationDone(learner.iteration, metrics, seconds)
    if metrics.get("kl", 0.0) > learner.config.guard.max_kl:
        raise Diverged(
            f"iteration {learner.iteration}: the KL to the reference is {metrics['kl']:.3g}, above guard.max_kl = "
            f"{learner.config.guard.max_kl:g}; {REMEDY}"
        )


def _groups(learner: Learner, rollout: Rollout, images: Tensor, parts: dict[str, Tensor], advantages: Tensor) -> GroupsScored:
    """What this process drew, with pictures of its first groups."""
    record, size = learner.config.record, rollout.group_size
    shown = range(min(record.groups_shown, len(rollout.prompts) // size) if learner.iteration % record.rollouts_every == 0 else 0)
    return GroupsScored(
        iteration=learner.iteration + 1,  # the update that they are drawn for
        prompts=rollout.prompts[::size],
        group_size=size,
        seeds=rollout.seeds,
        rewards=tuple(learner.rewards.total(parts).tolist()),
        parts={name: tuple(values.tolist()) for name, values in parts.items()},
        advantages=tuple(learner.own(advantages).tolist()),
        steps=tuple(transition.step for transition in rollout.transitions),
        log_probs=tuple(tuple(log_probs.tolist()) for log_probs in rollout.log_probs),
        noise_std=tuple(transition.std for transition in rollout.transitions),
        groups_shown=tuple(shown),
        preview=Preview(to_uint8(images[: len(shown) * size])),
    )


def _accelerator(config: RunConfig) -> "Accelerator":
    from accelerate import Accelerator

    if config.compute.device in ("cuda", "mps") and not getattr(torch, config.compute.device).is_available():
        raise ValueError(f"compute.device = {config.compute.device!r} is not available on this machine; use auto or cpu")
    # The policy casts by itself; only fp16 needs accelerate's gradient scaler, and its settings are shared by all runs of a
    # process, which may differ in precision.
    precision = config.compute.precision
    return Accelerator(cpu=config.compute.device == "cpu", mixed_precision="fp16" if precision == "fp16" else "no")


def _facts(learner: Learner) -> dict[str, Any]:
    """What a reader of the record wants to know of the machine and the model."""
    return {
        "device": str(learner.device),
        "processes": learner.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "trained_parameters": sum(parameter.numel() for parameter in learner.policy.parameters.values()),
        "latent_shape": list(learner.policy.generator.latent_shape),
    }
