"""GenEval's prompts as a task: six skills whose success a detector can check."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, cycle, islice, zip_longest
from typing import Literal

from pydantic import Field

from workbench.contracts import Task
from workbench.flow import seeded_uniform
from workbench.tasks.geneval_prompts import SKILLS, Scene, drawn, parse, read_scenes

_SHARES = {
    "even": (1, 1, 1, 1, 1, 1),
    "flow_grpo": (0, 1, 5, 1, 7, 3),  # its training set, in the order of SKILLS
}


class GenEvalTask(Task):
    """GenEval: photos of objects of 80 kinds; one, two, counted, coloured, placed, each of its own colour.

    Without a file prompts are made from the published templates, and what a prompt asks for is read from its words. With a file
    in the published format (JSONL: tag, include, exclude, prompt), the reward `geneval` has to name the same file.

    Source: GenEval (arXiv:2310.11513).
    """

    name: Literal["geneval"] = "geneval"
    file: str = Field("", description="GenEval's metadata, JSONL, a prompt on each line; empty makes prompts from its templates")
    held_out_file: str = Field("", description="metadata of the held-out prompts; empty holds out a share of the others")
    held_out_share: float = Field(0.2, gt=0, lt=1, description="share of each skill's prompts that is held out, at least one")
    count: int = Field(1200, ge=12, le=50_000, description="prompts that are made where there is no file, all skills together")
    mix: Literal["even", "flow_grpo"] = Field(
        "even",
        description="skills among the prompts that are made to train on. even: as many of each; flow_grpo: 7 positions to 5 "
        "counts, 3 colour pairs, 1 colour and 1 pair; held-out ones are even",
    )
    seed: int = Field(0, ge=0, description="which prompts are made")

    domain = "geneval"

    def prompts(self, split: Literal["train", "held_out"]) -> Sequence[str]:
        """Skills in turn, so that any stretch of the held-out ones is balanced; of two files each is in its own order.

        Prompts of the held-out file are never trained on, though the other has them or they are made.
        Raises: ValueError: if a file cannot be read, or too few prompts are left.
        """
        tested = read_scenes(self.held_out_file) if self.held_out_file else {}
        if tested and split == "held_out":
            return tuple(tested)
        if self.file:
            scenes = read_scenes(self.file)
            known = tuple(scenes) if tested else _parted(tuple(scenes.values()), self.held_out_share)[split]
        else:
            known = _made(self.count, self.held_out_share, self.mix, self.seed)[split]
        left = tuple(prompt for prompt in known if prompt not in tested) if tested else known
        if not left:
            raise ValueError("every prompt to train on is also held out; name another held_out_file")
        return left

    def check(self, prompt: str) -> None:
        self.scene(prompt)

    def skill(self, prompt: str) -> str:
        return self.scene(prompt).skill

    def scene(self, prompt: str) -> Scene:
        """What a prompt asks for. Raises: ValueError: if no file has it and it is of no template."""
        for file in filter(None, (self.file, self.held_out_file)):
            if prompt in (known := read_scenes(file)):
                return known[prompt]
        return parse(prompt)


@lru_cache(maxsize=8)
def _made(count: int, share: float, mix: str, seed: int) -> Mapping[str, tuple[str, ...]]:
    """Prompts of the templates: the first ones of each skill are held out, the next ones trained on.

    Where a skill has too few to keep its share, they come more than once.
    """
    weights = _SHARES[mix]
    tested = max(1, round(count * share / len(SKILLS)))
    train, held_out = [], []
    for skill, weight in zip(SKILLS, weights, strict=True):
        wanted = round(count * (1 - share) * weight / sum(weights))
        scenes = [scene.prompt for scene in drawn(skill, tested + wanted, seed)]
        kept = min(tested, len(scenes) // 2)
        held_out.append(scenes[:kept])
        train.append(list(islice(cycle(scenes[kept:]), wanted)))
    return {"train": _in_turn(train), "held_out": _in_turn(held_out)}


@lru_cache(maxsize=8)
def _parted(scenes: tuple[Scene, ...], share: float) -> Mapping[str, tuple[str, ...]]:
    """About this share of each skill's prompts is held out, by each prompt alone, and at least one of each that has two."""
    by_skill: dict[str, list[str]] = {}
    for scene in scenes:
        by_skill.setdefault(scene.skill, []).append(scene.prompt)
    train, held_out = [], []
    for prompts in by_skill.values():
        place = {prompt: seeded_uniform("held-out prompt", prompt) for prompt in prompts}
        first, last = min(prompts, key=place.__getitem__), max(prompts, key=place.__getitem__)
        out = {prompt for prompt in prompts if place[prompt] < share or prompt == first} - {last}
        held_out.append([prompt for prompt in prompts if prompt in out])
        train.append([prompt for prompt in prompts if prompt not in out])
    if not any(held_out):
        raise ValueError(
            "task 'geneval' needs two prompts of a skill, one to train on and one to hold out; add some, or name a held_out_file"
        )
    return {"train": _in_turn(train), "held_out": _in_turn(held_out)}


def _in_turn(columns: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(prompt for prompt in chain.from_iterable(zip_longest(*columns)) if prompt is not None)
