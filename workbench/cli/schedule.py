"""`schedule`: what is to be run when; a scheduler in the foreground; and the digest of what was run."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workbench.cli.drive import Interrupts
from workbench.cli.options import BadArguments, Changes, Json, Runs, StoreUrl, bad_arguments, open_store, read_changes
from workbench.cli.screen import say, show, show_json

if TYPE_CHECKING:
    from workbench.experiments.schedules import Planned, Schedule, Schedules
    from workbench.store import Store

SHOWN = 5
"""How many of the next times, and of the last firings, are shown."""

_WHEN, _WHAT, _LIMITS, _SERVING = "When", "What", "Limits", "Serving and looking back"


def schedule(
    action: Annotated[
        Literal["list", "add", "change", "show", "preview", "pause", "resume", "remove", "restore", "serve", "digest"],
        typer.Argument(help="what to do"),
    ] = "list",
    name: Annotated[str | None, typer.Argument(help="name of the schedule")] = None,
    cron: Annotated[str | None, typer.Option(metavar="LINE", help="by a cron line: '0 2 * * *'", rich_help_panel=_WHEN)] = None,
    every: Annotated[str | None, typer.Option(metavar="TIME", help="repeatedly: '90 minutes'", rich_help_panel=_WHEN)] = None,
    at: Annotated[str | None, typer.Option(metavar="MOMENT", help="once: '2030-01-31 18:00'", rich_help_panel=_WHEN)] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="whose clock counts; this machine's without", rich_help_panel=_WHEN)
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="MOMENT", help="fire no later than this", rich_help_panel=_WHEN)] = None,
    catch_up: Annotated[
        Literal["latest", "all", "skip"] | None,
        typer.Option(help="missed times: one run for all of them, one for each, or none", rich_help_panel=_WHEN),
    ] = None,
    notebook: Annotated[str | None, typer.Option(metavar="NAME", help="run a notebook", rich_help_panel=_WHAT)] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="KEY=VALUE", help="of the notebook; repeatable", rich_help_panel=_WHAT),
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="train with a preset", rich_help_panel=_WHAT)] = None,
    changes: Changes = None,
    sweep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a sweep: its settings as YAML or JSON", rich_help_panel=_WHAT)
    ] = None,
    title: Annotated[str | None, typer.Option(help="of its runs", rich_help_panel=_WHAT)] = None,
    retries: Annotated[int | None, typer.Option(help="more attempts after a failure", rich_help_panel=_LIMITS)] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="of one attempt", rich_help_panel=_LIMITS)] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="HOURS", help="that all its runs may take together", rich_help_panel=_LIMITS)
    ] = None,
    max_active: Annotated[int | None, typer.Option(help="most of its runs at once", rich_help_panel=_LIMITS)] = None,
    lane: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LANE",
            help="where runs are begun: local, slurm:partition=gpu,gpus=1 or dask:address=tcp://host:8786; of a schedule its "
            "name alone, to serve several with their options",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="most runs at once", rich_help_panel=_SERVING)] = 1,
    devices: Annotated[str, typer.Option(metavar="0,1", help="spread runs over these", rich_help_panel=_SERVING)] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="how far a digest looks back", rich_help_panel=_SERVING)] = "24h",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="digest as an HTML page", rich_help_panel=_SERVING)] = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Plan runs, notebooks and sweeps, and see to them: add, list, show, pause, preview, serve, digest.

    Any number of `schedule serve` and of open apps may watch one record: each time happens once. Ctrl-C ends the serving alone;
    runs go on by themselves.
    """
    from workbench.experiments.schedules import Schedules

    record = open_store(runs, store)
    schedules = Schedules(record)
    if action == "serve":
        with bad_arguments():
            return _serve(record, lane or ["local"], parallel, [part for part in devices.split(",") if part])
    if action == "digest":
        with bad_arguments():
            return _digest(record, time.time() - _seconds(since), out, as_json)
    if action == "list":
        return _list(schedules, as_json)
    with bad_arguments():
        trigger = _trigger(cron, every, at)
        limits: dict[str, Any] = {"retries": retries, "timeout": timeout, "title": title, "lane": _lane_of(lane)}
        work = _work(notebook, read_changes(parameters, "-p", "iterations=20"), preset, read_changes(changes), sweep)
        settings: dict[str, Any] = {"trigger": trigger, "timezone": timezone, "until": until, "catch_up": catch_up}
        settings |= {"budget_hours": budget, "max_active": max_active}
        given = {key: value for key, value in settings.items() if value is not None}
        limits = {key: value for key, value in limits.items() if value is not None}
        if action == "preview" and name is None:
            if trigger is None:
                raise ValueError("schedule preview needs the NAME of a schedule, or one of --cron, --every and --at")
            return _preview(_imagined(given), as_json)
        if name is None:
            raise ValueError(f"schedule {action} needs the NAME of a schedule")
        if action in ("add", "change"):
            _put(schedules, action, name, given, work, limits)
        elif given or work or limits:
            raise ValueError(f"schedule {action} takes a name alone; other settings go with: schedule change {name} ...")
        elif action == "preview":
            return _preview(schedules.get(name), as_json)
        elif action != "show":
            getattr(schedules, action)(name)
        if action == "remove":
            return show_json({"removed": name}) if as_json else show(f"schedule {name} is removed; schedule restore {name}")
        _show(schedules, schedules.get(name), as_json)


