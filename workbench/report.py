"""A run as one file for people: it opens without a network, without this program, and years later."""

import base64
import gzip
import json
import time
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.branching import flat
from workbench.export import export_folder
from workbench.figures import FIGURES
from workbench.health import rollout_steps, verdicts
from workbench.history import History, Recorded
from workbench.pictures import data_sheet, read_sprite
from workbench.records import Run, resumable, when
from workbench.store import Store
from workbench.studio import View
from workbench.whole_file import whole_file

SHOWN = 80
"""Longer side of a picture, in pixels of the page."""
_COLUMNS = 8


def write_report(store: Store, view: View) -> Path:
    """Write the report of a run into its exports; returns the file.

    Raises: StoreError: if the disk refuses.
    """
    path = export_folder(store, view.run.id) / f"{view.run.id}.html"
    text = report(store, view)
    with store.disk(path.parent), whole_file(path) as hidden:
        hidden.write_text(text, encoding="utf-8")
    return path


def report(store: Store, view: View) -> str:
    """One HTML page with verdicts, pictures before and now, curves that can be zoomed, settings and provenance."""
    run, history = view.run, view.history
    figures = {name: draw(history, run.config) for name, draw in FIGURES.get(run.kind, {}).items()}
    drawn = {name: figure for name, figure in figures.items() if figure.data}
    parts = {
        "title": escape(run.title),
        "subtitle": escape(f"{run.id}, {run.status} after {_iterations(run)}; report of {when(time.time())}"),
        "note": f"<p>{escape(run.note)}</p>" if run.note else "",
        "verdicts": "".join(_verdict(each) for each in _judged(view)),
        "pictures": _pictures(store, run, history),
        "measures": _measures(run, history),
        "figures": "".join(_article(name, figure.layout) for name, figure in drawn.items()),
        "facts": _table("", ("fact", "value"), [(name, escape(str(each))) for name, each in _facts(view).items()]),
        "settings": _table("", ("setting", "value"), [(key, escape(str(each))) for key, each in flat(run.config).items()]),
        "data": json.dumps({name: json.loads(figure.to_json()) for name, figure in drawn.items()}).replace("<", "\\u003c"),
        "plotly": library(),
    }
    pieces = (files("workbench") / "report.html").read_text().split("<!-- ")
    filled = [pieces[0]]  # each place is filled once: what people wrote is never searched for places
    for piece in pieces[1:]:
        name, _, rest = piece.partition(" -->")
        filled.append(parts[name] + rest)
    return "".join(filled)


@cache
def library() -> str:
    """plotly.js as it ships with its package, compressed: a report then has 2 MB instead of 5, and keeps its zoom."""
    source = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _judged(view: View) -> list[Any]:
    run = view.run
    return verdicts(view.history, run.config, run.status, run.error, resumable=resumable(run, bool(view.checkpoints)))


def _verdict(verdict: Any) -> str:
    mark = {"green": "✓", "amber": "!", "red": "✕"}[verdict.level]
    remedy = f'<p class="soft">What to do: {escape(verdict.remedy)}</p>' if verdict.remedy else ""
    said = f"<b>{mark} {escape(verdict.title)}</b><p>{escape(verdict.sentence)}</p>"
    return f'<div class="verdict {verdict.level}">{said}{remedy}</div>'


def _pictures(store: Store, run: Run, history: History) -> str:
    """The same prompts and seeds at the first and at the latest evaluation."""
    if not history.evaluations:
        return ""
    first, last = history.evaluations[0], history.evaluations[-1]
    sheets = [sheet for item in ((first,) if last is first else (first, last)) if (sheet := _sheet(store, run, item)) is not None]
    if not sheets:
        return ""
    styles = "".join(f".sheet{i} {{ {_background(sheet)} }}" for i, sheet in enumerate(sheets))
    prompts, seeds = first.data["prompts"], first.data["seeds"]
    pairs = []
    for index in range(min(sheet["count"] for sheet in sheets)):
        tiles = "".join(_tile(i, sheet, index, escape(prompts[index])) for i, sheet in enumerate(sheets))
        caption = f"<figcaption>{escape(prompts[index])}, seed {seeds[index]}</figcaption>"
        pairs.append(f'<figure><div class="both">{tiles}</div>{caption}</figure>')
    sides = (
        f"Left after {first.iteration} iterations, right after {last.iteration}: the same prompts and seeds, never trained on."
    )
    head = f'<style>{styles}</style><section><h2>Before | now</h2><p class="soft">{sides}</p>'
    return f'{head}<div class="pairs">{"".join(pairs)}</div></section>'


