"""The first page: one run, live. Lays out the page and passes on what the browser asks; everything shown comes from the store."""

import json
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.config import PRESETS, RunConfig, parse_config
from workbench.figures import FIGURES
from workbench.history import History
from workbench.panels import form, live
from workbench.planning import noise_of_steps
from workbench.studio import Studio

TICK_SECONDS = 0.5
ASSETS = Path(str(files("workbench.panels") / "assets"))
SCRIPTS = ("page.js", "pictures.js", "charts.js", "form.js")
MOUNT = "window.workbench.mount(element, server)"
RECEIVE = "watch('value', () => window.workbench && window.workbench.receive(props.value))"


def build(studio: Studio) -> None:
    """Lay out the page, bind its timer, end."""

    def tick(asked: str) -> Any:
        news = live.update(studio, json.loads(asked)) if asked else None
        return gr.skip() if news is None else news

    def settings(asked: dict[str, str]) -> dict[str, str]:
        """The form of a preset, or of a run whose settings are to be used again."""
        run = asked.get("run")
        config = parse_config(studio.store.run(run).config) if run else PRESETS[asked.get("preset", "shapes")]
        return {"form": form.render(config)}

    def start(values: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"run": studio.start(parse_config(form.read(RunConfig, values)))}
        except ValueError as error:
            return {"errors": str(error).splitlines()}

    def explain(values: dict[str, Any]) -> dict[str, Any]:
        """What a run with these settings would be: its noise in the unit that all kernels share, or why it cannot be."""
        try:
            config = parse_config(form.read(RunConfig, values))
        except ValueError as error:
            return {"errors": str(error).splitlines()}
        return {"noise": [asdict(step) | {"rate": min(step.rate, 1e9)} for step in noise_of_steps(config)]}

    def control(asked: dict[str, str]) -> dict[str, Any]:
        try:
            studio.control(asked["run"], asked["wish"])
        except ValueError as error:
            return {"errors": str(error).splitlines()}
        return {}

    gr.HTML(
        html_template=_page(),
        js_on_load=MOUNT,
        head="".join(f'<script src="/gradio_api/file={(ASSETS / name).as_posix()}"></script>' for name in SCRIPTS),
        server_functions=[settings, explain, start, control],
        apply_default_css=False,
        container=False,
        padding=False,
        elem_id="train",
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


def _page() -> str:
    """The static layout, with every chart's heading and sentence in place before there is anything to draw."""
    presets = "".join(f'<option value="{name}">{name}: {escape(config.title)}</option>' for name, config in PRESETS.items())
    text = (ASSETS / "train.html").read_text()
    placed = [name for name in FIGURES["train"] if f"<!-- chart {name} -->" in text]
    gauges = [
        f'<article class="wb-card wb-gauge" data-chart="{name}">{_chart(name)}</article>'
        for name in FIGURES["train"]
        if name not in placed
    ]
    for name in placed:
        text = text.replace(f"<!-- chart {name} -->", _chart(name))
    text = text.replace("<!-- gauges -->", "".join(gauges)).replace("<!-- presets -->", presets)
    text = text.replace("<!-- form -->", form.render(PRESETS["shapes"]))
    for mark in "`\\$":  # Gradio reads the layout as a JavaScript template
        text = text.replace(mark, f"&#{ord(mark)};")
    return text


def _chart(name: str) -> str:
    """A chart before its first data; drawing it without any also loads the charts' library before the first visitor comes."""
    layout = FIGURES["train"][name](History(), {}).layout
    head = f'<div class="wb-head"><h2>{escape(layout.title.text)}</h2><div class="wb-chips"></div></div>'
    waiting = '<p class="wb-wait">Drawn as soon as there is something to draw.</p>'
    plot = f'<div class="plot" role="group" style="height: {layout.height}px">{waiting}</div>'
    return f'{head}{plot}<p class="wb-hint">{escape(layout.meta["healthy"])}</p>'
