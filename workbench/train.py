"""The one training loop. It owns no file or screen: it yields what happens, and whoever drives it decides."""

import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.contracts import Diverged, OutOfMemory, RewardFailed
from workbench.evaluate import to_uint8
from workbench.events import (
    Changed,
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
from workbench.examiner import REMEDY
from workbench.grpo import constant_groups
from workbench.learner import Learner, prompts_of
from workbench.lesson import Lesson
from workbench.out_of_memory import memory_explained, out_of_memory, what_to_lower
from workbench.preflight import preflight
from workbench.ranks import join
from workbench.rollout import Rollout
from workbench.update import update_policy

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    config: RunConfig,
    *,
    resume: CheckpointReady | None = None,
    controls: Controls | None = None,
    accelerator: "Accelerator | None" = None,
    learner: Learner | None = None,
) -> Iterator[Event]:
    """Align a flow-map generator by reinforcement learning; yields what happens, touches neither disk nor screen.

    Args:
        learner: of this configuration, where the caller wants to look into it; made here otherwise.
        resume: where an earlier run of this configuration stopped; the rest is bit for bit what it would have been.
        controls: wishes, read at each iteration boundary.
    Raises:
        FloatingPointError: when a quantity stops being finite or the policy diverges.
        RewardFailed: when a reward raises or gives something else than one finite number per image.
        OutOfMemory: when the device has too little memory; says what to lower.
        Before that the last good state is yielded as a checkpoint, unless it is the state itself that went wrong.
    """
    controls = controls or Controls()
    with memory_explained(config, "loading the model"):
        prompts = prompts_of(config, resume)
        learner = learner or Learner(config, accelerator or make_accelerator(config), prompts)
        if resume is not None:
            learner.restore(resume)
        learner.read(prompts)
    yield Started(learner.iteration, _facts(learner))
    try:
        behind = learner.evaluated < learner.iteration  # a new run, or one whose last evaluation was lost
        if behind:
            yield from _evaluate(learner)
        if not learner.checked:
            yield PreflightDone(learner.iteration, (yield from preflight(learner)))
            learner.checked = behind = True
        if behind:
            yield learner.checkpoint()
        wishes = learner.agree(controls)
        while learner.iteration < config.iterations and not wishes.stop:
            if wishes.changes:
                controls.changes = {k: v for k, v in controls.changes.items() if wishes.changes.get(k, ...) != v}
                learner.change(wishes.changes)
                yield Changed(learner.iteration, wishes.changes)
            yield from _iterate(learner)
            yield from _evaluate(learner)
            wishes = learner.agree(controls)
            if wishes.sample:
                yield from learner.examiner.sample(learner.iteration)
                controls.sample = False  # only now: a pause waits until the wish is granted
            due = learner.iteration == config.iterations or learner.iteration % config.record.checkpoint_every == 0
            improved = learner.iteration == learner.examiner.best_iteration  # otherwise the best would not be kept
            if due or improved or wishes.save or wishes.stop:
                controls.save = False
                yield from learner.examiner.told(before=learner.iteration)  # a resumed run makes only its first one again
                yield learner.checkpoint()
        yield from learner.examiner.told(before=learner.iteration + 1)
    except (FloatingPointError, RewardFailed) as error:
        diverged = isinstance(error, Diverged)
        yield from learner.examiner.rescued(learner.iteration + diverged)  # a resumed run evaluates its first iteration again
        if not diverged:
            yield learner.checkpoint()  # the iteration that failed has changed nothing yet
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        clear_frames(error.__traceback__)  # they hold what the iteration had worked out
        learner.free()
        if learner.whole:
            yield from learner.examiner.rescued(learner.iteration)
            yield learner.checkpoint()
        raise OutOfMemory(what_to_lower(learner.config, f"iteration {learner.iteration + 1}", error)) from error
    finally:
        learner.close()
    summary = {"stopped": learner.iteration < config.iterations, "best_iteration": learner.examiner.best_iteration}
    yield Finished(learner.iteration, summary)


def make_accelerator(config: RunConfig) -> "Accelerator":
    """What drives devices and precision, as the configuration wants it."""
    from accelerate import Accelerator

    join(config.compute.device)
    if config.compute.device in ("cuda", "mps") and not getattr(torch, config.compute.device).is_available():
        raise ValueError(f"compute.device = {config.compute.device!r} is not available on this machine; use auto or cpu")
    # The policy casts by itself; only fp16 needs accelerate's gradient scaler, and its settings are shared by all runs of a
    # process, which may differ in precision.
    precision = config.compute.precision
    return Accelerator(cpu=config.compute.device == "cpu", mixed_precision="fp16" if precision == "fp16" else "no")


def _evaluate(learner: Learner) -> Iterator[Event]:
    """The held-out evaluation, if one is due: the whole of it before the first and after the last update, else a shorter one.

    Also tells of earlier ones, whose judges have meanwhile come to their end.
    """
    settings, steps = learner.config.evaluation, learner.config.sampling_steps
    yield from learner.examiner.told()
    if learner.evaluated == learner.iteration:
        return
    whole = learner.iteration in (0, learner.config.iterations)
    if whole or learner.iteration % settings.every == 0:
        counts = sorted({*settings.steps, steps}) if whole else [steps]
        images = settings.final_images if whole else settings.images
        measures = yield from learner.examiner.evaluate(learner.iteration, images, counts)
        learner.examiner.weigh(learner.iteration, measures[steps])
    learner.evaluated = learner.iteration
    yield from learner.examiner.told()


