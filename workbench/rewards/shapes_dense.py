"""Partial credit for what a prompt of the shapes domain asks."""

from typing import Literal

import torch

from workbench.contracts import Reward, RewardFunction


class ShapesDense(Reward):
    """Share of the objects, attributes and relation asked for that a detector finds; in [0, 1]."""

    name: Literal["shapes_dense"] = "shapes_dense"

    domain = "shapes"

    def load(self, device: torch.device) -> RewardFunction:
        from workbench.tasks.shapes_detector import score

        return lambda images, prompts: torch.from_numpy(score(images, prompts).dense).float()
