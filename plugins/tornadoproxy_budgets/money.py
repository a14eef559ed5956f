"""Amounts of money as whole numbers and as text.

A nano is a billionth of a US dollar; ten million nanos are a cent. Sums of nanos are exact.
"""

from __future__ import annotations

import re

NANOS_PER_CENT = 10_000_000

_CENTS = re.compile(r"[0-9]{1,15}")
_DOLLARS = re.compile(r"\$?([0-9]{1,13})(?:\.([0-9]{1,2}))?")


def parse_cents(text: str) -> int:
    """Return the cents in a text of the Admin API: ``"50000"``.

    :raises ValueError: the text is not a whole number of at most 15 digits.
    """
    if not _CENTS.fullmatch(text):
        raise ValueError("not a whole number of cents")
    return int(text)


def parse_dollars(text: str) -> int:
    """Return the cents in an amount of dollars: ``12``, ``12.5``, ``$12.50``.

    :raises ValueError: the text is not an amount.
    """
    matched = _DOLLARS.fullmatch(text.strip())
    if not matched:
        raise ValueError(f"must be an amount in US dollars such as 12.50, not {text!r}")
    return int(matched[1]) * 100 + int((matched[2] or "0").ljust(2, "0"))


def cents_text(nanos: int) -> str:
    """Return cents with up to three decimals, as in the Admin API: ``"12050.5"``."""
    thousandths = (nanos + 5_000) // 10_000
    return f"{thousandths // 1000}.{thousandths % 1000:03}".rstrip("0").rstrip(".")
