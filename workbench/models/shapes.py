"""The embedded generator of coloured shapes: a two-time flow map over the scenes' four by four cells."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from workbench.contracts import FlowMapKind
from workbench.models.embedded import EmbeddedModel, Networks, PatchAutoencoder
from workbench.models.transformer import ConditionalTransformer
from workbench.tasks.shapes_scenes import CELL, GRID, SLOT_SIZES, parse

CHANNELS = 6  # latent numbers per cell
LATENT_SHAPE = (CHANNELS, GRID, GRID)


class ShapesNetworks(EmbeddedModel):
    """The networks and the prompts that the generators of this domain share, whatever kind of map they were trained to be."""

    domain: ClassVar[str] = "shapes"
    latent_shape = LATENT_SHAPE

    @staticmethod
    def networks() -> Networks:
        return Networks(ConditionalTransformer(SLOT_SIZES, LATENT_SHAPE), PatchAutoencoder(CELL, CHANNELS))

    @staticmethod
    def read(prompt: str) -> Sequence[int]:
        return parse(prompt).slots


class ShapesModel(ShapesNetworks):
    """The generator that ships with the package, pretrained with a stated share of wrong captions."""

    name: Literal["shapes"] = "shapes"

    kind: ClassVar[FlowMapKind] = "two_time"
