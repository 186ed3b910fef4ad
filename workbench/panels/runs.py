"""The page of all runs: find them, say what they are, lay them over each other, branch, export, delete."""

import shutil
from collections.abc import Callable, Mapping
from collections.abc import Generator as Stream
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from workbench import export
from workbench.branching import branched_config, compared
from workbench.config import parse_config
from workbench.events import Progress
from workbench.experiments.as_notebook import write_notebook
from workbench.experiments.comparison import compare
from workbench.experiments.differences import difference
from workbench.experiments.reproduce import TAG, reproduce
from workbench.figures.overlay import Curve, overlay
from workbench.health import held_out_reward, rollout_steps
from workbench.lora_runs import is_lora, take_lora
from workbench.merging import write_merged
from workbench.model_card import write_card
from workbench.models import MODELS
from workbench.needs import needs
from workbench.panels import form
from workbench.panels.charts import chart_card
from workbench.panels.page import ASSETS, Page, Parts, sprite, value
from workbench.provenance import read_provenance, summary
from workbench.records import Run
from workbench.report import write_report
from workbench.store import Store
from workbench.studio import Studio, View

MOST_CHOSEN = 12
"""Most runs that are laid over each other."""
HELD_OUT = "held-out reward"
_FIRST = (HELD_OUT, "reward", "kl", "held-out diversity")
_ASIDE = ("command", "title")


