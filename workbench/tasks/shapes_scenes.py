"""The embedded domain's vocabulary and pictures: what a prompt about coloured shapes asks for, and scenes that satisfy it.

A scene is up to four objects on a 4 x 4 grid of 10-pixel cells, each of free size and free position inside its cell.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow")
NUMBERS = ("two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
SKILLS = ("single", "two", "counting", "colours", "position", "attribution")

GRID, CELL = 4, 10  # cells per side, pixels per cell
SIDE = GRID * CELL
SIZES = (6, 7, 8, 9)  # object sides in pixels; one pixel of every cell stays background, so objects never touch
PALETTE = np.array([[16, 17, 24], [226, 55, 50], [60, 180, 75], [64, 112, 240], [245, 200, 40]], np.float32) / 255
"""Background, then COLOURS; RGB in [0, 1]."""


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: `count` objects of the first kind, or one of each kind. Indices; -1 leaves the colour open."""

    skill: str
    kinds: tuple[tuple[int, int], ...]  # (shape, colour), one or two
    count: int  # of the first kind; 1 where there are two kinds
    relation: int  # index into RELATIONS of the first kind to the second; -1 for none

    @property
    def slots(self) -> tuple[int, ...]:
        """The prompt as six small integers, 0 for an empty slot: count, colour, shape, joint, colour, shape."""
        (shape, colour), *other = self.kinds
        second = (other[0][1] + 1, other[0][0] + 1) if other else (0, 0)
        joint = 0 if not other else self.relation + 2
        return (self.count, colour + 1, shape + 1, joint, *second)


SLOT_SIZES = (5, 1 + len(COLOURS), 1 + len(SHAPES), 2 + len(RELATIONS), 1 + len(COLOURS), 1 + len(SHAPES))


@lru_cache(maxsize=4096)
def parse(prompt: str) -> Request:
    """Read a prompt of the domain.

    Raises: ValueError: naming the word that is not understood and listing the vocabulary, or showing the forms a prompt takes.
    """
    words = prompt.lower().replace(",", " ").strip(" .").split()
    known = {
        "a",
        "an",
        "one",
        "and",
        "left",
        "right",
        "of",
        "above",
        "below",
        *SHAPES,
        *(f"{s}s" for s in SHAPES),
        *COLOURS,
        *NUMBERS,
    }
    for word in words:
        if word not in known:
            raise ValueError(
                f"prompt {prompt!r}: unknown word {word!r}; the vocabulary is: a, {', '.join(NUMBERS)}, {', '.join(COLOURS)}, "
                f"{', '.join(SHAPES)}, and, {', '.join(RELATIONS)}"
            )
    request = _request(" ".join(words))
    if request is None:
        raise ValueError(
            f"prompt {prompt!r} has none of the known forms: 'a circle', 'a red circle', 'two red circles', "
            "'a circle and a square', 'a red circle and a blue square', 'a red circle left of a blue square'"
        )
    return request


def _request(text: str) -> Request | None:
    for index, joint in enumerate((" and ", *(f" {relation} " for relation in RELATIONS))):
        if joint in text:
            kinds = tuple(_kind(part) for part in text.split(joint))
            if len(kinds) != 2 or None in kinds or any(count != 1 for count, _ in kinds):  # type: ignore[misc]
                return None
            first, second = (kind for _, kind in kinds)  # type: ignore[misc]
            coloured = first[1] >= 0 or second[1] >= 0
            skill = "position" if index else "attribution" if coloured else "two"
            return Request(skill, (first, second), 1, index - 1)
    kind = _kind(text)
    if kind is None:
        return None
    count, (shape, colour) = kind
    return Request("counting" if count > 1 else "colours" if colour >= 0 else "single", ((shape, colour),), count, -1)


def _kind(text: str) -> tuple[int, tuple[int, int]] | None:
    """'two red circles' -> (2, (shape, colour)); None where the phrase is not one."""
    words = text.split()
    if len(words) not in (2, 3):
        return None
    number, colour, noun = words[0], words[1] if len(words) == 3 else "", words[-1]
    count = 1 if number in ("a", "an", "one") else NUMBERS.index(number) + 2 if number in NUMBERS else 0
    singular = noun.removesuffix("s")
    if not count or singular not in SHAPES or (colour and colour not in COLOURS) or (noun != singular) != (count > 1):
        return None
    return count, (SHAPES.index(singular), COLOURS.index(colour) if colour else -1)


