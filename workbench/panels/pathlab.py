"""Every kernel on particles of the plane, where right and wrong are known; and GRPO with a reward that is dragged about."""

import base64
import inspect
import json
import re
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor

from workbench.config import validated
from workbench.figures.pathlab import accuracy_by_steps, p_values_by_time, plane_kl, plane_reward
from workbench.panels import form
from workbench.panels.charts import chart_card
from workbench.panels.page import ASSETS, Page, rounded
from workbench.pathlab import COUNTS, VIEW, Walk, WalkRequest, WalkSettings, accuracy, marginal, one_thread, walk
from workbench.plane import Lever, PlaneLearner, PlaneSettings
from workbench.studio import Studio

T = TypeVar("T")

REACH = 2 * VIEW
"""Positions travel as 16-bit numbers in -REACH..REACH."""

SLICE_SECONDS = 0.08
"""Longest time that one question lets a policy learn, so that runs on the same thread go on."""

NAMES = {
    "double_ring": "Double ring",
    "moons": "Two moons",
    "grid": "Nine Gaussians",
    "spiral": "Spiral",
    "drawn": "Draw your own",
}

MAPS = {
    "two_time": "Exact: the map, for jumps of any length. What goes wrong is the kernel's own doing.",
    "single_time": "Exact: the jump to the data, from any time. Places between are reached by adding noise back.",
    "velocity": "Exact: the velocity at every place and time. Each step goes straight along it: right only for short ones.",
}
"""What the chosen map leaves to be wrong."""


