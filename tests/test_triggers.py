"""When schedules are due: cron lines with cron's own meaning, summer time, periods and moments."""

from datetime import UTC, datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest

from workbench.config import validated
from workbench.experiments.triggers import At, Cron, Every, check_timezone, seconds_of, times

BERLIN = "Europe/Berlin"


def at(text, zone="UTC", fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def shown(trigger, after, count, zone="UTC", anchor=0.0):
    """The next times on the clock of the zone, with its offset."""
    found = islice(times(trigger, zone, anchor, after), count)
    return [datetime.fromtimestamp(each, ZoneInfo(zone)).strftime("%a %d %H:%M%z").removesuffix("00") for each in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 2 * * *", ["Sun 01 02:00", "Mon 02 02:00"]),
        ("*/20 8-9 * * *", ["Sun 01 08:00", "Sun 01 08:20"]),
        ("5,35 * * * *", ["Sun 01 00:05", "Sun 01 00:35"]),
        ("0 0 * * 1", ["Mon 02 00:00", "Mon 09 00:00"]),
        ("0 0 * * 0", ["Sun 08 00:00", "Sun 15 00:00"]),
        ("0 0 * * 7", ["Sun 08 00:00", "Sun 15 00:00"]),
        ("0 0 * * mon-fri", ["Mon 02 00:00", "Tue 03 00:00"]),
        ("0 0 * * sat-sun", ["Sat 07 00:00", "Sun 08 00:00"]),
        ("0 0 3 nov *", ["Tue 03 00:00", "Wed 03 00:00"]),
        ("0 0 10 * tue", ["Tue 03 00:00", "Tue 10 00:00"]),
        ("0 0 4 * tue", ["Tue 03 00:00", "Wed 04 00:00"]),
    ],
)
def test_a_cron_line_means_what_it_means_to_cron(line, expected):
    after = at("2026-11-01 00:00")
    assert [text.removesuffix("+00") for text in shown(Cron(line=line), after, 2)] == expected


def test_a_leap_day_comes_every_four_years():
    found = islice(times(Cron(line="0 0 29 2 *"), "UTC", 0.0, at("2026-01-01 00:00")), 2)
    assert [datetime.fromtimestamp(each, UTC).year for each in found] == [2028, 2032]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("0 2 * *", ["five fields", "has 4"]),
        ("60 2 * * *", ["minute", "'60'", "0 to 59"]),
        ("0 24 * * *", ["hour", "'24'", "0 to 23"]),
        ("0 0 0 * *", ["day of month", "1 to 31"]),
        ("0 0 * 13 *", ["month", "'13'", "jan to dec"]),
        ("0 0 * * 8", ["day of week", "'8'", "sun to sat"]),
        ("0 0 * * noday", ["day of week", "'noday'"]),
        ("*/0 * * * *", ["minute", "'*/0'"]),
        ("5-1 * * * *", ["minute", "'5-1'"]),
        ("1,,2 * * * *", ["minute", "''"]),
        ("0 0 31 2 *", ["never comes"]),
        ("0 0 31 4,6 *", ["never comes"]),
    ],
)
def test_a_cron_line_that_cannot_be_is_refused_with_the_field_that_is_wrong(line, told):
    with pytest.raises(ValueError, match="cron line") as refused:
        validated(Cron, {"line": line})
    assert all(word in str(refused.value) for word in told), refused.value
    assert "\n" not in str(refused.value)


def test_a_night_that_loses_an_hour_still_has_its_run():
    assert shown(Cron(line="30 2 * * *"), at("2026-03-28 12:00", BERLIN), 2, BERLIN) == ["Sun 29 03:30+02", "Mon 30 02:30+02"]


def test_a_night_with_an_hour_twice_has_its_run_once_and_an_hourly_one_has_both():
    evening = at("2026-10-24 23:30", BERLIN)
    assert shown(Cron(line="30 2 * * *"), evening, 2, BERLIN) == ["Sun 25 02:30+02", "Mon 26 02:30+01"]
    assert shown(Cron(line="0 * * * *"), evening, 5, BERLIN)[2:4] == ["Sun 25 02:00+02", "Sun 25 02:00+01"]


@pytest.mark.parametrize("fold", [0, 1])
def test_times_grow_and_lie_after_what_was_asked_wherever_one_begins(fold):
    for trigger in (Cron(line="*/7 * * * *"), Cron(line="15 2,3 * * *"), Every(amount=11, unit="minutes")):
        for start in ("2026-03-29 02:14", "2026-10-25 02:14", "2026-10-25 02:15", "2026-10-25 03:00"):
            after = at(start, BERLIN, fold)
            found = [after, *islice(times(trigger, BERLIN, 0.0, after), 30)]
            assert all(one < other for one, other in pairwise(found)), (trigger, start)


def test_a_period_is_counted_from_when_it_was_planned_whatever_clocks_do():
    every = Every(amount=90, unit="minutes")
    anchor = at("2026-10-24 22:00", BERLIN)
    found = list(islice(times(every, BERLIN, anchor, anchor), 40))
    assert found == [anchor + 5400.0 * k for k in range(1, 41)]
    assert next(times(every, BERLIN, anchor, anchor - 1e6)) == anchor + 5400.0
    assert next(times(every, BERLIN, anchor, anchor + 5400.0 * 7 + 0.5)) == anchor + 5400.0 * 8


def test_a_moment_comes_once():
    moment = At(moment="2026-12-24T18:00")
    due = at("2026-12-24 18:00", BERLIN)
    assert list(times(moment, BERLIN, 0.0, due - 1)) == [due]
    assert list(times(moment, BERLIN, 0.0, due)) == []


def test_a_moment_that_clocks_leave_out_is_refused_and_one_that_comes_twice_is_the_first():
    with pytest.raises(ValueError, match="does not exist in Europe/Berlin"):
        seconds_of("2026-03-29 02:30", BERLIN)
    assert seconds_of("2026-10-25 02:30", BERLIN) == at("2026-10-25 00:30")
    assert seconds_of("2026-03-29 02:30+00:00", BERLIN) == at("2026-03-29 02:30")


def test_what_is_no_moment_and_no_time_zone_is_refused():
    with pytest.raises(ValueError, match="is no date and time; write it as in"):
        validated(At, {"moment": "tomorrow"})
    with pytest.raises(ValueError, match="Europe/Berlin"):
        check_timezone("Europe/Berln")
