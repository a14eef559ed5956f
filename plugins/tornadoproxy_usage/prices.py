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
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from tornadoproxy import Usage

T = TypeVar("T")

MAX_PRICES_SIZE = 1024 * 1024
"""The largest file of prices, in bytes."""

MAX_PRICE = 1_000_000
"""The highest price that is believed, in US dollars."""

MAX_COST = 2**63 - 1
"""The most that one answer costs, in billionths of a US dollar: what a database can hold."""

_SHIPPED = Path(__file__).with_name("prices.toml")
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
class PriceFile:
    """What a file of prices says.

    :param path: where it is.
    :param web_search: what a search costs, in billionths of a US dollar, if it says so.
    """

    path: Path
    date: date
    source: str
    web_search: int | None
    rows: Mapping[str, Row]


class Prices:
    """The prices in force: those that are shipped, and over them those of a file."""

    def __init__(self, shipped: PriceFile, own: PriceFile | None = None) -> None:
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


def shipped() -> PriceFile:
    """The prices that come with this package."""
    return read(_SHIPPED)


def read(path: Path) -> PriceFile:
    """Read a file of prices.

    :raises OSError: it cannot be read.
    :raises ValueError: what is wrong with it, with the row's name; it goes on from the file's.
    """
    with path.open("rb") as file:
        content = file.read(MAX_PRICES_SIZE + 1)
    if len(content) > MAX_PRICES_SIZE:
        raise ValueError("is larger than a file of prices can be")
    try:
        document = tomllib.loads(content.decode(), parse_float=Decimal)
    except UnicodeDecodeError:
        raise ValueError("is not a text file in UTF-8") from None
    # a number may be too large for Python, or for Decimal
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"is not TOML: {error}") from None
    _known(document, ("date", "source", "web_search", "models"), "it")
    day = document.get("date")
    # a datetime is a date, too
    if type(day) is not date:
        raise ValueError("needs the day that its prices are of: date = 2026-10-24")
    source = _of(str, document.get("source", ""), "source", "text")
    models = _of(dict, document.get("models", {}), "models", "table")
    searches = None
    if "web_search" in document:
        # it is given for a thousand, as a token's price is for a million
        searches = _nanos(document["web_search"], 1_000_000, "web_search")
    rows = {name: _row(name, row) for name, row in models.items()}
    _check_aliases(rows)
    return PriceFile(path, day, source, searches, rows)


def _row(name: str, given: object) -> Row:
    where = f"models.{name}"
    table = _of(dict, given, where, "table")
    _known(table, (*Rates._fields, "long", "aliases"), where)
    aliases = _of(list, table.get("aliases", []), f"{where}.aliases", "list of names")
    for alias in aliases:
        _of(str, alias, f"{where}.aliases", "list of names")
    if "long" not in table:
        return Row(_rates(table, where), aliases=tuple(aliases))
    long = _of(dict, table["long"], f"{where}.long", "table")
    _known(long, (*Rates._fields, "over"), f"{where}.long")
    over = long.get("over")
    if type(over) is not int or over < 1:
        raise ValueError(f"lacks over in {where}.long, the most tokens of a prompt that is not")
    return Row(_rates(table, where), over, _rates(long, f"{where}.long"), tuple(aliases))


def _rates(table: Mapping[str, Any], where: str) -> Rates:  # Any: TOML
    for name in Rates._fields:
        if name not in table:
            raise ValueError(f"lacks {name} in {where}")
    return Rates(*(_nanos(table[name], 1000, f"{where}.{name}") for name in Rates._fields))


def _nanos(dollars: Any, nanos: int, where: str) -> int:  # Any: TOML
    """A price in billionths of a US dollar.

    :param nanos: how many of them make one where `dollars` is 1.
    """
    # not isinstance(): True is a number to Python
    price = Decimal(dollars) if type(dollars) in {int, Decimal} else Decimal("NaN")
    if not price.is_finite() or not 0 <= price <= MAX_PRICE:
        raise ValueError(f"has a {where} that is no number of US dollars up to {MAX_PRICE:,}")
    whole = price * nanos
    if whole != int(whole):
        raise ValueError(f"has a {where} that is finer than {1 / Decimal(nanos):f} US dollars")
    return int(whole)


def _of(kind: type[T], given: object, where: str, called: str) -> T:
    if isinstance(given, kind):
        return given
    raise ValueError(f"has a {where} that is no {called}")


def _known(table: Mapping[str, Any], names: Iterable[str], where: str) -> None:  # Any: TOML
    if unknown := sorted(set(table) - set(names)):
        raise ValueError(f"has {unknown[0]!r} in {where}, which means nothing there")


def _check_aliases(rows: Mapping[str, Row]) -> None:
    owners: dict[str, str] = {}
    for name, row in rows.items():
        for alias in row.aliases:
            if alias in rows or alias in owners:
                other = alias if alias in rows else owners[alias]
                raise ValueError(f"has {alias!r} for models.{name} and models.{other}")
            owners[alias] = name


def _all_rates(rows: Iterable[Row]) -> Iterable[Rates]:
    for row in rows:
        yield row.rates
        if row.long is not None:
            yield row.long
