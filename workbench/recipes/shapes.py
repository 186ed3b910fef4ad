"""How the generators of coloured shapes are made: a two-time map from nothing, from it a velocity and a consistency model."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from workbench.models.embedded import EmbeddedModel
from workbench.models.shapes import ShapesModel
from workbench.models.shapes_cm import ShapesConsistencyModel
from workbench.models.shapes_fm import ShapesVelocityModel
from workbench.recipes.base import Domain, FromNothing, Recipe
from workbench.recipes.stages import Consistency, Stage, Velocity
from workbench.tasks.shapes import ShapesTask
from workbench.tasks.shapes_scenes import parse, patches, render, sample_scenes


def draw_scenes(captions: Sequence[str], rng: np.random.Generator) -> Tensor:
    """A scene for each caption, as the renderer draws it."""
    return render(sample_scenes([parse(caption) for caption in captions], rng))


def draw_cells(draw: torch.Generator, count: int = 1024) -> Tensor:
    """Cells as the scenes have them, some of them empty."""
    bank = torch.from_numpy(patches())
    return bank[torch.randint(1, len(bank), (count,), generator=draw) * (torch.rand(count, generator=draw) < 0.7)]


def weigh_cells() -> tuple[Tensor, Tensor]:
    """What a cell may hold, counting the empty cell as often as all else."""
    bank = torch.from_numpy(patches())
    weights = torch.full((len(bank),), 0.5 / (len(bank) - 1))
    weights[0] = 0.5
    return bank, weights


SHAPES = Domain(
    ShapesTask(), ("shapes_exact", "shapes_dense", "shapes_fidelity"), draw=draw_scenes, patches=draw_cells, support=weigh_cells
)


class ShapesRecipe(FromNothing):
    """The two-time map, from nothing."""

    name: Literal["shapes"] = "shapes"

    model: ClassVar[type[EmbeddedModel]] = ShapesModel
    domain: ClassVar[Domain] = SHAPES


class ShapesVelocityRecipe(Recipe):
    """The velocity alone, from the shipped two-time map by flow matching."""

    name: Literal["shapes_fm"] = "shapes_fm"
    steps: int = Field(2000, ge=1, description="steps of flow matching, on the captions of `wrong_captions`")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate")

    model: ClassVar[type[EmbeddedModel]] = ShapesVelocityModel
    domain: ClassVar[Domain] = SHAPES
    begins_as: ClassVar[str] = "shapes"

    def stages(self) -> tuple[Stage, ...]:
        return (Velocity(self.steps, self.learning_rate, self.wrong_captions),)


class ShapesConsistencyRecipe(Recipe):
    """The jump to the data alone, from the shipped two-time map by consistency distillation."""

    name: Literal["shapes_cm"] = "shapes_cm"
    steps: int = Field(1000, ge=1, description="steps of consistency distillation, on the captions of `wrong_captions`")
    learning_rate: float = Field(6e-4, gt=0, description="AdamW's learning rate")

    model: ClassVar[type[EmbeddedModel]] = ShapesConsistencyModel
    domain: ClassVar[Domain] = SHAPES
    begins_as: ClassVar[str] = "shapes"

    def stages(self) -> tuple[Stage, ...]:
        return (Consistency(self.steps, self.learning_rate, self.wrong_captions),)
