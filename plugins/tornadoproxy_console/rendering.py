"""Templates, and figures as text."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from tornado.template import Loader

from tornadoproxy_console import charts, texts


@cache
def _loader() -> Loader:
    return Loader(str(resources.files(__package__) / "templates"), whitespace="oneline")


def render(template: str, **values: Any) -> bytes:  # Any: as the template needs
    """Return a page; every value in it is escaped unless the template says ``raw``."""
    helpers = {
        "charts": charts,
        "count": count,
        "day": day,
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
    if 0 < dollars < Decimal("0.01"):
        return f"${dollars.quantize(Decimal('0.0001'), ROUND_HALF_UP)}"
    return f"${dollars.quantize(Decimal('0.01'), ROUND_HALF_UP):,}"


def count(number: float | None) -> str:
    """Return a count: ``1,234``."""
    return texts.NONE if number is None else f"{number:,.0f}"


def seconds(number: float | None) -> str:
    """Return a duration: ``1.25 s``."""
    return texts.NONE if number is None else f"{number:.2f} s"


def when(timestamp: str | None) -> str:
    """Return a timestamp of the Admin API as ``2026-11-30 17:36:10``, in UTC."""
    return texts.NONE if timestamp is None else timestamp[:19].replace("T", " ")


def day(timestamp: str) -> str:
    """Return the day of a timestamp of the Admin API: ``30 Nov``."""
    return datetime.fromisoformat(timestamp).astimezone(UTC).strftime("%-d %b")
