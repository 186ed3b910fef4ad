"""How cleanly an image of the shapes domain is drawn, whatever it shows."""

from typing import Literal

import torch
from pydantic import Field

from workbench.contracts import Reward, RewardFunction


class ShapesFidelity(Reward):
    """1 for pixels all on the palette, falling linearly with their mean distance to it, 0 from `worst` on.

    It sees off-palette colour, ghost marks and a tinted background, which the detector forgives and a policy would exploit.
    """

    name: Literal["shapes_fidelity"] = "shapes_fidelity"
    worst: float = Field(0.1, gt=0, le=1, description="mean palette distance that scores 0 (RGB in [0, 1])")

    domain = "shapes"

    def load(self, device: torch.device) -> RewardFunction:
        from workbench.tasks.shapes_detector import palette_distance

        return lambda images, prompts: (1 - palette_distance(images) / self.worst).clamp_min(0)
