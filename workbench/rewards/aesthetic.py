"""LAION's aesthetic predictor: how beautiful a picture is, whatever it shows."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from workbench.contracts import RewardFunction
from workbench.models.pipeline import DTYPES
from workbench.models.transformers_folder import cached_files, hub_file
from workbench.rewards.checkpoints import read_archive
from workbench.rewards.clip import load_clip
from workbench.rewards.learned import LearnedReward

_WIDTHS = (1024, 128, 64, 16, 1)
_LAYERS = (0, 2, 4, 6, 7)  # dropout stands between them, which does nothing here


class Aesthetic(LearnedReward):
    """LAION's aesthetic predictor v2 on OpenAI's CLIP: beauty as people rated pictures, about 1 to 10; the prompt plays no part.

    Easily fooled: by itself it leads to glossy pictures of nothing in particular, so let another reward hold the prompt.

    Source: the improved aesthetic predictor of LAION-5B (arXiv:2210.08402); used for alignment in DDPO (arXiv:2305.13301).
    """

    name: Literal["aesthetic"] = "aesthetic"
    source: str = Field("openai/clip-vit-large-patch14", description="folder of the CLIP that it looks through, or its id")
    predictor: str = Field(
        "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        description="file of its own weights (sac+logos+ava1-l14-linearMSE.pth), or OWNER/MODEL/FILE on the hub",
    )

    published = 427_616_513

    def weight_files(self) -> tuple[Path, ...]:
        return (*super().weight_files(), *cached_files(self.predictor))

    def scorer(self, device: torch.device) -> RewardFunction:
        path = hub_file(self.predictor, f"{self.name}.predictor", offline=self.offline)
        clip = load_clip(self.source, device, setting=f"{self.name}.source", dtype=DTYPES[self.dtype], offline=self.offline)
        predict = predictor(path, clip.model.config.projection_dim, f"{self.name}.predictor").to(device)
        return lambda images, prompts: predict(clip.images(images)).squeeze(-1)


def predictor(path: Path, width: int, setting: str) -> nn.Sequential:
    """The layers on top of directions [N, width] of length 1 -> [N, 1]; there is nothing nonlinear between them.

    Raises: ValueError: if the file is damaged or holds another network.
    """
    state = read_archive(path, setting)
    layers = nn.Sequential()
    for number, (wide, narrow) in zip(_LAYERS, zip((width, *_WIDTHS), _WIDTHS, strict=False), strict=True):
        layer = nn.Linear(wide, narrow)
        for kind, own in (("weight", layer.weight), ("bias", layer.bias)):
            name = f"layers.{number}.{kind}"
            if name not in state or state[name].shape != own.shape:
                got = list(state[name].shape) if name in state else "nothing"
                raise ValueError(
                    f"{setting}: {path} has {got} for {name}, where a predictor on this CLIP has {list(own.shape)}; name another"
                )
            own.data.copy_(state[name])
        layers.append(layer)
    return layers.requires_grad_(False).eval()
