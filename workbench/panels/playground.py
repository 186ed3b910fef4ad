"""The page on which one draws: any policy, any prompt, and every knob of a sampler with its effect beside it."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from workbench import __version__
from workbench.axes import VARIED, Axis, varied
from workbench.config import PRESETS, configure, parse_config, validated
from workbench.panels import drawing
from workbench.panels.page import ASSETS, Page, Parts, preset_choices, value
from workbench.png import read_made, request_of
from workbench.records import Run
from workbench.samplers import SAMPLERS
from workbench.sampling import DrawRequest, fitting_samplers
from workbench.studio import Studio

SUGGESTED, WORDS = 160, 48
"""Most prompts that are suggested, and most words."""

FIRST = 6
"""Held-out prompts of which the longest is drawn first: a task's own order is balanced over its skills."""


def form(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """What can be chosen: the checkpoints of a run, and the prompts and samplers of what draws, as its own run has them.

    Args:
        asked: `run`, where "" means the newest that has something to show; and `preset`, where its base draws and not the run.
    """
    run, note = _run(studio, asked.get("run", ""))
    preset = asked.get("preset") or "shapes"
    config = parse_config(run.training or {}) if run and not asked.get("preset") else configure(preset)
    kind, task = config.model.kind, config.task
    held_out, train = dict.fromkeys(task.prompts("held_out")), dict.fromkeys(task.prompts("train"))
    suggested = [*list(held_out)[: SUGGESTED // 2], *list(train)[: SUGGESTED // 2]]
    fitting = fitting_samplers(kind)
    own = config.sampler if config.sampler.name != "ode" else SAMPLERS[next(name for name in fitting if name != "ode")]()
    known = {name for sampler in fitting for name in SAMPLERS[sampler].model_fields} | set(VARIED)
    return {
        "run": run.id if run else "",
        "title": run.title if run else "",
        "note": note,
        "preset": preset,
        "presets": preset_choices(),
        "checkpoints": studio.store.checkpoints(run.id) if run else [],
        "task": task.name,
        "prompts": [{"text": text, "held_out": text in held_out} for text in suggested],
        "words": list(dict.fromkeys(word for text in [*held_out, *train] for word in text.split()))[:WORDS],
        "samplers": [_sampler(name) for name in fitting],
        "fields": {field["name"]: field for field in drawing.properties(DrawRequest)},
        "varied": [name for name in varied() if name in known],
        "defaults": {"prompt": max(list(held_out)[:FIRST], key=len), "steps": config.sampling_steps, "sampler": own.model_dump()},
    }


def restore(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The settings that a PNG was drawn with, as far as they mean something here; and in `notes` what does not."""
    try:
        content = base64.b64decode(str(asked.get("data", "")).partition(",")[2], validate=True)
    except binascii.Error:
        content = b""  # told like any other file that is no picture
    made = read_made(content)
    request, notes = request_of(made), []
    if made.get("version") != __version__:
        notes.append(f"It was made by version {made.get('version', 'unknown')}, and this is {__version__}: images may differ.")
    known = {run.id for run in studio.runs()}
    if request.run and request.run not in known:
        notes.append(f"Run {request.run} is not among the runs here: what you see is drawn by the base of a preset.")
        request = request.model_copy(update={"run": "", "checkpoint": None})
    elif request.checkpoint and request.checkpoint not in studio.store.checkpoints(request.run):
        notes.append(f"Run {request.run} does not keep its checkpoint after {request.checkpoint} iterations: the last one draws.")
        request = request.model_copy(update={"checkpoint": None})
    if request.preset not in PRESETS:
        notes.append(f"There is no preset {request.preset!r} here: the base of 'shapes' draws.")
        request = request.model_copy(update={"preset": "shapes"})
    axes = [validated(Axis, axis).model_dump() for axis in list(made.get("axes") or [])[:3]]
    pick = made.get("pick") if isinstance(made.get("pick"), int) else 0
    return {"request": request.model_dump(), "mode": made.get("seeds_mode") or "", "pick": pick, "axes": axes, "notes": notes}


def update(studio: Studio, asked: Mapping[str, Any]) -> Parts:
    """The checkpoints of the run in the address, while it makes new ones."""
    if not asked.get("run"):
        return {}
    return {"checkpoints": value(studio.store.checkpoints(studio.store.run(asked["run"]).id))}


def layout() -> str:
    return (ASSETS / "playground.html").read_text()


def _run(studio: Studio, wanted: str) -> tuple[Run | None, str]:
    """The run that is meant, and what has to be said about it; none where only a base can draw."""
    if not wanted:
        trained = (run for run in studio.runs() if run.kind == "train")
        return next((run for run in trained if studio.store.checkpoints(run.id)), None), ""
    run = studio.store.run(wanted)
    if run.kind == "train":
        return run, ""
    return None, f"Run {run.title} is of kind {run.kind} and has no policy to draw with: what you see is the base of 'shapes'."


def _sampler(name: str) -> dict[str, Any]:
    """A kernel's name, what it does in a sentence, and its settings."""
    told = (SAMPLERS[name].__doc__ or "").split("\n")[0].replace("`", "")
    return {"name": name, "note": told, "fields": drawing.properties(SAMPLERS[name])}


PAGE = Page(
    "playground",
    "Playground",
    layout,
    ("playground.js", "playground_grid.js"),
    {
        "form": form,
        "group": drawing.group,
        "walk": drawing.walk,
        "path": drawing.path,
        "plane": drawing.plane,
        "grid": drawing.grid,
        "picture": drawing.picture,
        "restore": restore,
    },
    update,
)
