"""Classifier-free guidance: two predictions of one network, and which of them a gradient goes through."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.models.embedded import NetworkFlowMap, time_on

Conditions = Mapping[str, Tensor]
"""What a network is told besides states and times, by name; rows first, and one row stands for all."""

TRAIN_NEGATIVE = "let gradients go through the pass for the negative prompt as well: twice the work and memory of an update"
"""What the setting `train_negative` of a model does."""


class GuidedMap(NetworkFlowMap):
    """A network with its prompts bound whose velocity leads away from what a negative prompt gives: v- + scale (v+ - v-).

    With `train_negative` the two are one pass of twice the rows, as pipelines ask for them, and a gradient goes through both.
    Otherwise the negative one is a pass of its own that leaves no graph, which an update takes from the rollout as long as the
    weights are those that sampled: it pays for the prompts alone, forward and backward. Rollouts ask in the same way and shapes,
    since numbers that were worked out in another batch differ in their last bits.

    Args:
        prompts: [N, ...] each, or one row for all.
        negative: one row each; None asks for the prompts alone, in one pass.
        scale: of the guidance; 1 would be the prompts alone.
        train_negative: let gradients also go through the pass for the negative prompt.
    Source: classifier-free guidance (arXiv:2207.12598); detached in training as in Flow-GRPO (arXiv:2505.05470).
    """

    def __init__(
        self,
        network: nn.Module,
        kind: FlowMapKind,
        prompts: Conditions,
        negative: Conditions | None = None,
        *,
        scale: float = 1.0,
        train_negative: bool = False,
    ) -> None:
        super().__init__(network, next(iter(prompts.values())), kind)
        self.prompts, self.negative, self.scale, self.train_negative = prompts, negative, scale, train_negative
        self._detached: Callable[[Tensor, Tensor, Conditions], Tensor] | None = None  # in the place of `predict`

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, prompts: Conditions) -> Tensor:
        """The network's velocity, [N, ...] float32, for x [N, ...] at times t [N] with conditions of N rows."""

    def keeping(self, kept: list[Tensor]) -> Self:
        def made(x: Tensor, t: Tensor, prompts: Conditions) -> Tensor:
            kept.append(self.predict(x, t, prompts))
            return kept[-1]

        return self._with(made)

    def recalling(self, kept: Sequence[Tensor]) -> Self:
        calls = iter(kept)
        return self._with(lambda x, t, prompts: next(calls))

    def _with(self, detached: Callable[[Tensor, Tensor, Conditions], Tensor]) -> Self:
        other = copy(self)
        other._detached = detached
        return other

    def _average_velocity(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        time = time_on(x, t).expand(len(x))
        positive = _rows(self.prompts, len(x))
        if self.negative is None:
            return self.predict(x, time, positive)
        negative = _rows(self.negative, len(x))
        if self.train_negative:
            joined = {name: torch.cat([negative[name], positive[name]]) for name in positive}
            v_negative, v_positive = self.predict(torch.cat([x, x]), torch.cat([time, time]), joined).chunk(2)
        else:
            with torch.no_grad():
                v_negative = (self._detached or self.predict)(x, time, negative)
            v_positive = self.predict(x, time, positive)
        return v_negative + self.scale * (v_positive - v_negative)


def _rows(conditions: Conditions, count: int) -> Conditions:
    return {name: values.expand(count, *values.shape[1:]) for name, values in conditions.items()}
