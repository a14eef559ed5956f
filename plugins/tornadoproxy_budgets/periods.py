"""The periods of caps: days, weeks and months in UTC. Without I/O.

A day is a number: the days since 1970-01-01. A week begins on Monday, a month on its first day,
each at 00:00 UTC.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

Period: TypeAlias = Literal["daily", "weekly", "monthly"]

PERIODS: tuple[Period, ...] = get_args(Period)

SECONDS_PER_DAY = 86_400

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]

_EPOCH = date(1970, 1, 1).toordinal()


def day_of(time: float) -> int:
    """Return the day of `time`, which is in seconds since the epoch."""
    return int(time // SECONDS_PER_DAY)


def first_day(period: Period, day: int) -> int:
    """Return the first day of the period that contains `day`."""
    if period == "daily":
        return day
    if period == "weekly":
        return day - (day + 3) % 7  # day 0 was a Thursday
    return date.fromordinal(day + _EPOCH).replace(day=1).toordinal() - _EPOCH


@lru_cache(64)  # that of today is asked for with each request
def reset_time(period: Period, day: int) -> int:
    """Return when the period that contains `day` ends, in seconds since the epoch."""
    if period == "daily":
        following = day + 1
    elif period == "weekly":
        following = first_day("weekly", day) + 7
    else:
        # the longest month has 31 days
        following = first_day("monthly", first_day("monthly", day) + 31)
    return following * SECONDS_PER_DAY


def day_text(time: float) -> str:
    """Return the day of a time for people, in English whatever the locale is: ``Aug 8``."""
    day = datetime.fromtimestamp(time, UTC)
    return f"{_MONTHS[day.month - 1]} {day.day}"


def minute_text(time: float) -> str:
    """Return a time in seconds since the epoch for people: ``2026-08-08 00:00 UTC``."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
