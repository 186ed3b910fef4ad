"""Partial credit for the word that a prompt of the glyphs domain asks for."""

from typing import Literal

import torch

from workbench.contracts import Reward, RewardFunction


class GlyphsDense(Reward):
    """1 - edits / letters between the word a reader sees and the one asked for; at least 0, and 1 where it is part of more."""

    name: Literal["glyphs_dense"] = "glyphs_dense"

    domain = "glyphs"

    def load(self, device: torch.device) -> RewardFunction:
        from workbench.tasks.glyphs_reader import score

        return lambda images, prompts: score(images, prompts).dense
