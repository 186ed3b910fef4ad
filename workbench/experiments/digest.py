"""The morning digest: what was run since some moment, which runs were best, what failed and why, and what it cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from workbench.experiments.durations import seconds_at_work
from workbench.experiments.executors import LOG, last_words
from workbench.experiments.points import results
from workbench.experiments.schedules import Firing, Schedules
from workbench.health import held_out_reward
from workbench.history import History
from workbench.records import Run, when
from workbench.store import Store
from workbench.tables import EVENTS

HELD_OUT = "held-out reward"
REWARDS = (HELD_OUT, "reward")
"""Figures of which the highest is the best."""

MOST_PICTURED = 6
"""Most runs that are shown with their pictures."""


@dataclass(frozen=True)
class Figure:
    """One number of a run, at its first and its last evaluation."""

    name: str
    first: float
    last: float


@dataclass(frozen=True)
class Outcome:
    """How one run went. A sweep counts its runs by status, which are not listed themselves."""

    run: str
    kind: str
    title: str
    origin: str
    status: str
    seconds: float  # at work, those of a sweep's runs added up
    figure: Figure | None
    error: str
    last_words: str  # of its process; empty where they say no more than the error
    parts: dict[str, int]


@dataclass(frozen=True)
class Winner:
    """The best run of a schedule or a sweep."""

    of: str
    run: str
    title: str
    metric: str
    value: float
    among: int  # runs, or points of a sweep, that were compared


@dataclass(frozen=True)
class Pair:
    """The same held-out prompts and seeds at a run's first and last evaluation: previews as they are recorded."""

    run: str
    title: str
    prompts: tuple[str, ...]
    first: dict[str, Any]
    last: dict[str, Any]


@dataclass(frozen=True)
class Digest:
    """Everything between two moments, seconds since 1970."""

    since: float
    until: float
    hours: float  # of computing, by runs that did something in that time
    outcomes: tuple[Outcome, ...]  # newest first
    winners: tuple[Winner, ...]
    pairs: tuple[Pair, ...]
    not_begun: tuple[Firing, ...]  # times at which a schedule was due and began nothing

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Those that ended badly."""
        return tuple(outcome for outcome in self.outcomes if outcome.status in ("failed", "crashed"))


def digest(store: Store, since: float, now: float | None = None) -> Digest:
    """What happened to runs since a moment, runs that go on among them."""
    now = time.time() if now is None else now
    everything = [run for run in store.runs() if run.updated >= since or not run.over]
    children: dict[str | None, list[Run]] = {run.id: [] for run in everything if run.kind == "sweep"}
    for run in everything:
        if run.parent in children:
            children[run.parent].append(run)
    top = [run for run in everything if run.parent not in children]
    seconds = seconds_at_work(store, [run.id for run in top], now)
    outcomes = tuple(_outcome(store, run, seconds[run.id], children.get(run.id, [])) for run in top)
    winners = (
        *_best_of_schedules(outcomes),
        *(best for run in top if run.kind == "sweep" and (best := _best_of_sweep(store, run))),
    )
    shown = [winner.run for winner in winners] or [each.run for each in sorted(outcomes, key=_gain, reverse=True) if each.figure]
    pairs = (pair for run in dict.fromkeys(shown[:MOST_PICTURED]) if (pair := _pair(store, run)))
    began_nothing = (firing for firing in Schedules(store).firings(since=since) if firing.state != "begun")
    hours = sum(seconds.values()) / 3600
    return Digest(since, now, hours, outcomes, winners, tuple(pairs), tuple(began_nothing))


def digest_text(found: Digest) -> str:
    """A digest for a terminal, without markup."""
    lines = [f"since {when(found.since)}: {told_count(len(found.outcomes), 'run')}, {found.hours:.1f} hours of computing"]
    for winner in found.winners:
        lines.append(f"best of {winner.of}: {winner.run} with {winner.metric} {winner.value:.4g}, among {winner.among}")
    for outcome in found.outcomes:
        figure = f"  {outcome.figure.name} {outcome.figure.first:.3f} -> {outcome.figure.last:.3f}" if outcome.figure else ""
        parts = ", ".join(f"{count} {status}" for status, count in outcome.parts.items())
        lines.append(f"{outcome.run}  {outcome.status}  {told_duration(outcome.seconds)}{figure}  {parts}".rstrip())
        if outcome.error:
            lines.append(f"  {outcome.error}")
        if outcome.last_words:
            lines.append(f"  last words: {outcome.last_words}")
    for firing in found.not_begun:
        lines.append(f"schedule {firing.schedule} {firing.state} at {when(firing.due)}: {firing.reason}")
    return "\n".join(lines)


def told_duration(seconds: float) -> str:
    """Seconds in words, as in 2 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def told_count(count: int, what: str) -> str:
    """A number of things."""
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _outcome(store: Store, run: Run, seconds: float, children: Sequence[Run]) -> Outcome:
    parts: dict[str, int] = {}
    for child in children:
        parts[child.status] = parts.get(child.status, 0) + 1
    words = last_words(store.folder(run.id) / LOG) if run.status in ("failed", "crashed") else ""
    error = run.error or ""
    figure = _figure(store, run)
    told = "" if words in error or run.id in words else words
    return Outcome(run.id, run.kind, run.title, run.origin, run.status, seconds, figure, error, told, parts)


