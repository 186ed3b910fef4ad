"""GenEval's rules: from the objects that were found in a picture to what is right and what is not. Knows of no network."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from workbench.tasks.geneval_prompts import Scene, Wanted

MOST = 16
"""Most objects of a kind that count, the surest ones."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, pixels."""


@dataclass(frozen=True)
class Found:
    """An object in a picture, as a detector sees it."""

    kind: str
    score: float  # confidence, in [0, 1]
    box: Box
    mask: Tensor | None = None  # bool [H, W] of the whole picture; None where the detector has none
    colour: str = ""  # empty where nobody looked


@dataclass(frozen=True)
class Verdict:
    """How well a picture follows its prompt.

    Attributes:
        dense: the share of what is asked: of each wanted kind how near its number is, and where a colour or a place is asked
            how many have it; in [0, 1].
        strict: whether all is right, with exact numbers.
        benchmark: whether all is right by GenEval's own rule, where there may be more of a kind than asked unless it is excluded.
        reasons: what is wrong by the strict rule, a sentence each.
    """

    dense: float
    strict: bool
    benchmark: bool
    reasons: tuple[str, ...]


def sure(found: Iterable[Found], threshold: float, max_overlap: float = 1.0) -> dict[str, list[Found]]:
    """The objects that count, by kind, the surest first: those above a confidence, at most MOST of each.

    Args:
        max_overlap: of two of a kind that overlap by this share of their union only the surer stays; 1 keeps both.
    """
    kinds: dict[str, list[Found]] = {}
    for each in sorted(found, key=lambda each: -each.score):
        if each.score > threshold:
            kinds.setdefault(each.kind, []).append(each)
    if max_overlap == 1:
        return {kind: objects[:MOST] for kind, objects in kinds.items()}
    kept: dict[str, list[Found]] = {}
    for kind, objects in kinds.items():
        stay: list[Found] = []
        for each in objects[:MOST]:
            if all(overlap(each.box, other.box) < max_overlap for other in stay):
                stay.append(each)
        kept[kind] = stay
    return kept


def judge(scene: Scene, objects: Mapping[str, Sequence[Found]], position_threshold: float = 0.1) -> Verdict:
    """What GenEval and Flow-GRPO say of a picture.

    Only the surest objects of a kind are looked at, as many as are asked for.

    Args:
        objects: by kind, the surest first; those whose colour is asked for know it.
        position_threshold: how far two objects are apart, in the sum of their sizes, before a side counts.
    Source: GenEval (arXiv:2310.11513) and the dense score of Flow-GRPO (arXiv:2505.05470), where too many objects can make the
        share of a kind negative; here it is at least 0.
    """
    shares, reasons = _follow(scene, objects, position_threshold, exact=True)
    _, excuses = _follow(scene, objects, position_threshold, exact=False)
    return Verdict(sum(shares) / len(shares), not reasons, not excuses, tuple(reasons))


def relations(box: Box, other: Box, threshold: float = 0.1) -> set[str]:
    """Where a box stands to another: none, one or two of POSITIONS.

    Centres must be further apart than `threshold` times the sum of the sizes, and the rest of the way must lead to that side
    within 60 degrees.
    """
    offset = [(box[axis] + box[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [abs(box[axis + 2] - box[axis]) + abs(other[axis + 2] - other[axis]) for axis in (0, 1)]
    beyond = [math.copysign(max(abs(o) - threshold * size, 0.0), o) for o, size in zip(offset, sizes, strict=True)]
    if max(map(abs, beyond)) < 1e-3:  # pixels
        return set()
    across, down = (each / math.hypot(*offset) for each in beyond)
    holds = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, is_so in holds.items() if is_so}


def overlap(box: Box, other: Box) -> float:
    """Intersection over union, counting whole pixels as GenEval does."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    common = area(max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
    union = area(*box) + area(*other) - common
    return common / union if union else 0.0


def _follow(
    scene: Scene, objects: Mapping[str, Sequence[Found]], threshold: float, *, exact: bool
) -> tuple[list[float], list[str]]:
    """The share of each thing that is asked for, and what is wrong; `exact` wants the very number of a kind, not as many."""
    shares: list[float] = []
    reasons: list[str] = []
    right: list[Sequence[Found]] = []  # the objects of each wanted kind; none where something is wrong with them
    for wanted in scene.include:
        there = objects.get(wanted.kind, ())
        found, good = there[: wanted.count], True
        shares.append(_near(len(there), wanted.count))
        if len(there) != wanted.count if exact else len(there) < wanted.count:
            good = False
            reasons.append(f"expected {wanted.count} {wanted.kind}, found {len(there)}")
        if wanted.colour:
            fitting = sum(each.colour == wanted.colour for each in found)
            shares.append(_near(fitting, wanted.count) if good else 0.0)
            if good and fitting < wanted.count:
                good = False
                seen = ", ".join(each.colour or "no colour" for each in found)
                reasons.append(f"expected {wanted.count} {wanted.colour} {wanted.kind}, found {seen}")
        if wanted.position:
            wrong = _misplaced(wanted, found, right[wanted.target], threshold) if good else ""
            shares.append(float(good and not wrong))
            if wrong:
                good = False
                reasons.append(wrong)
        right.append(found if good else ())
    included = {wanted.kind for wanted in scene.include}
    for unwanted in scene.exclude:
        there = objects.get(unwanted.kind, ())
        few = len(there) < unwanted.count
        if unwanted.kind not in included:
            shares.append(float(few))
        if not few:
            reasons.append(f"expected fewer than {unwanted.count} {unwanted.kind}, found {len(there)}")
    return shares, reasons


def _near(found: int, wanted: int) -> float:
    return max(0.0, 1 - abs(found - wanted) / wanted)


def _misplaced(wanted: Wanted, found: Sequence[Found], targets: Sequence[Found], threshold: float) -> str:
    """What is wrong with the places of objects, empty where nothing is."""
    if not targets:
        return f"nothing for {wanted.kind} to be {wanted.position}"
    for each in found:
        for target in targets:
            seen = relations(each.box, target.box, threshold)
            if wanted.position not in seen:
                told = " and ".join(sorted(seen)) or "neither side of"
                return f"expected {wanted.kind} {wanted.position} {target.kind}, found it {told} it"
    return ""
