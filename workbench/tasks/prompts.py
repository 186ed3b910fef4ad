"""Free prompts: whatever a model that reads natural language is asked for."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from workbench.contracts import Task
from workbench.flow import seeded_uniform

LONGEST = 4000
"""Most characters of a prompt."""

LISTS = Path(__file__).parent / "lists"
"""The lists that come with the package: `general` scenes, and `text` to be drawn, in double quotes."""

TRAIN_FILES = ("train.txt", "train.jsonl", "train_metadata.jsonl")
TEST_FILES = ("test.txt", "test.jsonl", "test_metadata.jsonl", "evaluation_metadata.jsonl")
"""What Flow-GRPO (arXiv:2505.05470) and GenEval (arXiv:2310.11513) call the files of a folder; the first found is taken."""

_FORMATS = 'name a text file with one prompt on each line, a JSONL file with a "prompt" in each, or a folder with train.txt'

EXAMPLES = (
    "a red fox asleep in fresh snow",
    "an old lighthouse in a storm",
    "a bowl of ramen seen from above",
    "a hand-painted sign that says open",
    "two sailing boats at sunrise",
    "a portrait of a clockmaker in her workshop",
    "a green bicycle against a brick wall",
    "a city of glass under a purple sky",
    "a child's drawing of a dragon",
    "three lemons on a blue plate",
    "a train crossing a stone bridge in autumn",
    "a macro photograph of a dew drop on a leaf",
)


class PromptsTask(Task):
    """Prompts from a file, a folder or a list, some of them held out; nothing is known of what they ask for.

    A file is text with one prompt on each line, or JSONL with a "prompt" in each object, whose other keys do not matter. A folder
    holds the prompts to train on and those held out, as those of Flow-GRPO do. Otherwise which are held out depends on each
    prompt alone, so that adding prompts moves no other from one side to the other, and what one run was tested on another of the
    same prompts was never trained on.
    """

    name: Literal["prompts"] = "prompts"
    file: str = Field(
        "", description="text or JSONL file of prompts, or a folder with train.txt and test.txt; empty takes `packaged`"
    )
    held_out_file: str = Field("", description="file of the held-out prompts; empty holds out the folder's, or a share")
    packaged: Literal["none", "general", "text"] = Field(
        "none", description="a list of 200 that comes along; general: scenes of all kinds; text: quoted words to be drawn"
    )
    lines: tuple[str, ...] = Field(
        EXAMPLES,
        description="prompts where there is no file and no packaged list",
        json_schema_extra={"when": {"packaged": ["none"]}},
    )
    held_out_share: float = Field(0.2, gt=0, lt=1, description="share of the prompts that is held out, at least one")

    def prompts(self, split: Literal["train", "held_out"]) -> Sequence[str]:
        """Prompts that are held out are never trained on, even where a file of others has them too.

        Raises: ValueError: if a file cannot be read, a line of it holds no prompt, or there are too few to hold any out.
        """
        known, tested = self._files()
        if not tested:
            return _split(known, self.held_out_share)[split]
        return tested if split == "held_out" else _without(known, tested)

    def check(self, prompt: str) -> None:
        if not prompt.strip():
            raise ValueError("a prompt may not be empty")
        if len(prompt) > LONGEST:
            raise ValueError(f"prompt {prompt[:60]!r}... has {len(prompt)} characters; at most {LONGEST}")

    def _files(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The prompts, and those held out by a file of their own; none where there is no such file."""
        if not self.file:
            known = _distinct(self.lines) if self.packaged == "none" else _read(LISTS / f"{self.packaged}.txt")
            return known, _read(Path(self.held_out_file)) if self.held_out_file else ()
        path = Path(self.file).expanduser()
        train, test = (_first(path, TRAIN_FILES), _first(path, TEST_FILES)) if path.is_dir() else (path, None)
        if train is None:
            raise ValueError(f"the folder {self.file} has none of {', '.join(TRAIN_FILES)}; {_FORMATS}")
        tested = Path(self.held_out_file) if self.held_out_file else test
        return _read(train), _read(tested) if tested else ()


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(file: Path) -> tuple[str, ...]:
    path = file.expanduser()
    try:
        return _read_as_it_is(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ValueError(f"the prompts in {file} cannot be read: {told}; {_FORMATS}") from error


@lru_cache(maxsize=8)
def _read_as_it_is(path: Path, changed: int) -> tuple[str, ...]:
    lines = path.read_text("utf-8-sig").split("\n")
    if path.suffix == ".jsonl":
        lines = [_prompt_of(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    found = _distinct(lines)
    if not found:
        raise ValueError(f"{path} holds no prompts; write one on each line")
    return found


def _prompt_of(line: str, path: Path, number: int) -> str:
    """The prompt of a line of JSONL. Raises: ValueError: naming the line, if it has none."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{path}, line {number} has no "prompt" that is text: {line.strip()[:80]}')
    return " ".join(prompt.split())


def _distinct(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _without(known: tuple[str, ...], tested: tuple[str, ...]) -> tuple[str, ...]:
    left = tuple(prompt for prompt in known if prompt not in set(tested))
    if not left:
        raise ValueError("every prompt to train on is also held out; name another held_out_file")
    return left


@lru_cache(maxsize=8)
def _split(prompts: tuple[str, ...], share: float) -> dict[str, tuple[str, ...]]:
    """About this share of the prompts, and at least one, is held out; each side keeps their order."""
    if len(prompts) < 2:
        raise ValueError(f"task 'prompts' needs at least 2 prompts, one to train on and one to hold out, got {len(prompts)}")
    place = {prompt: seeded_uniform("held-out prompt", prompt) for prompt in prompts}
    first, last = min(prompts, key=place.__getitem__), max(prompts, key=place.__getitem__)
    held_out = {prompt for prompt in prompts if place[prompt] < share and prompt != last} | {first}
    return {
        "train": tuple(prompt for prompt in prompts if prompt not in held_out),
        "held_out": tuple(prompt for prompt in prompts if prompt in held_out),
    }
