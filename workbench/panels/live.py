"""What the page of a run is told: the parts of its view, each made only for who has not seen it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

from workbench.config import LIVE
from workbench.example import TAG
from workbench.figures import FIGURES
from workbench.figures.throughput import images_per_second
from workbench.health import Verdict, quiet_groups, verdicts
from workbench.history import History, Recorded
from workbench.panels import form
from workbench.panels.page import Parts, rounded, sprite, value
from workbench.records import Run, resumable
from workbench.studio import Studio, View


def update(studio: Studio, asked: Mapping[str, Any]) -> Parts:
    """Every part of a run's page.

    Args:
        asked: `run` (id or "" for the one that is going on), `charts` (names of those in view), and `at` (row of the rollouts
            that are shown; 0 follows the run).
    """
    found = studio.pick(asked.get("run", ""))
    if found is None:
        return {}
    view = studio.view(found)
    return {"run": value(found.id)} | _parts(studio, view, int(asked.get("at", 0))) | _charts(view, asked.get("charts", ()))


def _parts(studio: Studio, view: View, at: int) -> Parts:
    """Each part of the page but its charts."""
    run, history = view.run, view.history
    can_resume = resumable(run, bool(view.checkpoints))
    judged = [asdict(verdict) for verdict in _judged(view, can_resume)]
    late = run.iteration if run.config.get("grpo", {}).get("epochs", 1) > 1 else 0  # their ratios come with the iteration's end
    shown = at or (history.groups.id if history.groups else 0)
    return {
        "status": value(_status(view)),
        "verdicts": value(judged),
        "checks": (_stamp(view, "checks"), lambda: history.checks.data["checks"] if history.checks else []),
        "groups": (f"{_stamp(view, 'groups')}:{shown}:{late}", lambda: _groups(studio, view, at)),
        "pairs": (_stamp(view, "pairs"), lambda: _pairs(studio, run, history)),
        "sampled": (_stamp(view, "sampled"), lambda: _sheet(studio, run, history.sampled)),
        "config": (run.id, lambda: run.config),
        "knobs": _knobs(studio, view),
    }


def _judged(view: View, can_resume: bool) -> list[Verdict]:
    found = verdicts(view.history, view.run.config, view.run.status, view.run.error, resumable=can_resume)
    if _has_curves(view) or found[0].level != "green":
        return found
    after = "It has trained nothing, so there are no curves" if view.run.over else "It has trained nothing so far"
    return [Verdict("green", "A notebook", f"{after}; what it says is in its output.")]


def _has_curves(view: View) -> bool:
    """A notebook has none until a training is a part of it."""
    return view.run.kind != "notebook" or view.history.started is not None


def _knobs(studio: Studio, view: View) -> tuple[str, Callable[[], Any]]:
    """The settings that may change while a run goes on, and what has been changed."""
    run, changed = view.run, [[item.iteration, item.data["changes"]] for item in view.history.changes]
    turns = run.training is not None and not run.over

    def made() -> dict[str, Any]:
        return {"form": form.knobs(studio.settings(run), LIVE) if turns else "", "changes": changed}

    return f"{_stamp(view, 'knobs')}:{turns}", made


def _charts(view: View, wanted: Sequence[str]) -> Parts:
    """The charts that a page has in view."""
    config, stamp = json.dumps(view.run.config), _stamp(view, "charts")
    known = FIGURES.get(view.run.kind, {})
    return {
        f"chart:{name}": (stamp, partial(_drawn, view.history, view.run.kind, name, config)) for name in wanted if name in known
    }


def _stamp(view: View, part: str) -> str:
    """The version of a part: the last row that touched it, of this run since it was last started."""
    history = view.history
    return f"{view.run.id}:{history.started.id if history.started else 0}:{history.changed.get(part, 0)}"


def _status(view: View) -> dict[str, Any]:
    run, history = view.run, view.history
    speed = images_per_second(history, run.config)[-8:]
    return {
        "id": run.id,
        "title": run.title,
        "kind": run.kind,
        "status": run.status,
        "wanted": run.wanted,
        "error": run.error,
        "origin": run.origin,
        "example": TAG in run.tags,
        "notebook": run.config.get("notebook", ""),
        "iteration": run.iteration,
        "iterations": run.iterations,
        "checkpoint": view.checkpoints[-1] if view.checkpoints else None,
        "speed": round(sum(value for _, value in speed) / len(speed)) if speed else None,
        "left": seconds_left(history, run.iterations) if run.status == "running" else None,
        "seconds": round(history.times[-1][1] - run.created) if history.times else None,
        "may": view.may,
        "charts": list(FIGURES.get(run.kind, {})) if _has_curves(view) else [],
        "trains": run.training is not None,
    }


def seconds_left(history: History, iterations: int | None) -> int | None:
    """Time to the last iteration at the pace of the latest twenty, in seconds; None before there is a pace."""
    recent = history.times[-21:]
    if iterations is None or len(recent) < 2 or recent[-1][0] == recent[0][0]:
        return None
    pace = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
    return math.ceil(pace * (iterations - recent[-1][0]))


def _groups(studio: Studio, view: View, at: int) -> dict[str, Any] | None:
    """The rollouts of one iteration, ready to show: each prompt's images from the best to the worst."""
    history, run = view.history, view.run
    rows = history.groups if not at or (history.groups and at == history.groups.id) else studio.groups(run.id, at)
    if rows is None:
        return None
    data, size = rows.data, rows.data["group_size"]
    ratios = studio.ratios(run.id, rows.id)
    clip = run.config.get("objective", {}).get("clip_range", math.inf)
    groups = []
    for place, group in enumerate(data["groups_shown"]):
        index = range(group * size, (group + 1) * size)
        rewards = [data["rewards"][i] for i in index]
        mean = sum(rewards) / size
        images = [
            {"tile": place * size + turn, **_image(data, i, [step[i] for step in ratios], clip)} for turn, i in enumerate(index)
        ]
        images.sort(key=lambda image: -image["reward"])
        groups.append(
            {
                "prompt": data["prompts"][group],
                "mean": rounded(mean),
                "std": rounded(math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / size)),
                "quiet": all(image["advantage"] == 0 for image in images),
                "images": images,
            }
        )
    return {
        "iteration": rows.iteration,
        "row": rows.id,
        "rows": [list(pair) for pair in history.group_rows],
        "sheet": sprite(studio, run.id, data["preview"]),
        "steps": data["steps"],
        "noise_std": [rounded(value) for value in data["noise_std"]],
        "prompts": len(data["prompts"]),
        "quiet": quiet_groups(data["advantages"], size),
        "groups": groups,
    }


