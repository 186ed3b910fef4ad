"""Reward-weighted regression: flow matching on one's own samples, the better ones counting more."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.lesson import Lesson
from workbench.objectives.forward_process import ForwardProcess, Noised


class RewardWeightedObjective(ForwardProcess):
    """Flow matching on the rollout's samples, each weighed by exp(A / temperature) over the mean of that in its group.

    All weights are positive, so nothing is pushed away, and equal rewards leave plain flow matching. That moves the policy as
    well, since samples of few steps are not what it was trained on: hence the weight of the distance to the reference.

    Source: reward-weighted regression on diffusion, DDPO's baseline (arXiv:2305.13301).
    """

    name: Literal["reward_weighted"] = "reward_weighted"
    temperature: float = Field(
        0.3, gt=0, description="of the weights; as it falls the best sample of a group is left alone, large ones weigh all alike"
    )
    kl_weight: float = Field(1.0, ge=0, description="weight of the squared distance to the reference's velocity")

    def weights(self, lesson: Lesson) -> Tensor:
        groups = (lesson.advantages / self.temperature).view(-1, lesson.rollout.group_size)
        return (groups.softmax(1) * groups.shape[1]).flatten()

    def compare(
        self, portion: Noised, velocity: Tensor, *, reference: Tensor | None, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return portion.weights * portion.errors(velocity), {}
