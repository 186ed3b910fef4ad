"""A small learned scorer of pictures of words: what people seem to like, as far as rendered pairs can teach it."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from workbench.contracts import Reward, RewardFunction

SOFTNESS = 2.0
"""Standard deviations of the scorer on rendered pictures that make one unit of the sigmoid's argument."""


class GlyphsPreference(Reward):
    """A learned scorer's opinion of a picture, squashed to [0, 1]; half for the average rendered picture. It can be fooled.

    It learned from pairs of rendered pictures alone which of two a stated rule prefers (`glyphs_rule`), as PickScore did from
    people's choices (arXiv:2305.01569). It has seen nothing else, does not know the prompt, and gives some pictures that please
    nobody more than any it was taught: train on it with a KL weight and a reward for the word, and let others judge.
    """

    name: Literal["glyphs_preference"] = "glyphs_preference"
    weights: str = Field("", description="safetensors file to load instead of the shipped scorer; empty for that")

    domain = "glyphs"

    def weight_files(self) -> tuple[Path, ...]:
        return (Path(self.weights) if self.weights else SHIPPED,)

    def load(self, device: torch.device) -> RewardFunction:
        """Raises: ValueError: if the file is missing, damaged, or holds another network."""
        from workbench.models.embedded import load_weights

        (path,) = self.weight_files()
        if not path.is_file():
            raise ValueError(f"no scorer at {path}; make one with: python -m workbench pretrain preference")
        scorer = PreferenceScorer().to(device).requires_grad_(False).eval()
        load_weights(path, {"scorer": scorer})

        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.cat([scorer.opinion(portion.to(device)) for portion in images.split(256)])

        return score


SHIPPED = Path(__file__).parent / "weights" / "preference.safetensors"


class PreferenceScorer(nn.Module):
    """Three strided convolutions and two layers; 0.09 million parameters for 24 x 64 pixels.

    `centre` and `spread` are the mean and the standard deviation of its raw scores on rendered pictures.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, height: int = 24, width: int = 64) -> None:
        super().__init__()
        widths = (3, 16, 32, 48)
        self.look = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.judge = nn.Sequential(nn.Linear(widths[-1] * height * width // 64, 64), nn.SiLU(), nn.Linear(64, 1))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Raw scores [N] of images [N, 3, H, W] in [0, 1]; only their differences mean something."""
        x = 2 * images - 1
        for layer in self.look:
            x = functional.silu(layer(x))
        return self.judge(x.flatten(1)).squeeze(1)

    def opinion(self, images: Tensor) -> Tensor:
        """Scores [N] in (0, 1)."""
        return ((self(images) - self.centre) / (SOFTNESS * self.spread)).sigmoid()


def bradley_terry(first: Tensor, second: Tensor, preferred: Tensor) -> Tensor:
    """Mean negative log-likelihood of choices under P(first) = sigmoid(first - second).

    Args:
        first, second: raw scores [N].
        preferred: 1 where the first was preferred, 0 where the second was, [N].
    Source: Bradley and Terry (1952); as a reward model's loss, arXiv:1706.03741.
    """
    return functional.binary_cross_entropy_with_logits(first - second, preferred)
