"""Whether the shapes detector sees what the renderer drew, and sees through prompts that are almost right."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.evaluate import interval
from workbench.tasks.shapes import ShapesTask
from workbench.tasks.shapes_detector import Detections, detect, score
from workbench.tasks.shapes_scenes import (
    CELL,
    COLOURS,
    GRID,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SKILLS,
    parse,
    placements,
    render,
    sample_scenes,
)

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

Objects = list[tuple[int, int, int]]
"""An image's objects as (cell, shape, colour), ascending."""


def scene_objects(scenes: NDArray[np.int64]) -> list[Objects]:
    """What was drawn: scenes [N, cells] of indices into the renderer's patches."""
    kind = (scenes - 1) // len(placements())
    return [
        [(cell, *divmod(int(kinds[cell]), len(COLOURS))) for cell in np.flatnonzero(scene).tolist()]
        for scene, kinds in zip(scenes, kind, strict=True)
    ]


def detected_objects(found: Detections) -> list[Objects]:
    """What was found, in the form of `scene_objects`; an unrecognised blob makes an image differ from every scene."""
    seen = []
    cell = (found.y // CELL * GRID + found.x // CELL).astype(np.int64)
    for cells, shapes, colours, count in zip(cell, found.shape, found.colour, found.count, strict=True):
        known = [(int(c), int(s), int(k)) for c, s, k in zip(cells, shapes, colours, strict=True) if s >= 0]
        seen.append(sorted(known) if len(known) == count else [*sorted(known), (-1, -1, -1)])
    return seen


def near_misses(prompt: str) -> Iterator[tuple[str, str]]:
    """Prompts that differ from this one in one respect, so that no scene drawn for it satisfies them; each with what is wrong."""
    words = prompt.split()
    coloured = [i for i, word in enumerate(words) if word in COLOURS]
    shaped = [i for i, word in enumerate(words) if word.removesuffix("s") in SHAPES]
    if coloured:
        yield "colour", _replaced(words, coloured[0], _next(COLOURS, words[coloured[0]]))
    noun = words[shaped[0]]
    plural = "s" if noun.endswith("s") else ""
    yield "shape", _replaced(words, shaped[0], _next(SHAPES, noun.removesuffix("s")) + plural)
    if words[0] in NUMBERS:
        yield "number", _replaced(words, 0, _next(NUMBERS, words[0]))
    for relation in RELATIONS:
        if f" {relation} " in prompt:
            yield "relation", prompt.replace(f" {relation} ", f" {OPPOSITE[relation]} ")
    if parse(prompt).skill == "attribution":
        first, second = coloured
        yield "binding", _replaced(_replaced(words, first, words[second]).split(), second, words[first])


def bench_detector(
    images: int = 2000, portion: int = 500, seed: int = 0, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Agreement of detector and renderer by skill, what wrong prompts score, and milliseconds per image.

    An image agrees when exactly its objects are found, each in its cell with its shape and colour, *and* its prompt scores 1.
    """
    prompts = _prompts(images)
    rng = np.random.default_rng(seed)
    scenes = sample_scenes([parse(prompt) for prompt in prompts], rng)
    pictures = render(scenes)
    detect(pictures[:8].clone())  # builds the templates, which is not to be timed
    seconds, agrees, wrong = 0.0, [], []
    for start in range(0, images, portion):
        rows = slice(start, start + portion)
        part, names = pictures[rows].clone(), prompts[rows]
        began = time.perf_counter()
        scores = score(part, names)
        seconds += time.perf_counter() - began
        same = [a == b for a, b in zip(scene_objects(scenes[rows]), detected_objects(detect(part)), strict=True)]
        agrees.append(torch.from_numpy(scores.exact * scores.dense) * torch.tensor(same))
        wrong.append(_score_near_misses(part, names))
        if progress is not None:
            progress(f"detector: {min(start + portion, images)} of {images} images")
    agreement = torch.cat(agrees)
    skill = np.array([parse(prompt).skill for prompt in prompts])
    by_skill = {name: asdict(interval(agreement[skill == name])) for name in SKILLS}
    return {
        "images": images,
        "distinct_prompts": len(set(prompts)),
        "agreement": asdict(interval(agreement)),
        "agreement_by_skill": by_skill,
        "worst_skill": min(values["value"] for values in by_skill.values()),
        "wrong_prompts": _merge(wrong),
        "milliseconds_per_image": 1000 * seconds / images,
        "threads": torch.get_num_threads(),
    }


def _prompts(count: int) -> list[str]:
    """Prompts of both splits in turn, each in the order that is balanced over the skills."""
    splits = [ShapesTask().prompts(split) for split in ("train", "held_out")]
    block = len(SKILLS)
    order = [(i // block % 2, i // (2 * block) * block + i % block) for i in range(count)]
    return [splits[split][index % len(splits[split])] for split, index in order]


def _score_near_misses(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Dense scores of each kind of wrong prompt, [number of them]; exact success would show as 1."""
    rows: dict[str, list[tuple[int, str]]] = {}
    for index, prompt in enumerate(prompts):
        for kind, changed in near_misses(prompt):
            rows.setdefault(kind, []).append((index, changed))
    scores = {}
    for kind, changes in rows.items():
        found = score(images[[index for index, _ in changes]], [changed for _, changed in changes])
        scores[kind] = torch.from_numpy(np.maximum(found.dense, found.exact))
    return scores


def _merge(parts: list[dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    joined = {kind: torch.cat([part[kind] for part in parts if kind in part]) for kind in kinds}
    return {
        kind: {
            "tested": len(scores),
            "accepted": int((scores >= 1).sum()),
            "mean_score": float(scores.mean()),
            "largest_score": float(scores.max()),
        }
        for kind, scores in joined.items()
    }


def _replaced(words: Sequence[str], index: int, word: str) -> str:
    return " ".join([*words[:index], word, *words[index + 1 :]])


def _next(choices: Sequence[str], word: str) -> str:
    return choices[(choices.index(word) + 1) % len(choices)]
