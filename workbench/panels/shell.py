"""The frame of all pages: one component, one timer, one way to ask. Pages are switched in the browser and keep their state."""

import json
import traceback
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from workbench.panels.page import ASSETS, Page, Parts, value
from workbench.records import Run
from workbench.store import StoreError
from workbench.studio import Studio

TICK_SECONDS = 0.5
LISTED = 200
"""Most runs in the picker."""
SCRIPTS = ("shell.js", "sprites.js", "charts.js")
MOUNT = "window.workbench.mount(element, server)"
RECEIVE = "watch('value', () => window.workbench && window.workbench.receive(props.value))"


def build(studio: Studio, pages: Sequence[Page]) -> None:
    """Lay out the pages, bind the timer, end."""
    known = {page.name: page for page in pages}

    def tick(asked: str) -> dict[str, Any]:
        # not gr.skip(): it makes a component anew each time, and a session keeps them all
        return (update(studio, known, json.loads(asked)) if asked else None) or {}

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        return answer(studio, known, question)

    scripts = [*SCRIPTS, *dict.fromkeys(name for page in pages for name in page.scripts)]
    gr.HTML(
        html_template=layout(pages),
        js_on_load=MOUNT,
        head="".join(f'<script src="/gradio_api/file={(ASSETS / name).as_posix()}"></script>' for name in scripts),
        server_functions=[ask],
        apply_default_css=False,
        container=False,
        padding=False,
        elem_id="workbench",
    )
    # the answers go to a component of their own: Gradio animates a waiting time in whatever an event writes to
    news = gr.HTML(html_template="", js_on_load=RECEIVE, elem_id="news", container=False, padding=False)
    asked = gr.Textbox(visible=False)
    gr.Timer(TICK_SECONDS).tick(
        tick,
        inputs=asked,
        outputs=news,
        js="() => [window.workbench ? window.workbench.asks() : '']",
        queue=False,
        concurrency_limit=None,
        show_progress="hidden",
        trigger_mode="once",
        api_visibility="private",
    )


def answer(studio: Studio, pages: Mapping[str, Page], question: Mapping[str, Any]) -> dict[str, Any]:
    """What a page's action says to `question`: its `page`, `name` and `value`; a refusal is a list of `errors`."""
    try:
        return pages[question["page"]].actions[question["name"]](studio, question["value"])
    except Exception as error:
        return {"errors": _said(error).splitlines()}


def update(studio: Studio, pages: Mapping[str, Page], asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parts of a page that changed since the browser last heard; None where nothing did.

    Args:
        asked: `page`, `seen` (version of each part that the browser holds), and what the page's own `update` reads.
    """
    seen = asked.get("seen", {})
    parts: Parts = {}
    problem, made = "", {}
    try:
        parts["runs"] = _listed(studio.runs())
        parts |= pages[asked["page"]].update(studio, asked)
    except Exception as error:
        problem = _said(error)
    for name, (version, make) in parts.items():
        if seen.get(name) != version:
            try:
                made[name] = (version, make())
            except Exception as error:  # the other parts stand, and this one is tried again
                problem = _said(error)
    version, make = value(problem)
    if seen.get("problem", value("")[0]) != version:
        made["problem"] = (version, make())
    if not made:
        return None
    return {
        "page": asked["page"],
        "run": asked.get("run", ""),
        "versions": {name: version for name, (version, _) in made.items()},
        "parts": {name: part for name, (_, part) in made.items()},
    }


def _said(error: Exception) -> str:
    """An error in words: those of a refusal; of a defect, or where no memory is left, its name, and its place for the log."""
    if isinstance(error, ValueError | StoreError):
        return str(error)
    traceback.print_exception(error)
    return f"that did not work: {type(error).__name__}: {error}"


def layout(pages: Sequence[Page]) -> str:
    """All pages in their frame; the first is open until the address says otherwise."""
    links = "".join(f'<a href="?tab={page.name}" data-go="{page.name}">{escape(page.label)}</a>' for page in pages)
    sections = "".join(f'<section data-page="{page.name}" hidden>{page.layout()}</section>' for page in pages)
    text = (ASSETS / "shell.html").read_text().replace("<!-- links -->", links).replace("<!-- pages -->", sections)
    for mark in "`\\$":  # Gradio reads the layout as a JavaScript template
        text = text.replace(mark, f"&#{ord(mark)};")
    return text


def _listed(runs: list[Run]) -> tuple[str, Any]:
    return value(
        [
            {"id": run.id, "title": run.title, "status": run.status, "kind": run.kind, "created": run.created}
            for run in runs[:LISTED]
        ]
    )
