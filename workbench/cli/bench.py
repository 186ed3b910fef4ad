"""`bench`: measure one of the figures that the project holds itself to."""

import importlib
import time
from typing import Annotated, Any

import typer

from workbench.cli.options import BadArguments, Json, Runs, StoreUrl
from workbench.cli.screen import say, show, show_json


def bench(
    name: Annotated[str | None, typer.Argument(help="benchmark to run; without one, they are listed")] = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Run one benchmark; the figures of the last release are in BENCHMARKS.md. Benchmarks leave no run in the record."""
    from workbench.benchmarks import BENCHMARKS

    if name is None:
        show_json(sorted(BENCHMARKS)) if as_json else show("benchmarks: " + ", ".join(BENCHMARKS))
        return
    if name not in BENCHMARKS:
        raise BadArguments(f"unknown benchmark {name!r}; choose from: {', '.join(BENCHMARKS)}")
    say(f"running {name}; this takes a while")
    module, function = BENCHMARKS[name].split(":")
    started = time.monotonic()
    figures = {"benchmark": name} | getattr(importlib.import_module(module), function)()
    figures["wall_seconds"] = round(time.monotonic() - started, 1)
    if as_json:
        show_json(figures)
    else:
        show("\n".join(_lines(figures)))


def _lines(figures: Any, indent: int = 0) -> list[str]:
    """Nested figures, one a line."""
    lines = []
    for key, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{' ' * indent}{key}", *_lines(value, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{key}: {value:.6g}" if isinstance(value, float) else f"{' ' * indent}{key}: {value}")
    return lines
