"""The policy update: from a rollout and its advantages to one optimizer step an epoch."""

from collections.abc import Generator as Stream
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.contracts import Generator, Sampler
from workbench.events import Progress
from workbench.flow import Gaussian
from workbench.grpo import clip_fraction, clipped_loss, gaussian_kl, ratio_norm
from workbench.rollout import Rollout, Transition, child_log_probs

if TYPE_CHECKING:
    from workbench.learner import Learner


def update_policy(learner: "Learner", rollout: Rollout, advantages: Tensor) -> Stream[Progress, None, dict[str, float]]:
    """One optimizer step for each epoch over the rollout; returns its figures.

    Costs one forward and backward pass per state and epoch, and one forward pass of the reference; children of one state share
    its mean, so their number adds nothing.

    Args:
        advantages: [N], in the order of the rollout's samples.
    Raises: FloatingPointError: before anything is changed, if the loss or its gradient is not finite.
    """
    config, policy = learner.config, learner.policy
    references = list(_reference_means(learner, rollout))
    before = [parameter.detach().clone() for parameter in policy.parameters.values()]
    undo = learner.snapshot() if config.grpo.epochs > 1 else None
    figures: dict[str, list[Tensor]] = {}
    norm = torch.zeros(())
    for _ in range(config.grpo.epochs):
        for index, transition in enumerate(rollout.transitions):
            share = learner.step_weights[transition.step] / (len(rollout.transitions) * len(transition.states))
            spread = advantages.view(transition.log_probs.shape)
            for number, rows in enumerate(portions(len(transition.states), config.compute.train_batch)):
                mean = state_means(policy.generator, config.sampler, transition, rows)
                loss = _loss(learner, transition, rows, mean, spread[rows], figures)
                if references:
                    kl = gaussian_kl(mean, references[index][number], transition.std)
                    figures.setdefault("kl", []).append(kl.detach())
                    loss = loss + config.grpo.kl_weight * kl.sum()
                learner.accelerator.backward(share * loss)
                yield Progress("update", index + 1, len(rollout.transitions))
        try:
            norm = learner.apply_gradients()
        except FloatingPointError:
            if undo is not None:
                learner.undo(undo)
            raise
    return _summary(learner, figures) | {
        "gradient_norm": float(norm),
        "update_size": _relative_change(before, list(policy.parameters.values())),
    }


def state_means(generator: Generator, sampler: Sampler, transition: Transition, rows: slice) -> Tensor:
    """The transition's means [m, ...] under a generator, for the states in `rows`; the call that sampled them, made again."""
    flow_map = generator.bind(transition.embeddings[rows])
    return sampler.step(flow_map, transition.states[rows], transition.t, transition.s).mean


def portions(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _reference_means(learner: "Learner", rollout: Rollout) -> Stream[list[Tensor], None, None]:
    """For each transition the reference's means, portion by portion; nothing where the KL has no weight."""
    if learner.config.grpo.kl_weight == 0:
        return
    for transition in rollout.transitions:
        rows = portions(len(transition.states), learner.config.compute.train_batch)
        with learner.policy.reference() as reference:
            means = [state_means(reference, learner.config.sampler, transition, part) for part in rows]
        yield means


def _loss(
    learner: "Learner", transition: Transition, rows: slice, mean: Tensor, advantages: Tensor, figures: dict[str, list[Tensor]]
) -> Tensor:
    """The clipped loss, summed over states [m] and averaged over their children [m, C]."""
    grpo = learner.config.grpo
    old = transition.log_probs[rows]
    log_probs = child_log_probs(Gaussian(mean, transition.std), transition.children[rows])
    ratio = torch.exp(log_probs - old)
    if grpo.ratio_norm:
        ratio = ratio_norm(log_probs, old, mean, transition.means[rows], transition.std)
    loss = clipped_loss(log_probs, old, advantages, grpo.clip_range, ratio=ratio)  # [m, C]
    clipped = clip_fraction(log_probs, old, grpo.clip_range, ratio=ratio).expand(ratio.numel())  # portions differ in size
    for name, values in (("ratio", ratio.detach()), ("clip_fraction", clipped), ("loss", loss.detach())):
        figures.setdefault(name, []).append(values.flatten())
    return loss.mean(1).sum()


def _summary(learner: "Learner", figures: dict[str, list[Tensor]]) -> dict[str, float]:
    """Means over all processes, and for the ratio its largest distance from 1."""
    joined = {name: learner.gather(torch.cat(values)) for name, values in figures.items()}
    return {name: float(value.mean()) for name, value in joined.items()} | {
        "ratio_deviation": float((joined["ratio"] - 1).abs().max())
    }


def _relative_change(before: list[Tensor], after: list[Tensor]) -> float:
    """|after - before| / |before|, over all parameters together."""
    change = torch._foreach_norm(torch._foreach_sub([parameter.detach() for parameter in after], before))
    size = torch._foreach_norm(before)
    return float(torch.stack(change).norm() / torch.stack(size).norm().clamp_min(1e-12))
