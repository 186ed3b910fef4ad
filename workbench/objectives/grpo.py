"""Group-relative policy optimisation on the likelihood of stochastic steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import Detaching, FlowMap, Generator, Objective, Sampler
from workbench.flow import Gaussian
from workbench.grpo import clip_fraction, clipped_loss, gaussian_kl, ratio_norm, step_weights
from workbench.lesson import Lesson, portions
from workbench.rollout import Transition, child_log_probs


@dataclass(frozen=True)
class _Portion:
    """Some states of one transition."""

    transition: Transition
    sampler: Sampler
    embeddings: object  # of the rollout's distinct prompts
    rows: slice
    credits: Tensor  # [m, C]
    share: float  # of one state in the loss


class GRPOObjective(Objective):
    """Clipped policy gradient of the stochastic steps' likelihood, held to the reference by the KL of their Gaussians.

    The children of one state share its mean, so a portion costs one forward and backward pass per state, however many
    children it has.

    Source: DeepSeekMath (arXiv:2402.03300); on flows Flow-GRPO (arXiv:2505.05470), on flow maps Flow-Map GRPO (arXiv:2607.00535).
    """

    name: Literal["grpo"] = "grpo"
    clip_range: float = Field(
        1e-4, gt=0, description="trust region of the ratio, whose log-probability is a mean over dimensions"
    )
    kl_weight: float = Field(0.02, ge=0, description="weight of the Gaussian KL to the reference, a mean over dimensions")
    step_weights: Literal["uniform", "noise", "balanced"] = Field(
        "uniform",
        description="weight of a stochastic step; noise: by its std (TempFlow-GRPO); balanced: all steps pull alike (GRPO-Guard)",
    )
    ratio_norm: bool = Field(
        False, description="centre and rescale the log-ratio at every step (GRPO-Guard); wants a clip_range of about 4e-6"
    )

    density = True

    @property
    def wants_reference(self) -> bool:
        return self.kl_weight > 0

    def portions(self, lesson: Lesson) -> Sequence[_Portion]:
        rollout = lesson.rollout
        spans = {step: t - s for step, (t, s) in enumerate(pairwise(rollout.times[:-1])) if lesson.stds[step] > 0}
        # with ratio_norm the ratio is already rescaled by std, and only the span is left to balance
        stds = [1.0 if self.ratio_norm and self.step_weights == "balanced" else lesson.stds[step] for step in spans]
        weighed = step_weights(stds, self.step_weights, spans=list(spans.values())).tolist()
        weights = dict(zip(spans, weighed, strict=True))
        return [
            _Portion(
                transition,
                lesson.sampler,
                rollout.embeddings,
                rows,
                credit[rows],
                weights[transition.step] / (len(rollout.transitions) * len(transition.states)),
            )
            for transition, credit in zip(rollout.transitions, lesson.credits, strict=True)
            for rows in portions(len(transition.states), lesson.portion)
        ]

    def predict(self, portion: _Portion, generator: Generator) -> Tensor:
        """The means [m, ...] of the states' Gaussians; the call that sampled them, made again."""
        return self._means(portion, self._bound(portion, generator))

    def repeat(self, portion: _Portion, generator: Generator) -> Tensor:
        flow_map, kept = self._bound(portion, generator), portion.transition.kept
        if kept and isinstance(flow_map, Detaching):
            flow_map = flow_map.recalling([values[portion.rows] for values in kept])
        return self._means(portion, flow_map)

    def _bound(self, portion: _Portion, generator: Generator) -> FlowMap:
        return generator.bind(portion.embeddings[portion.transition.rows[portion.rows]])  # type: ignore[index]

    def _means(self, portion: _Portion, flow_map: FlowMap) -> Tensor:
        transition = portion.transition
        return portion.sampler.step(flow_map, transition.states[portion.rows], transition.t, transition.s).mean

    def loss(
        self, portion: _Portion, prediction: Tensor, *, reference: Tensor | None = None, old: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        transition, rows = portion.transition, portion.rows
        before = transition.log_probs[rows]
        log_probs = child_log_probs(Gaussian(prediction, transition.std), transition.children[rows])  # [m, C]
        ratio = torch.exp(log_probs - before)
        if self.ratio_norm:
            ratio = ratio_norm(log_probs, before, prediction, transition.means[rows], transition.std)
        losses = clipped_loss(log_probs, before, portion.credits, self.clip_range, ratio=ratio)
        clipped = clip_fraction(log_probs, before, self.clip_range, ratio=ratio).expand(ratio.numel())  # portions differ in size
        figures = {"ratio": ratio.detach().flatten(), "clip_fraction": clipped, "loss": losses.detach().flatten()}
        total = losses.mean(1).sum()
        if reference is not None:
            kl = gaussian_kl(prediction, reference, transition.std)
            figures["kl"] = kl.detach()
            total = total + self.kl_weight * kl.sum()
        return portion.share * total, figures