def rows(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The whole list; the timer then brings what changes."""
    studio.shelf.look()
    return _with_pictures(studio, studio.shelf.news("", most=None)) | trash(studio, asked)


def trash(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    return {"trash": [{"id": run.id, "title": run.title, "deleted": run.deleted} for run in studio.store.trash()]}


def annotate(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Another title, other tags, another note."""
    studio.store.annotate(asked["run"], title=asked.get("title"), tags=asked.get("tags"), note=asked.get("note"))
    return {}


def checkpoints(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """What a run can branch from, how long it is, and whether its model is part of a pipeline of diffusers."""
    found = studio.store.run(asked["run"])
    model = MODELS.get((found.config.get("model") or {}).get("name", ""))
    return {
        "checkpoints": studio.store.checkpoints(found.id),
        "iterations": found.iterations,
        "iteration": found.iteration,
        "pipeline": bool(model and model.component),
    }


def branch(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """A new run from a checkpoint, with the settings that were changed: one `key = value` on a line."""
    found, iteration = studio.store.run(asked["run"]), int(asked["iteration"])
    changes = form.key_values(asked.get("changes", ""))
    config = branched_config(studio.settings(found, iteration).model_copy(update={"title": found.title}), iteration, changes)
    return {"run": studio.branch(found.id, iteration, config)}


def resume(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    studio.resume(asked["run"])
    return {}


def delete(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Put runs into the trash; those that cannot be are told, the others are gone."""
    refused, gone = [], []
    for run in asked["runs"]:
        try:
            studio.store.delete(run)
            gone.append(run)
        except ValueError as error:
            refused.append(str(error))
    return {"deleted": gone, **({"errors": refused} if refused else {})}


def restore(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    for run in asked["runs"]:
        studio.store.restore(run)
    return trash(studio, asked)


def empty(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Remove what is in the trash for good."""
    return {"purged": len(studio.store.purge())} | trash(studio, asked)


def write(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Make a file of a run: its `archive`, its `weights` after an iteration, a `notebook` or its `report`; returns where.

    What may take minutes, `merged` weights or a model `card`, is only begun: `writing` says how far it is.
    """
    run, what = studio.store.run(asked["run"]), asked["what"]
    if what in ("merged", "card"):
        iteration, pipeline = asked.get("iteration"), bool(asked.get("pipeline"))
        title = f"{'the model card' if what == 'card' else 'the merged weights'} of {run.title}"
        return {"making": studio.makings.begin(title, partial(_SLOW[what], studio.store, run.id, iteration, pipeline=pipeline))}
    if what == "archive":
        path = export.write_archive(studio.store, run.id)
    elif what == "weights":
        path = export.write_weights(studio.store, run.id, asked.get("iteration"))
    elif what == "notebook":
        path = write_notebook(studio.store, run.id)
    else:
        path = write_report(studio.store, run)
    return _handed_out(studio, path)


def writing(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """How far something is that `write` began, and where it is once it is done; with `cancel` it is not wanted any more."""
    making = studio.makings.find(asked["making"])
    making.unwanted = making.unwanted or bool(asked.get("cancel"))
    path = making.path
    if path is None:
        return {"done": making.done, "total": making.total, "waits": making.waits}
    return _handed_out(studio, path)


def _handed_out(studio: Studio, path: Path) -> dict[str, Any]:
    """A file as the browser fetches it; a folder is only told, since it may be larger than anybody wants to fetch."""
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return {"folder": str(path.absolute()), "name": path.name, "bytes": size}
    studio.serve(path.parent)
    return {"path": path.as_posix(), "name": path.name, "bytes": path.stat().st_size}


def _card(store: Store, run: str, iteration: int | None, *, pipeline: bool) -> Stream[Progress, None, Path]:
    """A card with its LoRA as one zip to download; a whole pipeline stays a folder."""
    folder = yield from write_card(store, run, iteration, pipeline=pipeline)
    return folder if pipeline else Path(shutil.make_archive(str(folder), "zip", folder))


_SLOW: dict[str, Callable[..., Stream[Progress, None, Path]]] = {"merged": write_merged, "card": _card}
"""What may take minutes, and is made beside the page."""


def repeat(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Queue a run that repeats another from its record."""
    return {"run": reproduce(studio.store, asked["run"])}


def origin(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Where a run comes from; and of a reproduction that is over, how well it repeats what it reproduces."""
    found = studio.store.run(asked["run"])
    drivers = read_provenance(studio.store, found.id)
    verdict = ""
    if TAG in found.tags and found.parent and found.over:
        verdict = compare(studio.store, found.parent, found.id).sentence
    return {"lines": summary(drivers[-1]) if drivers else [], "drivers": len(drivers), "verdict": verdict}


def apart(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """What differs between two runs besides their settings: code, machine, packages, prompts, weights."""
    found = difference(studio.store, asked["a"], asked["b"])
    groups = {name: [(each.name, _told(each.one), _told(each.other)) for each in many] for name, many in found.groups.items()}
    groups.pop("config", None)
    return {"groups": groups, "diffstat": found.diffstat, "notes": found.notes}


def take_in(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Take in a run from an archive or a LoRA that was uploaded, and say what it needs here; the upload itself is removed."""
    uploads, path = Path(gr.utils.get_upload_folder()).resolve(), Path(asked["path"]).resolve()
    if not path.is_relative_to(uploads):
        raise ValueError("only a file that was uploaded here can be taken in; choose it again")
    try:
        run = take_lora(studio.store, path) if is_lora(path) else export.read_archive(studio.store, path)
        return {"run": run, "needs": needs(studio.store, studio.store.run(run))}
    finally:
        path.unlink(missing_ok=True)


def update(studio: Studio, asked: Mapping[str, Any]) -> Parts:
    """The rows that changed since the browser last heard, and what the chosen runs have in common and what not.

    Args:
        asked: `held` (the version of the list that the browser holds), `chosen` (ids), `metric`, `by` (iteration or time),
            and `charts` (those in view).
    """
    held, version = asked.get("held", ""), studio.shelf.look()
    parts: Parts = {}
    if held and held != version:
        parts["rows"] = (f"{held}>{version}", lambda: _with_pictures(studio, studio.shelf.news(held)))
    chosen = _chosen(studio, asked.get("chosen", ()))
    if not chosen:
        return parts
    views = [studio.view(run) for run in chosen]
    parts["chosen"] = value(_compared(views))
    if "overlay" in asked.get("charts", ()):
        metric, by_time = asked.get("metric") or HELD_OUT, asked.get("by") == "time"
        stamp = ":".join(f"{view.run.id}:{view.run.title}:{view.history.cursor}" for view in views)
        parts["chart:overlay"] = (f"{stamp}:{metric}:{by_time}", lambda: _overlay(views, metric, by_time))
    return parts


def layout() -> str:
    """The static layout."""
    card = chart_card("overlay", overlay([], HELD_OUT, False), "runs-overlay")
    return (ASSETS / "runs.html").read_text().replace("<!-- chart overlay -->", card)


def _chosen(studio: Studio, ids: Any) -> list[Run]:
    """The runs that are chosen and still there, in the order in which they were chosen."""
    here = {run.id: run for run in studio.runs()} if ids else {}
    return [here[run] for run in list(ids)[:MOST_CHOSEN] if run in here]


def _with_pictures(studio: Studio, news: dict[str, Any]) -> dict[str, Any]:
    """The rows with the sheets of their latest evaluation, which the server may hand out from now on."""
    lines = []
    for line in news["rows"]:
        preview = line["preview"]
        if preview is not None:
            studio.serve(studio.store.folder(line["id"]) / "images")
        lines.append({**line, "preview": preview and sprite(studio, line["id"], preview)})
    return news | {"rows": lines}


def _compared(views: list[View]) -> dict[str, Any]:
    """The numbers that some of the runs have, and the settings in which they differ."""
    names = dict.fromkeys(name for view in views for name in _numbers(view))
    first = [name for name in _FIRST if name in names]
    differing = compared([_settings(view.run) for view in views])
    return {
        "titles": [view.run.title for view in views],
        "metrics": [*first, *(name for name in names if name not in first)],
        "settings": {key: [_told(each) for each in values] for key, values in differing.items() if key not in _ASIDE},
    }


def _settings(run: Run) -> Mapping[str, Any]:
    """A run's settings; those that it was recorded without are what they are by default."""
    try:
        return parse_config(run.training).model_dump(mode="json") if run.training else run.config
    except ValueError:  # of a version that had others
        return run.config


def _numbers(view: View) -> list[str]:
    """Names of what was measured of a run, the held-out ones at the number of steps of its evaluations."""
    measured = [item.data["measures"].get(str(rollout_steps(view.run.config)), {}) for item in view.history.evaluations[-1:]]
    held_out = [HELD_OUT, *(f"held-out {name}" for names in measured for name in names if name != "reward")] if measured else []
    return [*held_out, *view.history.metrics]


def _overlay(views: list[View], metric: str, by_time: bool) -> dict[str, Any]:
    twice = {view.run.title for view in views if sum(other.run.title == view.run.title for other in views) > 1}
    names = [f"{view.run.title} ({view.run.id[-4:]})" if view.run.title in twice else view.run.title for view in views]
    figure = overlay([_curve(view, name, metric) for view, name in zip(views, names, strict=True)], metric, by_time)
    return dict(figure.to_dict())


def _curve(view: View, name: str, metric: str) -> Curve:
    """One number of a run, with the seconds since its first iteration began."""
    history, config = view.history, view.run.config
    sparse = metric.startswith("held-out")
    if metric == HELD_OUT:
        points = [(at, each) for at, each, *_ in held_out_reward(history, config)]
    elif sparse:
        points = [(at, each) for at, each, *_ in history.measure(rollout_steps(config), metric.removeprefix("held-out "))]
    else:
        points = history.metric(metric)
    began = history.times[0][1] - history.seconds[0][1] if history.times else 0.0
    clock = {at: moment - began for at, moment in history.times}
    return Curve(name, points, [clock.get(at, 0.0) for at, _ in points], sparse)


def _told(setting: Any) -> str:
    return "–" if setting is None else str(setting)


PAGE = Page(
    "runs",
    "Runs",
    layout,
    ("runs.js",),
    {
        "rows": rows,
        "trash": trash,
        "annotate": annotate,
        "checkpoints": checkpoints,
        "branch": branch,
        "resume": resume,
        "delete": delete,
        "restore": restore,
        "empty": empty,
        "write": write,
        "writing": writing,
        "take_in": take_in,
        "repeat": repeat,
        "origin": origin,
        "apart": apart,
    },
    update,
)
