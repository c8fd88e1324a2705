"""Times of cron expressions: also where clocks are set, and after a time in which nobody looked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_durable.errors import ConfigurationError
from ray_durable.runtime.cron import Cron

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US


def us(text: str) -> int:
    """A time in ISO form, UTC unless it says otherwise."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)


def utc(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%m-%d %H:%M:%S")


def cron(expression: str, zone: str = "UTC") -> Cron:
    return Cron.parse(expression, zone, us("2025-01-01"))


def following(times: Cron, after_us: int, count: int) -> list[str]:
    found: list[str] = []
    for _ in range(count):
        after_us = times.next_us(after_us)
        found.append(utc(after_us))
    return found


def test_the_next_time_is_behind_the_given_one() -> None:
    """Strictly; with seconds where six fields say so."""
    assert following(cron("*/20 9 * * *"), us("2025-01-01T09:20"), 3) == [
        "01-01 09:40:00",
        "01-02 09:00:00",
        "01-02 09:20:00",
    ]
    assert following(cron("*/30 * * * * *"), us("2025-01-01T00:00:29.5"), 2) == ["01-01 00:00:30", "01-01 00:01:00"]


def test_a_time_that_does_not_exist_comes_right_after_the_gap() -> None:
    """Clocks are set forward from 2:00 to 3:00: the job of 2:30 runs at 3:00."""
    assert following(cron("30 2 * * *", "Europe/Berlin"), us("2025-03-29T00:00"), 3) == [
        "03-29 01:30:00",
        "03-30 01:00:00",
        "03-31 00:30:00",
    ]


def test_a_time_that_comes_twice_counts_once() -> None:
    """Clocks are set back from 3:00 to 2:00: the job of 2:30 runs the first time only, whenever one looks."""
    times = cron("30 2 * * *", "Europe/Berlin")
    first_us = us("2025-10-26T00:30")
    assert following(times, us("2025-10-25T12:00"), 2) == ["10-26 00:30:00", "10-27 01:30:00"]
    for minutes in range(0, 180, 10):
        now_us = first_us + minutes * 60 * SECOND_US
        assert times.due_us(first_us - 1, now_us, 12 * HOUR_US) == [first_us]
        assert times.due_us(first_us, now_us, 12 * HOUR_US) == []
        assert utc(times.next_us(now_us)) == "10-27 01:30:00"


def test_a_job_of_every_half_hour_runs_through_both_hours() -> None:
    """What has no fixed hour follows the clock on the wall twice."""
    times = following(cron("*/30 * * * *", "Europe/Berlin"), us("2025-10-25T23:59"), 5)
    assert times == ["10-26 00:00:00", "10-26 00:30:00", "10-26 01:00:00", "10-26 01:30:00", "10-26 02:00:00"]


def test_all_that_are_on_time_are_due() -> None:
    """In order: nobody looks every second."""
    now_us = us("2025-01-01T12:00:03")
    due = cron("* * * * * *").due_us(us("2025-01-01T12:00:00"), now_us, 0)
    assert [utc(time_us) for time_us in due] == ["01-01 12:00:01", "01-01 12:00:02", "01-01 12:00:03"]


@pytest.mark.parametrize(("catch_up_h", "due"), [(0, []), (2, []), (3, ["01-01 02:00:00"]), (100, ["01-01 02:00:00"])])
def test_of_those_that_were_missed_the_latest_is_made_up_for(catch_up_h: int, due: list[str]) -> None:
    """If it is not too old."""
    now_us, last_us = us("2025-01-01T04:30"), us("2024-12-20T02:00")
    assert [utc(one) for one in cron("0 2 * * *").due_us(last_us, now_us, catch_up_h * HOUR_US)] == due


def test_what_was_missed_is_not_made_up_for_if_another_is_on_time() -> None:
    """A job of every minute runs once after a night, not twice."""
    due = cron("* * * * *").due_us(us("2025-01-01T00:00"), us("2025-01-01T08:00:30"), 24 * HOUR_US)
    assert [utc(one) for one in due] == ["01-01 08:00:00"]


def test_a_gap_of_years_costs_no_time() -> None:
    """Every second for ten years are 300 million times; only the last minute is looked at."""
    now_us = us("2025-01-01")
    due = cron("* * * * * *").due_us(now_us - 10 * 365 * 24 * HOUR_US, now_us, 10 * 365 * 24 * HOUR_US)
    assert len(due) == 60


@pytest.mark.parametrize(
    ("expression", "zone", "complaint"),
    [
        ("every day", "UTC", "no cron expression"),
        ("61 * * * *", "UTC", "Bad minute"),
        ("* * * *", "UTC", "five fields"),
        ("0 0 30 2 *", "UTC", "Bad day-of-month"),
        (None, "UTC", "no cron expression"),
        ("* * * * *", "Middle/Earth", "no time zone"),
        ("* * * * *", "../etc/passwd", "no time zone"),
        ("* * * * *", None, "no time zone"),
        ("* * * * *", "", "no time zone"),
    ],
)
def test_what_names_no_times_is_refused(expression: str, zone: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        cron(expression, zone)


@given(
    after_us=st.integers(us("2024-01-01"), us("2026-01-01")),
    expression=st.sampled_from(
        ["30 2 * * *", "0 */6 * * *", "15 1-3 * * *", "*/7 * * * *", "5 0 1 * MON", "10 * * * * *"]
    ),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
)
def test_looking_ahead_and_looking_back_agree(after_us: int, expression: str, zone: str) -> None:
    """The latest time before the next one, and the next one after the latest, are neighbours."""
    times = cron(expression, zone)
    firings = [after_us]
    for _ in range(4):
        firings.append(times.next_us(firings[-1]))
    ages = int(timedelta(days=400) / timedelta(microseconds=1))
    for earlier, later in pairwise(firings[1:]):
        assert earlier < later
        assert times.due_us(earlier - 1, later - 1, ages)[-1] == earlier
        assert times.due_us(earlier, later - 1, ages) == []
        assert times.due_us(earlier, later, ages)[-1] == later
