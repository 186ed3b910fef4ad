"""A deterministic detector for the shapes domain: connected components, their colour and their shape, batched throughout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from workbench.tasks.shapes_scenes import CELL, COLOURS, GRID, PALETTE, SHAPES, SIDE, SIZES, parse, templates

MIN_AREA = 6  # pixels; smaller marks are no objects, but fidelity sees them
MIN_OVERLAP = 0.75  # intersection over union with the best template
MIN_PURITY = 0.8  # share of a component's pixels in its commonest colour
MAX_OBJECTS = 8  # kept per image; further ones are only counted


@dataclass(frozen=True)
class Detections:
    """The objects of N images, padded to MAX_OBJECTS; -1 in `shape` and `colour` marks padding and unrecognised blobs."""

    count: NDArray[np.int64]  # [N] components large enough to be objects, recognised or not
    shape: NDArray[np.int64]  # [N, MAX_OBJECTS]
    colour: NDArray[np.int64]  # [N, MAX_OBJECTS]
    x: NDArray[np.float32]  # [N, MAX_OBJECTS] centres, pixels
    y: NDArray[np.float32]

    def cells(self) -> list[tuple[int, ...]]:
        """The occupied grid cells of each image, ascending: its layout."""
        column = np.clip(self.x // CELL, 0, GRID - 1).astype(np.int64)
        row = np.clip(self.y // CELL, 0, GRID - 1).astype(np.int64)
        cell = np.where(self.shape >= 0, row * GRID + column, -1)
        return [tuple(sorted(c for c in image if c >= 0)) for image in cell.tolist()]


def nearest_colour(images: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each pixel the index of the nearest palette colour and the distance to it (RGB in [0, 1]); both [N, H, W]."""
    palette = torch.from_numpy(PALETTE)
    pixels = images.detach().float().cpu().permute(0, 2, 3, 1)
    index = ((palette**2).sum(1) - 2 * pixels @ palette.T).argmin(-1)
    return index.numpy(), (pixels - palette[index]).square().sum(-1).sqrt().numpy()


def palette_distance(images: Tensor) -> Tensor:
    """Mean distance of an image's pixels to their nearest palette colour, [N]: 0 for a rendered scene.

    It grows with off-palette colour, ghost marks and a tinted background alike, none of which changes what is detected.
    """
    return _analyse(images)[0]


def detect(images: Tensor) -> Detections:
    """Find the objects of images [N, 3, SIDE, SIDE] in [0, 1].

    Raises: ValueError: if the images are of another size.
    """
    return _analyse(images)[1]


_ANALYSES = WeakTensorKeyDictionary()  # several rewards and statistics look at the same images


def _analyse(images: Tensor) -> tuple[Tensor, Detections]:
    """Palette distance and detections, computed once for as long as the images live; images are never changed in place."""
    if images.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(f"the shapes detector reads images [N, 3, {SIDE}, {SIDE}], got {list(images.shape)}")
    if images not in _ANALYSES:
        nearest, distance = nearest_colour(images)
        _ANALYSES[images] = torch.from_numpy(distance.mean((1, 2))), _objects(nearest)
    return _ANALYSES[images]


