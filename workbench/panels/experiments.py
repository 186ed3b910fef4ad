"""Experiments: notebooks with a form of their parameters, the queue, sweeps, schedules, and what ran overnight."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin

from workbench.config import PRESETS, change, validated
from workbench.digest_page import digest_page
from workbench.experiments.digest import digest
from workbench.experiments.notebooks import Notebook, Parameter, notebook, notebooks, read_parameters
from workbench.experiments.papermilling import ERROR_ANCHOR, NOTEBOOK
from workbench.experiments.points import Results, rebuilt_search, results, settings_of
from workbench.experiments.queue import Queue
from workbench.experiments.schedules import Schedule, Schedules, preview
from workbench.experiments.space import SweepSettings, check_sweep, number_of_points, read_axis
from workbench.experiments.space import told as told_value
from workbench.experiments.sweeps import begin_sweep, resume_sweep
from workbench.experiments.triggers import told
from workbench.experiments.work import Work, checked, submit
from workbench.figures.sweeps import SWEEP_FIGURES, sweep_importance, sweep_plane
from workbench.panels import form
from workbench.panels.charts import chart_card
from workbench.panels.page import ASSETS, Page, Parts, preset_choices, rounded, value
from workbench.records import Run
from workbench.rendering import render_notebook
from workbench.studio import Studio

RECENT = 12
"""Most runs of a notebook, and most firings of a schedule, that are listed."""

LIMITS = ("timeout", "retries")
SEARCH = ("search", "points", "seeds", "metric", "direction", "value", "pruning", "parallel")
PLAN = ("timezone", "catch_up", "budget_hours", "max_active", "until")


# Notebooks


def known(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """The notebooks, the presets and their titles."""
    return {
        "notebooks": [_notebook(found) for found in notebooks()],
        "presets": preset_choices(),
    }


def run(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Queue a run of a notebook."""
    config = {"notebook": asked["notebook"], "parameters": asked["parameters"]}
    work = validated(Work, {"kind": "notebook", "config": config, **_given(asked["limits"])})
    return {"run": submit(studio.store, work, origin="app")}


