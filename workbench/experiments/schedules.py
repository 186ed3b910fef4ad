"""Schedules in the record: what is to be run when, and what became of each time at which it was due.

Any number of schedulers may watch one record, on any host. Each time is seen to in one transaction, together with its run and
the run's place in the queue, so that it happens exactly once, and a scheduler that dies loses nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import tzlocal
from pydantic import Field, field_validator, model_validator
from sqlalchemy import ColumnElement, Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from workbench.config import validated
from workbench.exact_json import from_json, to_json
from workbench.experiments.durations import seconds_at_work
from workbench.experiments.space import SweepSettings, check_sweep
from workbench.experiments.sweeps import begin_sweep
from workbench.experiments.triggers import At, Trigger, check_timezone, seconds_of, times
from workbench.experiments.work import Work, checked, submit
from workbench.records import DRIVEN, read_run
from workbench.settings import Settings
from workbench.store import Store, StoreError
from workbench.tables import FIRINGS, RUNS, SCHEDULES

MOST_CAUGHT_UP = 100
"""Most missed times that are made up for, the latest ones."""

ON_TIME_SECONDS = 60.0
"""A time is missed if nobody saw to it within this."""

_MOST_COUNTED = 1_000


class SweepWork(Settings):
    """A sweep, which has its own limits."""

    kind: Literal["sweep"] = Field("sweep", description="what is begun")
    config: dict[str, Any] = Field(description="the settings of the sweep")


class Schedule(Settings):
    """What is to be run, when, and how much of it."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,79}$", description="name: small letters, digits, - and _, at most 80 of them"
    )
    work: Annotated[Work | SweepWork, Field(discriminator="kind")] = Field(description="what each firing runs")
    trigger: Trigger = Field(description="when")
    timezone: str = Field(default_factory=tzlocal.get_localzone_name, description="whose clock counts, as in Europe/Berlin")
    catch_up: Literal["latest", "all", "skip"] = Field(
        "latest",
        description="what becomes of times that nobody saw to. latest: one run for all of them; all: a run for each, "
        f"at most {MOST_CAUGHT_UP}; skip: none",
    )
    budget_hours: float | None = Field(
        None, gt=0, description="hours of computing that all its runs may take together; then it pauses. Empty for no limit"
    )
    until: str | None = Field(
        None, description="last date and time at which it may fire, as in 2030-01-31 18:00; empty for no end"
    )
    max_active: int | None = Field(
        None, ge=1, description="do not fire while this many of its runs wait or go on; empty for no limit"
    )

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_timezone(name)

    @model_validator(mode="after")
    def _on_the_clock(self) -> "Schedule":
        if isinstance(self.trigger, At):
            seconds_of(self.trigger.moment, self.timezone)
        if self.until is not None:
            At(moment=self.until)
            seconds_of(self.until, self.timezone)
        return self


@dataclass(frozen=True)
class Planned:
    """A schedule in the record. Times are seconds since 1970."""

    id: int
    schedule: Schedule
    anchor: float  # when it was planned
    next: float | None  # when it is due; None where it is over
    paused: str | None  # why


@dataclass(frozen=True)
class Firing:
    """What became of one time at which a schedule was due."""

    schedule: str
    due: float
    time: float  # when a scheduler saw to it
    state: Literal["begun", "skipped", "failed"]
    run: str | None
    reason: str | None
    missed: int  # earlier times that it stands for, counted up to a thousand


def preview(schedule: Schedule, count: int, now: float, anchor: float | None = None) -> list[datetime]:
    """The next times at which a schedule is due after `now`, in its time zone.

    Args:
        anchor: when it was planned, if that was not now.
    """
    zone = ZoneInfo(schedule.timezone)
    found = _times(schedule, now if anchor is None else anchor, now)
    return [datetime.fromtimestamp(each, zone) for each in islice(found, count)]


