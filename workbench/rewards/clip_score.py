"""CLIPScore: how well a picture agrees with its prompt."""

from typing import Literal

import torch
from pydantic import Field

from workbench.contracts import RewardFunction
from workbench.models.pipeline import DTYPES
from workbench.rewards.clip import load_clip
from workbench.rewards.learned import LearnedReward


class CLIPScore(LearnedReward):
    """The cosine of picture and prompt in OpenAI's CLIP, times `scale`: whether a picture shows what was asked, roughly.

    About 20 to 35 at scale 100. It reads a prompt as a bag of words: good for the subject, blind to counts, order and spelling.
    Nothing is cut off below 0.

    Source: CLIPScore (arXiv:2104.08718), which takes scale 2.5; 100 is what most tables report.
    """

    name: Literal["clip_score"] = "clip_score"
    source: str = Field("openai/clip-vit-large-patch14", description="folder of a CLIP, or its id on the hub")
    scale: float = Field(100.0, gt=0, description="the cosine is multiplied by it: 100 as in most tables, 1 leaves the cosine")

    published = 427_616_513

    def scorer(self, device: torch.device) -> RewardFunction:
        clip = load_clip(self.source, device, setting=f"{self.name}.source", dtype=DTYPES[self.dtype], offline=self.offline)
        return lambda images, prompts: self.scale * clip.agreement(images, prompts)
