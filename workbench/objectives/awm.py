"""Advantage-weighted matching: a policy gradient whose likelihood is the loss of pretraining."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.grpo import clip_fraction, clipped_loss
from workbench.lesson import Lesson
from workbench.objectives.forward_process import ForwardProcess, Noised


class AWMObjective(ForwardProcess):
    """Clipped policy gradient on the pseudo log-likelihood -e, e the error of flow matching (v - (eps - x_0))^2, a mean over
    dimensions; noise and time are the same for the policy and for the one that sampled.

    The first gradient is that of flow matching, each sample weighed by its advantage. Bad samples are pushed away without
    bound, so a distance has to hold the policy: `kl_weight` to the reference, `clip_range` within epochs.

    Source: Advantage Weighted Matching (arXiv:2509.25050), whose code also holds the policy to a running average of itself.
    """

    name: Literal["awm"] = "awm"
    weighting: Literal["uniform", "time", "huber"] = Field(
        "huber",
        description="what an error e counts at time t. uniform: e; time: t e; huber: 4 t e^(1/4), so that no row drowns others",
    )
    clip_range: float = Field(0.01, gt=0, description="trust region of the ratio; met from the second epoch on")
    kl_weight: float = Field(0.1, ge=0, description="weight of the squared distance to the reference's velocity")

    @property
    def wants_old(self) -> bool:
        return True

    def weights(self, lesson: Lesson) -> Tensor:
        return lesson.advantages

    def compare(
        self, portion: Noised, velocity: Tensor, *, reference: Tensor | None, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        now, before = (-self._weigh(portion.errors(v), portion.t) for v in (velocity, old))
        ratio = torch.exp(now - before)
        clipped = clip_fraction(now, before, self.clip_range).expand(len(ratio))
        return clipped_loss(now, before, portion.weights, self.clip_range), {"ratio": ratio.detach(), "clip_fraction": clipped}

    def _weigh(self, errors: Tensor, t: Tensor) -> Tensor:
        if self.weighting == "huber":
            return 4.0 * t * (errors + 1e-10) ** 0.25  # finite in slope at 0
        return errors if self.weighting == "uniform" else t * errors