def output(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """A run's notebook with its outputs so far, as a page, and where in it the run failed."""
    found = studio.store.run(asked["run"])
    source = studio.store.folder(found.id) / NOTEBOOK
    if found.kind != "notebook" or not source.is_file():
        waits = "it waits for its turn" if found.status == "queued" else "it ended before its first cell"
        raise ValueError(
            f"run {found.id} has no notebook to show yet: {waits if found.kind == 'notebook' else 'it is of another kind'}"
        )
    path = render_notebook(studio.store, found.id, source)
    studio.serve(path.parent)
    failed = ERROR_ANCHOR if found.status == "failed" and ERROR_ANCHOR in path.read_text(encoding="utf-8") else ""
    return {"path": path.as_posix(), "version": path.stat().st_mtime_ns, "failed": failed} | _line(found)


def stop(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Stop what runs, take back what waits."""
    studio.store.wish(asked["run"], "stop")
    return {}


# Sweeps


def explain_sweep(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """How much a sweep would be, without beginning it."""
    settings = _sweep(asked)
    check_sweep(settings)
    points, seeds = number_of_points(settings), len(settings.run_seeds)
    return {"points": points, "seeds": seeds, "runs": points * seeds}


def begin(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    return {"sweep": begin_sweep(studio.store, _sweep(asked), origin="app")}


def resume(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    return {"sweep": resume_sweep(studio.store, asked["sweep"])}


# Schedules


def explain_schedule(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """When a schedule would fire, without adding it."""
    schedule = _schedule(studio, asked)
    if schedule.work.kind == "sweep":
        check_sweep(validated(SweepSettings, schedule.work.config))
    else:
        checked(schedule.work.kind, schedule.work.config)
    return {
        "times": [moment.strftime("%a %d %b %Y, %H:%M") for moment in preview(schedule, 5, time.time())],
        "zone": schedule.timezone,
    }


def add(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Plan a schedule, or change the one of this name."""
    schedules, schedule = Schedules(studio.store), _schedule(studio, asked)
    if asked.get("change"):
        schedules.change(schedule.name, schedule.model_dump(mode="json"))
    else:
        schedules.add(schedule)
    return {"name": schedule.name}


def pause(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    schedules = Schedules(studio.store)
    schedules.resume(asked["name"]) if asked["go"] else schedules.pause(asked["name"])
    return {}


def remove(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    Schedules(studio.store).remove(asked["name"])
    return {}


def restore(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    Schedules(studio.store).restore(asked["name"])
    return {}


def once(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """Do now what a schedule does, beside its times."""
    schedule = Schedules(studio.store).get(asked["name"]).schedule
    origin = f"schedule {schedule.name}, by hand"
    if schedule.work.kind == "sweep":
        return {"run": begin_sweep(studio.store, validated(SweepSettings, schedule.work.config), origin=origin)}
    return {"run": submit(studio.store, schedule.work, origin=origin)}


# Digest


def overnight(studio: Studio, asked: dict[str, Any]) -> dict[str, Any]:
    """What ran in the last hours, as a page of its own."""
    hours = float(asked["hours"])
    return {"page": digest_page(studio.store, digest(studio.store, time.time() - 3600 * hours))}


# What the timer brings


def update(studio: Studio, asked: Mapping[str, Any]) -> Parts:
    """The queue, and what the open view shows.

    Args:
        asked: `view`, `notebook` and `sweep` (those that are chosen), and `charts` (those in view).
    """
    entries = {entry.run: entry for entry in Queue(studio.store).entries()}
    every = studio.runs()
    runs = {found.id: found for found in every}
    sweeps = [found for found in every if found.kind == "sweep"]
    waiting = [
        _line(runs[entry.run]) | {"attempt": entry.attempt, "tries": entry.retries + 1}
        for entry in entries.values()
        if entry.run in runs
    ]
    problem = studio.service.problem if studio.service else ""
    parts: Parts = {"queue": value({"entries": waiting, "problem": problem, "begins": studio.service is not None})}
    view = asked.get("view")
    if view == "sweeps":
        parts["sweeps"] = value([_line(found) | {"metric": found.config["metric"]} for found in sweeps])
        chosen = runs.get(asked.get("sweep", ""))
        if chosen is not None and chosen.kind == "sweep":
            parts |= _results(studio, chosen, runs, asked.get("charts", ()))
    elif view == "schedules":
        parts["schedules"] = value(_planned(studio))
    elif view != "digest":
        own = [found for found in every if found.kind == "notebook" and found.config.get("notebook") == asked.get("notebook")]
        found = next((each for each in notebooks() if each.name == asked.get("notebook")), None)  # it may be gone by now
        defaults = {each.name: each.default for each in found.parameters} if found else {}
        parts["recent"] = value([_recent(found, defaults) for found in own[:RECENT]])
        last = {found.config.get("notebook"): found.status for found in reversed(every) if found.kind == "notebook"}
        parts["last"] = value(last)
    return parts


def layout() -> str:
    """The static layout."""
    text = (ASSETS / "experiments.html").read_text()
    work = Work(kind="notebook", config={})
    forms = {
        "limits": form.under("run", form.knobs(work, LIMITS)),
        "search": form.under("sweep", form.knobs(_BLANK_SWEEP, SEARCH)),
        "plan": form.under("plan", form.knobs(_BLANK_SCHEDULE, PLAN)),
    }
    for name, html in forms.items():
        text = text.replace(f"<!-- {name} -->", html)
    blank = Results("", "queued", _BLANK_SWEEP, 0, ())
    drawn = {name: draw(blank) for name, draw in _CHARTS.items()} | {"importance": sweep_importance({})}
    return text.replace("<!-- charts -->", "".join(chart_card(name, chart, "ex-chart") for name, chart in drawn.items()))


_CHARTS = {**SWEEP_FIGURES, "plane": sweep_plane}
_BLANK_SWEEP = SweepSettings(target={"preset": "shapes"}, space={"sampler.noise": (0.5, 0.9), "sampler.anchor": (0.0, 1.0)})  # type: ignore[arg-type]
_BLANK_SCHEDULE = Schedule(name="nightly", work={"kind": "notebook", "config": {}}, trigger={"name": "cron"})  # type: ignore[arg-type]


def _notebook(found: Notebook) -> dict[str, Any]:
    return {
        "name": found.name,
        "title": found.title,
        "summary": found.summary,
        "problem": found.problem,
        "parameters": [_parameter(found, each) for each in found.parameters],
    }


def _parameter(found: Notebook, each: Parameter) -> dict[str, Any]:
    kind = found.model.model_fields[each.name].annotation
    options = [str(option) for option in get_args(kind)] if get_origin(kind) is Literal else []
    default = each.default if isinstance(each.default, str | bool) else json.dumps(each.default)
    return {"name": each.name, "type": each.type, "default": default, "help": each.help, "options": options}


def _line(found: Run) -> dict[str, Any]:
    """What a list says of a run."""
    return {
        "id": found.id,
        "kind": found.kind,
        "title": found.title,
        "status": found.status,
        "wanted": found.wanted,
        "error": found.error,
        "origin": found.origin,
        "parent": found.parent,
        "iteration": found.iteration,
        "iterations": found.iterations,
        "created": found.created,
    }


def _recent(found: Run, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A run of a notebook: also what to fill in to repeat it."""
    seconds = found.updated - found.created if found.over else None
    parameters = found.config.get("parameters", {})
    own = {name: value for name, value in parameters.items() if name not in defaults or value != defaults[name]}
    return _line(found) | {"parameters": parameters, "own": own, "seconds": seconds}


def _results(studio: Studio, chosen: Run, runs: Mapping[str, Run], charts: Sequence[str]) -> Parts:
    """The chosen sweep: its points, and the charts in view; made anew when a point, or a run of one, has come further."""
    children = [found for found in runs.values() if found.parent == chosen.id]
    stamp = f"{chosen.id}:{chosen.status}:{studio.store.cursor(chosen.id)}"
    pace = max((found.iteration for found in children if not found.over), default=0)
    made: list[Results] = []

    def found() -> Results:
        if not made:
            made.append(results(studio.store, chosen.id))
        return made[0]

    parts: Parts = {"results": (f"{stamp}:{pace}", lambda: _table(found(), chosen))}
    for name in charts:
        if name in _CHARTS and not (name == "plane" and len(chosen.config["space"]) < 2):
            parts[f"chart:{name}"] = (f"{stamp}:{pace // 10}", partial(_drawn, name, found))
    if "importance" in charts and chosen.over and len(chosen.config["space"]) > 1:
        parts["chart:importance"] = (
            stamp,
            lambda: sweep_importance(rebuilt_search(studio.store, chosen.id).importances()).to_dict(),
        )
    return parts


def _drawn(name: str, found: Callable[[], Results]) -> dict[str, Any]:
    drawn: dict[str, Any] = _CHARTS[name](found()).to_dict()
    return drawn


def _table(found: Results, run: Run) -> dict[str, Any]:
    best = found.best
    return _line(run) | {
        "settings": found.settings.model_dump(mode="json"),
        "names": list(found.settings.space),
        "best": best.number if best else None,
        "points": [
            {
                "number": point.number,
                "values": [told_value(point.parameters[name]) for name in found.settings.space],
                "status": point.status,
                "value": rounded(point.value),
                "low": rounded(point.low),
                "high": rounded(point.high),
                "runs": point.runs,
                "iterations": point.iterations,
                "seconds": rounded(point.seconds),
                "error": point.error,
            }
            for point in found.points
        ],
    }


def _planned(studio: Studio) -> list[dict[str, Any]]:
    schedules = Schedules(studio.store)
    firings = schedules.firings(limit=RECENT * 20)
    broken = [{"name": name, "broken": reason} for name, reason in schedules.unreadable().items()]
    return broken + [
        {
            "name": each.schedule.name,
            "when": told(each.schedule.trigger),
            "zone": each.schedule.timezone,
            "what": _what(each.schedule),
            "next": each.next,
            "paused": each.paused,
            "settings": each.schedule.model_dump(mode="json"),
            "hours": rounded(schedules.hours(each.schedule.name), 3),
            "budget": each.schedule.budget_hours,
            "firings": [
                {"due": firing.due, "state": firing.state, "run": firing.run, "reason": firing.reason, "missed": firing.missed}
                for firing in firings
                if firing.schedule == each.schedule.name
            ][:RECENT],
        }
        for each in schedules.all()
    ]


def _what(schedule: Schedule) -> str:
    config = schedule.work.config
    if schedule.work.kind == "sweep":
        return f"sweep of {config['target'].get('preset') or config['target'].get('notebook')}"
    return f"{schedule.work.kind} {config.get('notebook') or config.get('title', '')}"


def _sweep(asked: Mapping[str, Any]) -> SweepSettings:
    """The settings of a sweep from its form. Raises: ValueError: one line for each mistake."""
    space = {}
    for name, text in asked["space"]:
        if name.strip() in space:
            raise ValueError(f"{name.strip()} is varied twice; write all its values on one line")
        if name.strip() or text.strip():
            space[name.strip()] = read_axis(text)
    if not space:
        raise ValueError("nothing is varied yet; name a setting and give at least two values")
    kind, name = asked["target"].split(":", 1)
    fixed = form.key_values(asked.get("fixed", ""))
    target = {"preset": name, "changes": fixed} if kind == "preset" else {"notebook": name, "parameters": fixed}
    more = {"title": asked.get("title", ""), "target": target, "space": space}
    return validated(SweepSettings, _given(asked["search"]) | more).pinned()


def _schedule(studio: Studio, asked: Mapping[str, Any]) -> Schedule:
    """A schedule from its form. Raises: ValueError: one line for each mistake."""
    kind, name = asked["what"].split(":", 1)
    fixed = form.key_values(asked.get("fixed", ""))
    if kind == "sweep":
        config = settings_of(studio.store.run(name)).model_dump(mode="json")
    elif kind == "notebook":
        found = notebook(name)
        config = {"notebook": name, "parameters": read_parameters(found, fixed)}
    else:
        config = change(PRESETS[name], fixed).model_dump(mode="json")
    work = {"kind": {"preset": "train"}.get(kind, kind), "config": config}
    if asked.get("change") and kind != "sweep":  # what the form does not show stays as it is
        before = Schedules(studio.store).get(asked["name"]).schedule.work.model_dump(mode="json")
        work |= {name: before[name] for name in ("title", *LIMITS, "lane") if name in before}
    return validated(Schedule, _given(asked["plan"]) | {"name": asked["name"], "work": work, "trigger": asked["trigger"]})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a form says, without the fields that were left empty."""
    return {name: text for name, text in values.items() if text != ""}


PAGE = Page(
    "experiments",
    "Experiments",
    layout,
    ("experiments.js", "sweeps.js", "schedules.js"),
    {
        "known": known,
        "run": run,
        "output": output,
        "stop": stop,
        "explain_sweep": explain_sweep,
        "begin": begin,
        "resume": resume,
        "explain_schedule": explain_schedule,
        "add": add,
        "pause": pause,
        "remove": remove,
        "restore": restore,
        "once": once,
        "overnight": overnight,
    },
    update,
)