@cache
def placements() -> NDArray[np.int64]:
    """[placements, 3]: (size index, dy, dx), every position of every size that keeps inside a cell's inner square."""
    return np.array([(i, dy, dx) for i, size in enumerate(SIZES) for dy in range(CELL - size) for dx in range(CELL - size)])


@cache
def templates() -> NDArray[np.float32]:
    """[shape, size, CELL, CELL] masks of the shapes, drawn into the upper left corner."""
    masks = np.zeros((len(SHAPES), len(SIZES), CELL, CELL), np.float32)
    for i, size in enumerate(SIZES):
        centre = (size - 1) / 2
        y, x = np.mgrid[:size, :size]
        masks[0, i, :size, :size] = (y - centre) ** 2 + (x - centre) ** 2 <= (size / 2) ** 2
        masks[1, i, :size, :size] = 1
        masks[2, i, :size, :size] = np.abs(x - centre) <= y / 2 + (0.5 if size % 2 == 0 else 0.0)
    return masks


@cache
def patches() -> NDArray[np.float32]:
    """[1 + shapes * colours * placements, 3, CELL, CELL] in [0, 1]: an empty cell, then everything that a cell may hold."""
    empty = np.broadcast_to(PALETTE[0][:, None, None], (3, CELL, CELL))
    drawn = [empty]
    for shape, colour in itertools.product(range(len(SHAPES)), range(len(COLOURS))):
        for size, dy, dx in placements():
            mask = np.roll(templates()[shape, size], (dy, dx), (0, 1))
            drawn.append(empty * (1 - mask) + PALETTE[colour + 1][:, None, None] * mask)
    return np.stack(drawn).astype(np.float32)


def sample_scenes(requests: Sequence[Request], rng: np.random.Generator) -> NDArray[np.int64]:
    """Random scenes that satisfy the requests: [N, GRID * GRID] indices into `patches()`, 0 where a cell is empty."""
    n = len(requests)
    kinds = np.array([[*r.kinds[0], *(r.kinds[1] if len(r.kinds) > 1 else r.kinds[0])] for r in requests])
    total = np.array([r.count if len(r.kinds) == 1 else 2 for r in requests])
    relation = np.array([r.relation for r in requests])
    cells = np.argsort(rng.random((n, GRID * GRID)), axis=1)[:, :4]
    for index in range(len(RELATIONS)):
        rows = np.flatnonzero(relation == index)
        cells[rows, :2] = _related_cells(index)[rng.integers(0, len(_related_cells(index)), len(rows))]
    shape = kinds[:, [0, 2, 0, 0]]
    colour = kinds[:, [1, 3, 1, 1]]
    colour = np.where(colour < 0, rng.integers(0, len(COLOURS), (n, 4)), colour)
    count = len(placements())
    size = rng.integers(0, len(SIZES), (n, 4))
    first = np.array([np.flatnonzero(placements()[:, 0] == i)[0] for i in range(len(SIZES))])
    ways = np.array([(CELL - size) ** 2 for size in SIZES])
    place = first[size] + np.floor(rng.random((n, 4)) * ways[size]).astype(np.int64)
    patch = 1 + (shape * len(COLOURS) + colour) * count + place
    scenes = np.zeros((n, GRID * GRID), np.int64)
    present = np.arange(4)[None] < total[:, None]
    rows = np.broadcast_to(np.arange(n)[:, None], (n, 4))
    scenes[rows[present], cells[present]] = patch[present]
    return scenes


@cache
def _related_cells(relation: int) -> NDArray[np.int64]:
    """[pairs, 2] of cells whose first stands in the relation to the second."""
    pairs = [(a, b) for a, b in itertools.permutations(range(GRID * GRID), 2)]
    holds = {
        0: lambda a, b: a % GRID < b % GRID,
        1: lambda a, b: a % GRID > b % GRID,
        2: lambda a, b: a // GRID < b // GRID,
        3: lambda a, b: a // GRID > b // GRID,
    }[relation]
    return np.array([pair for pair in pairs if holds(*pair)])


def render(scenes: NDArray[np.int64]) -> Tensor:
    """Scenes [N, GRID * GRID] -> images [N, 3, SIDE, SIDE] in [0, 1]."""
    grid = patches()[scenes].reshape(-1, GRID, GRID, 3, CELL, CELL)
    return torch.from_numpy(np.ascontiguousarray(grid.transpose(0, 3, 1, 4, 2, 5)).reshape(-1, 3, SIDE, SIDE))
