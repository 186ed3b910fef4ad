"""The embedded text-to-image task: prompts about coloured shapes.

Six skills as in GenEval (arXiv:2310.11513): single object, two objects, counting, colours, position, colour attribution.
"""

import itertools
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Literal

from torch import Tensor

from workbench.contracts import Task
from workbench.flow import seed_stream
from workbench.tasks.shapes_detector import detect, palette_distance
from workbench.tasks.shapes_scenes import COLOURS, NUMBERS, RELATIONS, SHAPES, parse


class ShapesTask(Task):
    """Coloured shapes on a dark ground; every prompt can be checked by a deterministic detector."""

    name: Literal["shapes"] = "shapes"

    domain = "shapes"

    def prompts(self, split: Literal["train", "held_out"]) -> Sequence[str]:
        return _split()[split]

    def check(self, prompt: str) -> None:
        parse(prompt)

    def skill(self, prompt: str) -> str:
        return parse(prompt).skill

    def statistics(self, images: Tensor) -> dict[str, Tensor]:
        return {"palette_distance": palette_distance(images)}

    def layouts(self, images: Tensor) -> Sequence[Hashable] | None:
        return detect(images).cells()


@cache
def _split() -> dict[str, tuple[str, ...]]:
    """All prompts, a fifth of every skill held out, ordered so that any stretch is balanced over the skills.

    Skills with few prompts repeat to keep that balance.
    """
    split: dict[str, tuple[str, ...]] = {}
    by_skill = _prompts_by_skill()
    held_out = {skill: max(1, round(len(prompts) / 5)) for skill, prompts in by_skill.items()}
    for name in ("train", "held_out"):
        columns = [ps[held_out[skill] :] if name == "train" else ps[: held_out[skill]] for skill, ps in by_skill.items()]
        longest = max(len(column) for column in columns)
        split[name] = tuple(column[i % len(column)] for i in range(longest) for column in columns)
    return split


def _prompts_by_skill() -> dict[str, list[str]]:
    objects = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    pairs = list(itertools.permutations(objects, 2))
    prompts = {
        "single": [f"a {shape}" for shape in SHAPES],
        "two": [f"a {first} and a {second}" for first, second in itertools.permutations(SHAPES, 2)],
        "counting": [
            f"{number} {colour}{shape}s" for number in NUMBERS for colour in ("", *(f"{c} " for c in COLOURS)) for shape in SHAPES
        ],
        "colours": objects,
        "position": [f"{first} {relation} {second}" for first, second in pairs for relation in RELATIONS],
        "attribution": [f"{a} and {b}" for a, b in pairs if a.split()[1] != b.split()[1] and a.split()[2] != b.split()[2]],
    }
    return {skill: sorted(ps, key=lambda prompt: seed_stream("shapes split", prompt)) for skill, ps in prompts.items()}
