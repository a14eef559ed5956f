"""US dollars as text."""

from __future__ import annotations

import pytest

from tornadoproxy import usd


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (108_000, "0.000108"),
        (10_000_000, "0.01"),
        (500_000_000, "0.50"),
        (900_030_000, "0.90003"),
        (12_500_000_000, "12.50"),
        (2**63 - 1, "9223372036.854775807"),
        (-1_500_000_001, "-1.500000001"),
    ],
)
def test_usd_shows_every_digit_and_two_decimals(nanos: int, text: str) -> None:
    assert usd(nanos) == text
