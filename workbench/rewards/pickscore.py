"""PickScore: which picture people would pick for a prompt."""

from typing import Literal

import torch
from pydantic import Field

from workbench.contracts import RewardFunction
from workbench.models.pipeline import DTYPES
from workbench.rewards.clip import load_clip
from workbench.rewards.learned import LearnedReward


class PickScore(LearnedReward):
    """PickScore, a CLIP trained on half a million choices of people: how well a picture pleases for its prompt.

    Its temperature times the cosine of picture and prompt, about 17 to 24, over `divisor`. General taste, composition and
    following the prompt in one number; it says little about counting or spelling.

    Source: Pick-a-Pic (arXiv:2305.01569); the divisor is that of Flow-GRPO (arXiv:2505.05470).
    """

    name: Literal["pickscore"] = "pickscore"
    source: str = Field("yuvalkirstain/PickScore_v1", description="folder of PickScore, or its id on the hub")
    processor: str = Field(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        description="folder or id with its tokenizer and its view of pictures; empty: those of the source",
    )
    divisor: float = Field(
        26.0, gt=0, description="the score is divided by it: 26 as in Flow-GRPO, which makes about 0.8; 1 leaves it as published"
    )

    published = 986_109_441

    def scorer(self, device: torch.device) -> RewardFunction:
        clip = load_clip(
            self.source,
            device,
            setting=f"{self.name}.source",
            dtype=DTYPES[self.dtype],
            processor=self.processor,
            offline=self.offline,
        )
        return lambda images, prompts: clip.scale * clip.agreement(images, prompts) / self.divisor
