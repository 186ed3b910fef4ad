"""How many bytes a picture takes as a JPEG: a reward that any picture has, which needs no model."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import Reward, RewardFunction

_THREADS = 8  # more of them wait for one another


class JPEGSize(Reward):
    """Size of the picture as a JPEG file, in kB (1000 bytes): detailed and noisy pictures are large, plain ones small.

    It says nothing about the prompt. With `wanted = small` the reward is minus the size.

    Source: compressibility and incompressibility of DDPO (arXiv:2305.13301).
    """

    name: Literal["jpeg_size"] = "jpeg_size"
    wanted: Literal["large", "small"] = Field(
        "large", description="large: rewards detail (incompressibility); small: rewards plainness (compressibility)"
    )
    quality: int = Field(95, ge=1, le=95, description="quality of the JPEG encoder; 95 in the source")

    def load(self, device: torch.device) -> RewardFunction:
        sign, quality = 1.0 if self.wanted == "large" else -1.0, self.quality

        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
            with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
                return sign * torch.tensor(list(threads.map(lambda each: _bytes(each, quality), pixels))) / 1000

        return score


def _bytes(pixels: Any, quality: int) -> int:
    """Size of one picture [H, W, 3], uint8, as a file; the encoder works without Python's lock."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.tell()
