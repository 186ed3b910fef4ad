"""The embedded text-rendering task: prompts that ask for one short word, which a deterministic reader can check."""

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Literal

from torch import Tensor

from workbench.contracts import Task
from workbench.flow import seed_stream
from workbench.tasks.glyphs_reader import read
from workbench.tasks.glyphs_scenes import LENGTHS, WIDTH, parse, prompt_of
from workbench.tasks.glyphs_words import WORDS


class GlyphsTask(Task):
    """Short words in real fonts; what is written can be checked by a deterministic reader."""

    name: Literal["glyphs"] = "glyphs"
    domain = "glyphs"

    def prompts(self, split: Literal["train", "held_out"]) -> Sequence[str]:
        return _split()[split]

    def check(self, prompt: str) -> None:
        parse(prompt)

    def skill(self, prompt: str) -> str:
        return parse(prompt).skill

    def statistics(self, images: Tensor) -> dict[str, Tensor]:
        """How words are set: a policy may thin the ink, lower the contrast or leave the palette, and still be read."""
        reading = read(images)
        return {
            "palette_distance": reading.palette_distance,
            "contrast": reading.contrast,
            "ink_share": reading.coverage.mean((1, 2)),
        }

    def layouts(self, images: Tensor) -> Sequence[Hashable] | None:
        """Font, colours, and in which eighth of the width a word begins."""
        reading = read(images)
        begins = (left * 8 // WIDTH for left in reading.left)
        return list(zip(reading.font, reading.ink, reading.ground, begins, strict=True))


@cache
def _split() -> dict[str, tuple[str, ...]]:
    """A prompt for every word of the list, a fifth of each length held out, ordered so that any stretch is balanced.

    Lengths with fewer words repeat to keep that balance.
    """
    split: dict[str, tuple[str, ...]] = {}
    by_length = [
        sorted((word for word in WORDS if len(word) == length), key=lambda word: seed_stream("glyphs split", word))
        for length in LENGTHS
    ]
    for name in ("train", "held_out"):
        parts = [(len(words) // 5, words) for words in by_length]
        columns = [words[fifth:] if name == "train" else words[:fifth] for fifth, words in parts]
        longest = max(len(column) for column in columns)
        split[name] = tuple(prompt_of(column[i % len(column)]) for i in range(longest) for column in columns)
    return split
