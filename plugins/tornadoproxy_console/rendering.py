"""Templates, and figures as text."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tornado.template import Loader

from tornadoproxy_console import charts, texts

if TYPE_CHECKING:
    from tornadoproxy import admin


@cache
def _loader() -> Loader:
    return Loader(str(resources.files(__package__) / "templates"), whitespace="oneline")


def render(template: str, **values: Any) -> bytes:  # Any: as the template needs
    """Return a page; every value in it is escaped unless the template says ``raw``."""
    helpers = {
        "charts": charts,
        "count": count,
        "day": day,
        "outcome": outcome,
        "quote": lambda text: quote(text, safe=""),
        "seconds": seconds,
        "t": texts,
        "usd": usd,
        "when": when,
    }
    return _loader().load(template).generate(**helpers, **values)


def usd(cents: str | float | None) -> str:
    """Return an amount of cents in dollars: ``$1,234.56``."""
    if cents is None:
        return texts.NONE
    dollars = Decimal(cents) / 100
    if 0 < dollars < Decimal("0.0001"):
        return "<$0.0001"
    if 0 < dollars < Decimal("0.01"):
        return f"${dollars.quantize(Decimal('0.0001'), ROUND_HALF_UP)}"
    return f"${dollars.quantize(Decimal('0.01'), ROUND_HALF_UP):,}"


def count(number: float | None) -> str:
    """Return a count: ``1,234``."""
    return texts.NONE if number is None else f"{number:,.0f}"


def seconds(number: float | None) -> str:
    """Return a duration: ``12 ms``, ``1.25 s``, ``12.5 s``, ``2 min 5 s``."""
    if number is None:
        return texts.NONE
    if number < 0.9995:
        return f"{number * 1000:.0f} ms"
    if number < 9.995:
        return f"{number:.2f} s"
    if number < 59.95:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s"


def when(timestamp: str | None) -> str:
    """Return a timestamp of the Admin API, in UTC: ``17:36:10``, ``30 Nov 17:36:10``.

    Without the day if that is the present one, and with the year if that is another one.
    """
    if timestamp is None:
        return texts.NONE
    at, now = (
        datetime.fromisoformat(timestamp).astimezone(UTC),
        datetime.fromtimestamp(time.time(), UTC),
    )
    if at.date() == now.date():
        return f"{at:%H:%M:%S}"
    return f"{at:%-d %b %H:%M:%S}" if at.year == now.year else f"{at:%-d %b %Y %H:%M:%S}"


def outcome(request: admin.Document) -> str:
    """Return how a request ended: ``200``, ``200 abandoned``."""
    said = [] if request["status"] is None else [str(request["status"])]
    if request["outcome"] != "completed":
        said.append(request["outcome"])
    return " ".join(said)


def day(timestamp: str) -> str:
    """Return the day of a timestamp of the Admin API: ``30 Nov``."""
    return datetime.fromisoformat(timestamp).astimezone(UTC).strftime("%-d %b")
