"""Free prompts: whatever a model that reads natural language is asked for."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from workbench.contracts import Task
from workbench.flow import seeded_uniform

LONGEST = 4000
"""Most characters of a prompt."""

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
    """Prompts from a text file or a list, one on each line, some of them held out; nothing is known of what they ask for.

    Which are held out depends on each prompt alone, so that adding prompts moves no other from one side to the other, and
    what one run was tested on another of the same prompts was never trained on.
    """

    name: Literal["prompts"] = "prompts"
    file: str = Field("", description="text file with one prompt on each line; empty takes `lines`")
    held_out_file: str = Field("", description="text file of the held-out prompts; empty holds out a share of the others")
    lines: tuple[str, ...] = Field(EXAMPLES, description="prompts where there is no file, separated by commas in a form")
    held_out_share: float = Field(0.2, gt=0, lt=1, description="share of the prompts that is held out, at least one")

    def prompts(self, split: Literal["train", "held_out"]) -> Sequence[str]:
        """Raises: ValueError: if a file cannot be read, or there are too few prompts to hold any out."""
        if self.held_out_file:
            return _read(self.held_out_file) if split == "held_out" else self._all()
        return _split(self._all(), self.held_out_share)[split]

    def check(self, prompt: str) -> None:
        if not prompt.strip():
            raise ValueError("a prompt may not be empty")
        if len(prompt) > LONGEST:
            raise ValueError(f"prompt {prompt[:60]!r}... has {len(prompt)} characters; at most {LONGEST}")

    def _all(self) -> tuple[str, ...]:
        return _read(self.file) if self.file else _distinct(self.lines)


def _read(file: str) -> tuple[str, ...]:
    path = Path(file).expanduser()
    try:
        return _read_as_it_is(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is not text in UTF-8"
        remedy = "name a text file with one prompt on each line"
        raise ValueError(f"the prompts in {file} cannot be read: {told}; {remedy}") from error


@lru_cache(maxsize=8)
def _read_as_it_is(path: Path, changed: int) -> tuple[str, ...]:
    found = _distinct(path.read_text("utf-8").splitlines())
    if not found:
        raise ValueError(f"{path} holds no prompts; write one on each line")
    return found


def _distinct(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


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