def _sheet(store: Store, run: Run, item: Recorded) -> dict[str, Any] | None:
    """The pictures of an evaluation inside the page; None where they are gone."""
    preview = item.data["preview"]
    if not preview["sprite"]:
        return None
    try:
        return data_sheet(read_sprite(store.image_path(run.id, preview["sprite"]), preview), _COLUMNS)
    except ValueError:
        return None  # a missing file leaves a report without pictures, which is better than none


def _scale(sheet: dict[str, Any]) -> float:
    side = max(sheet["tile"])
    return SHOWN / side if side > SHOWN else max(1, round(SHOWN / side))


def _background(sheet: dict[str, Any]) -> str:
    scale, (width, height) = _scale(sheet), sheet["tile"]
    rows = -(-sheet["count"] // sheet["columns"])
    size = f"{sheet['columns'] * width * scale:g}px {rows * height * scale:g}px"
    return (
        f"width: {width * scale:g}px; height: {height * scale:g}px; background: url({sheet['data']}) 0 0 / {size}; "
        "image-rendering: pixelated;"
    )


def _tile(place: int, sheet: dict[str, Any], index: int, label: str) -> str:
    scale, (width, height) = _scale(sheet), sheet["tile"]
    x, y = -(index % sheet["columns"]) * width * scale, -(index // sheet["columns"]) * height * scale
    side = ("before", "now")[place]
    place_of = f"background-position: {x:g}px {y:g}px"
    return f'<div class="pic sheet{place}" role="img" aria-label="{side}: {label}" style="{place_of}"></div>'


def _measures(run: Run, history: History) -> str:
    """Every held-out number at the first and at the latest evaluation, with 95 % intervals."""
    if not history.evaluations:
        return '<p class="soft">Nothing was measured yet.</p>'
    steps = str(rollout_steps(run.config))
    first, last = (item.data["measures"].get(steps, {}) for item in (history.evaluations[0], history.evaluations[-1]))
    heads = ("measure", f"iteration {history.evaluations[0].iteration}", f"iteration {history.evaluations[-1].iteration}")
    rows = [(escape(name.replace("_", " ")), _interval(first.get(name)), _interval(each)) for name, each in last.items()]
    images = history.evaluations[-1].data["images"]
    return _table(
        f"At {steps} sampling steps, over {images} images of held-out prompts; 95 % intervals", heads, rows, numbers=True
    )


def _interval(measure: dict[str, float] | None) -> str:
    if measure is None:
        return "–"
    return f"{measure['value']:.4g} ({measure['low']:.4g} to {measure['high']:.4g})"


def _facts(view: View) -> dict[str, Any]:
    run, started = view.run, view.history.started
    own = {
        "run": run.id,
        "parent": f"{run.parent}, after iteration {run.branched}" if run.parent else "none",
        "started from": run.origin,
        "command": run.command or "none",
        "created": when(run.created),
        "iterations": _iterations(run),
        "checkpoints": ", ".join(str(iteration) for iteration in view.checkpoints) or "none",
        "tags": ", ".join(run.tags) or "none",
    }
    return own | (started.data["facts"] if started else {}) | {"report written by": f"Flow-Map Workbench {__version__}"}


def _iterations(run: Run) -> str:
    return f"{run.iteration} of {run.iterations} iterations" if run.iterations else f"{run.iteration} iterations"


def _article(name: str, layout: Any) -> str:
    healthy = escape(layout.meta["healthy"])
    plot = f'<div id="figure-{name}" style="height: {layout.height}px"></div>'
    return f'<article><h2>{escape(layout.title.text)}</h2>{plot}<p class="soft">{healthy}</p></article>'


def _table(caption: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numbers: bool = False) -> str:
    """A table of text that is HTML already."""
    kind = ' class="number"' if numbers else ""
    top = "".join(f"<th{kind if i else ''}>{head}</th>" for i, head in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{kind if i else ''}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return (
        f"<table>{f'<caption>{caption}</caption>' if caption else ''}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )
