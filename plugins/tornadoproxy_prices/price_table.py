"""Price tables, and the cost of usage.

A price is a whole number of billionths of a US dollar for one token, so that sums are exact. One
dollar for a million tokens is the price 1,000.

A model is looked up by its name or an alias, then without a date or ``-latest`` at the end of its
name. A model that is not found costs the highest price of each kind of token.

Source: https://platform.claude.com/docs/en/about-claude/pricing
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import astuple

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy import Usage

MAX_COST = 2**63 - 1
"""The highest cost of a response, in billionths of a US dollar, because SQLite stores no more."""

_AFTER_A_NAME = r"([-@]\d{8}|-latest)\Z"  # compiled when it is used: few names have it


class Rates(Struct, frozen=True):
    """The price of a token of each kind, in billionths of a US dollar."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int


class Row(Struct, frozen=True):
    """The prices of a model.

    :param long: the rates of a prompt with more than `over` tokens, if they differ.
    """

    rates: Rates
    over: int = 0
    long: Rates | None = None
    aliases: tuple[str, ...] = ()

    def cost(self, usage: Usage, web_search: int) -> int:
        """Return the cost of `usage`, in billionths of a US dollar.

        :param web_search: the price of one search, in the same unit.
        """
        plain = usage.input_tokens or 0
        read = usage.cache_read_input_tokens or 0
        written = usage.cache_creation_input_tokens or 0
        rates = self.rates
        if self.long is not None and plain + read + written > self.over:
            rates = self.long
        cost = plain * rates.input + (usage.output_tokens or 0) * rates.output
        if read:
            cost += read * rates.cache_read
        for_an_hour = usage.cache_creation_1h_input_tokens or 0
        if written > for_an_hour:
            cost += (written - for_an_hour) * rates.cache_write_5m
        if for_an_hour:
            cost += for_an_hour * rates.cache_write_1h
        if usage.web_search_requests:
            cost += usage.web_search_requests * web_search
        return min(cost, MAX_COST)


class PriceTable:
    """The prices of one day.

    :param web_search: the price of a search in billionths of a US dollar, if the table has one.
    :param path: the file that the table was read from.
    """

    def __init__(
        self,
        date: date,
        source: str,
        web_search: int | None,
        rows: Mapping[str, Row],
        path: Path | None = None,
    ) -> None:
        self.date = date
        self.source = source
        self.web_search = web_search
        self.rows = rows
        self.path = path


class Prices:
    """The prices in force: those of the built-in table, overridden by those of a file."""

    def __init__(self, shipped: PriceTable, own: PriceTable | None = None) -> None:
        self.shipped = shipped
        self.own = own
        files = [shipped] if own is None else [shipped, own]
        self.rows = {name: row for file in files for name, row in file.rows.items()}
        self.web_search = next(
            (file.web_search for file in reversed(files) if file.web_search is not None), 0
        )
        self.dearest = Row(Rates(*map(max, zip(*_all_rates(self.rows.values()), strict=True))))
        self._found: dict[str, Row] = {}
        for file in files:
            # a replaced row keeps its aliases
            for name, row in file.rows.items():
                self._found |= dict.fromkeys(row.aliases, self.rows[name])
        self._found |= self.rows

    def row(self, model: str) -> Row | None:
        """Return the row of `model`; ``None`` if it is unknown."""
        row = self._found.get(model)
        if row is None and (after := re.search(_AFTER_A_NAME, model)):
            row = self._found.get(model[: after.start()])
        return row

    def describe(self) -> str:
        """Return a line that says which prices these are."""
        line = f"prices of {self.shipped.date} ({len(self.shipped.rows)} models)"
        if self.own is not None:
            line += f", overridden by {self.own.path} of {self.own.date} "
            line += f"({len(self.own.rows)})"
        return line


def _all_rates(rows: Iterable[Row]) -> Iterable[tuple[int, ...]]:
    for row in rows:
        yield astuple(row.rates)
        if row.long is not None:
            yield astuple(row.long)