def follow(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Particles on their way, tested at every node; the exact marginals too, unless the browser `holds` those of these times."""
    request = _request(asked)
    began = time.perf_counter()
    found = _small(studio, lambda: walk(request))
    times = [found.times[node] for node in found.nodes]
    key = json.dumps([request.data.model_dump(), times])
    reply = {
        "key": key,
        "times": times,
        "nodes": found.nodes,
        "grid": found.times,
        "count": request.particles,
        "reach": REACH,
        "particles": _packed(found.particles),
        "paths": _packed(found.paths),
        "means": _packed(found.means),
        "traced": found.paths.shape[1],
        "stds": [rounded(std) for std in found.stds],
        "p": [rounded(p, 2) for p in found.p_values],
        "wrong": found.wrong,
        "masses": found.masses,
        "wanted": found.wanted,
        "verdict": verdict(found),
        "why": [MAPS[request.map], *why(request.sampler)],
        "chart": p_values_by_time(times, found.p_values, found.wrong).to_dict(),
        "seconds": time.perf_counter() - began,
    }
    if asked.get("holds") != key:
        marginals = _small(studio, lambda: [marginal(request.data, t) for t in times])
        reply["density"] = _bytes((torch.stack([each.density for each in marginals]).sqrt() * 255).round().byte())
        reply["profiles"] = [[rounded(share, 3) for share in each.profile] for each in marginals]
    return reply


def by_steps(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The same kernel at the first `known + 1` numbers of steps; `more` until all of them are known."""
    request, count = _request(asked), max(0, int(asked["known"])) + 1
    alike = request.model_copy(update={"steps": 1, "particles": 1000})  # all that it depends on
    found = _small(studio, lambda: [accuracy(alike, steps) for steps in COUNTS[:count]])
    return {"chart": accuracy_by_steps(found, request.steps).to_dict(), "known": count, "more": count < len(COUNTS)}


def learn(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Let the visitor's policy learn for a moment, or only show it; it rests as soon as nobody asks."""
    visitor = str(asked["visitor"])[:40]
    lever = validated(Lever, asked["lever"])
    settings = validated(PlaneSettings, {"data": asked["data"], **asked.get("fixed", {})})

    def work() -> dict[str, Any]:
        learner = studio.planes.open(visitor, settings, lever, anew=bool(asked.get("anew")))
        began = time.perf_counter()
        updates = learner.learn_for(SLICE_SECONDS) if asked.get("learn") else 0
        spent = time.perf_counter() - began
        reply: dict[str, Any] = {
            "updates": learner.updates,
            "speed": rounded(updates / spent, 3) if updates else None,
            "reward": _recent(learner, "reward"),
            "kl": _recent(learner, "kl"),
            "silent": _recent(learner, "silent"),
            "reach": REACH,
            "particles": _packed(learner.particles()),
            "base": _packed(learner.base_particles()) if asked.get("base") else None,
        }
        if asked.get("charts"):
            history = list(learner.history)
            reply["charts"] = {"plane_reward": plane_reward(history).to_dict(), "plane_kl": plane_kl(history).to_dict()}
        return reply

    try:
        return _small(studio, work)
    except FloatingPointError as error:
        raise ValueError(str(error)) from None


def verdict(found: Walk) -> dict[str, Any]:
    """What the tests say of a walk, in one sentence."""
    tests = len(found.p_values)
    if not found.wrong:
        told = f"None of {tests} tests tells the particles from exact samples: not at t = 0, and at no time on the way."
        return {"level": "green", "title": "Right, as far as can be told", "sentence": told}
    times = [found.times[found.nodes[place]] for place in found.wrong]
    smallest = min(found.p_values[place] for place in found.wrong)
    where = "every one of them after the start" if len(times) == tests - 1 else f"first at t = {times[0]:.2f}"
    told = f"{len(times)} of {tests} tests tell the particles from exact samples, {where}. Smallest p-value: {smallest:.0e}."
    final = "the samples are wrong" if found.wrong[-1] == tests - 1 else "wrong on the way"
    return {"level": "red", "title": f"Told apart: {final}", "sentence": told}


def why(sampler: BaseModel) -> list[str]:
    """What a kernel does, and what is exact of it: its own description, without the sources."""
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(type(sampler).__doc__ or "").split("\n\n")]
    return [re.sub(r" \(see [^)]*\)|`", "", part) for part in paragraphs if not part.startswith("Source:")]


def layout() -> str:
    """The static layout, with every chart's heading and sentence in place before there is anything to draw."""
    text = (ASSETS / "pathlab.html").read_text()
    charts = {"p_values": p_values_by_time(), "accuracy": accuracy_by_steps()}
    charts |= {"plane_reward": plane_reward(), "plane_kl": plane_kl()}
    for name, chart in charts.items():
        text = text.replace(f"<!-- chart {name} -->", chart_card(name, chart, ""))
    choices = "".join(
        f'<label><input type="radio" name="lab-data" value="{name}"{" checked" if name == "double_ring" else ""}>'
        f"<span>{escape(label)}</span></label>"
        for name, label in NAMES.items()
    )
    text = text.replace("<!-- data -->", choices)
    text = text.replace("<!-- walk -->", form.under("walk", form.render(WalkSettings())))
    return text.replace("<!-- lever -->", form.under("lever", form.render(Lever())))


def _small(studio: Studio, work: Callable[[], T]) -> T:
    """Some work on few numbers, on the worker's thread and on one core."""

    def alone() -> T:
        with one_thread():
            return work()

    return studio.on_device(alone)


def _recent(learner: PlaneLearner, figure: str) -> float | None:
    """The mean of a figure over the last twenty updates; None before the first."""
    latest = [getattr(row, figure) for row in list(learner.history)[-20:]]
    return rounded(sum(latest) / len(latest)) if latest else None


def _request(asked: Mapping[str, Any]) -> WalkRequest:
    return validated(WalkRequest, {**form.read(WalkSettings, asked["form"]), "data": asked["data"]})


def _packed(points: Tensor) -> str:
    """Positions [..., 2] as little-endian 16-bit numbers; what lies further out than REACH is shown at its edge."""
    return _bytes((points.clamp(-REACH, REACH) / REACH * 32767).round().to(torch.int16))


def _bytes(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


PAGE = Page(
    "pathlab",
    "Path lab",
    layout,
    ("plane.js", "pathlab_policy.js", "pathlab.js"),
    {"follow": follow, "by_steps": by_steps, "learn": learn},
)
