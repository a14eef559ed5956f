"""The parser of a price file: TOML, in US dollars for a million tokens."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy_prices.price_table import PriceTable, Rates, Row

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

MAX_PRICES_SIZE = 1024 * 1024
"""The largest price file, in bytes."""

MAX_PRICE = 1_000_000
"""The highest valid price, in US dollars."""


def read(path: Path) -> PriceTable:
    """Return the price table in a file.

    :raises OSError: the file cannot be read.
    :raises ValueError: with the end of a sentence that says what is wrong, and in which row.
    """
    with path.open("rb") as file:
        content = file.read(MAX_PRICES_SIZE + 1)
    if len(content) > MAX_PRICES_SIZE:
        raise ValueError(f"is larger than {MAX_PRICES_SIZE:,} bytes")
    try:
        document = tomllib.loads(content.decode(), parse_float=Decimal)
    except UnicodeDecodeError:
        raise ValueError("is not a text file in UTF-8") from None
    # a number may be too large for Python, or for Decimal
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"is not TOML: {error}") from None
    _known(document, ("date", "source", "web_search", "models"), "the file")
    day = document.get("date")
    # not isinstance(), because a datetime is a date, too
    if type(day) is not date:
        raise ValueError("lacks the date of its prices: date = 2026-10-24")
    source = _of(str, document.get("source", ""), "source", "text")
    models = _of(dict, document.get("models", {}), "models", "table")
    searches = None
    if "web_search" in document:
        # the price of a thousand searches, as tokens have the price of a million
        searches = _nanos(document["web_search"], 1_000_000, "web_search")
    rows = {name: _row(name, row) for name, row in models.items()}
    _check_aliases(rows)
    return PriceTable(day, source, searches, rows, path)


def _row(name: str, given: object) -> Row:
    where = f"models.{name}"
    table = _of(dict, given, where, "table")
    _known(table, (*Rates.__struct_fields__, "long", "aliases"), where)
    aliases = _of(list, table.get("aliases", []), f"{where}.aliases", "list of names")
    for alias in aliases:
        _of(str, alias, f"{where}.aliases", "list of names")
    if "long" not in table:
        return Row(_rates(table, where), aliases=tuple(aliases))
    long = _of(dict, table["long"], f"{where}.long", "table")
    _known(long, (*Rates.__struct_fields__, "over"), f"{where}.long")
    over = long.get("over")
    if type(over) is not int or over < 1:
        raise ValueError(f"lacks over in {where}.long: the tokens above which a prompt is long")
    return Row(_rates(table, where), over, _rates(long, f"{where}.long"), tuple(aliases))


def _rates(table: Mapping[str, Any], where: str) -> Rates:  # Any: TOML
    for name in Rates.__struct_fields__:
        if name not in table:
            raise ValueError(f"lacks {name} in {where}")
    return Rates(
        *(_nanos(table[name], 1000, f"{where}.{name}") for name in Rates.__struct_fields__)
    )


def _nanos(dollars: Any, nanos: int, where: str) -> int:  # Any: TOML
    """Return a price in billionths of a US dollar.

    :param nanos: the result for one dollar.
    """
    # not isinstance(), because True is an int
    price = Decimal(dollars) if type(dollars) in {int, Decimal} else Decimal("NaN")
    if not price.is_finite() or not 0 <= price <= MAX_PRICE:
        raise ValueError(f"has a {where} that is not a number of US dollars up to {MAX_PRICE:,}")
    whole = price * nanos
    if whole != int(whole):
        raise ValueError(f"has a {where} that is finer than {1 / Decimal(nanos):f} US dollars")
    return int(whole)


def _of(kind: type[T], given: object, where: str, called: str) -> T:
    if isinstance(given, kind):
        return given
    raise ValueError(f"has a {where} that is not a {called}")


def _known(table: Mapping[str, Any], names: Iterable[str], where: str) -> None:  # Any: TOML
    if unknown := sorted(set(table) - set(names)):
        raise ValueError(f"has the unknown key {unknown[0]!r} in {where}")


def _check_aliases(rows: Mapping[str, Row]) -> None:
    owners: dict[str, str] = {}
    for name, row in rows.items():
        for alias in row.aliases:
            if alias in rows or alias in owners:
                other = alias if alias in rows else owners[alias]
                raise ValueError(f"has the name {alias!r} in both models.{name} and models.{other}")
            owners[alias] = name
