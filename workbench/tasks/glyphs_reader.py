"""A deterministic reader for the glyphs domain, by colours, columns and templates. It reads the fonts of the scenes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from workbench.tasks.glyphs_scenes import FONTS, HEIGHT, LETTERS, PALETTE, SIZES, WIDTH, glyphs, parse

UNREAD = "?"  # stands for a mark that is none of our letters
MIN_CONTRAST = 0.25  # RGB distance of ink and ground below which there is nothing to read
INKED = 0.35  # coverage from which a pixel belongs to a letter
MIN_INK = 3.0  # pixels of ink; smaller marks are specks, not letters
MIN_MATCH = 0.7  # 1 - squared error against the best template, relative to the larger of the two energies
CROP = 20  # side of the window that holds one letter, pixels; wider marks are none
SHIFTS = 1  # pixels a letter may stand off its window's corner, either way
FULL = 24  # pixels taken to be fully inked


@dataclass(frozen=True)
class Reading:
    """What N images say, and how they are set; -1 where there is nothing to tell it by."""

    text: tuple[str, ...]  # letters from left to right, UNREAD for marks that are none
    font: tuple[int, ...]  # index into FONTS of most letters
    left: tuple[int, ...]  # first inked column
    ink: tuple[int, ...]  # nearest colours, indices into PALETTE
    ground: tuple[int, ...]
    contrast: Tensor  # [N] RGB distance of ink and ground
    coverage: Tensor  # [N, HEIGHT, WIDTH] in [0, 1]
    palette_distance: Tensor  # [N] mean distance of pixels to the mix of palette colours that they should be


def read(images: Tensor) -> Reading:
    """Read images [N, 3, HEIGHT, WIDTH] in [0, 1].

    Raises: ValueError: if the images are of another size.
    """
    if images.shape[1:] != (3, HEIGHT, WIDTH):
        raise ValueError(f"the glyphs reader reads images [N, 3, {HEIGHT}, {WIDTH}], got {list(images.shape)}")
    if images not in _READINGS:
        _READINGS[images] = _read(images.detach().float().cpu())
    return _READINGS[images]


_READINGS = WeakTensorKeyDictionary()  # several rewards and statistics look at the same images, which never change in place


def _read(images: Tensor) -> Reading:
    ground, ink = _colours(images)
    contrast = (ink - ground).norm(dim=1)
    coverage = _project(images, ground, ink) * (contrast >= MIN_CONTRAST)[:, None, None]
    nearest = [torch.cdist(colour, _palette()).argmin(1) for colour in (ink, ground)]
    pure_ink, pure_ground = (_palette()[index][:, :, None, None] for index in nearest)
    distance = (images - torch.lerp(pure_ground, pure_ink, coverage[:, None])).norm(dim=1).mean((1, 2))
    image, left, crops = _marks(coverage)
    letter, font = _match(crops)
    n = len(images)
    texts, fonts, lefts = [""] * n, [[0] * len(FONTS) for _ in range(n)], [-1] * n
    for i, x, character, face in zip(image.tolist(), left.tolist(), letter.tolist(), font.tolist(), strict=True):
        texts[i] += LETTERS[character] if character >= 0 else UNREAD
        lefts[i] = x if lefts[i] < 0 else lefts[i]
        if character >= 0:
            fonts[i][face] += 1
    chosen = tuple(votes.index(max(votes)) if any(votes) else -1 for votes in fonts)
    inks, grounds = (tuple(index.tolist()) for index in nearest)
    return Reading(tuple(texts), chosen, tuple(lefts), inks, grounds, contrast, coverage, distance)


@cache
def _palette() -> Tensor:
    return torch.from_numpy(PALETTE)


def _colours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Ground and ink of each image, both [N, 3]: the median of its border, and the mean of the pixels farthest from that."""
    frame = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    ground = images[:, :, frame].median(2).values
    distance = (images - ground[:, :, None, None]).square().sum(1).flatten(1)
    far = distance.topk(FULL, dim=1).indices[:, None].expand(-1, 3, -1)
    return ground, images.flatten(2).gather(2, far).mean(2)


