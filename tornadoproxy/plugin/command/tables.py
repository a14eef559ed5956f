"""Tables that commands print: text for people, JSON or CSV for programs.

Every command that prints a table adds the flag ``--format`` with `add_format`, writes with `write`,
shows times with `timestamp`, and parses a start time with `since`::

    from tornadoproxy import tables

    def add_arguments(parser):
        tables.add_format(parser)

    def run(arguments, settings):
        columns = {"name": "name", "used": "last used"}
        tables.write(columns, [("ada", tables.timestamp(1793404800))], arguments.format)
        return 0

A row wider than the terminal continues on indented lines, and so does the header.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from datetime import time as time_of_day
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import argparse

FORMATS = ("text", "json", "csv")

MAX_CELL = 36  # characters in a line of a cell, in text

_INDENT = "    "  # of the further lines of a row
_GAP = "  "  # between two cells
_FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # and their full-width forms
_NUMBER = re.compile(r"\$?[0-9][0-9,]*(\.[0-9]+)?").fullmatch
_COUNT = re.compile(r"[0-9]{1,12}").fullmatch
_AGE = re.compile(r"([0-9]{1,9})([mhdw])").fullmatch
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST_AGE = timedelta(days=10 * 366)
_DATE = re.compile(r"(19[7-9]|2[0-9]{2})[0-9]-[0-9]{2}-[0-9]{2}", re.ASCII).fullmatch

Cell: TypeAlias = str | int | Sequence[str] | None
"""A value of a row; ``None`` is empty or unknown."""

Rows: TypeAlias = Sequence[Sequence[Cell]]


def add_format(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add the flag ``--format`` to a command's parser.

    :param more: further formats, which the command writes itself.
    """
    parser.add_argument(
        "--format",
        choices=(*FORMATS, *more),
        default="text",
        help="output format: %(choices)s (default: text)",
    )


def add_limit(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """Add the flag ``--limit`` to the parser of a command that lists something.

    :param what: the help: ``number of changes``.
    """
    parser.add_argument(
        "--limit",
        type=count,
        default=default,
        metavar="N",
        help=f"{what} (default: {default})",
    )


def write(columns: Mapping[str, str], rows: Rows, form: str) -> None:
    """Write a table to standard output.

    :param columns: for each column its name in JSON and CSV and its title in text.
    :param rows: a cell for each column.
    :param form: one of `FORMATS`.
    """
    if form == "json":
        sys.stdout.write(json_text([dict(zip(columns, row, strict=True)) for row in rows]))
    elif form == "csv":
        sys.stdout.write(csv_text(columns, rows))
    else:
        sys.stdout.writelines(f"{line}\n" for line in text_lines(tuple(columns.values()), rows))


def json_text(document: object) -> str:
    """Return `document` as indented JSON."""
    import json  # not at the top: importing each format takes time

    return json.dumps(document, indent=2) + "\n"


def csv_text(names: Iterable[str], rows: Rows) -> str:
    """Return `names` and the rows as CSV (RFC 4180, with LF as line end).

    A text that a spreadsheet would run as a formula gets an apostrophe
    (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(
            f"'{word}" if (word := _word(cell)).startswith(_FORMULAS) else word for cell in row
        )
    return text.getvalue()


def text_lines(titles: Sequence[str], rows: Rows, width: int | None = None) -> Iterator[str]:
    """Yield the lines of a table without its empty columns; numbers are right-aligned.

    :param width: characters in a line (default: those of the terminal, or ``COLUMNS``).
    """
    if width is None:
        import shutil  # this module is imported at every start

        width = shutil.get_terminal_size().columns
    words = [[_word(cell) for cell in row] for row in rows]
    columns = [
        _Column(title, values)
        for title, *values in zip(titles, *words, strict=True)
        if any(values) or not rows
    ]
    if len(_groups(columns, width)) > 1:
        for column in columns:
            column.wrap_title()
    for at in range(-1, len(rows)):
        indent = ""
        for group in _groups(columns, width):
            for lines in zip_longest(*(column.cells[at + 1] for column in group), fillvalue=""):
                cells = (column.align(line) for column, line in zip(group, lines, strict=True))
                yield (indent + _GAP.join(cells)).rstrip()
            indent = _INDENT


class _Column:
    """A title and its values, each as a list of lines."""

    def __init__(self, title: str, values: Sequence[str]) -> None:
        below = [_wrapped(value or "-", MAX_CELL) for value in values]
        self.cells = [[title], *below]
        self._widest = max((len(line) for lines in below for line in lines), default=0)
        self.width = max(self._widest, len(title))
        self._right = 2 * sum(_NUMBER(value) is not None for value in values) > len(values)

    def wrap_title(self) -> None:
        """Wrap the title to the width of the values, or of its longest word."""
        (title,) = self.cells[0]
        self.cells[0] = _wrapped(title, max(self._widest, *map(len, title.split())))
        self.width = max(self._widest, *map(len, self.cells[0]))

    def align(self, line: str) -> str:
        return line.rjust(self.width) if self._right else line.ljust(self.width)


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC: ``2026-11-30T08:00:00Z``."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()[:-6] + "Z"


def age(text: str) -> timedelta:
    """Parse a duration such as ``90m``, ``24h``, ``7d`` or ``4w``, for argparse.

    :raises argparse.ArgumentTypeError: `text` is not one.
    """
    if (found := _age(text)) is None:
        raise _wrong("must be a time such as 90m, 24h, 30d or 4w, at most ten years")
    return found


def since(text: str) -> date | timedelta:
    """Parse a day such as ``2026-11-30`` or an age such as ``7d`` or ``24h``, for argparse.

    :raises argparse.ArgumentTypeError: `text` is neither.
    """
    if (found := _age(text)) is not None:
        return found
    try:
        if _DATE(text):
            return date.fromisoformat(text)
    except ValueError:
        pass  # the 30th of February
    raise _wrong("must be a time ago such as 7d, or a date such as 2026-11-30")


def _age(text: str) -> timedelta | None:
    matched = _AGE(text)
    found = timedelta(**{_UNITS[matched[2]]: int(matched[1])}) if matched else timedelta()
    return found if timedelta() < found <= _LONGEST_AGE else None


def _wrong(complaint: str) -> argparse.ArgumentTypeError:
    import argparse

    return argparse.ArgumentTypeError(complaint)


def moment(when: date | timedelta, now: float, zone: tzinfo | None = UTC) -> float:
    """Return when a day begins, or what time it was so long ago, in seconds since the epoch.

    :param when: what `since` returned.
    :param zone: the time zone of the day; ``None`` is this machine's.
    """
    if isinstance(when, timedelta):
        return now - when.total_seconds()
    return datetime.combine(when, time_of_day.min, zone).timestamp()


def count(text: str) -> int:
    """Return a whole number from 1 on; for argparse.

    :raises argparse.ArgumentTypeError: it is none, or has more than twelve digits.
    """
    if not _COUNT(text) or int(text) == 0:
        raise _wrong("must be a whole number from 1 on")
    return int(text)


def _word(cell: Cell) -> str:
    """Return `cell` as text without control characters, which a client may have chosen."""
    if cell is None or isinstance(cell, int):
        return "" if cell is None else str(cell)
    text = cell if isinstance(cell, str) else ", ".join(cell)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _wrapped(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False)


def _groups(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Return the columns of the first, second … line of a row."""
    groups: list[list[_Column]] = []
    used = width
    for column in columns:
        if used + len(_GAP) + column.width > width:
            used = (len(_INDENT) if groups else 0) + column.width
            groups.append([column])
        else:
            used += len(_GAP) + column.width
            groups[-1].append(column)
    return groups
