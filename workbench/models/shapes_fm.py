"""The embedded generator of shapes as flow matching leaves one: a velocity, integrated in many small steps."""

from typing import ClassVar, Literal

from workbench.contracts import FlowMapKind
from workbench.models.shapes import ShapesNetworks


class ShapesVelocityModel(ShapesNetworks):
    """A velocity field for the same shapes: no jumps, ten to forty Euler steps, and half of its captions were wrong."""

    name: Literal["shapes_fm"] = "shapes_fm"

    kind: ClassVar[FlowMapKind] = "velocity"
