"""A table of prices, and what an answer costs by it.

A price is a whole number of billionths of a US dollar for one token, so that sums are exact: a
dollar for a million tokens is a thousand of them.

A model is looked up by its name or an alias, then without what follows its name: a date, or
``-latest``. One that is not there is never free: it costs as much as the dearest for each kind of
token.

Source: https://platform.claude.com/docs/en/about-claude/pricing
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tornadoproxy import Usage

MAX_COST = 2**63 - 1
"""The most that one answer costs, in billionths of a US dollar: what a database can hold."""

_AFTER_A_NAME = re.compile(r"([-@]\d{8}|-latest)\Z")


class Rates(NamedTuple):
    """What a token of each kind costs, in billionths of a US dollar."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int


@dataclass(frozen=True, slots=True)
class Row:
    """What a model costs.

    :param long: the rates where the prompt has more than `over` tokens, if they differ.
    """

    rates: Rates
    over: int = 0
    long: Rates | None = None
    aliases: tuple[str, ...] = ()

    def cost(self, usage: Usage, web_search: int) -> int:
        """What `usage` costs, in billionths of a US dollar.

        :param web_search: what one search costs, in the same unit.
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


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices of one day.

    :param web_search: what a search costs, in billionths of a US dollar, if it says so.
    :param path: the file that it was read from.
    """

    date: date
    source: str
    web_search: int | None
    rows: Mapping[str, Row]
    path: Path | None = None


class Prices:
    """The prices in force: those that are shipped, and over them those of a file."""

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
            # a row that was replaced keeps its aliases
            for name, row in file.rows.items():
                self._found |= dict.fromkeys(row.aliases, self.rows[name])
        self._found |= self.rows

    def row(self, model: str) -> Row | None:
        """What is known of `model`."""
        row = self._found.get(model)
        if row is None and (after := _AFTER_A_NAME.search(model)):
            row = self._found.get(model[: after.start()])
        return row

    def describe(self) -> str:
        """Which prices these are, in a line."""
        line = f"prices of {self.shipped.date} ({len(self.shipped.rows)} models)"
        if self.own is not None:
            line += f", over them those of {self.own.path} of {self.own.date} "
            line += f"({len(self.own.rows)})"
        return line


def _all_rates(rows: Iterable[Row]) -> Iterable[Rates]:
    for row in rows:
        yield row.rates
        if row.long is not None:
            yield row.long
