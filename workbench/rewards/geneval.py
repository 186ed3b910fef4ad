"""GenEval: whether a detector finds what the prompt asks for."""

from typing import Literal

import torch
from pydantic import Field

from workbench.contracts import RewardFunction
from workbench.rewards.learned import LearnedReward


class GenEval(LearnedReward):
    """GenEval: objects, counts, colours and positions that a prompt asks for, as a detector sees them; in [0, 1].

    Objects are found by Mask2Former, as published, or by Grounding DINO; their colour is CLIP's opinion of the object alone, on
    grey. It looks at nothing else, so pictures may lose in taste: let another reward, or a judge, watch that.

    Source: GenEval (arXiv:2310.11513); the dense score is that of Flow-GRPO (arXiv:2505.05470), kept within [0, 1].
    """

    name: Literal["geneval"] = "geneval"
    score: Literal["dense", "strict", "benchmark"] = Field(
        "dense",
        description="dense: share of what is asked, by counts, colours and places (Flow-GRPO trains on it); strict: 1 where all "
        "is right and counts are exact, else 0; benchmark: 1 by GenEval's own rule, where only counting has a most",
    )
    detector: Literal["mask2former", "grounding_dino"] = Field(
        "mask2former", description="what finds objects: mask2former as published; grounding_dino reads class names, has no masks"
    )
    source: str = Field(
        "",
        description="folder or id of the detector; empty: facebook/mask2former-swin-small-coco-instance, as published, or "
        "IDEA-Research/grounding-dino-base",
    )
    clip: str = Field("openai/clip-vit-large-patch14", description="folder or id of the CLIP that tells colours")
    metadata: str = Field("", description="the task's own file of metadata; empty reads what is asked from the prompt's template")
    threshold: float = Field(0.3, ge=0, le=1, description="least confidence of an object, 0.3 as published")
    counting_threshold: float = Field(
        0.9, ge=0, le=1, description="the same where objects are counted: 0.9 as published; about 0.4 for grounding_dino"
    )
    max_overlap: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of two objects of a kind that overlap by this share only the surer stays; 1 keeps all, as published",
    )
    position_threshold: float = Field(
        0.1, ge=0, le=1, description="how far objects are apart, in their own sizes, before a side counts; 0.1 as published"
    )
    batch: int = Field(8, ge=1, le=256, description="pictures that the detector sees at a time")

    domain = "geneval"

    def scorer(self, device: torch.device) -> RewardFunction:
        raise ValueError("the reward 'geneval' has no detector yet")
