"""Exact success on a prompt of the glyphs domain."""

from typing import Literal

import torch

from workbench.contracts import Reward, RewardFunction


class GlyphsExact(Reward):
    """1 where a reader sees exactly the word asked for and nothing else, otherwise 0."""

    name: Literal["glyphs_exact"] = "glyphs_exact"

    domain = "glyphs"

    def load(self, device: torch.device) -> RewardFunction:
        from workbench.tasks.glyphs_reader import score

        return lambda images, prompts: score(images, prompts).exact