def _objects(nearest: NDArray[np.int64]) -> Detections:
    n = len(nearest)
    plane = np.zeros((3, 3, 3), bool)
    plane[1] = True  # eight neighbours within an image, none across images
    labels, components = ndimage.label(nearest > 0, structure=plane)
    image, y, x = np.nonzero(labels)
    label = labels[image, y, x] - 1
    top, left = (_extreme(axis, label, components) for axis in (y, x))
    bottom, right = (-_extreme(-axis, label, components) for axis in (y, x))
    area = np.bincount(label, minlength=components)
    owner = np.zeros(components, np.int64)
    owner[label] = image
    colours = np.stack([np.bincount(label[nearest[image, y, x] == c + 1], minlength=components) for c in range(len(COLOURS))], 1)

    crops = np.zeros((components, CELL, CELL), np.float32)
    dy, dx = y - top[label], x - left[label]
    inside = (dy < CELL) & (dx < CELL)
    crops[label[inside], dy[inside], dx[inside]] = 1
    bank = templates().reshape(len(SHAPES) * len(SIZES), -1)
    # torch's product, not numpy's: a second BLAS's idle threads would spin on the cores of the next rollout
    common = (torch.from_numpy(crops).flatten(1) @ torch.from_numpy(bank).T).numpy()
    overlap = common / (area[:, None] + bank.sum(1) - common + 1e-9)
    known = (overlap.max(1, initial=0) >= MIN_OVERLAP) & (colours.max(1, initial=0) >= MIN_PURITY * area)

    keep = np.flatnonzero(area >= MIN_AREA)
    keep = keep[np.argsort(owner[keep], kind="stable")]
    count = np.bincount(owner[keep], minlength=n)
    rank = np.arange(len(keep)) - (np.cumsum(count) - count)[owner[keep]]
    keep, rank = keep[rank < MAX_OBJECTS], rank[rank < MAX_OBJECTS]
    shape, colour = (np.full((n, MAX_OBJECTS), -1, np.int64) for _ in range(2))
    centre_x, centre_y = (np.zeros((n, MAX_OBJECTS), np.float32) for _ in range(2))
    at = owner[keep], rank
    shape[at] = np.where(known[keep], overlap[keep].argmax(1) // len(SIZES), -1) if len(keep) else -1
    colour[at] = np.where(known[keep], colours[keep].argmax(1), -1) if len(keep) else -1
    centre_x[at] = (left[keep] + right[keep]) / 2
    centre_y[at] = (top[keep] + bottom[keep]) / 2
    return Detections(count, shape, colour, centre_x, centre_y)


def _extreme(values: NDArray[np.int64], label: NDArray[np.int64], components: int) -> NDArray[np.int64]:
    """The smallest value of each component."""
    smallest = np.full(components, np.iinfo(np.int64).max)
    np.minimum.at(smallest, label, values)
    return smallest


@dataclass(frozen=True)
class Scores:
    """How well images show what their prompts ask for; both [N], in [0, 1]."""

    dense: NDArray[np.float64]  # partial credit: objects, attributes, relation
    exact: NDArray[np.float64]  # 1 where everything asked for is there, and nothing else


def score(images: Tensor, prompts: Sequence[str]) -> Scores:
    """Compare what is detected with what was asked.

    An object counts half for its shape and half for its colour (an open colour is always right); the best assignment of objects
    to requests is taken, divided by the number of objects asked for or found, whichever is larger. A relation is a quarter of
    the score of prompts that have one.
    """
    found = detect(images)
    requests = [parse(prompt) for prompt in prompts]
    pair = np.array([len(r.kinds) > 1 for r in requests])
    kinds = np.array([[*r.kinds[0], *r.kinds[-1]] for r in requests])  # shape, colour, shape, colour
    asked = np.where(pair, 2, np.array([r.count for r in requests]))
    relation = np.array([r.relation for r in requests])
    first, second = (_similarity(found, kinds[:, 2 * i, None], kinds[:, 2 * i + 1, None]) for i in range(2))

    ranked = -np.sort(-first, axis=1)
    same = np.where(np.arange(MAX_OBJECTS) < asked[:, None], ranked, 0).sum(1)  # `asked` objects of one kind

    both = first[:, :, None] + second[:, None, :]  # object i as the first kind, object j as the second
    holds = _relation_holds(found, relation)
    satisfied = holds & (both == 2)
    value = np.where((relation >= 0)[:, None, None], both + 0.5 * satisfied, both)
    value[:, np.arange(MAX_OBJECTS), np.arange(MAX_OBJECTS)] = 0
    best = value.reshape(len(value), -1).argmax(1)
    pick = np.arange(len(value)), best // MAX_OBJECTS, best % MAX_OBJECTS
    related = np.where(relation >= 0, satisfied[pick], True)

    matched = np.where(pair, both[pick], same)
    presence = matched / np.maximum(asked, found.count)
    dense = np.where(relation >= 0, 0.75 * presence + 0.25 * related * presence, presence)
    exact = (matched == asked) & (found.count == asked) & related
    return Scores(dense, exact.astype(np.float64))


def _similarity(found: Detections, shape: NDArray[np.int64], colour: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, MAX_OBJECTS]: 1 where shape and colour are as asked, 0.5 where one is; 0 for blobs and padding."""
    right_shape = found.shape == shape
    right_colour = (found.colour == colour) | (colour < 0)
    return np.where(found.shape >= 0, 0.5 * right_shape + 0.5 * right_colour, 0.0)


def _relation_holds(found: Detections, relation: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N, i, j]: whether object i stands in the image's relation to object j, by at least half a cell."""
    apart = CELL / 2
    dx = found.x[:, :, None] - found.x[:, None, :]
    dy = found.y[:, :, None] - found.y[:, None, :]
    choices = np.stack([dx <= -apart, dx >= apart, dy <= -apart, dy >= apart])
    return choices[np.maximum(relation, 0), np.arange(len(relation))]
