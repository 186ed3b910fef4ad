"""How networks want to see pictures: resized, cropped or padded, normalised; on the device, a batch at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from workbench.models.diffusers_folder import read_settings

_MODES = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class View:
    """What a network is shown of a picture.

    Follows the image processors of transformers over Pillow: 8-bit pixels before and after resizing, antialiased filters.
    Against them a pixel may differ by two of 255 levels where they round otherwise, and hardly one in twenty differs at all.
    """

    size: tuple[int, int] = (0, 0)  # height and width of the result; 0 where an edge decides
    shortest: int = 0  # pixels of the shorter edge; 0 where it does not decide
    longest: int = 0  # most pixels of the longer edge; 0 for no limit
    crop: tuple[int, int] = (0, 0)  # height and width that are cut from the middle; 0 for no cut
    mode: str = "bicubic"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    square: int = 0  # pads with black around the middle to a square of this side, before normalising; 0 for none
    divisor: int = 1  # height and width are stretched to multiples of it

    def __call__(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, 3, h, w], normalised, float32."""
        pixels = (images.float().clamp(0, 1) * 255).round()
        wanted = self.resized(*pixels.shape[-2:])
        for step in ((pixels.shape[-2], wanted[1]), wanted):  # across, then down, rounding halves up after each, as Pillow does
            if step != tuple(pixels.shape[-2:]):
                pixels = functional.interpolate(pixels, step, mode=self.mode, antialias=True, align_corners=False)
                pixels = (pixels + 0.5).floor().clamp(0, 255)
        if any(self.crop):
            pixels = _middle(pixels, *self.crop)
        if self.square:
            pixels = _on_black(pixels, self.square)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels / 255 - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture after resizing."""
        height, width = self._resized(height, width)
        return math.ceil(height / self.divisor) * self.divisor, math.ceil(width / self.divisor) * self.divisor

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if any(self.size):
            return self.size
        short, long = min(height, width), max(height, width)
        if self.shortest:
            edge = float(self.shortest)
            if self.longest and long / short * edge > self.longest:
                edge = self.longest * short / long
            first, second = round(edge), int(edge * long / short)
        elif self.longest:
            first, second = round(self.longest * short / long), self.longest
        else:
            return height, width
        return (first, second) if height <= width else (second, first)

    def padded(self) -> "View":
        """The same for whole pictures: the longer edge fits and the rest is black, instead of cutting from the middle."""
        side = max(self.crop) or max(self.size) or self.shortest
        return replace(self, size=(0, 0), shortest=0, longest=side, crop=(0, 0), square=side)


def read_view(folder: Path) -> View:
    """The view that a folder of transformers describes. Raises: ValueError: if it does not."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), folder / _FILES[0])
    found = read_settings(path, f"{folder} lacks {_FILES[0]}, which says how its network sees pictures; fetch it again")
    found = found.get("image_processor", found)
    size, crop = _sides(found.get("size", 224)), _sides(found.get("crop_size", 224))
    resample = found.get("resample", 3)
    if resample not in _MODES:
        raise ValueError(f"{path} resizes with filter {resample}; this program knows 2 and 3 (bilinear, bicubic)")
    resizes = found.get("do_resize", True)
    return View(
        size=(size["height"], size["width"]) if resizes and "height" in size else (0, 0),
        shortest=size.get("shortest_edge", 0) if resizes else 0,
        longest=size.get("longest_edge", found.get("max_size", 0)) if resizes else 0,
        crop=_cut(crop) if found.get("do_center_crop") else (0, 0),
        mode=_MODES[resample],
        mean=tuple(found.get("image_mean", View.mean)),
        std=tuple(found.get("image_std", View.std)),
        divisor=found.get("size_divisor") or 1,
    )


def _sides(size: int | Mapping[str, int]) -> Mapping[str, int]:
    return {"shortest_edge": size} if isinstance(size, int) else size


def _cut(size: Mapping[str, int]) -> tuple[int, int]:
    side = size.get("shortest_edge", 0)
    return size.get("height", side), size.get("width", side)


def _on_black(pixels: Tensor, side: int) -> Tensor:
    """Padded to a square around the middle; what is odd goes below and to the right, as in HPS v2 (arXiv:2306.09341)."""
    high, wide = side - pixels.shape[-2], side - pixels.shape[-1]
    return functional.pad(pixels, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


def _middle(pixels: Tensor, height: int, width: int) -> Tensor:
    """Cut or padded with zeros around the middle."""
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    below, right = pixels.shape[-2] - height - top, pixels.shape[-1] - width - left
    return functional.pad(pixels, (-left, -right, -top, -below))


def as_bytes(images: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> uint8 [N, H, W, 3] on the CPU."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu()
