"""The command ``python -m tornadoproxy prices``: the prices as text, JSON, CSV or TOML."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from msgspec.structs import asdict, astuple

from tornadoproxy import tables, usd
from tornadoproxy_prices.price_table import Rates

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterator

    from tornadoproxy_prices.price_table import Prices

_NANOS_FOR_A_THOUSAND = 1_000_000  # searches, where they cost a dollar
_COLUMNS = ("model", "over", *Rates.__struct_fields__)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    tables.add_format(parser, "toml")


def show(prices: Prices, form: str) -> int:
    """Write the prices to standard output, in US dollars for a million tokens."""
    forms = {"text": _as_text, "csv": _as_csv, "json": _as_json, "toml": _as_toml}
    sys.stdout.write(forms[form](prices))
    return 0


def _lines(prices: Prices) -> Iterator[tuple[str, int, Rates]]:
    """Yield each model's rates, and the tokens of a prompt above which they apply."""
    for name, row in prices.rows.items():
        yield name, 0, row.rates
        if row.long is not None:
            yield name, row.over, row.long


def _as_text(prices: Prices) -> str:
    titles = [column.replace("_", " ") for column in ("model", *Rates.__struct_fields__)]
    rows = [
        (f"{name}, prompts over {over:,}" if over else name, *map(_dollars, astuple(rates)))
        for name, over, rates in _lines(prices)
    ]
    ends = (
        "US dollars for a million tokens; "
        f"{usd(prices.web_search * 1000)} for a thousand web searches.",
        "Any other model costs the highest price of each column.",
        f"In force: {prices.describe()}.",
    )
    return "\n".join([*tables.text_lines(titles, rows), "", *ends, ""])


def _as_csv(prices: Prices) -> str:
    rows: list[tuple[str | int, ...]] = [
        (name, over, *map(_dollars, astuple(rates))) for name, over, rates in _lines(prices)
    ]
    return tables.csv_text(_COLUMNS, rows)


def _as_json(prices: Prices) -> str:
    document = {
        "date": prices.shipped.date.isoformat(),
        "source": prices.shipped.source,
        "own_date": None if prices.own is None else prices.own.date.isoformat(),
        "web_search": prices.web_search / _NANOS_FOR_A_THOUSAND,
        "prices": [
            {"model": name, "over": over, **{k: v / 1000 for k, v in asdict(rates).items()}}
            for name, over, rates in _lines(prices)
        ],
    }
    return tables.json_text(document)


def _as_toml(prices: Prices) -> str:
    """Return the prices as the content of a ``PRICES_FILE``."""
    latest = prices.own or prices.shipped
    lines = [
        "# US dollars for a million tokens, and for a thousand web searches",
        f"date = {latest.date}",
        f"source = {json.dumps(latest.source)}",
        f"web_search = {usd(prices.web_search * 1000)}",
    ]
    for name, row in prices.rows.items():
        lines += ["", f"[models.{json.dumps(name)}]", *_assigned(row.rates)]
        if row.aliases:
            lines.append(f"aliases = {json.dumps(row.aliases)}")
        if row.long is not None:
            lines += ["", f"[models.{json.dumps(name)}.long]", f"over = {row.over}"]
            lines += _assigned(row.long)
    return "\n".join([*lines, ""])


def _assigned(rates: Rates) -> list[str]:
    return [f"{name} = {_dollars(nanos)}" for name, nanos in asdict(rates).items()]


def _dollars(nanos: int) -> str:
    """Return US dollars for a million tokens from billionths of a dollar for one token."""
    return usd(nanos * 1_000_000)