def _image(data: Mapping[str, Any], i: int, ratios: Sequence[float | None], clip_range: float) -> dict[str, Any]:
    """What is told of one image of the rollouts."""
    return {
        "sample": i,
        "seed": str(data["seeds"][i]),  # 64 bits, more than a number of the browser holds
        "reward": rounded(data["rewards"][i]),
        "advantage": rounded(data["advantages"][i]),
        "parts": {name: rounded(values[i]) for name, values in data["parts"].items()},
        "log_probs": [rounded(step[i]) for step in data["log_probs"]],
        "ratios": [rounded(ratio, 6) for ratio in ratios],
        "clipped": _clipped(data["advantages"][i], ratios, clip_range),
    }


def _clipped(advantage: float, ratios: Sequence[float | None], clip_range: float) -> bool:
    """Whether a sample was held back at some step: its ratio had gone beyond the trust region the way it was pushed."""
    return any(ratio is not None and (ratio - 1.0) * advantage > clip_range * abs(advantage) > 0 for ratio in ratios)


def _pairs(studio: Studio, run: Run, history: History) -> dict[str, Any] | None:
    """The first and the latest evaluation at the same prompts and seeds."""
    if not history.evaluations:
        return None
    first, last = history.evaluations[0], history.evaluations[-1]
    before = {"iteration": first.iteration, "sheet": sprite(studio, run.id, first.data["preview"])}
    now = {"iteration": last.iteration, "sheet": sprite(studio, run.id, last.data["preview"])}
    seeds = {"prompts": first.data["prompts"], "seeds": first.data["seeds"]}
    return {**seeds, "before": before, "now": now if last is not first else None}


def _sheet(studio: Studio, run: Run, item: Recorded | None) -> dict[str, Any] | None:
    if item is None:
        return None
    data = item.data
    return {
        "iteration": item.iteration,
        "prompts": data["prompts"],
        "seeds": data["seeds"],
        "sheet": sprite(studio, run.id, data["preview"]),
    }


@lru_cache(maxsize=64)
def _drawn(history: History, kind: str, name: str, config: str) -> dict[str, Any]:
    """One figure, drawn once for all viewers."""
    return FIGURES[kind][name](history, json.loads(config)).to_dict()
