"""The first page: one run, live; and the form that begins another."""

from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from typing import Any

from workbench.branching import branched_config
from workbench.config import PRESETS, RunConfig, change, configure, parse_config
from workbench.evaluate import to_uint8
from workbench.figures import FIGURES
from workbench.galleries import config_of
from workbench.history import History
from workbench.panels import form, live
from workbench.panels.charts import chart_card
from workbench.panels.page import ASSETS, Page, rounded
from workbench.pictures import data_sheet
from workbench.planning import noise_of_steps
from workbench.presets import PRESET_GROUPS
from workbench.sizing import predict_memory
from workbench.studio import Studio

_PLACED = {"reward": "wb-chart tall", "advantages": "wb-chart", "steps": "wb-chart wide", "skills": "wb-chart wide"}
"""Charts that have a place of their own in the layout; the others are gauges."""


def settings(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The form of a preset, or of a run whose settings are to be used again; with `changes`, or of a branch of `parent`."""
    changes, parent = asked.get("changes") or {}, asked.get("parent")
    if parent:
        found, iteration = studio.store.run(parent), int(asked["iteration"])
        note = f"Branch of {found.title} ({found.id}), which goes on from its checkpoint after iteration {iteration}."
        return {"form": form.render(branched_config(studio.settings(found, iteration), iteration, changes)), "note": note}
    run, preset = asked.get("run"), asked.get("preset") or "shapes"
    if run and not asked.get("preset"):
        return {"form": form.render(change(config_of(studio.store.run(run)), changes))}
    return {"form": form.render(configure(preset, changes)), "preset": preset}


def start(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Begin a run, or where `parent` is named a branch of it."""
    config = parse_config(form.read(RunConfig, asked["settings"]))
    if asked.get("parent"):
        return {"run": studio.branch(asked["parent"], int(asked["iteration"]), config)}
    return {"run": studio.start(config)}


def explain(studio: Studio, values: dict[str, Any]) -> dict[str, Any]:
    """What a run with these settings would be: its noise in the unit that all kernels share."""
    config = parse_config(form.read(RunConfig, values))
    return {"noise": [asdict(step) | {"rate": min(step.rate, 1e9)} for step in noise_of_steps(config)]}


def memory(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """What a run with these settings would take, on the device that is here or on one with so many GiB."""
    gib = float(asked["gib"]) if asked.get("gib") else None
    if gib is not None and not 0 < gib < 1e6:
        raise ValueError(f"a device has some GiB of memory, got {gib:g}")
    return predict_memory(parse_config(form.read(RunConfig, asked["settings"])), gib)


def turn(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Turn knobs of a run that goes on; takes effect with its next iteration."""
    changes = dict(asked["changes"])
    if "prompts" in changes:
        changes |= form.read(RunConfig, {"prompts": changes["prompts"]})
    studio.change(asked["run"], changes)
    return {}


def trace(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The way of one image, by the policy as it is now: states and predictions at every time, and what each step drew."""
    found, iteration = studio.retrace(studio.store.run(asked["run"]), int(asked["row"]), int(asked["sample"]))
    count = len(found.times)
    pictures = {"states": found.states, "ends": found.predictions}
    sheets = {name: data_sheet(to_uint8(images), count) for name, images in pictures.items()}
    drawn = {str(place): [rounded(std), rounded(log_prob)] for place, (std, log_prob) in found.stochastic.items()}
    return {"iteration": iteration, "times": [rounded(t, 3) for t in found.times], "drawn": drawn, **sheets}


def control(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    studio.control(asked["run"], asked["wish"])
    return {}


def layout() -> str:
    """The static layout, with every chart's heading and sentence in place before there is anything to draw."""
    presets = "".join(_menu_group(label, members) for label, members in PRESET_GROUPS.items())
    figures = {name: draw(History(), {}) for name, draw in FIGURES["train"].items()}
    charts = {name: chart_card(name, figure, _PLACED.get(name, "wb-gauge")) for name, figure in figures.items()}
    text = (ASSETS / "train.html").read_text()
    for name in _PLACED:
        text = text.replace(f"<!-- chart {name} -->", charts[name])
    text = text.replace("<!-- gauges -->", "".join(card for name, card in charts.items() if name not in _PLACED))
    return text.replace("<!-- presets -->", presets).replace("<!-- form -->", form.render(PRESETS["shapes"]))


def _menu_group(label: str, members: Mapping[str, RunConfig]) -> str:
    options = "".join(f'<option value="{name}">{name}: {escape(config.title)}</option>' for name, config in members.items())
    return f'<optgroup label="{escape(label)}">{options}</optgroup>'


PAGE = Page(
    "train",
    "Train",
    layout,
    ("pictures.js", "form.js", "memory.js", "train.js"),
    {
        "settings": settings,
        "start": start,
        "explain": explain,
        "memory": memory,
        "control": control,
        "turn": turn,
        "trace": trace,
    },
    live.update,
)
