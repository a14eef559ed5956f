"""Logging: one line per record, whatever the record contains."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path
from time import time as wall_clock

import pytest

from tornadoproxy.server.logs import logging_to, set_level

logger = logging.getLogger("tornadoproxy.test")


def logged(path: Path, level: str, *records: tuple[str, int, str, tuple[object, ...]]) -> list[str]:
    """The lines for these records: logger, level, message, arguments."""
    with path.open("wb") as file, logging_to(file.fileno(), level):
        for name, number, message, arguments in records:
            logging.getLogger(name).log(number, message, *arguments)
    return path.read_text().splitlines()


def test_record_is_a_line_before_its_traceback(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file, logging_to(file.fileno(), "info"):
        try:
            int("reason")
        except ValueError:
            logger.exception("hello %s", "you")
    line, *traceback = path.read_text().splitlines()
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert abs(datetime.fromisoformat(time).timestamp() - wall_clock()) < 60
    assert rest == "ERROR tornadoproxy.test: hello you"
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1].startswith("ValueError: invalid literal for int()")


@pytest.mark.parametrize(
    ("message", "argument", "end"),
    [
        ("%s", "a\nb\r\x1b[31m\x7fü\udcff", ": a\\nb\\r\\x1b[31m\\x7fü\\udcff"),
        ("%d", "secret", "a record of tornadoproxy.test does not fit its format: TypeError"),
    ],
    ids=["control characters", "wrong format"],
)
def test_record_cannot_forge_a_line_or_show_wrong_arguments(
    message: str, argument: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own handler would raise, and xdist cannot carry half of a surrogate pair
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    record = ("tornadoproxy.test", logging.INFO, message, (argument,))
    (line,) = logged(tmp_path / "log", "info", record)
    assert line.endswith(end)


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("debug", ["tornadoproxy", "asyncio", "tornado.application", "some_plugin"]),
        ("info", ["some_plugin"]),
    ],
)
def test_level_decides_and_plugins_log_from_warning(
    tmp_path: Path, level: str, lines: list[str]
) -> None:
    """Tornado's lines below warning may quote headers, and its access log whole URIs."""
    records = [
        ("tornadoproxy", logging.DEBUG, "tornadoproxy", ()),
        ("asyncio", logging.DEBUG, "asyncio", ()),
        ("tornado.application", logging.DEBUG, "tornado.application", ()),
        ("tornado.general", logging.INFO, "Malformed HTTP message: x-api-key", ()),
        ("tornado.access", logging.ERROR, "500 GET /?key", ()),
        ("some_plugin", logging.INFO, "hidden", ()),
        ("some_plugin", logging.WARNING, "some_plugin", ()),
    ]
    logged_lines = logged(tmp_path / "log", level, *records)
    assert [line.rpartition(" ")[2] for line in logged_lines] == lines


def test_level_can_be_changed_and_is_restored(tmp_path: Path) -> None:
    names = ("tornadoproxy", "asyncio", "tornado", "tornado.general", "tornado.access")
    root = logging.getLogger()
    before = ([logging.getLogger(name).level for name in names], list(root.handlers))
    path = tmp_path / "log"
    with path.open("wb") as file, logging_to(file.fileno(), "error"):
        logger.info("before")
        set_level("info")
        logger.info("after")
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()] == ["after"]
    assert ([logging.getLogger(name).level for name in names], list(root.handlers)) == before
