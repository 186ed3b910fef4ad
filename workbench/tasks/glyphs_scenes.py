"""The glyphs domain's vocabulary and pictures: which word a prompt asks for, and scenes that show a word in a real font.

A scene is one word on a plain ground: free in font, size, place and colours. It knows nothing of readers and rewards.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LENGTHS = (3, 4)  # letters of a word
FONTS = {
    "manrope": ("font_manrope", "Manrope-Bold.ttf"),
    "serif": ("font_source_serif_pro", "SourceSerifPro-Bold.ttf"),
    "fredoka": ("font_fredoka_one", "FredokaOne-Regular.ttf"),
}
"""The package that brings each font, and its file there."""
SIZES = (13, 16)  # pixels per em; capitals are about .7 of that tall

HEIGHT, WIDTH = 24, 64  # pixels
MARGIN = 2  # pixels left and right of a word, at least
GAP = 2  # blank columns between letters, so that they never touch
DRIFT = 1  # pixels a word may stand above or below the middle
DARK = np.array([[20, 22, 31], [94, 20, 48], [15, 66, 50], [28, 56, 140]], np.float32) / 255
LIGHT = np.array([[246, 242, 230], [246, 203, 60], [160, 226, 194], [244, 172, 186]], np.float32) / 255
PALETTE = np.concatenate([DARK, LIGHT])
"""RGB in [0, 1]; a word is dark on light or light on dark, never otherwise."""

SLOT_SIZES = (1 + len(LETTERS),) * LENGTHS[-1]


@dataclass(frozen=True)
class Request:
    """The word that a prompt asks for, in capitals."""

    word: str

    @property
    def skill(self) -> str:
        return f"{len(self.word)} letters"

    @property
    def slots(self) -> tuple[int, ...]:
        """One small integer a letter, A as 1, and 0 for an empty slot."""
        return tuple(LETTERS.index(letter) + 1 for letter in self.word) + (0,) * (LENGTHS[-1] - len(self.word))


@dataclass(frozen=True)
class Scene:
    """One picture: a word, how it is set, and where; x, y are the left and upper edge of its capitals in pixels."""

    word: str
    font: str
    size: int
    x: int
    y: int
    ink: int  # indices into PALETTE
    ground: int


@dataclass(frozen=True)
class Glyph:
    """One letter as it is drawn: coverage [h, w] in [0, 1] without empty borders, and its rows below the capitals' upper edge."""

    coverage: NDArray[np.float32]
    top: int  # rows; negative where a round letter overshoots


_FORM = re.compile(r'\s*the word\s+["“”«»]?([^"“”«»]*?)["“”«»]?\s*\.?\s*', re.IGNORECASE)


@lru_cache(maxsize=4096)
def parse(prompt: str) -> Request:
    """Read a prompt such as 'the word "CAT"'; small letters count as capitals, and any letters make a word.

    Raises: ValueError: naming the letter, the length or the form that is wrong.
    """
    form = _FORM.fullmatch(prompt)
    if form is None:
        raise ValueError(f"prompt {prompt!r} has not the known form: 'the word \"CAT\"'")
    word = form[1].upper()
    for letter in word:
        if letter not in LETTERS:
            raise ValueError(f"prompt {prompt!r}: {letter!r} is not one of the letters A to Z")
    if len(word) not in LENGTHS:
        raise ValueError(f"prompt {prompt!r}: a word has {LENGTHS[0]} or {LENGTHS[-1]} letters, {word!r} has {len(word)}")
    return Request(word)


def prompt_of(word: str) -> str:
    """The prompt that asks for a word."""
    return f'the word "{word}"'


@cache
def glyphs(font: str, size: int) -> dict[str, Glyph]:
    """All letters of a font at a size in pixels, rasterised once."""
    from PIL import Image, ImageDraw, ImageFont

    package, name = FONTS[font]
    face = ImageFont.truetype(str(files(package) / "files" / name), size)
    drawn: dict[str, NDArray[np.float32]] = {}
    for letter in LETTERS:
        canvas = Image.new("L", (3 * size, 3 * size))
        ImageDraw.Draw(canvas).text((size, 2 * size), letter, fill=255, font=face, anchor="ls")
        drawn[letter] = np.asarray(canvas, np.float32) / np.float32(255)
    upper = int(np.flatnonzero(drawn["H"].max(1) > 0.25)[0])
    cut = {}
    for letter, canvas_coverage in drawn.items():
        rows, columns = (np.flatnonzero(canvas_coverage.max(axis) > 0.25) for axis in (1, 0))
        coverage = canvas_coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        cut[letter] = Glyph(np.ascontiguousarray(coverage), int(rows[0]) - upper)
    return cut


@lru_cache(maxsize=1 << 14)
def width(word: str, font: str, size: int) -> int:
    """Pixels from the first to the last inked column of a word."""
    return sum(glyphs(font, size)[letter].coverage.shape[1] for letter in word) + GAP * (len(word) - 1)


@cache
def cap_height(font: str, size: int) -> int:
    """Rows of the letter H."""
    return len(glyphs(font, size)["H"].coverage)


def sample_scenes(words: Sequence[str], rng: np.random.Generator) -> list[Scene]:
    """One scene a word, drawn evenly over fonts, over the sizes that fit, over places and over pairs of colours."""
    names = list(FONTS)
    draws = rng.random((len(words), 6))
    scenes = []
    for word, draw in zip(words, draws.tolist(), strict=True):
        font = names[_pick(draw[0], len(names))]
        fitting = [size for size in SIZES if width(word, font, size) <= WIDTH - 2 * MARGIN]
        size = fitting[_pick(draw[1], len(fitting))]
        x = MARGIN + _pick(draw[2], WIDTH - 2 * MARGIN - width(word, font, size) + 1)
        y = (HEIGHT - cap_height(font, size)) // 2 - DRIFT + _pick(draw[3], 2 * DRIFT + 1)
        dark, light = _pick(draw[4], len(DARK)), len(DARK) + _pick(draw[5], 2 * len(LIGHT)) % len(LIGHT)
        ink, ground = (dark, light) if _pick(draw[5], 2 * len(LIGHT)) < len(LIGHT) else (light, dark)
        scenes.append(Scene(word, font, size, x, y, ink, ground))
    return scenes


def _pick(share: float, count: int) -> int:
    """The index that a share in [0, 1) of `count` choices falls on."""
    return min(int(share * count), count - 1)


def coverage(scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """How much of each pixel is inked, [N, HEIGHT, WIDTH] in [0, 1]."""
    masks = np.zeros((len(scenes), HEIGHT, WIDTH), np.float32)
    for mask, scene in zip(masks, scenes, strict=True):
        x, letters = scene.x, glyphs(scene.font, scene.size)
        for letter in scene.word:
            glyph = letters[letter]
            y = scene.y + glyph.top
            h, w = glyph.coverage.shape
            mask[y : y + h, x : x + w] = glyph.coverage
            x += w + GAP
    return masks


def render(scenes: Sequence[Scene]) -> Tensor:
    """Scenes -> images [N, 3, HEIGHT, WIDTH] in [0, 1]."""
    ground, ink = (PALETTE[[getattr(scene, name) for scene in scenes]][:, :, None, None] for name in ("ground", "ink"))
    return torch.from_numpy(ground + (ink - ground) * coverage(scenes)[:, None])
