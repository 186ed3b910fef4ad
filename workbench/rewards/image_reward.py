"""ImageReward, where its own package is installed."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from workbench.contracts import Reward, RewardFunction
from workbench.first_line import first_line
from workbench.rewards.views import View

_VIEW = View(shortest=224, crop=(224, 224))
_TOKENS = 35


class ImageReward(Reward):
    """ImageReward, a BLIP trained on rankings by experts: agreement with the prompt and faults of the picture; about -2 to 2.

    Needs the package `image-reward`, which brings torchvision and timm along; no other reward here does.

    Source: ImageReward (arXiv:2304.05977).
    """

    name: Literal["image_reward"] = "image_reward"
    source: str = Field(
        "ImageReward-v1.0", description="name of the weights, which the package fetches at first use, or a file with them"
    )
    med_config: str = Field("", description="file med_config.json of its text encoder; empty lets the package fetch it")
    batch: int = Field(32, ge=1, le=1024, description="pictures that the network sees at a time")

    published = 447_000_000

    def weight_files(self) -> tuple[Path, ...]:
        path = Path(self.source).expanduser()
        return (path,) if path.is_file() else ()

    def load(self, device: torch.device) -> RewardFunction:
        """Raises:
        ModuleNotFoundError: if the package is not installed, saying how to install it.
        ValueError: if its weights cannot be loaded.
        """
        try:
            import ImageReward as package  # noqa: N813
        except ImportError as error:  # a part of it that is missing says so too
            missing = getattr(error, "name", None) or "ImageReward"
            raise ModuleNotFoundError(
                f"the reward 'image_reward' needs {missing}, which is not installed: pip install image-reward", name=missing
            ) from error
        try:
            model = package.load(self.source, device=str(device), med_config=self.med_config or None)
            model = model.requires_grad_(False).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"image_reward.source = {self.source!r} cannot be loaded: {first_line(error)}; let it name a file with "
                "the weights"
            ) from error

        @torch.no_grad()
        def score(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            found = []
            for start in range(0, len(prompts), self.batch):
                tokens = model.blip.tokenizer(
                    list(prompts[start : start + self.batch]),
                    padding="max_length",
                    truncation=True,
                    max_length=_TOKENS,
                    return_tensors="pt",
                ).to(device)
                seen = _VIEW(images[start : start + self.batch].detach().to(device))
                found.append(model.score_gard(tokens.input_ids, tokens.attention_mask, seen).flatten())
            return torch.cat(found).float()

        return score  # type: ignore[return-value]
