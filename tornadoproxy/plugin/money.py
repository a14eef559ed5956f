"""US dollars as exact text, from integer billionths."""

from __future__ import annotations

NANOS = 1_000_000_000
"""Billionths in a US dollar."""


def usd(nanos: int) -> str:
    """Return the amount in US dollars with all its digits, and at least two decimals.

    ``12.50``, ``0.000108``, ``1.500000001``. The caller adds a dollar sign.
    """
    whole, rest = divmod(abs(nanos), NANOS)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole}.{f'{rest:09}'.rstrip('0').ljust(2, '0')}"
