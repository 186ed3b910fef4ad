"""The embedded generator of shapes as consistency distillation leaves one: a jump to the data from any time."""

from typing import ClassVar, Literal

from workbench.contracts import FlowMapKind
from workbench.models.shapes import ShapesNetworks


class ShapesConsistencyModel(ShapesNetworks):
    """A consistency model for the same shapes, G(x, t) = x - t u(x, t, 0): it reaches the data alone, from any time."""

    name: Literal["shapes_cm"] = "shapes_cm"

    kind: ClassVar[FlowMapKind] = "single_time"
