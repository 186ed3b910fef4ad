"""Grids of images: what varies along an axis, from text such as `1,2,4,8`, `0..1 x5` or `0:1:0.25`, and what each cell shows."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from workbench.config import validated
from workbench.samplers import SAMPLERS
from workbench.sampling import DrawRequest
from workbench.settings import Settings

MOST_CELLS = 256
"""Most cells of a grid: as many as a person can look at, and drawn within seconds by a small model."""

VARIED: dict[str, type] = {
    "prompt": str,
    "seed": int,
    "share": float,
    "steps": int,
    "scale": float,
    "checkpoint": int,
    "sampler": str,
    "sample": int,
}
"""What an axis may vary besides the settings of samplers, and what its values are."""


class Axis(Settings):
    """One direction of a grid."""

    name: str = Field(max_length=40, description="what varies")
    values: str = Field(
        max_length=2000, description="1,2,4,8 or 0..1 x5 (five values) or 0:1:0.25 (start, end, step); texts may be parted by |"
    )


@dataclass(frozen=True)
class Cell:
    """One image of a grid."""

    request: DrawRequest
    pick: int  # the image as deployed for 0, or a sample of the group counted from 1


@dataclass(frozen=True)
class Grid:
    """Cells, those of the first axis beside one another, of the second below, of the third in another panel."""

    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    cells: tuple[Cell, ...]

    def labels(self, axis: int) -> list[str]:
        """The values of an axis as people read them; a single empty one where there is no such axis."""
        return [label(value) for value in self.axes[axis][1]] if axis < len(self.axes) else [""]


def label(value: Any) -> str:
    """One value of an axis, for people."""
    return "last" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def varied() -> dict[str, type]:
    """Everything that an axis may vary, the settings of all samplers among it, and what its values are."""
    found = dict(VARIED)
    for sampler in SAMPLERS.values():
        for name, info in sampler.model_fields.items():
            if name != "name":
                found.setdefault(name, {int: int, float: float}.get(info.annotation, str))  # type: ignore[arg-type]
    return found


def plan_grid(request: DrawRequest, axes: Sequence[Axis], checkpoints: Sequence[int] = ()) -> Grid:
    """Every cell of a grid around a request, in the order of reading.

    Cells show samples, the first of the group, where an axis varies the sampler; otherwise images as deployed.

    Args:
        checkpoints: of the request's run, for `all`.
    Raises: ValueError: names the axis, the value and what would be accepted; or how many cells there would be.
    """
    names = [axis.name for axis in axes]
    if not axes:
        raise ValueError("a grid needs at least one axis: choose what varies along x")
    for name in names:
        if name not in varied():
            raise ValueError(f"axis {name!r}: nothing of this name can vary; choose from: {', '.join(varied())}")
        if names.count(name) > 1:
            raise ValueError(f"axis {name!r} is chosen twice; vary something else along the other")
    read = tuple((axis.name, read_values(axis, checkpoints)) for axis in axes)
    count = math.prod(len(values) for _, values in read)
    if count > MOST_CELLS:
        product = " x ".join(str(len(values)) for _, values in read)
        raise ValueError(f"this grid has {product} = {count} cells, and at most {MOST_CELLS} are drawn; leave out some values")
    sampled = any(name in ("sampler", "sample") or name not in VARIED for name in names)
    cells = []
    for place in itertools.product(*(values for _, values in reversed(read))):
        chosen = dict(zip(reversed(names), place, strict=True))
        pick = chosen.pop("sample", 1) if sampled else 0
        cells.append(Cell(_changed(request, chosen), pick))
    return Grid(read, tuple(cells))


def read_values(axis: Axis, checkpoints: Sequence[int] = ()) -> tuple[Any, ...]:
    """The values of an axis.

    Raises: ValueError: names the axis, the part that cannot be read and how it would be written.
    """
    kind = varied()[axis.name]
    parts = [part.strip() for part in axis.values.split("|" if kind is str and "|" in axis.values else ",")]
    parts = [part for part in parts if part]
    if not parts:
        raise ValueError(f"axis {axis.name!r} has no values; write for example {_example(kind)}")
    values: list[Any] = []
    for part in parts:
        if axis.name == "checkpoint" and part in ("base", "last", "all"):
            values += sorted(checkpoints) if part == "all" else [0 if part == "base" else None]
        else:
            values += [part] if kind is str else _numbers(axis.name, part, kind)
    if not values:
        raise ValueError(f"axis {axis.name!r}: there are no checkpoints yet; choose a run that has some, or write: base")
    return tuple(dict.fromkeys(values))


def _numbers(name: str, part: str, kind: type) -> list[Any]:
    """One number, or a range of them: `start..end xN` or `start:end:step`."""
    spread = re.fullmatch(r"(.+?)\.\.(.+?)(?:\s*x\s*(\d+))?", part)
    if spread is not None:
        start, end = (_number(name, part, text, kind) for text in spread.group(1, 2))
        if spread.group(3) is None and kind is not int:
            raise ValueError(f"axis {name!r}: {part!r} does not say how many values; write for example {part} x5")
        count = int(spread.group(3) or abs(end - start) + 1)
        return _ranged(name, part, start, (end - start) / max(1, count - 1), count, kind)
    stepped = part.split(":")
    if len(stepped) in (2, 3):
        start, end, step = (_number(name, part, text, kind) for text in [*stepped, "1"][:3])
        if step == 0 or (end - start) / step < 0:
            raise ValueError(f"axis {name!r}: {part!r} never arrives; write start:end:step, as in 0:1:0.25 or 8:2:-2")
        return _ranged(name, part, start, step, math.floor((end - start) / step + 1e-9) + 1, kind)
    return [_number(name, part, part, kind)]


def _ranged(name: str, part: str, start: float, step: float, count: int, kind: type) -> list[Any]:
    if not 1 <= count <= MOST_CELLS:
        raise ValueError(f"axis {name!r}: {part!r} stands for {count} values; at most {MOST_CELLS} are drawn, and at least 1")
    return [round(start + i * step) if kind is int else round(start + i * step, 9) for i in range(count)]


def _number(name: str, part: str, text: str, kind: type) -> Any:
    try:
        number = kind(text.strip())
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        asked = "a whole number" if kind is int else "a number"
        raise ValueError(f"axis {name!r}: {part!r} is not {asked}; write for example {_example(kind)}")
    return number


def _example(kind: type) -> str:
    return {str: "one | another", int: "1,2,4,8 or 1..8", float: "0,0.5,1 or 0..1 x5 or 0:1:0.25"}[kind]


def _changed(request: DrawRequest, values: Mapping[str, Any]) -> DrawRequest:
    """The request with other values; another sampler begins with its own defaults, and every sampler must know its settings."""
    tree = request.model_dump()
    if "sampler" in values and values["sampler"] != tree["sampler"]["name"]:
        tree["sampler"] = {"name": values["sampler"]}
    for name, value in values.items():
        if name in VARIED:
            if name != "sampler":
                tree[name] = value
            continue
        kernel = SAMPLERS.get(tree["sampler"]["name"])
        if kernel is not None and name not in kernel.model_fields:
            having = ", ".join(known for known, sampler in SAMPLERS.items() if name in sampler.model_fields)
            raise ValueError(f"axis {name!r}: sampler {tree['sampler']['name']!r} has no such setting; those that have: {having}")
        tree["sampler"][name] = value
    return validated(DrawRequest, tree)
