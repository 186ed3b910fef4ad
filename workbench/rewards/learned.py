"""What rewards share that are networks of transformers: where they come from, portions, numbers, no gradient."""

from abc import abstractmethod
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import Reward, RewardFunction
from workbench.models.transformers_folder import cached_files, expect_libraries


class LearnedReward(Reward):
    """A network made by others that scores pictures; a subclass for each."""

    name: str = ""  # every one names itself
    source: str = Field("", description="folder of the network, or its id on the hub, fetched at first use")
    batch: int = Field(32, ge=1, le=1024, description="pictures that the network sees at a time")
    dtype: Literal["bf16", "fp16", "fp32"] = Field("fp32", description="numbers of the network; fp32 is what was published")
    offline: bool = Field(False, description="take only what is on this machine, never ask the hub")

    def weight_files(self) -> tuple[Path, ...]:
        return cached_files(self.source)

    @abstractmethod
    def scorer(self, device: torch.device) -> RewardFunction:
        """What scores one portion of pictures, which are on the device already."""

    def load(self, device: torch.device) -> RewardFunction:
        """Raises:
        ValueError: if a network is missing, gated, damaged or another one; says what to do.
        ModuleNotFoundError: if transformers is not installed, saying how to install it.
        """
        expect_libraries(f"the reward {self.name!r}")
        score, size = self.scorer(device), self.batch

        @torch.no_grad()
        def scored(images: Tensor, prompts: list[str]) -> Tensor:
            starts = range(0, len(prompts), size)
            portions = [score(images[at : at + size].detach().to(device), prompts[at : at + size]) for at in starts]
            return torch.cat(portions).float()

        return scored  # type: ignore[return-value]
