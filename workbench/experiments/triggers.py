"""When a schedule is due: cron lines, periods and single moments, in a time zone. Knows no record and no clock."""

import difflib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, available_timezones

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from pydantic import Field, field_validator

from workbench.settings import Settings

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FIELDS: tuple[tuple[str, int, int, Mapping[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS[:7])}),
)
"""The five fields of a cron line: name, smallest and largest number, and names for numbers. Sunday is 0 and 7."""


class Cron(Settings):
    """By a cron line, on the clock of the time zone.

    As crontab(5) has it: where both the day of month and the day of week are restricted, either will do; 0 and 7 are Sunday.
    A time that a change to summer time leaves out comes as much later; one that comes twice is meant once, unless the line
    is for every hour.
    """

    name: Literal["cron"] = "cron"
    line: str = Field("0 2 * * *", description="minute, hour, day of month, month, day of week; 0 2 * * * is every night at two")

    @field_validator("line")
    @classmethod
    def _readable(cls, line: str) -> str:
        read_cron(line)
        if next(_instants(_cron_trigger(line, ZoneInfo("UTC")), datetime(2024, 1, 1, tzinfo=UTC)), None) is None:
            raise ValueError(f"the cron line {line!r} never comes: no month that it names has such a day")
        return " ".join(line.split())


class Every(Settings):
    """Again and again after the same time, counted from when it was planned; a day is 24 hours, whatever clocks do."""

    name: Literal["every"] = "every"
    amount: int = Field(1, ge=1, le=100_000, description="how many of the unit lie between two times")
    unit: Literal["seconds", "minutes", "hours", "days"] = Field("hours", description="seconds, minutes, hours or days")


class At(Settings):
    """Once."""

    name: Literal["at"] = "at"
    moment: str = Field(description="date and time on the clock of the time zone, as in 2030-01-31 18:00")

    @field_validator("moment")
    @classmethod
    def _readable(cls, moment: str) -> str:
        try:
            return datetime.fromisoformat(moment.strip()).isoformat(sep=" ")
        except ValueError:
            raise ValueError(f"{moment!r} is no date and time; write it as in 2030-01-31 18:00") from None


Trigger = Annotated[Cron | Every | At, Field(discriminator="name")]


def told(trigger: Trigger) -> str:
    """A trigger in a few words."""
    if isinstance(trigger, Cron):
        return trigger.line
    if isinstance(trigger, At):
        return f"once, {trigger.moment}"
    return f"every {trigger.amount} {trigger.unit}" if trigger.amount > 1 else f"every {trigger.unit.removesuffix('s')}"


def check_timezone(name: str) -> str:
    """The name of a time zone, if there is one. Raises: ValueError: names those that are spelt alike."""
    known = available_timezones()
    if name not in known:
        alike = difflib.get_close_matches(name, known, 3, 0.5) or ["UTC", "Europe/Berlin", "America/New_York"]
        raise ValueError(f"unknown time zone {name!r}; it reads as in {', '.join(alike)}")
    return name


def seconds_of(moment: str, timezone: str) -> float:
    """A moment as seconds since 1970; where the clock shows it twice, the first of them.

    Raises: ValueError: if the clock of the time zone leaves it out.
    """
    given = datetime.fromisoformat(moment)
    local = given if given.tzinfo else given.replace(tzinfo=ZoneInfo(timezone))
    if datetime.fromtimestamp(local.timestamp(), local.tzinfo).replace(fold=0) != local:
        raise ValueError(f"{moment} does not exist in {timezone}: clocks are set forward over it")
    return local.timestamp()


