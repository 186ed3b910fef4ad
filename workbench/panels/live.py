"""What a page is sent: the parts of a run's view that it has not seen yet, as small JSON."""

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

from workbench.figures import FIGURES
from workbench.figures.throughput import images_per_second
from workbench.health import verdicts
from workbench.history import History, Recorded
from workbench.store import Run
from workbench.studio import Studio, View

LISTED = 200
"""Most runs in the picker."""

Parts = dict[str, tuple[str, Callable[[], Any]]]
"""Each part of a page by name: its version, and what makes it when the page has another."""


def update(studio: Studio, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parts that changed since the page last heard; None where nothing did.

    Args:
        asked: `run` (id or ""), `seen` (version of each part the page holds), `charts` (names of those it wants now), and `at`
            (row of the rollouts it shows; 0 follows the run).
    """
    seen = asked.get("seen", {})
    runs = studio.runs()
    parts: Parts = {"runs": _listed(runs)}
    try:
        found = studio.pick(asked.get("run", ""))
    except ValueError as error:
        parts["problem"] = _value(str(error))
        return _news(parts, seen)
    if found is not None:
        view = studio.view(found)
        parts |= _parts(studio, view, int(asked.get("at", 0))) | _charts(view, asked.get("charts", ()))
    news = _news(parts, seen)
    return news and {**news, "id": found.id if found else ""}


def _news(parts: Parts, seen: Mapping[str, Any]) -> dict[str, Any] | None:
    changed = {name: (version, make) for name, (version, make) in parts.items() if seen.get(name) != version}
    if not changed:
        return None
    return {
        "versions": {name: version for name, (version, _) in changed.items()},
        "parts": {name: make() for name, (_, make) in changed.items()},
    }


def _parts(studio: Studio, view: View, at: int) -> Parts:
    """Each part of the page but its charts."""
    run, history = view.run, view.history
    judged = [
        asdict(verdict) for verdict in verdicts(history, run.config, run.status, run.error, resumable=bool(view.checkpoints))
    ]
    shown = at or (history.groups.id if history.groups else 0)
    return {
        "status": _value(_status(view)),
        "verdicts": _value(judged),
        "checks": (_stamp(view, "checks"), lambda: history.checks.data["checks"] if history.checks else []),
        "groups": (f"{_stamp(view, 'groups')}:{shown}", lambda: _groups(studio, view, at)),
        "pairs": (_stamp(view, "pairs"), lambda: _pairs(studio, run, history)),
        "sampled": (_stamp(view, "sampled"), lambda: _sheet(studio, run, history.sampled)),
        "config": (run.id, lambda: run.config),
    }


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


def _value(value: Any) -> tuple[str, Callable[[], Any]]:
    """A small part is its own version."""
    return f"{zlib.crc32(json.dumps(value, default=str).encode()):x}", lambda: value


def _listed(runs: list[Run]) -> tuple[str, Callable[[], Any]]:
    return _value(
        [
            {"id": run.id, "title": run.title, "status": run.status, "kind": run.kind, "created": run.created}
            for run in runs[:LISTED]
        ]
    )


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
        "iteration": run.iteration,
        "iterations": run.iterations,
        "checkpoint": view.checkpoints[-1] if view.checkpoints else None,
        "speed": round(sum(value for _, value in speed) / len(speed)) if speed else None,
        "left": seconds_left(history, run.iterations) if run.status == "running" else None,
        "seconds": round(history.times[-1][1] - run.created) if history.times else None,
        "may": view.may,
        "charts": list(FIGURES.get(run.kind, {})),
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
    groups = []
    for place, group in enumerate(data["groups_shown"]):
        index = range(group * size, (group + 1) * size)
        rewards = [data["rewards"][i] for i in index]
        mean = sum(rewards) / size
        images = [
            {
                "tile": place * size + i - index.start,
                "seed": str(data["seeds"][i]),  # 64 bits, more than a number of the browser holds
                "reward": _round(data["rewards"][i]),
                "advantage": _round(data["advantages"][i]),
                "parts": {name: _round(values[i]) for name, values in data["parts"].items()},
                "log_probs": [_round(step[i]) for step in data["log_probs"]],
            }
            for i in index
        ]
        images.sort(key=lambda image: -image["reward"])
        groups.append(
            {
                "prompt": data["prompts"][group],
                "mean": _round(mean),
                "std": _round(math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / size)),
                "quiet": all(image["advantage"] == 0 for image in images),
                "images": images,
            }
        )
    return {
        "iteration": rows.iteration,
        "row": rows.id,
        "rows": [list(pair) for pair in history.group_rows],
        "sheet": _sprite(studio, run, data["preview"]),
        "steps": data["steps"],
        "noise_std": [_round(value) for value in data["noise_std"]],
        "prompts": len(data["prompts"]),
        "quiet": sum(not any(data["advantages"][i : i + size]) for i in range(0, len(data["advantages"]), size)),
        "groups": groups,
    }


def _pairs(studio: Studio, run: Run, history: History) -> dict[str, Any] | None:
    """The first and the latest evaluation at the same prompts and seeds."""
    if not history.evaluations:
        return None
    first, last = history.evaluations[0], history.evaluations[-1]
    return {
        "prompts": first.data["prompts"],
        "seeds": first.data["seeds"],
        "before": {"iteration": first.iteration, "sheet": _sprite(studio, run, first.data["preview"])},
        "now": {"iteration": last.iteration, "sheet": _sprite(studio, run, last.data["preview"])} if last is not first else None,
    }


def _sheet(studio: Studio, run: Run, item: Recorded | None) -> dict[str, Any] | None:
    if item is None:
        return None
    data = item.data
    return {
        "iteration": item.iteration,
        "prompts": data["prompts"],
        "seeds": data["seeds"],
        "sheet": _sprite(studio, run, data["preview"]),
    }


def _sprite(studio: Studio, run: Run, preview: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a sheet of images lies, and how it is laid out; None once its picture was thinned."""
    if not preview["sprite"]:
        return None
    path = studio.store.image_path(run.id, preview["sprite"])
    return {"path": path.as_posix(), "tile": preview["tile"], "columns": preview["columns"], "count": preview["count"]}


@lru_cache(maxsize=64)
def _drawn(history: History, kind: str, name: str, config: str) -> dict[str, Any]:
    """One figure, drawn once for all viewers."""
    return FIGURES[kind][name](history, json.loads(config)).to_dict()


def _round(value: float) -> float:
    """Four significant digits, which is more than anyone reads; exact numbers stay in the store."""
    return float(f"{value:.4g}")
