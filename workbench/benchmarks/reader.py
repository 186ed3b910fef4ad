"""Whether the glyphs reader sees what the renderer drew, through noise and blur too, and sees no letters where none are."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from workbench.evaluate import interval
from workbench.tasks.glyphs_reader import read
from workbench.tasks.glyphs_scenes import FONTS, HEIGHT, LENGTHS, LETTERS, SIZES, WIDTH, render, sample_scenes
from workbench.tasks.glyphs_words import WORDS

NOISES = (0.05, 0.1, 0.15)  # standard deviations of pixel noise, RGB in [0, 1]


def bench_reader(
    images: int = 8000, portion: int = 128, seed: int = 0, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Agreement of reader and renderer by font and size, with 95 % intervals, and milliseconds per image.

    Half of the pictures show words of the task, half random strings of letters. Disturbed and meaningless pictures follow, an
    eighth as many of each kind.
    """
    rng = np.random.default_rng(seed)
    texts = _texts(images, rng)
    scenes = sample_scenes(texts, rng)
    pictures = render(scenes)
    read(pictures[:8].clone())  # builds the templates, which is not to be timed
    seconds = 0.0
    found: list[str] = []
    for start in range(0, images, portion):
        part = pictures[start : start + portion].clone()
        began = time.perf_counter()
        found += read(part).text
        seconds += time.perf_counter() - began
        if progress is not None:
            progress(f"reader: {min(start + portion, images)} of {images} images")
    agrees = torch.tensor([a == b for a, b in zip(texts, found, strict=True)]).float()
    settings = np.array([f"{scene.font} {scene.size}" for scene in scenes])
    names = [f"{font} {size}" for font in FONTS for size in SIZES]
    few = slice(0, images // 8)
    draw = torch.Generator().manual_seed(seed)
    return {
        "images": images,
        "agreement": asdict(interval(agrees)),
        "agreement_by_font_and_size": {name: asdict(interval(agrees[settings == name])) for name in names},
        "disturbed": {name: _agreement(changed, texts[few]) for name, changed in _disturbed(pictures[few], draw).items()},
        "meaningless": {name: _letters(shown) for name, shown in _meaningless(images // 8, draw).items()},
        "milliseconds_per_image": 1000 * seconds / images,
        "portion": portion,
        "threads": torch.get_num_threads(),
    }


def _texts(count: int, rng: np.random.Generator) -> list[str]:
    """Words of the task and random strings in turn."""
    words = [WORDS[i] for i in rng.integers(0, len(WORDS), count)]
    strings = ["".join(rng.choice(list(LETTERS), length)) for length in rng.integers(LENGTHS[0], LENGTHS[-1] + 1, count)]
    return [(words, strings)[i % 2][i] for i in range(count)]


def _disturbed(images: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    noisy = {f"noise {noise}": images + noise * torch.randn(images.shape, generator=draw) for noise in NOISES}
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return {name: changed.clamp(0, 1) for name, changed in noisy.items()} | {"blur over 3 x 3 pixels": blurred}


def _meaningless(count: int, draw: torch.Generator) -> dict[str, Tensor]:
    clouds = torch.rand(count, 3, HEIGHT // 4, WIDTH // 4, generator=draw)
    blocks = (torch.rand(count, 1, HEIGHT // 2, WIDTH // 2, generator=draw) > 0.7).float().expand(-1, 3, -1, -1)
    return {
        "one colour": torch.rand(count, 3, 1, 1, generator=draw).expand(-1, -1, HEIGHT, WIDTH),
        "white noise": torch.rand(count, 3, HEIGHT, WIDTH, generator=draw),
        "clouds": functional.interpolate(clouds, size=(HEIGHT, WIDTH), mode="bilinear"),
        "blocks": functional.interpolate(blocks, size=(HEIGHT, WIDTH)),
    }


def _agreement(images: Tensor, texts: Sequence[str]) -> float:
    return float(np.mean([a == b for a, b in zip(read(images).text, texts, strict=True)]))


def _letters(images: Tensor) -> float:
    """Letters read in a picture, on average."""
    return float(np.mean([sum(character in LETTERS for character in text) for text in read(images).text]))
