"""Money as text: US dollars, exactly, from whole billionths of one."""

from __future__ import annotations

NANOS = 1_000_000_000
"""How many billionths make a US dollar."""


def usd(nanos: int) -> str:
    """The amount in US dollars with every digit that it has, and two decimals at least.

    ``12.50``, ``0.000108``, ``1.500000001``. A dollar sign in front is the caller's.
    """
    whole, rest = divmod(abs(nanos), NANOS)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole}.{f'{rest:09}'.rstrip('0').ljust(2, '0')}"