class Schedules:
    """The schedules of one store. Every `now` is seconds since 1970."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # What is planned

    def all(self) -> list[Planned]:
        """All of them by name, but for those that are `unreadable`."""
        return [found for _, found in self._listed() if isinstance(found, Planned)]

    def unreadable(self) -> dict[str, str]:
        """Why schedules cannot be read any more, by name, as those of another version; they fire no more, and can be removed."""
        return {name: found for name, found in self._listed() if isinstance(found, str)}

    def _listed(self) -> Iterator[tuple[str, Planned | str]]:
        for row in self._store.read(select(SCHEDULES).where(SCHEDULES.c.removed.is_(None)).order_by(SCHEDULES.c.name)):
            try:
                yield row.name, _planned(row)
            except ValueError as error:
                yield row.name, f"its settings cannot be read any more: {error}"

    def get(self, name: str) -> Planned:
        """The schedule of this name. Raises: ValueError: lists those that there are."""
        rows = self._store.read(select(SCHEDULES).where(SCHEDULES.c.name == name, SCHEDULES.c.removed.is_(None)))
        if not rows:
            names = ", ".join(planned.schedule.name for planned in self.all())
            raise ValueError(f"there is no schedule {name!r}; {f'there are: {names}' if names else 'there is none yet'}")
        return _planned(rows[0])

    def add(self, schedule: Schedule, now: float | None = None) -> Planned:
        """Plan it. Raises: ValueError: if its name is taken, its work is not valid, or it would never fire."""
        now = time.time() if now is None else now
        self._check(schedule, now)
        values = _row(schedule) | {"anchor": now, "next": next(_times(schedule, now, now)), "paused": None, "removed": None}
        try:
            with self._store.writing() as connection:
                gone = (SCHEDULES.c.name == schedule.name) & SCHEDULES.c.removed.is_not(None)
                for row in connection.execute(select(SCHEDULES.c.id).where(gone)).all():  # its hours are not the new one's
                    former = {"name": f"{schedule.name}~{row.id}"}
                    connection.execute(update(SCHEDULES).where(SCHEDULES.c.id == row.id).values(former))
                connection.execute(insert(SCHEDULES).values(values))
        except IntegrityError:
            raise ValueError(f"there is a schedule {schedule.name!r} already; change it, or choose another name") from None
        return self.get(schedule.name)

    def change(self, name: str, settings: Mapping[str, Any], now: float | None = None) -> Planned:
        """Other settings for a schedule, by name; with another trigger or time zone it is planned anew.

        Raises: ValueError: as `add`.
        """
        now = time.time() if now is None else now
        planned = self.get(name)
        schedule = validated(Schedule, planned.schedule.model_dump() | dict(settings))
        if schedule.name != name:
            raise ValueError(f"a schedule keeps its name, by which its runs are known; add {schedule.name!r} and remove {name!r}")
        self._check(schedule, now)
        same = (schedule.trigger, schedule.timezone) == (planned.schedule.trigger, planned.schedule.timezone)
        anchor = planned.anchor if same else now
        after = planned.next - 0.5 if same and planned.next is not None else now
        self._update(planned, _row(schedule) | {"anchor": anchor, "next": next(_times(schedule, anchor, after), None)})
        return self.get(name)

    def pause(self, name: str, reason: str = "somebody paused it") -> None:
        """Let it fire no more until it is resumed."""
        self._update(self.get(name), {"paused": reason})

    def resume(self, name: str, now: float | None = None) -> None:
        """Let it fire again from now on; times while it was paused are not made up for.

        Raises: ValueError: if its budget is spent, or no time is left.
        """
        now = time.time() if now is None else now
        planned = self.get(name)
        if planned.paused is None:
            return
        if spent := self._spent(planned, now):
            raise ValueError(f"schedule {name!r}: {spent}; give it a larger budget first")
        following = next(_times(planned.schedule, planned.anchor, now), None)
        if following is None:
            raise ValueError(f"schedule {name!r} has no time left at which it could fire; change when it fires first")
        self._update(planned, {"paused": None, "next": following})

    def remove(self, name: str) -> None:
        """Take it off the list; `restore` brings it back. Runs that it began are not touched."""
        named = (SCHEDULES.c.name == name) & SCHEDULES.c.removed.is_(None)
        with self._store.writing() as connection:
            removed = connection.execute(update(SCHEDULES).where(named).values(removed=time.time())).rowcount
        if not removed:
            self.get(name)  # says which there are

    def restore(self, name: str, now: float | None = None) -> Planned:
        """Bring back a schedule that was removed. Raises: ValueError: if there is no such one."""
        now = time.time() if now is None else now
        rows = self._store.read(select(SCHEDULES).where(SCHEDULES.c.name == name, SCHEDULES.c.removed.is_not(None)))
        if not rows:
            raise ValueError(f"no schedule {name!r} was removed")
        planned = _planned(rows[0])
        following = next(_times(planned.schedule, planned.anchor, now), None)
        self._update(planned, {"removed": None, "next": following})
        return self.get(name)

    def firings(self, name: str | None = None, limit: int | None = None, since: float = 0.0) -> list[Firing]:
        """What became of the times at which schedules were due, those seen to last first; of one schedule if named."""
        query = select(FIRINGS, SCHEDULES.c.name).join(SCHEDULES, FIRINGS.c.schedule == SCHEDULES.c.id)
        query = query.where(FIRINGS.c.time >= since).order_by(FIRINGS.c.id.desc()).limit(limit)
        rows = self._store.read(query if name is None else query.where(SCHEDULES.c.name == name))
        return [Firing(row.name, row.due, row.time, row.state, row.run, row.reason, row.missed) for row in rows]

    def hours(self, name: str, now: float | None = None) -> float:
        """Hours of computing that its runs took so far, removed ones among them until they are purged."""
        return self._hours(self.get(name).id, time.time() if now is None else now)

    # Firing

    def fire_due(self, now: float) -> list[str]:
        """See to every schedule that is due; returns the runs that were begun, which wait in the queue now.

        What goes wrong with one firing is recorded and holds up nothing.

        Raises: StoreError: if the disk or the database refuses; what was due stays due.
        """
        due = (SCHEDULES.c.next <= now) & SCHEDULES.c.paused.is_(None) & SCHEDULES.c.removed.is_(None)
        query = select(SCHEDULES).where(due).order_by(SCHEDULES.c.next, SCHEDULES.c.id)
        begun: list[str] = []
        for _ in range(MOST_CAUGHT_UP):  # one round is enough, but for schedules that make up for every time they missed
            rows = self._store.read(query)
            if not rows:
                break
            begun += [run for row in rows if (run := self._fire(row, now)) is not None]
        return begun

    def _fire(self, row: Any, now: float) -> str | None:
        """See to one time at which a schedule was due, unless another scheduler is quicker."""
        try:
            planned = _planned(row)
            turn = _turn(planned, now)
        except ValueError as error:  # settings that an earlier version took
            self._note(row, _Turn(row.next, None), now, "failed", str(error), pause=True)
            return None
        spent = self._spent(planned, now)
        if reason := spent or self._held_back(planned, turn, now):
            self._note(row, turn, now, "skipped", reason, pause=bool(spent))
            return None

        def along(connection: Connection, run: str) -> None:
            _advance(connection, row, turn, now, "begun", run=run)

        try:
            return _begin(self._store, planned.schedule.work, f"schedule {planned.schedule.name}", along)
        except _Overtaken:
            pass
        except IntegrityError:
            self._step_over(row, turn)
        except StoreError:
            raise
        except Exception as error:
            told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self._note(row, turn, now, "failed", told)
        return None

    def _note(self, row: Any, turn: "_Turn", now: float, state: str, reason: str, pause: bool = False) -> None:
        """Record that a time began no run."""
        try:
            with self._store.writing() as connection:
                _advance(connection, row, turn, now, state, reason=reason, pause=pause)
        except _Overtaken:
            pass
        except IntegrityError:
            self._step_over(row, turn)

    def _step_over(self, row: Any, turn: "_Turn") -> None:
        """Leave a time that is on record already, as after a clock was set back and the schedule planned anew."""
        with self._store.writing() as connection:
            connection.execute(update(SCHEDULES).where(_unchanged(row)).values(next=turn.following))

    def _held_back(self, planned: Planned, turn: "_Turn", now: float) -> str:
        """Why this time begins nothing; empty where it does."""
        if planned.schedule.catch_up == "skip" and now - turn.due > ON_TIME_SECONDS:
            return "it was missed: no scheduler was there at its time"
        most = planned.schedule.max_active
        if most is None:
            return ""
        query = select(RUNS).join(FIRINGS, FIRINGS.c.run == RUNS.c.id).where(FIRINGS.c.schedule == planned.id)
        rows = self._store.read(query.where(RUNS.c.status.in_(DRIVEN), RUNS.c.deleted.is_(None)))
        active = sum(not run.over for run in map(read_run, rows))
        return f"{active} of its runs still wait or go on, and no more than {most} may" if active >= most else ""

    def _spent(self, planned: Planned, now: float) -> str:
        """That the budget is spent; empty where it is not."""
        budget = planned.schedule.budget_hours
        if budget is None or (hours := self._hours(planned.id, now)) < budget:
            return ""
        return f"its runs have taken {hours:.2f} of {budget:g} hours"

    def _hours(self, schedule: int, now: float) -> float:
        rows = self._store.read(select(FIRINGS.c.run).where(FIRINGS.c.schedule == schedule, FIRINGS.c.run.is_not(None)))
        return sum(seconds_at_work(self._store, [row.run for row in rows], now).values()) / 3600

    def _check(self, schedule: Schedule, now: float) -> None:
        """Raises: ValueError: if it would never fire, or could not."""
        if isinstance(schedule.work, Work):
            checked(schedule.work.kind, schedule.work.config)
        else:
            check_sweep(validated(SweepSettings, schedule.work.config))
        if next(_times(schedule, now, now), None) is None:
            if isinstance(schedule.trigger, At):
                raise ValueError(f"{schedule.trigger.moment} in {schedule.timezone} is past; choose a moment to come")
            raise ValueError(f"schedule {schedule.name!r} would never fire: its end, {schedule.until}, comes first")

    def _update(self, planned: Planned, values: dict[str, Any]) -> None:
        with self._store.writing() as connection:
            connection.execute(update(SCHEDULES).where(SCHEDULES.c.id == planned.id).values(values))


def _begin(store: Store, work: Work | SweepWork, origin: str, along: Callable[[Connection, str], None]) -> str:
    if isinstance(work, Work):
        return submit(store, work, origin=origin, along=along)
    return begin_sweep(store, validated(SweepSettings, work.config), origin=origin, along=along)


class _Overtaken(Exception):
    """Another scheduler was quicker."""


@dataclass(frozen=True)
class _Turn:
    """A time that is to be seen to, the one after it, and how many earlier ones it stands for."""

    due: float
    following: float | None
    missed: int = 0


def _turn(planned: Planned, now: float) -> _Turn:
    """What is due of a schedule at `now`, by its way of catching up."""
    assert planned.next is not None, "only schedules with a next time are due"
    due = _latest(planned, now)
    following = next(_times(planned.schedule, planned.anchor, now), None)
    if planned.schedule.catch_up != "all":
        return _Turn(due[-1], following, len(due) - 1)
    made_up = due[-MOST_CAUGHT_UP:]
    return _Turn(made_up[0], made_up[1] if len(made_up) > 1 else following, len(due) - len(made_up))


def _latest(planned: Planned, now: float) -> list[float]:
    """The times from the one that is next up to `now`, in order; the last thousand where there are more."""
    assert planned.next is not None, "only schedules with a next time are due"
    reach = 60.0
    while True:  # looks back further and further, since a schedule may have slept for years
        after = max(planned.next - 0.5, now - reach)
        found = list(takewhile(lambda each: each <= now, _times(planned.schedule, planned.anchor, after)))
        if len(found) >= _MOST_COUNTED or after == planned.next - 0.5:
            return found[-_MOST_COUNTED:] or [planned.next]
        reach *= 2


def _times(schedule: Schedule, anchor: float, after: float) -> Iterator[float]:
    """The times of a schedule later than `after`, up to its end."""
    found = times(schedule.trigger, schedule.timezone, anchor, after)
    if schedule.until is None:
        return found
    end = seconds_of(schedule.until, schedule.timezone)
    return takewhile(lambda each: each <= end, found)


def _advance(
    connection: Connection,
    row: Any,
    turn: _Turn,
    now: float,
    state: str,
    *,
    run: str | None = None,
    reason: str | None = None,
    pause: bool = False,
) -> None:
    """Record what became of a time and go on to the next one, within a transaction. Raises: _Overtaken."""
    values: dict[str, Any] = {"next": turn.following} | ({"paused": reason} if pause else {})
    if not connection.execute(update(SCHEDULES).where(_unchanged(row)).values(values)).rowcount:
        raise _Overtaken
    firing = {"schedule": row.id, "due": turn.due, "time": now, "state": state, "run": run, "reason": reason}
    connection.execute(insert(FIRINGS).values(firing | {"missed": turn.missed}))


def _unchanged(row: Any) -> ColumnElement[bool]:
    """That a schedule is still as it was read: nobody fired, changed, paused or removed it."""
    same = (SCHEDULES.c.id == row.id) & (SCHEDULES.c.next == row.next) & (SCHEDULES.c.settings == row.settings)
    return same & SCHEDULES.c.paused.is_(None) & SCHEDULES.c.removed.is_(None)


def _row(schedule: Schedule) -> dict[str, str]:
    return {"name": schedule.name, "settings": to_json(schedule)}


def _planned(row: Any) -> Planned:
    return Planned(row.id, validated(Schedule, from_json(row.settings)), row.anchor, row.next, row.paused)
