"""A run as one file for people: it opens without a network, without this program, and years later."""

import base64
import gzip
import json
import time
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from workbench import __version__
from workbench.branching import flat
from workbench.export import export_folder
from workbench.figures import FIGURES
from workbench.health import rollout_steps, verdicts
from workbench.history import History, Recorded
from workbench.pictures import data_sheet, read_sprite
from workbench.provenance import read_provenance, summary
from workbench.records import Run, resumable, when
from workbench.store import Store
from workbench.whole_file import whole_file

SHOWN = 80
"""Longer side of a picture, in pixels of the page."""
_COLUMNS = 8


def write_report(store: Store, run: Run) -> Path:
    """Write the report of a run into its exports; returns the file.

    Raises: StoreError: if the disk refuses.
    """
    path = export_folder(store, run.id) / f"{run.id}.html"
    text = report(store, run)
    with store.disk(path.parent), whole_file(path) as hidden:
        hidden.write_text(text, encoding="utf-8")
    return path


def report(store: Store, run: Run) -> str:
    """One HTML page with verdicts, pictures before and now, curves that can be zoomed, settings and provenance."""
    history, checkpoints = History().extended(store.events(run.id)), store.checkpoints(run.id)
    figures = {name: draw(history, run.config) for name, draw in FIGURES.get(run.kind, {}).items()}
    drawn = {name: figure for name, figure in figures.items() if figure.data}
    return _template().render(
        run=run,
        now=when(time.time()),
        verdicts=verdicts(history, run.config, run.status, run.error, resumable=resumable(run, bool(checkpoints))),
        evaluations=history.evaluations,
        sheets=_sheets(store, run, history),
        measures=_measures(run, history),
        steps=rollout_steps(run.config),
        layouts={name: figure.layout for name, figure in drawn.items()},
        facts=_facts(run, history, checkpoints),
        settings=flat(run.config),
        drivers=_drivers(store, run),
        figures={name: json.loads(figure.to_json()) for name, figure in drawn.items()},
        plotly=library(),
    )


@cache
def library() -> str:
    """plotly.js as it ships with its package, compressed: a report then has 2 MB instead of 5, and keeps its zoom."""
    source = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, mtime=0)).decode()


@cache
def _template() -> Any:
    return Environment(autoescape=True).from_string((files("workbench") / "report.html").read_text())


def _drivers(store: Store, run: Run) -> list[dict[str, Any]]:
    """What each process that drove the run said of itself; a damaged file is told instead."""
    try:
        found = read_provenance(store, run.id)
    except ValueError as error:
        return [{"said": [("Not known", str(error))], "packages": {}}]
    return [{"said": summary(told), "packages": told.packages} for told in found]


def _sheets(store: Store, run: Run, history: History) -> list[dict[str, Any]]:
    """The pictures of the first and of the latest evaluation, as far as they are still there."""
    known = {"before": history.evaluations[:1], "now": history.evaluations[1:][-1:]}
    found = [_sheet(store, run, item, side) for side, items in known.items() for item in items]
    return [sheet for sheet in found if sheet is not None]


def _sheet(store: Store, run: Run, item: Recorded, side: str) -> dict[str, Any] | None:
    """A sheet inside the page, with the place of each picture on it; None where it is gone. Sizes are in pixels of the page."""
    preview = item.data["preview"]
    if not preview["sprite"]:
        return None
    try:
        sheet = data_sheet(read_sprite(store.image_path(run.id, preview["sprite"]), preview), _COLUMNS)
    except ValueError:
        return None  # a missing file leaves a report without pictures, which is better than none
    longest, columns, count = max(sheet["tile"]), sheet["columns"], sheet["count"]
    scale = SHOWN / longest if longest > SHOWN else max(1, round(SHOWN / longest))
    width, height = (side * scale for side in sheet["tile"])
    size = (columns * width, -(-count // columns) * height)
    places = [(-(index % columns) * width, -(index // columns) * height) for index in range(count)]
    return {"side": side, "data": sheet["data"], "width": width, "height": height, "size": size, "places": places}


def _measures(run: Run, history: History) -> list[tuple[str, str, str]]:
    """Every held-out number by name, at the first and at the latest evaluation, with 95 % intervals."""
    if not history.evaluations:
        return []
    steps = str(rollout_steps(run.config))
    first, last = (item.data["measures"].get(steps, {}) for item in (history.evaluations[0], history.evaluations[-1]))
    return [(name.replace("_", " "), _interval(first.get(name)), _interval(each)) for name, each in last.items()]


def _interval(measure: dict[str, float] | None) -> str:
    if measure is None:
        return "–"
    return f"{measure['value']:.4g} ({measure['low']:.4g} to {measure['high']:.4g})"


def _facts(run: Run, history: History, checkpoints: list[int]) -> dict[str, Any]:
    own = {
        "run": run.id,
        "parent": (run.parent or "none") + (f", after iteration {run.branched}" if run.branched is not None else ""),
        "started from": run.origin,
        "command": run.command or "none",
        "created": when(run.created),
        "iterations": f"{run.iteration} of {run.iterations}" if run.iterations else run.iteration,
        "checkpoints": ", ".join(map(str, checkpoints)) or "none",
        "tags": ", ".join(run.tags) or "none",
    }
    recorded = history.started.data["facts"] if history.started else {}
    return own | recorded | {"report written by": f"Flow-Map Workbench {__version__}"}