def times(trigger: Trigger, timezone: str, anchor: float, after: float) -> Iterator[float]:
    """Every time later than `after` at which it is due, in order; seconds since 1970.

    Args:
        anchor: when it was planned, which periods are counted from.
    """
    zone = ZoneInfo(timezone)
    hourly = True
    found: BaseTrigger
    if isinstance(trigger, Cron):
        found, hourly = _cron_trigger(trigger.line, zone), trigger.line.split()[1].startswith("*")
    elif isinstance(trigger, Every):
        begun = datetime.fromtimestamp(anchor, UTC)  # not the local clock, on which a period may be an hour longer
        found = IntervalTrigger(**{trigger.unit: trigger.amount}, start_date=begun, timezone=UTC)
        after = max(after, anchor)
    else:
        moment = seconds_of(trigger.moment, timezone)
        yield from (moment,) if moment > after else ()
        return
    for instant in _instants(found, datetime.fromtimestamp(after, UTC) + timedelta(microseconds=1)):
        if hourly or not instant.astimezone(zone).fold:
            yield instant.timestamp()


def read_cron(line: str) -> tuple[tuple[int, ...] | None, ...]:
    """The numbers that each of the five fields of a cron line allows; None for a field that is a plain star.

    Raises: ValueError: names the field that is wrong and says what it takes.
    """
    parts = line.lower().split()
    if len(parts) != len(_FIELDS):
        names = ", ".join(field[0] for field in _FIELDS)
        raise ValueError(f"a cron line has five fields ({names}), as in 0 2 * * *; {line!r} has {len(parts)}")
    return tuple(None if part == "*" else _numbers(part, *field, line=line) for part, field in zip(parts, _FIELDS, strict=True))


def _numbers(text: str, field: str, low: int, high: int, names: Mapping[str, int], line: str) -> tuple[int, ...]:
    """What one field allows: numbers, ranges, lists and steps."""

    def refuse(part: str) -> ValueError:
        named = f" or {next(iter(names))} to {list(names)[-1]}" if names else ""
        takes = f"numbers from {low} to {high}{named}, with *, ranges as {low}-{low + 2}, steps as */2, and commas"
        return ValueError(f"{field} of the cron line {line!r}: {part!r} is not understood; it takes {takes}")

    def number(word: str, part: str) -> int:
        value = names.get(word, int(word) if word.isdecimal() else -1)
        if not low <= value <= high:
            raise refuse(part)
        return value

    allowed: set[int] = set()
    for part in text.split(","):
        reach, slash, step = part.partition("/")
        first, dash, last = reach.partition("-")
        if slash and (not step.isdecimal() or not int(step)):
            raise refuse(part)
        if reach == "*":
            start, stop = low, high if high != 7 else 6
        else:
            start = number(first, part)
            stop = number(last, part) if dash else high if slash else start
        if dash and start > stop == 0 and high == 7:
            stop = 7  # sat-sun
        if stop < start:
            raise refuse(part)
        allowed |= set(range(start, stop + 1, int(step) if slash else 1))
    return tuple(sorted(allowed))


def _cron_trigger(line: str, zone: ZoneInfo) -> BaseTrigger:
    """A trigger with cron's own meaning of weekdays, which APScheduler counts from Monday and joins by "and"."""
    minute, hour, day, month, weekday = (None if field is None else ",".join(map(str, field)) for field in read_cron(line))
    if weekday is not None:
        weekday = ",".join(sorted({_DAYS[int(number)] for number in weekday.split(",")}))
    daily = {"minute": minute or "*", "hour": hour or "*", "month": month or "*", "timezone": zone}
    if day is not None and weekday is not None:
        return OrTrigger([CronTrigger(day=day, **daily), CronTrigger(day_of_week=weekday, **daily)])
    return CronTrigger(day=day or "*", day_of_week=weekday or "*", **daily)


def _instants(trigger: BaseTrigger, since: datetime) -> Iterator[datetime]:
    """The times of a trigger from `since` on, in UTC, which grow even where the local clock is set back."""
    found = trigger.get_next_fire_time(None, since)
    while found is not None:
        instant = found.astimezone(UTC)
        if instant >= since:
            yield instant
        since = max(since, instant) + timedelta(microseconds=1)
        found = trigger.get_next_fire_time(None, since)