def _put(
    schedules: "Schedules", action: str, name: str, given: dict[str, Any], work: dict[str, Any] | None, limits: dict[str, Any]
) -> None:
    from workbench.config import validated
    from workbench.experiments.schedules import Schedule

    if action == "change":
        if work is not None or limits:
            given = given | {"work": (work or schedules.get(name).schedule.work.model_dump()) | limits}
        schedules.change(name, given)
        return
    if work is None or "trigger" not in given:
        raise ValueError(
            "schedule add needs what to run (--notebook NAME, --preset NAME or --sweep FILE) "
            "and when (--cron '0 2 * * *', --every '6 hours' or --at '2030-01-31 18:00')"
        )
    schedules.add(validated(Schedule, given | {"name": name, "work": work | limits}))


def _trigger(cron: str | None, every: str | None, at: str | None) -> dict[str, Any] | None:
    given = [option for option, value in {"--cron": cron, "--every": every, "--at": at}.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; choose one")
    if cron is not None:
        return {"name": "cron", "line": cron}
    if at is not None:
        return {"name": "at", "moment": at}
    if every is None:
        return None
    found = re.fullmatch(r"\s*(\d*)\s*(second|minute|hour|day|s|m|min|h|d)s?\s*", every)
    if found is None:
        raise ValueError(f"--every takes a number and seconds, minutes, hours or days, as in '90 minutes'; got {every!r}")
    return {"name": "every", "amount": int(found[1] or 1), "unit": _UNITS[found[2][0]]}


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _seconds(text: str) -> float:
    """`"24h"` as seconds."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\w*\s*", text)
    if found is None:
        raise ValueError(f"--since takes a number and s, m, h or d, as in 24h; got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


def _work(
    notebook: str | None, parameters: dict[str, str], preset: str | None, changes: dict[str, str], sweep: Path | None
) -> dict[str, Any] | None:
    """What is to be run, if it was given."""
    if sum(value is not None for value in (notebook, preset, sweep)) > 1:
        raise ValueError("--notebook, --preset and --sweep exclude each other; choose one")
    if parameters and notebook is None:
        raise ValueError("-p sets a parameter of a notebook; name it with --notebook")
    if changes and preset is None:
        raise ValueError("--set changes a setting of a preset; name it with --preset")
    if notebook is not None:
        return {"kind": "notebook", "config": {"notebook": notebook, "parameters": parameters}}
    if preset is not None:
        from workbench.config import configure

        return {"kind": "train", "config": configure(preset, changes).model_dump(mode="json")}
    if sweep is not None:
        import yaml

        try:
            return {"kind": "sweep", "config": yaml.safe_load(sweep.read_text())}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"--sweep {sweep}: it cannot be read: {error}") from None
    return None


def _lane_of(lane: list[str] | None) -> str | None:
    if lane is None:
        return None
    if len(lane) != 1 or ":" in lane[0]:
        raise ValueError("a schedule has one --lane, by its name alone; its options go with: schedule serve --lane ...")
    return lane[0]


def _imagined(given: dict[str, Any]) -> "Planned":
    """A schedule that is not in the record, for its times."""
    from workbench.config import validated
    from workbench.experiments.schedules import Planned, Schedule

    work = {"kind": "train", "config": {}}
    return Planned(0, validated(Schedule, given | {"name": "preview", "work": work}), time.time(), None, None)


def _preview(planned: "Planned", as_json: bool) -> None:
    from workbench.experiments.schedules import preview

    times = preview(planned.schedule, SHOWN, time.time(), planned.anchor)
    found = [each.isoformat(sep=" ", timespec="seconds") for each in times]
    if as_json:
        show_json(found)
    else:
        show("\n".join(found) or "it fires no more")


def _list(schedules: "Schedules", as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from workbench.experiments.triggers import told

    found = schedules.all()
    if as_json:
        return show_json([_described(schedules, planned) for planned in found])
    for name, reason in schedules.unreadable().items():
        show(f"[red]{escape(name)}[/]: {escape(reason)}; remove it, or run the version that planned it")
    if not found:
        return show("no schedules; plan one with: python -m workbench schedule add NAME --cron '0 2 * * *' --preset shapes")
    table = Table("schedule", "when", "what", "next", "last", "hours", box=None, pad_edge=False)
    for planned in found:
        last = schedules.firings(planned.schedule.name, limit=1)
        following = (
            _clock(planned.next, planned.schedule) if planned.paused is None else f"[yellow]paused[/]: {escape(planned.paused)}"
        )
        table.add_row(
            planned.schedule.name,
            escape(told(planned.schedule.trigger)),
            escape(_what(planned.schedule)),
            following,
            f"{last[0].state} {_clock(last[0].due, planned.schedule)}" if last else "",
            _hours(schedules, planned),
        )
    show(table)


def _show(schedules: "Schedules", planned: "Planned", as_json: bool) -> None:
    from rich.markup import escape

    from workbench.experiments.schedules import preview
    from workbench.experiments.triggers import told

    plan = planned.schedule
    firings = schedules.firings(plan.name, limit=SHOWN)
    following = preview(plan, SHOWN, time.time(), planned.anchor)
    if as_json:
        described = _described(schedules, planned) | {"firings": [vars(firing) for firing in firings]}
        return show_json(described | {"following": [each.isoformat() for each in following]})
    show(escape(f"{plan.name}: {_what(plan)}, {told(plan.trigger)} ({plan.timezone}), catching up: {plan.catch_up}"))
    if planned.paused is not None:
        show(f"[yellow]paused[/]: {escape(planned.paused)}")
    else:
        show("next: " + (", ".join(f"{each:%a %Y-%m-%d %H:%M:%S %Z}" for each in following[:3]) or "it fires no more"))
    show(f"hours of its runs: {_hours(schedules, planned)}")
    for firing in firings:
        missed = f" (and {firing.missed} missed before)" if firing.missed else ""
        show(escape(f"{_clock(firing.due, plan)}  {firing.state}{missed}  {firing.run or firing.reason or ''}"))


def _described(schedules: "Schedules", planned: "Planned") -> dict[str, Any]:
    own = {"next": planned.next, "paused": planned.paused, "hours": round(schedules.hours(planned.schedule.name), 4)}
    return planned.schedule.model_dump(mode="json") | own


def _hours(schedules: "Schedules", planned: "Planned") -> str:
    budget = planned.schedule.budget_hours
    return f"{schedules.hours(planned.schedule.name):.2f}" + (f" of {budget:g}" if budget else "")


def _what(plan: "Schedule") -> str:
    config = plan.work.config
    title = getattr(plan.work, "title", "") or config.get("title")
    return title or f"{plan.work.kind} {config.get('notebook') or config.get('name') or ''}".strip()


def _clock(moment: float | None, plan: "Schedule") -> str:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    return "" if moment is None else f"{datetime.fromtimestamp(moment, ZoneInfo(plan.timezone)):%Y-%m-%d %H:%M:%S}"


def _serve(record: "Store", lanes: list[str], parallel: int, devices: list[str]) -> None:
    """See to schedules, sweeps and the queue until Ctrl-C."""
    from workbench.experiments.clusters import read_lane
    from workbench.experiments.dispatch import TICK_SECONDS, Dispatcher
    from workbench.experiments.service import Service

    executors = dict(read_lane(lane) for lane in lanes)
    service = Service(record, Dispatcher(record, executors, slots=parallel, devices=devices))
    say(f"serving the schedules and the queue of {record.location}: {', '.join(executors)}, {parallel} at a time; Ctrl-C ends it")
    with Interrupts() as interrupts:
        while not interrupts.asked:
            for end in service.tick():
                say(f"run {end.id} is {end.status}{f': {end.error}' if end.error else ''}")
            interrupts.wait(TICK_SECONDS)
    service.close()
    going_on = [run for run in record.runs() if run.status in ("running", "paused") and not run.over]
    say(f"served no longer; {len(going_on)} runs go on by themselves" if going_on else "served no longer")


def _digest(record: "Store", since: float, out: Path | None, as_json: bool) -> None:
    from rich.markup import escape

    from workbench.digest_page import digest_page
    from workbench.experiments.digest import digest, digest_text

    found = digest(record, since)
    if out is not None:
        if out.is_dir() or not out.parent.is_dir():
            raise BadArguments(f"--out {out}: choose a file in a folder that exists")
        out.write_text(digest_page(record, found), encoding="utf-8")
    if as_json:
        show_json(found)
    else:
        show(escape(digest_text(found) + (f"\nwritten to {out}" if out is not None else "")))
