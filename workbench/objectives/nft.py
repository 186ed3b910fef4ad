"""Negative-aware fine-tuning: good samples pull the velocity, bad ones push an implied negative policy."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.lesson import Lesson
from workbench.objectives.forward_process import ForwardProcess, Noised, column


class NFTObjective(ForwardProcess):
    """Two policies mirrored about the one that sampled, v+ = v_old + beta (v - v_old) and v- = v_old - beta (v - v_old): a sample
    supervises the first by how good it is, r = 1/2 + A / (2 advantage_max), and the second by 1 - r.

    Each is compared as data predictions, x_0 = x - t v, and the squared distance is divided by the absolute one, so that no time
    dominates. At v = v_old the gradient is that of flow matching, so divided, times A / advantage_max, whatever beta; away
    from there both terms hold the policy near v_old, the more the larger beta. The published code also multiplies the loss
    by advantage_max, which only changes what `kl_weight` means.

    Source: DiffusionNFT (arXiv:2509.16117).
    """

    name: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0, le=10, description="how far the two mirrored policies lie from the one that sampled")
    advantage_max: float = Field(5.0, gt=0, description="advantage from which on a sample counts as wholly good, or wholly bad")
    kl_weight: float = Field(1e-4, ge=0, description="weight of the squared distance to the reference's velocity")
    decay_rate: float = Field(0.001, ge=0, le=1, description="growth of the sampling policy's averaging decay with every update")
    decay_limit: float = Field(0.5, ge=0, lt=1, description="largest averaging decay of the policy that samples")

    @property
    def wants_old(self) -> bool:
        return True

    def behaviour_decay(self, updates: int) -> float:
        return min(self.decay_rate * updates, self.decay_limit)

    def weights(self, lesson: Lesson) -> Tensor:
        """r, how good each sample was, from 0 to 1."""
        return (0.5 + lesson.advantages / (2.0 * self.advantage_max)).clamp(0.0, 1.0)

    def compare(
        self, portion: Noised, velocity: Tensor, *, reference: Tensor | None, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        step = self.beta * (velocity - old)
        positive, negative = (_distance(portion, old + sign * step) for sign in (1, -1))
        return (portion.weights * positive + (1.0 - portion.weights) * negative) / self.beta, {}


def _distance(portion: Noised, velocity: Tensor) -> Tensor:
    """Squared distance of the data prediction, divided by the absolute one; means over dimensions, [n]."""
    error = (column(portion.t, velocity) * (portion.noise - portion.x0 - velocity)).flatten(1)  # x0 prediction less x0
    return error.square().mean(1) / error.detach().abs().mean(1).clamp_min(1e-5)