def _figure(store: Store, run: Run) -> Figure | None:
    """The reward on held-out prompts; without any, what a notebook reports of its own accord, or the reward of the iterations."""
    evaluated = _ends(store, run.id, "Evaluated")
    history = History().extended(evaluated)
    if points := held_out_reward(history, run.config):
        return Figure(HELD_OUT, points[0][1], points[-1][1])
    for kind in ("Reported", "IterationDone"):
        numbers = [row.data["metrics"] for row in _ends(store, run.id, kind)]
        name = "reward" if not numbers or "reward" in numbers[-1] else next(iter(numbers[-1]), "")
        values = [each[name] for each in numbers if each.get(name) is not None]
        if values:
            return Figure(name, values[0], values[-1])
    return None


def _ends(store: Store, run: str, kind: str) -> list[Any]:
    """The first and the last event of one kind; only one where there is only one."""
    mine = select(EVENTS.c.id).where(EVENTS.c.run == run, EVENTS.c.kind == kind)
    last = store.read(mine.order_by(EVENTS.c.id.desc()).limit(1))
    first = store.events(run, kinds=(kind,), limit=1)
    return first + [row for each in last for row in store.events(run, after=each.id - 1, limit=1) if row.id != first[0].id]


def _best_of_schedules(outcomes: Sequence[Outcome]) -> list[Winner]:
    """Of each schedule the run of the highest reward; of another figure nobody knows whether high is good."""
    by_schedule: dict[str, list[tuple[float, Outcome, str]]] = {}
    for each in outcomes:
        if each.origin.startswith("schedule ") and each.status == "done" and each.figure and each.figure.name in REWARDS:
            by_schedule.setdefault(each.origin, []).append((each.figure.last, each, each.figure.name))
    winners = []
    for origin, found in by_schedule.items():
        same = [each for each in found if each[2] == found[0][2]]  # held-out rewards are not compared with others
        value, best, metric = max(same, key=lambda each: each[0])
        winners.append(Winner(origin, best.run, best.title, metric, value, len(same)))
    return winners


def _best_of_sweep(store: Store, sweep: Run) -> Winner | None:
    found = results(store, sweep.id)
    best = found.best
    if best is None or best.value is None or not best.runs:
        return None
    value = ", ".join(f"{key} = {each}" for key, each in best.parameters.items())
    return Winner(f"sweep {sweep.title}", best.runs[0], value, found.settings.metric, best.value, found.count("done", "pruned"))


def _gain(outcome: Outcome) -> float:
    return outcome.figure.last - outcome.figure.first if outcome.figure else 0.0


def _pair(store: Store, run: str) -> Pair | None:
    """The pictures of the first and of the last evaluation, where a run has both."""
    rows = [row.data for row in _ends(store, run, "Evaluated") if row.data["preview"]["sprite"]]
    if len(rows) < 2:
        return None
    return Pair(run, store.run(run).title, tuple(rows[0]["prompts"]), rows[0]["preview"], rows[1]["preview"])
