"""Direct preference optimisation on one's own samples: the best of a group against its worst."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from workbench.lesson import Lesson
from workbench.objectives.forward_process import ForwardProcess, Noised


class DPOObjective(ForwardProcess):
    """-log sigmoid(-beta [(e_best - e_best_ref) - (e_worst - e_worst_ref)]), e the error of flow matching, a mean over
    dimensions; both of a pair have the same noise and time, the reference is the policy before training.

    A group whose samples are equally good prefers none: its pair has no weight.

    Source: Diffusion-DPO (arXiv:2311.12908), whose beta_dpo counts half as much; there the pairs come from people, here they are
    drawn anew at every iteration.
    """

    name: Literal["dpo"] = "dpo"
    beta: float = Field(20.0, gt=0, description="log-odds of a pair for each unit of squared velocity error")

    together = 2

    @property
    def wants_reference(self) -> bool:
        return True

    def choose(self, lesson: Lesson) -> Tensor:
        """The best and the worst of each group, in turn."""
        groups = lesson.advantages.view(-1, lesson.rollout.group_size)
        first = torch.arange(len(groups), device=groups.device)[:, None] * groups.shape[1]
        return (first + torch.stack([groups.argmax(1), groups.argmin(1)], 1)).flatten()

    def weights(self, lesson: Lesson) -> Tensor:
        """1 where a sample's group prefers any, else 0."""
        groups = lesson.advantages.view(-1, lesson.rollout.group_size)
        return (groups.amax(1) > groups.amin(1)).to(groups.dtype).repeat_interleave(groups.shape[1])

    def compare(
        self, portion: Noised, velocity: Tensor, *, reference: Tensor | None, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert reference is not None
        gained = portion.errors(velocity) - portion.errors(reference)
        return -portion.weights[::2] * logsigmoid(-self.beta * (gained[::2] - gained[1::2])), {}
