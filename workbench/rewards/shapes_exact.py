"""Exact success on a prompt of the shapes domain."""

from typing import Literal

import torch

from workbench.contracts import Reward, RewardFunction


class ShapesExact(Reward):
    """1 where a detector finds everything the prompt asks for and nothing else, otherwise 0; GenEval's criterion."""

    name: Literal["shapes_exact"] = "shapes_exact"

    domain = "shapes"

    def load(self, device: torch.device) -> RewardFunction:
        from workbench.tasks.shapes_detector import score

        return lambda images, prompts: torch.from_numpy(score(images, prompts).exact).float()
