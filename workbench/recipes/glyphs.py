"""How the generator of short words is made: the two-time map from nothing."""

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from workbench.flow import seed_stream
from workbench.models.embedded import EmbeddedModel
from workbench.models.glyphs import GlyphsModel
from workbench.recipes.base import Domain, FromNothing
from workbench.recipes.stages import Autoencoder, Stage
from workbench.tasks.glyphs import GlyphsTask
from workbench.tasks.glyphs_scenes import LENGTHS, LETTERS, parse, prompt_of, render, sample_scenes

STRINGS = 20_000  # random strings of letters among the captions


class Spelling(GlyphsTask):
    """The task with strings of letters beside its words, none of them held out, so that letters are learned apart from words."""

    def prompts(self, split: Literal["train", "held_out"]) -> Sequence[str]:
        return super().prompts(split) if split == "held_out" else _captions()


@cache
def _captions() -> tuple[str, ...]:
    rng = np.random.default_rng(abs(seed_stream("glyphs strings")))
    words, held_out = (GlyphsTask().prompts(split) for split in ("train", "held_out"))
    strings = {prompt_of(word): None for word in random_strings(STRINGS, rng)}
    return (*words, *(prompt for prompt in strings if prompt not in set(held_out)))


def random_strings(count: int, rng: np.random.Generator) -> list[str]:
    """Letters drawn evenly, as long as words are."""
    lengths = rng.integers(LENGTHS[0], LENGTHS[-1] + 1, count)
    return ["".join(LETTERS[i] for i in rng.integers(0, len(LETTERS), length)) for length in lengths]


def draw_words(captions: Sequence[str], rng: np.random.Generator) -> Tensor:
    """A scene for each caption, as the renderer draws it."""
    return render(sample_scenes([parse(caption).word for caption in captions], rng))


def draw_strings(draw: torch.Generator, count: int = 128) -> Tensor:
    """Pictures of random strings."""
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=draw)))
    return render(sample_scenes(random_strings(count, rng), rng))


def weigh_strings(count: int = 2048) -> tuple[Tensor, Tensor]:
    """Random strings, all alike."""
    return draw_strings(torch.Generator().manual_seed(0), count), torch.full((count,), 1 / count)


GLYPHS = Domain(Spelling(), ("glyphs_exact", "glyphs_dense"), draw=draw_words, patches=draw_strings, support=weigh_strings)


class GlyphsRecipe(FromNothing):
    """The two-time map, from nothing."""

    name: Literal["glyphs"] = "glyphs"
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="of the products in the losses; float32 where the processor has no fast products in bfloat16"
    )
    wrong_captions: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of images whose caption is another image's, in the last stage; few steps misspell anyway",
    )
    flow_steps: int = Field(6000, ge=1, description="steps of flow matching, on right captions")
    map_method: Literal["meanflow", "paths"] = Field(
        "paths", description="meanflow: the MeanFlow identity by JVP; paths: regression on stored ODE paths"
    )
    paths: int = Field(4096, ge=1, description="ODE paths stored by the method `paths`")

    model: ClassVar[type[EmbeddedModel]] = GlyphsModel
    domain: ClassVar[Domain] = GLYPHS

    def stages(self) -> tuple[Stage, ...]:
        return (Autoencoder(self.autoencoder_steps, kl_weight=0.02), *super().stages()[1:])
