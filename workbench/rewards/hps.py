"""HPS v2.1: which picture people prefer for a prompt, from its published weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import RewardFunction
from workbench.models.diffusers_folder import read_settings
from workbench.models.pipeline import DTYPES
from workbench.models.transformers_folder import HEAD, hub_file, transformers_folder
from workbench.rewards.checkpoints import clip_of_open_clip, read_archive
from workbench.rewards.clip import check_is, load_clip
from workbench.rewards.learned import LearnedReward
from workbench.weight_cache import converted_folder


class HPS(LearnedReward):
    """HPS v2.1, a CLIP trained on 800 thousand choices of people: taste, sharper on style and finish than PickScore.

    The cosine of picture and prompt, about 0.2 to 0.35. Whole pictures are seen, on black where they are not square.

    Source: Human Preference Score v2 (arXiv:2306.09341).
    """

    name: Literal["hps"] = "hps"
    source: str = Field(
        "xswu/HPSv2/HPS_v2.1_compressed.pt",
        description="file of the published weights, or OWNER/MODEL/FILE on the hub; converted once and kept in the cache",
    )
    processor: str = Field(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        description="folder or id of the CLIP that it was trained from: its shape, its tokenizer and its view of pictures",
    )

    published = 986_109_441

    def scorer(self, device: torch.device) -> RewardFunction:
        path = hub_file(self.source, f"{self.name}.source", offline=self.offline)
        base = transformers_folder(self.processor, f"{self.name}.processor", weights=False, offline=self.offline)
        check_is(base, "clip", f"{self.name}.processor")
        config = read_settings(base / HEAD, f"{base} has no {HEAD}")
        folder = converted_folder(path, config, lambda origin: _converted(origin, config, self.name), "open_clip 1")
        clip = load_clip(str(folder), device, setting=f"{self.name}.source", dtype=DTYPES[self.dtype], processor=str(base))
        clip.view = clip.view.padded()  # whole pictures
        return clip.agreement


def _converted(path: Path, config: Mapping[str, Any], setting: str) -> Mapping[str, Tensor]:
    """The published weights by transformers' names. Raises: ValueError: if they are of a CLIP of another shape."""
    from transformers import CLIPConfig, CLIPModel

    found = clip_of_open_clip(read_archive(path, setting))
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in CLIPModel(CLIPConfig.from_dict(dict(config))).state_dict().items()}
    for name, shape in shapes.items():
        got = tuple(found[name].shape) if name in found else None
        if got != shape:
            told = "lacks" if got is None else f"has {list(got)} numbers for"
            raise ValueError(
                f"{setting}: {path} {told} {name}, where the CLIP that {setting}.processor names has {list(shape)}; name the "
                "CLIP that it was trained from"
            )
    if more := sorted(found.keys() - shapes.keys()):
        raise ValueError(f"{setting}: {path} has {more[0]}, which the CLIP that {setting}.processor names does not have")
    return found