def _iterate(learner: Learner) -> Iterator[Event]:
    """One policy update: draw, score, compare, improve."""
    config, plan = learner.config, learner.plan()
    began = time.perf_counter()
    with learner.ranks.together():
        rollout, images, scores = yield from learner.draw(plan, (config.seed, learner.iteration))
        sampled = time.perf_counter()
        parts = yield from scores.collect()  # each [N]
    lesson = learner.lesson(rollout, parts)
    scored = time.perf_counter()
    yield _groups(learner, lesson, images, parts)
    resumed = time.perf_counter()
    rate = learner.learning_rate()
    figures, ratios = yield from update_policy(learner, lesson)
    learner.average_weights()
    own = learner.rewards.total(parts)
    learner.learn_spreads(lesson, own)
    rewards = learner.gather(own)
    learner.iteration += 1
    updated = time.perf_counter()
    seconds = scored - began + updated - resumed
    metrics = figures | {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.view(-1, plan.group_size).std(1, correction=0).mean()),
        "constant_groups": float(constant_groups(rewards, plan.group_size).float().mean()),
        "advantage": float(learner.gather(lesson.advantages).abs().mean()),
        "learning_rate": rate,
        "images_per_second": len(rewards) / seconds,
        "rollout_seconds": sampled - began,
        "reward_seconds": scored - sampled,  # that were waited for, after what was scored while drawing
        "update_seconds": updated - resumed,
    }
    metrics |= {f"reward/{name}": float(learner.gather(values).mean()) for name, values in parts.items()}
    if plan.structure == "branch" and len(plan.steps) == 1:
        metrics["branch_step"] = float(plan.steps[0])
    yield IterationDone(learner.iteration, metrics, seconds, tuple(_everyones(learner, lesson.rollout, map(_present, ratios))))
    if metrics.get("kl", 0.0) > config.guard.max_kl:
        raise Diverged(
            f"iteration {learner.iteration}: the KL to the reference is {metrics['kl']:.3g}, above guard.max_kl = "
            f"{config.guard.max_kl:g}; {REMEDY}"
        )


def _groups(learner: Learner, lesson: Lesson, images: Tensor, parts: dict[str, Tensor]) -> GroupsScored:
    """What all processes drew, with pictures of some groups of each."""
    record, rollout, size = learner.config.record, lesson.rollout, lesson.rollout.group_size
    groups, due = len(rollout.prompts) // size, learner.iteration % record.rollouts_every == 0
    count = min(-(-record.groups_shown // learner.ranks.count), groups) if due else 0
    own = [place * groups // count for place in range(count)]  # from all steps, where groups branch at several
    shown, pictures = _shown(learner, groups // _turns(rollout), own, to_uint8(images.unflatten(0, (groups, size))[own]))
    prompts, seeds, rewards, advantages, *rest = _everyones(
        learner,
        rollout,
        [
            rollout.prompts[::size],
            rollout.seeds,
            learner.rewards.total(parts).tolist(),
            lesson.advantages.tolist(),
            *(values.tolist() for values in parts.values()),
            *(_present(values) for values in rollout.log_probs),
        ],
    )
    return GroupsScored(
        iteration=learner.iteration + 1,  # the update that they are drawn for
        prompts=prompts,
        group_size=size,
        seeds=seeds,
        rewards=rewards,
        parts=dict(zip(parts, rest, strict=False)),
        advantages=advantages,
        steps=tuple(transition.step for transition in rollout.transitions),
        log_probs=tuple(rest[len(parts) :]),
        noise_std=tuple(transition.std for transition in rollout.transitions),
        groups_shown=shown,
        preview=Preview(pictures.flatten(0, 1)),
    )


def _shown(learner: Learner, each: int, own: Sequence[int], pictures: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Which groups of the whole are shown, ascending, and their pictures.

    Args:
        each: how many prompts a process has.
        own: groups of this process, with `pictures` [len(own), G, 3, H, W].
    """
    ranks = learner.ranks
    places = [(group // each * ranks.count + ranks.index) * each + group % each for group in own]
    shown = [place for everyones in ranks.exchange(places) for place in everyones]
    order = sorted(range(len(shown)), key=shown.__getitem__)
    return tuple(sorted(shown)), learner.gather(pictures)[order] if own else pictures


def _everyones(learner: Learner, rollout: Rollout, lists: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Lists about the samples or groups of a rollout, for all processes, in the order in which one process would have them."""
    heard = learner.ranks.exchange([list(values) for values in lists])
    return [_interleaved(everyones, _turns(rollout)) for everyones in zip(*heard, strict=True)]


def _interleaved(parts: Sequence[Sequence[Any]], turns: int) -> tuple[Any, ...]:
    """Each process has all turns of its own prompts; the whole has all prompts in each turn."""
    size = len(parts[0]) // turns
    return tuple(value for turn in range(turns) for part in parts for value in part[turn * size : (turn + 1) * size])


def _turns(rollout: Rollout) -> int:
    """How often each prompt has a group of its own: once for each step at which it branches."""
    return len(rollout.prompts) // (rollout.group_size * (int(rollout.rows.max()) + 1))


def _present(values: Tensor) -> tuple[float | None, ...]:
    """Values [N] with None where a sample took no part."""
    return tuple(None if value != value else value for value in values.tolist())


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
