"""A notebook with its outputs as one page that opens without a network, and that can do nothing to the page around it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.export import export_folder
from workbench.report import library
from workbench.store import Store
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from nbformat import NotebookNode

FIGURE = "application/vnd.plotly.v1+json"


def render_notebook(store: Store, run: str, source: Path) -> Path:
    """Write a notebook of a run as a page into its exports; returns the file, which is made again only when the notebook changed.

    Raises: ValueError: if the notebook cannot be read; StoreError: if the disk refuses.
    """
    path = export_folder(store, run) / "notebook.html"
    if path.is_file() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        return path
    text = page_of(source)
    with store.disk(path.parent), whole_file(path) as hidden:
        hidden.write_text(text, encoding="utf-8")
    return path


def page_of(source: Path) -> str:
    """A notebook as HTML: text, code, printed output, pictures, and figures that can be zoomed.

    Raises: ValueError: if there is no notebook, or it is damaged.
    """
    import nbformat
    from jinja2 import Environment
    from markupsafe import Markup
    from nbconvert import HTMLExporter

    try:
        notebook = nbformat.read(source, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"the notebook {source.name} cannot be shown: {error}") from None
    drawn = _with_figures(notebook)
    body, _ = HTMLExporter(template_name="basic", anchor_link_text="").from_notebook_node(notebook)
    template = Environment(autoescape=True).from_string((files("workbench") / "notebook.html").read_text())
    return template.render(title=source.stem, body=Markup(body), plotly=library() if drawn else "")


def _with_figures(notebook: "NotebookNode") -> int:
    """Put a place for each figure where its data are, which the exporter would leave out; returns how many there are."""
    drawn = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            figure = output.get("data", {}).get(FIGURE)
            if figure is not None:
                output["data"] = {"text/html": _place(drawn, figure)}
                drawn += 1
    return drawn


def _place(number: int, figure: Any) -> str:
    height = figure.get("layout", {}).get("height") or 420
    data = json.dumps({"data": figure.get("data", []), "layout": figure.get("layout", {})}).replace("<", "\\u003c")
    return (
        f'<div class="figure" id="figure-{number}" style="min-height: {height}px"></div>'
        f'<script type="application/json" data-figure="figure-{number}">{data}</script>'
    )
