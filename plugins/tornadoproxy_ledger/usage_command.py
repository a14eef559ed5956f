"""The command ``usage``: its arguments, and the sums as text, CSV or JSON."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, date, timedelta
from typing import TYPE_CHECKING

from tornadoproxy import ConfigurationError, tables, usd
from tornadoproxy_ledger.sums import GROUPINGS, Question, Sum, sums, total

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy import Database

# each figure: its name in CSV and JSON, its title in the table
_FIGURES = {
    "requests": "requests",
    "errors": "errors",
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_tokens": "cache read",
    "cache_creation_tokens": "cache written",
    "cost_usd": "cost",
    "unpriced_requests": "unpriced",
    "partial": "partial",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``usage``."""
    parser.add_argument(
        "--by",
        action="extend",
        type=_groupings,
        metavar="|".join(GROUPINGS),
        help="columns to sum by, separated by commas (default: key)",
    )
    parser.add_argument(
        "--since",
        type=tables.since,
        metavar="AGE|DATE",
        help="first day or moment: 7d, 24h, 2026-11-30 (default: the first request's)",
    )
    parser.add_argument(
        "--until",
        type=tables.since,
        metavar="AGE|DATE",
        help="last day, included, or moment (default: now)",
    )
    parser.add_argument("--principal", help="only requests of this key")
    parser.add_argument("--group", help="only requests of this group's members")
    parser.add_argument("--model", help="only the usage of this model")
    tables.add_format(parser)
    parser.add_argument(
        "--tz",
        choices=("local", "utc"),
        default="local",
        help="time zone of days and months (default: local)",
    )


def run(arguments: argparse.Namespace, database: Database) -> int:
    """Print the sums that `arguments` select.

    :raises ConfigurationError: the arguments contradict each other, or the database cannot be read.
    """
    question = _question(arguments)
    with database.reading() as connection:
        found = sums(question, connection, database.dialect)
        all_of_it = total(question, connection, database.dialect)
    sys.stdout.write(_FORMATS[arguments.format](question, found, all_of_it))
    return 0


def _question(arguments: argparse.Namespace) -> Question:
    zone = UTC if arguments.tz == "utc" else None
    now = time.time()
    since, until = (
        None if when is None else tables.moment(when, now, zone)
        for when in (arguments.since, _after(arguments.until))
    )
    if since is not None and until is not None and until <= since:
        raise ConfigurationError("--until is before --since; exchange them.")
    return Question(
        by=tuple(dict.fromkeys(arguments.by or ("key",))),
        since=since,
        until=until,
        principal=arguments.principal,
        group=arguments.group,
        model=arguments.model,
        utc=arguments.tz == "utc",
    )


def _after(when: date | timedelta | None) -> date | timedelta | None:
    """Return the day after a day; a duration stays as it is."""
    return when + timedelta(days=1) if isinstance(when, date) else when


def _groupings(value: str) -> list[str]:
    names = value.split(",")
    for name in names:
        if name not in GROUPINGS:
            raise argparse.ArgumentTypeError(
                f"must be one or several of {', '.join(GROUPINGS)}, not {name!r}"
            )
    return names


def _figures(each: Sum) -> dict[str, int | str | None]:
    return {
        "requests": each.requests,
        "errors": each.errors,
        "input_tokens": each.input_tokens,
        "output_tokens": each.output_tokens,
        "cache_read_tokens": each.cache_read_tokens,
        "cache_creation_tokens": each.cache_creation_tokens,
        "cost_usd": None if each.cost is None else usd(each.cost),
        "unpriced_requests": each.unpriced,
        "partial": each.partial,
    }


def _text(question: Question, found: Sequence[Sum], all_of_it: Sum) -> str:
    rows = [
        *((*each.keys, *_cells(each)) for each in found),
        ("total", *[" "] * (len(question.by) - 1), *_cells(all_of_it)),
    ]
    lines = tables.text_lines((*question.by, *_FIGURES.values()), rows)
    return "\n".join([*lines, *_notes(question, all_of_it)]) + "\n"


def _cells(each: Sum) -> Sequence[str | int | None]:
    cost = "unpriced" if each.cost is None else f"${usd(each.cost)}"
    return tuple((_figures(each) | {"cost_usd": cost}).values())


def _notes(question: Question, all_of_it: Sum) -> list[str]:
    notes = []
    if "group" in question.by:
        notes.append(
            "A request of a member of several groups counts for each group, and once in the total."
        )
    if "model" in question.by:
        notes.append("A request on several models counts for each model, and once in the total.")
    if all_of_it.unpriced:
        notes.append("Unpriced requests are not included in the cost.")
    if all_of_it.partial:
        notes.append("Partial responses were cut off: only the tokens seen until then are counted.")
    return ["", *notes] if notes else []


def _csv(question: Question, found: Sequence[Sum], all_of_it: Sum) -> str:
    del all_of_it  # a reader that adds up the lines would count the total as well
    rows = [(*each.keys, *_figures(each).values()) for each in found]
    return tables.csv_text((*question.by, *_FIGURES), rows)


def _json(question: Question, found: Sequence[Sum], all_of_it: Sum) -> str:
    lines = [{**dict(zip(question.by, each.keys, strict=True)), **_figures(each)} for each in found]
    return tables.json_text({"by": question.by, "lines": lines, "total": _figures(all_of_it)})


_FORMATS: dict[str, Callable[[Question, Sequence[Sum], Sum], str]] = {
    "text": _text,
    "csv": _csv,
    "json": _json,
}
