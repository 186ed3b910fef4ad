"""A stated taste in pictures of words: contrast, centring and colours that go together, computed from the picture itself."""

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import Reward, RewardFunction

HARMONIES = ((0, 5), (1, 7), (2, 6), (3, 4))
"""Dark and light colours of the glyphs palette that go together, whichever is the ink: black and yellow, burgundy and pink, green
and mint, blue and cream."""
FULL_CONTRAST = 21.0
"""Contrast ratio of black and white (WCAG 2)."""
REACH = (12.0, 16.0)
"""Rows and columns off the middle at which a word is not centred at all."""


class GlyphsRule(Reward):
    """The rule that `glyphs_preference` was taught, computed on the picture: contrast, centring and harmony; in [0, 1].

    What a learned scorer can be fooled with does not count here: colours off the palette lower it, down to 0 at `worst`. It does
    not ask which word is written. Made to judge; training on it leaves nothing to check the scorer with.
    """

    name: Literal["glyphs_rule"] = "glyphs_rule"
    worst: float = Field(0.1, gt=0, le=1, description="mean palette distance that scores 0 (RGB in [0, 1])")

    domain = "glyphs"

    def load(self, device: torch.device) -> RewardFunction:
        from workbench.tasks.glyphs_reader import read

        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            seen = read(images)
            clean = (1 - seen.palette_distance / self.worst).clamp_min(0)
            return taste(torch.tensor(seen.ink), torch.tensor(seen.ground), seen.coverage) * clean

        return score


def taste(ink: Tensor, ground: Tensor, coverage: Tensor) -> Tensor:
    """How well words are set, [N] in [0, 1]: the mean of contrast, centring and harmony, each in [0, 1].

    Contrast is the WCAG 2 ratio as a share of black on white's; centring falls linearly with the distance of the ink's centroid
    from the middle; harmony is 1 for the colours of HARMONIES and 0 for others. A picture without ink scores 0.

    Args:
        ink, ground: indices into the glyphs palette, [N].
        coverage: how much of each pixel is inked, [N, H, W] in [0, 1].
    """
    parts = torch.stack([_contrast()[ink, ground], _centring(coverage), _harmony()[ink, ground]])
    return torch.where(coverage.sum((1, 2)) > 0, parts.mean(0), 0)


def _centring(coverage: Tensor) -> Tensor:
    offsets = []
    for axis, reach in zip((1, 2), REACH, strict=True):
        along = coverage.sum(3 - axis)  # [N, rows or columns]
        place = torch.arange(along.shape[1], dtype=coverage.dtype) - (along.shape[1] - 1) / 2
        offsets.append((along * place).sum(1) / along.sum(1).clamp_min(1e-6) / reach)
    return (1 - torch.stack(offsets).norm(dim=0)).clamp_min(0)


@cache
def _contrast() -> Tensor:
    """[ink, ground]: ratio of relative luminances, WCAG 2, divided by its maximum."""
    from workbench.tasks.glyphs_scenes import PALETTE

    colours = torch.from_numpy(PALETTE)
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = (linear * torch.tensor([0.2126, 0.7152, 0.0722])).sum(1) + 0.05
    ratio = luminance[:, None] / luminance[None]
    return torch.maximum(ratio, 1 / ratio) / FULL_CONTRAST


@cache
def _harmony() -> Tensor:
    """[ink, ground]: 1 where the colours go together."""
    from workbench.tasks.glyphs_scenes import PALETTE

    table = torch.zeros(len(PALETTE), len(PALETTE))
    for dark, light in HARMONIES:
        table[dark, light] = table[light, dark] = 1
    return table
