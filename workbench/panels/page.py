"""What a page of the dashboard is: its layout, what it may ask the server, and what a timer brings it."""

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from workbench.presets import PRESET_GROUPS
from workbench.studio import Studio

ASSETS = Path(str(files("workbench.panels") / "assets"))

Parts = dict[str, tuple[str, Callable[[], Any]]]
"""Each part of a page by name: its version, and what makes it when the browser holds another."""

Action = Callable[[Studio, dict[str, Any]], dict[str, Any]]
"""Answers one question of the browser; a ValueError it raises is shown to the user, line by line."""


def nothing_new(studio: Studio, asked: Mapping[str, Any]) -> Parts:
    """For a page that only asks and is never told."""
    return {}


@dataclass(frozen=True)
class Page:
    """One page of the dashboard.

    Its script calls `workbench.page(name, make)`, where `make(page)` binds the layout and returns what the shell calls: `open`,
    `asks`, `close`, and `parts` with a function for each part that `update` hands out.
    """

    name: str  # in the address
    label: str  # in the navigation
    layout: Callable[[], str]  # HTML
    scripts: Sequence[str]  # files of the assets folder
    actions: Mapping[str, Action] = field(default_factory=dict)
    update: Callable[[Studio, Mapping[str, Any]], Parts] = nothing_new
    """Parts for a browser that asks: `run` (id or ""), `charts` (those it has in view), and what its script's `asks` adds."""


def value(content: Any) -> tuple[str, Callable[[], Any]]:
    """A small part, which is its own version."""
    return f"{zlib.crc32(json.dumps(content, default=str).encode()):x}", lambda: content


def preset_choices() -> list[dict[str, str]]:
    """The presets as a menu shows them."""
    return [
        {"name": name, "title": config.title, "group": label}
        for label, members in PRESET_GROUPS.items()
        for name, config in members.items()
    ]


def rounded(number: float | None, digits: int = 4) -> float | None:
    """Four significant digits, which is more than anyone reads; exact numbers stay in the store. None where not finite."""
    return float(f"{number:.{digits}g}") if number is not None and math.isfinite(number) else None


def sprite(studio: Studio, run: str, preview: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a sheet of a run's images lies, and how it is laid out; None once its picture was thinned."""
    if not preview["sprite"]:
        return None
    path = studio.store.image_path(run, preview["sprite"])
    return {"path": path.as_posix(), "tile": preview["tile"], "columns": preview["columns"], "count": preview["count"]}
