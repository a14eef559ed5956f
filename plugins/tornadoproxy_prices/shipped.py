"""The built-in price table, in billionths of a US dollar for one token.

One dollar for a million tokens is 1,000. The columns are those of `Rates`: input, output, cache
reads, and cache writes for five minutes and for an hour. The `long` prices apply to a prompt of
more than `over` tokens, cached ones included.

The table does not cover what the proxy cannot see: batches, fast mode, data residency, other
clouds, and negotiated discounts.
"""

from __future__ import annotations

from datetime import date

from tornadoproxy_prices.price_table import PriceTable, Rates, Row

SHIPPED = PriceTable(
    date=date(2026, 10, 24),
    source="https://platform.claude.com/docs/en/about-claude/pricing",
    web_search=10_000_000,
    rows={
        # current models
        "claude-fable-5-1": Row(Rates(10_000, 50_000, 250, 12_500, 20_000)),
        "claude-mythos-5-1": Row(Rates(10_000, 50_000, 250, 12_500, 20_000)),
        "claude-opus-5-5": Row(Rates(4_000, 20_000, 200, 5_000, 8_000)),
        "claude-sonnet-5-5": Row(Rates(2_000, 10_000, 100, 2_500, 4_000)),
        "claude-haiku-5-5": Row(
            Rates(100, 500, 10, 125, 200), over=100_000, long=Rates(500, 2_500, 50, 625, 1_000)
        ),
        # earlier models
        "claude-fable-5": Row(Rates(10_000, 50_000, 1_000, 12_500, 20_000)),
        "claude-mythos-5": Row(Rates(10_000, 50_000, 1_000, 12_500, 20_000)),
        "claude-opus-5": Row(Rates(5_000, 25_000, 500, 6_250, 10_000)),
        "claude-opus-4-8": Row(Rates(5_000, 25_000, 500, 6_250, 10_000)),
        "claude-opus-4-7": Row(Rates(5_000, 25_000, 500, 6_250, 10_000)),
        "claude-opus-4-6": Row(Rates(5_000, 25_000, 500, 6_250, 10_000)),
        "claude-opus-4-5": Row(Rates(5_000, 25_000, 500, 6_250, 10_000)),
        "claude-opus-4-1": Row(Rates(15_000, 75_000, 1_500, 18_750, 30_000)),
        "claude-opus-4": Row(
            Rates(15_000, 75_000, 1_500, 18_750, 30_000), aliases=("claude-opus-4-0",)
        ),
        "claude-sonnet-5": Row(Rates(2_000, 10_000, 200, 2_500, 4_000)),
        "claude-sonnet-4-6": Row(Rates(3_000, 15_000, 300, 3_750, 6_000)),
        "claude-sonnet-4-5": Row(Rates(3_000, 15_000, 300, 3_750, 6_000)),
        "claude-sonnet-4": Row(
            Rates(3_000, 15_000, 300, 3_750, 6_000), aliases=("claude-sonnet-4-0",)
        ),
        "claude-3-7-sonnet": Row(Rates(3_000, 15_000, 300, 3_750, 6_000)),
        "claude-haiku-4-5": Row(Rates(1_000, 5_000, 100, 1_250, 2_000)),
        "claude-3-5-haiku": Row(Rates(800, 4_000, 80, 1_000, 1_600)),
        "claude-3-opus": Row(Rates(15_000, 75_000, 1_500, 18_750, 30_000)),
        "claude-3-haiku": Row(Rates(250, 1_250, 30, 300, 500)),
    },
)
