"""Costs as the reports of the Admin API give them, summed for charts and tables. Without I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from tornadoproxy import InvalidRequest, admin
from tornadoproxy_console import texts

DAY = 86_400  # seconds


class Range(NamedTuple):
    """Whole days in UTC, in seconds since the epoch."""

    since: int
    until: int

    @classmethod
    def last_days(cls, days: int, now: float) -> Range:
        """Return the last days, the present one included."""
        until = int(now) // DAY * DAY + DAY
        return cls(until - days * DAY, until)

    def query(self) -> dict[str, str]:
        """Return the fields of a report's query."""
        return {
            "starting_at": admin.timestamp(self.since),
            "ending_at": admin.timestamp(self.until),
        }

    def text(self) -> str:
        """Return the first and the last day: ``2026-11-01 to 2026-11-30``; a single one alone."""
        first, last = self.days()[0], self.days()[-1]
        return first if first == last else texts.RANGE.format(first, last)

    def days(self) -> list[str]:
        """Return the days, as ``2026-11-30``."""
        return [admin.timestamp(each)[:10] for each in range(self.since, self.until, DAY)]


class Limit(NamedTuple):
    """A person's limit and spend in a period; amounts are cents.

    :param amount: ``None`` without a limit.
    :param share: of the limit that is spent, in percent.
    """

    period: str
    amount: Decimal | None
    spent: Decimal
    left: Decimal | None
    share: int


class Cost(NamedTuple):
    """What something cost, in cents."""

    name: str
    cents: Decimal
    requests: int


def limits_of(rows: Sequence[admin.Document]) -> list[Limit]:
    """Return the limits in a report of effective limits."""
    found = []
    for row in rows:
        spent = Decimal(row["period_to_date_spend"])
        amount = None if row["amount"] is None else Decimal(row["amount"])
        left = None if amount is None else max(amount - spent, Decimal(0))
        share = 0 if not amount else min(int(spent * 100 / amount), 100)
        found.append(Limit(row["period"], amount, spent, left, share))
    return found


def by(rows: Sequence[admin.Document], dimension: str) -> list[Cost]:
    """Return the costs by a dimension of a report, the highest first."""
    cents: dict[str, Decimal] = defaultdict(Decimal)
    requests: dict[str, int] = defaultdict(int)
    for row in rows:
        value = row["group"][dimension]
        name = value["user_id"] if isinstance(value, dict) else value or ""
        cents[name] += Decimal(row["cost"]["amount"])
        requests[name] += row["cost"]["requests"] or 0
    found = [Cost(name, cents[name], requests[name]) for name in cents]
    return sorted(found, key=lambda each: (-each.cents, each.name))


def by_day(rows: Sequence[admin.Document], range_: Range) -> list[Cost]:
    """Return the costs of each day of a range."""
    cents: dict[str, Decimal] = defaultdict(Decimal)
    requests: dict[str, int] = defaultdict(int)
    for row in rows:
        day = row["starting_at"][:10]
        cents[day] += Decimal(row["cost"]["amount"])
        requests[day] += row["cost"]["requests"] or 0
    return [Cost(day, cents[day], requests[day]) for day in range_.days()]


def cents_of(text: str) -> str | None:
    """Return an amount in dollars as whole cents; ``None`` if it is blank.

    :raises InvalidRequest: it is none.
    """
    plain = text.strip().removeprefix("$").replace(",", "")
    if not plain:
        return None
    try:
        cents = Decimal(plain) * 100
        if cents.is_finite() and cents >= 0 and cents == cents.to_integral_value():
            return str(int(cents))
    except InvalidOperation:
        pass
    raise InvalidRequest(texts.WRONG_AMOUNT)
