"""Tables that commands print."""

from __future__ import annotations

import argparse
import csv
import io
import json
from datetime import date, timedelta, timezone

import pytest

from tornadoproxy import tables

TITLES = ("name", "groups", "requests", "cost USD", "note")
ROWS = (
    ("ada", ("engines", "london"), 7, "1.50", None),
    ("bob\x1b[31m", (), 1200, "12.000108", None),
)
COLUMNS = dict(zip(("name", "groups", "requests", "cost_usd", "note"), TITLES, strict=True))


def lines(width: int) -> list[str]:
    return list(tables.text_lines(TITLES, ROWS, width))


def test_text_aligns_numbers_and_leaves_out_empty_columns() -> None:
    assert lines(80) == [
        "name         groups           requests   cost USD",
        "ada          engines, london         7       1.50",
        "bob\\x1b[31m  -                    1200  12.000108",
    ]
    assert list(tables.text_lines(("a", "b"), [], 80)) == ["a  b"], "without rows"


def test_text_in_narrow_terminal_continues_on_next_lines() -> None:
    assert lines(36) == [
        "name         groups",
        "    requests   cost USD",
        "ada          engines, london",
        "           7       1.50",
        "bob\\x1b[31m  -",
        "        1200  12.000108",
    ]


def test_text_wraps_titles_before_it_breaks_rows() -> None:
    titles = ("model", "cache write 5m", "cache write 1h")
    assert list(tables.text_lines(titles, [("opus", "5.00", "8.00")], 24)) == [
        "model  cache  cache",
        "       write  write",
        "          5m     1h",
        "opus    5.00   8.00",
    ]


def test_write_uses_width_of_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    tables.write(COLUMNS, ROWS, "text")
    assert capsys.readouterr().out.splitlines() == lines(36)


def test_write_for_programs_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tables.write(COLUMNS, ROWS, "json")
    documents = json.loads(capsys.readouterr().out)
    assert documents[0] == {
        "name": "ada",
        "groups": ["engines", "london"],
        "requests": 7,
        "cost_usd": "1.50",
        "note": None,
    }
    tables.write(COLUMNS, (*ROWS, ("=1+1", ["-x"], 0, "\uff0b1", "@a")), "csv")
    read = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert read[:2] == [list(COLUMNS), ["ada", "engines, london", "7", "1.50", ""]]
    assert read[3] == ["'=1+1", "'-x", "0", "'\uff0b1", "'@a"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90m", timedelta(minutes=90)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("522w", timedelta(weeks=522)),
        ("2026-11-30", date(2026, 11, 30)),
    ],
)
def test_since_accepts_age_or_day(text: str, meant: object) -> None:
    assert tables.since(text) == meant


@pytest.mark.parametrize("text", ["", "7", "0d", "-7d", "7y", "3661d", "2026-02-30"])
def test_since_refuses_other_text(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 7d, or a date such as"):
        tables.since(text)


def test_moment_is_start_of_day_or_an_age_ago() -> None:
    now = 1_700_000_000.9
    assert tables.timestamp(now) == "2023-11-14T22:13:20Z"
    assert tables.moment(timedelta(days=1), now) == now - 86_400
    assert tables.moment(date(2023, 11, 14), now) == 1_699_920_000
    tokyo = timezone(timedelta(hours=9))
    assert tables.moment(date(2023, 11, 14), now, tokyo) == 1_699_920_000 - 9 * 3600


def test_count_is_a_whole_number_from_1_on() -> None:
    assert [tables.count(text) for text in ("1", "007", "9" * 12)] == [1, 7, 10**12 - 1]
    for text in ("", "0", "-1", "1.5", "many", "\u0663", "1_0", "9" * 13):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1 on"):
            tables.count(text)