def _project(images: Tensor, ground: Tensor, ink: Tensor) -> Tensor:
    """How far each pixel is on the way from ground to ink, [N, HEIGHT, WIDTH] in [0, 1]."""
    axis = ink - ground
    along = ((images - ground[:, :, None, None]) * axis[:, :, None, None]).sum(1)
    return (along / axis.square().sum(1).clamp_min(1e-6)[:, None, None]).clamp(0, 1)


def _marks(coverage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs of inked columns, from left to right in each image: image [M], first column [M], window [M, CROP, CROP].

    A window begins SHIFTS pixels left of and above its mark. A mark that does not fit leaves its window empty, as no letter does.
    """
    inked = coverage >= INKED
    columns = torch.nn.functional.pad(inked.any(1), (1, 1)).int()
    edges = columns.diff(dim=1)
    image, left = (edges == 1).nonzero(as_tuple=True)
    right = (edges == -1).nonzero(as_tuple=True)[1]  # one past the last column; both run in the same order
    position = torch.arange(WIDTH)
    inside = (position >= left[:, None]) & (position < right[:, None])  # [M, WIDTH]
    masked = coverage[image] * inside[:, None]
    big = masked.sum((1, 2)) >= MIN_INK
    image, left, right, masked = image[big], left[big], right[big], masked[big]
    rows = (masked >= INKED).any(2)
    top = rows.int().argmax(1)
    bottom = HEIGHT - rows.flip(1).int().argmax(1)
    fits = (right - left <= CROP - 2 * SHIFTS) & (bottom - top <= CROP - 2 * SHIFTS)
    padded = torch.nn.functional.pad(masked, (SHIFTS, CROP, SHIFTS, CROP))
    window = torch.arange(CROP)
    crops = padded[
        torch.arange(len(image))[:, None, None], (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None, :]
    ]
    return image, left, crops * fits[:, None, None]


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Every letter of every font and size at every shift: [CROP * CROP, templates], and each one's energy."""
    span = 2 * SHIFTS + 1
    bank = torch.zeros(len(FONTS), len(SIZES), len(LETTERS), span, span, CROP, CROP)
    for f, font in enumerate(FONTS):
        for z, size in enumerate(SIZES):
            for c, letter in enumerate(LETTERS):
                shape = torch.from_numpy(glyphs(font, size)[letter].coverage)
                h, w = shape.shape
                for dy in range(span):
                    for dx in range(span):
                        bank[f, z, c, dy, dx, dy : dy + h, dx : dx + w] = shape
    flat = bank.flatten(5).flatten(0, 4)
    return flat.T.contiguous(), flat.square().sum(1)


def _match(crops: Tensor) -> tuple[Tensor, Tensor]:
    """The letter and the font of windows [M, CROP, CROP]; the letter is -1 where no template comes near."""
    bank, energy = _templates()
    flat = crops.flatten(1)
    own = flat.square().sum(1)[:, None]
    error = own + energy - 2 * flat @ bank
    match, best = (1 - error / torch.maximum(own, energy)).max(1)
    letter = best // (2 * SHIFTS + 1) ** 2
    font = letter // (len(SIZES) * len(LETTERS))
    return torch.where(match >= MIN_MATCH, letter % len(LETTERS), -1), font


@dataclass(frozen=True)
class Scores:
    """How well images show the words asked for; both [N], in [0, 1]."""

    dense: Tensor  # share of the word that needs no edit
    exact: Tensor  # 1 where exactly the word is read


def score(images: Tensor, prompts: Sequence[str]) -> Scores:
    """Compare what is read with the words asked for.

    The dense score is 1 - edits / letters, at least 0, and 1 where the word is part of what is read.

    Source: the text-rendering reward of Flow-GRPO (arXiv:2505.05470).
    """
    pairs = [(text, parse(prompt).word) for text, prompt in zip(read(images).text, prompts, strict=True)]
    dense = [1.0 if word in text else max(0.0, 1 - edit_distance(text, word) / len(word)) for text, word in pairs]
    return Scores(torch.tensor(dense), torch.tensor([float(text == word) for text, word in pairs]))


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and substitutions of single letters that turn one text into the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
