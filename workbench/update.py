"""The policy update: from a lesson to one optimizer step an epoch, whatever the objective."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Stream
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.contracts import Generator
from workbench.events import Progress
from workbench.lesson import Lesson
from workbench.models.policy import Policy
from workbench.optim import AveragedWeights
from workbench.ranks import Ranks
from workbench.rollout import Rollout


class Learns(Protocol):
    """What an update needs of whoever learns: of a run's `Learner`, or of anything smaller that offers the same."""

    @property
    def config(self) -> Any: ...  # `objective`, and `grpo.epochs`

    @property
    def accelerator(self) -> Any: ...  # `backward`

    @property
    def policy(self) -> Policy: ...

    @property
    def ranks(self) -> Ranks: ...

    @property
    def behaviour(self) -> AveragedWeights | None: ...

    def sampling(self) -> AbstractContextManager[Generator]: ...

    def snapshot(self) -> Any: ...

    def undo(self, snapshot: Any) -> None: ...

    def apply_gradients(self) -> Tensor: ...

    def gather(self, values: Tensor) -> Tensor: ...


def update_policy(learner: Learns, lesson: Lesson) -> Stream[Progress, None, tuple[dict[str, float], tuple[Tensor, ...]]]:
    """One optimizer step for each epoch over the lesson; returns its figures, and the ratios of the last epoch.

    The ratios are [N] for each stochastic step, NaN where a sample took no part; none with one epoch, where all are exactly 1.

    Costs one forward and backward pass for each row of the objective's portions and epoch, and once one forward pass of the
    reference and of the policy that sampled, where the objective wants them. Passes that leave no graph, as for guidance, are
    made again only once the weights are no longer those that sampled.

    Raises: FloatingPointError: if the loss or its gradient is not finite; then, as after any other error, nothing has changed.
    """
    objective, policy, epochs = learner.config.objective, learner.policy, learner.config.grpo.epochs
    portions = objective.portions(lesson)
    moves = epochs > 1 or learner.behaviour is not None  # otherwise the policy itself is the one that sampled
    with learner.ranks.together():
        references = yield from _predictions(learner, portions, policy.reference() if objective.wants_reference else None)
        olds = yield from _predictions(learner, portions, learner.sampling() if objective.wants_old and moves else None)
    before = [parameter.detach().clone() for parameter in policy.parameters.values()]
    undo = learner.snapshot() if epochs > 1 else None
    figures: dict[str, list[Tensor]] = {}
    norm = torch.zeros(())
    for epoch in range(epochs):
        predict = _first(learner) if epoch == 0 else objective.predict
        try:
            with learner.ranks.together():
                for number, portion in enumerate(portions):
                    prediction = predict(portion, policy.generator)
                    loss, told = objective.loss(portion, prediction, reference=references[number], old=olds[number])
                    for name, values in told.items():
                        figures.setdefault(name, []).append(values)
                    learner.accelerator.backward(loss)
                    yield Progress("update", number + 1, len(portions))
            norm = learner.apply_gradients()
        except Exception:
            if undo is not None:
                learner.undo(undo)
            raise
    size = _relative_change(before, list(policy.parameters.values()))
    last = figures["ratio"][-len(portions) :] if epochs > 1 and "ratio" in figures else []
    told = _summary(learner, figures) | {"gradient_norm": float(norm), "update_size": size}
    return told, _by_sample(lesson.rollout, last) if last else ()


def _first(learner: Learns) -> Callable[[Any, Generator], Tensor]:
    """How an update asks before its first step: by the weights that sampled, unless averaged ones did."""
    objective = learner.config.objective
    return objective.predict if learner.behaviour is not None else objective.repeat


@torch.no_grad()
def _predictions(
    learner: Learns, portions: Sequence[Any], whose: AbstractContextManager[Generator] | None
) -> Stream[Progress, None, Sequence[Tensor | None]]:
    """What somebody's weights say of every portion; nothing where nobody is asked."""
    if whose is None:
        return [None] * len(portions)
    with whose as generator:
        predictions = [learner.config.objective.predict(portion, generator) for portion in portions]
    yield Progress("update", 0, len(portions))
    return predictions


def first_ratios(learner: Learns, lesson: Lesson) -> Iterator[Tensor]:
    """The ratios that an update would begin with, portion by portion; nothing where the rollout has no likelihood to compare."""
    objective = learner.config.objective
    for portion in objective.portions(lesson) if objective.density else ():
        prediction = _first(learner)(portion, learner.policy.generator).detach()
        yield objective.loss(portion, prediction)[1]["ratio"]


def _by_sample(rollout: Rollout, ratios: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Ratios of an objective's portions, which follow the transitions, for the samples that descend from each child."""
    joined, found, first = torch.cat(list(ratios)).cpu(), [], 0
    for transition in rollout.transitions:
        count = transition.log_probs.numel()
        found.append(rollout.by_sample(transition, joined[first : first + count].view(transition.log_probs.shape)))
        first += count
    return tuple(found)


def _summary(learner: Learns, figures: dict[str, list[Tensor]]) -> dict[str, float]:
    """Means over all processes, and for the ratio its largest distance from 1."""
    joined = {name: learner.gather(torch.cat(values)) for name, values in figures.items()}
    summary = {name: float(value.mean()) for name, value in joined.items()}
    if "ratio" in joined:
        summary["ratio_deviation"] = float((joined["ratio"] - 1).abs().max())
    return summary


def _relative_change(before: list[Tensor], after: list[Tensor]) -> float:
    """|after - before| / |before|, over all parameters together."""
    change = torch._foreach_norm(torch._foreach_sub([parameter.detach() for parameter in after], before))
    size = torch._foreach_norm(before)
    return float(torch.stack(change).norm() / torch.stack(size).norm().clamp_min(1e-12))
