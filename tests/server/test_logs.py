"""Logging: one line a record, whatever is in it, and never a wait."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from time import time as wall_clock
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.server.logs import logging_to, set_level

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("tornadoproxy.test")


def logged(path: Path, level: str, *records: tuple[str, int, str, tuple[object, ...]]) -> list[str]:
    """The lines for these records: logger, level, message, arguments."""
    with path.open("wb") as file, logging_to(file.fileno(), level):
        for name, number, message, arguments in records:
            logging.getLogger(name).log(number, message, *arguments)
    return path.read_text().splitlines()


def test_a_record_is_a_line_with_time_level_logger_and_message(tmp_path: Path) -> None:
    record = ("tornadoproxy.test", logging.WARNING, "hello %s", ("you",))
    (line,) = logged(tmp_path / "log", "info", record)
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert abs(datetime.fromisoformat(time).timestamp() - wall_clock()) < 60
    assert rest == "WARNING tornadoproxy.test: hello you"


def test_a_message_cannot_forge_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest-xdist cannot carry half of a surrogate pair that pytest's own handler has caught
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    record = ("tornadoproxy.test", logging.INFO, "%s", ("a\nb\r\x1b[31m\x7fü\udcff",))
    (line,) = logged(tmp_path / "log", "info", record)
    assert line.endswith("a\\nb\\r\\x1b[31m\\x7fü\\udcff")


def test_a_traceback_follows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file, logging_to(file.fileno(), "info"):
        try:
            int("reason")
        except ValueError:
            logger.exception("unexpected")
    first, *traceback = path.read_text().splitlines()
    assert first.endswith("ERROR tornadoproxy.test: unexpected")
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1].startswith("ValueError: invalid literal for int()")


def test_a_record_that_does_not_fit_its_format_hides_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own handler would raise
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    record = ("tornadoproxy.test", logging.INFO, "%d", ("secret",))
    (line,) = logged(tmp_path / "log", "info", record)
    assert line == "a record of tornadoproxy.test does not fit its format: TypeError"


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", {"tornadoproxy", "asyncio", "tornado.application"}),
        ("info", set()),
        ("warning", set()),
        ("error", set()),
    ],
)
def test_the_level_decides(tmp_path: Path, level: str, heard: set[str]) -> None:
    names = ("tornadoproxy", "asyncio", "tornado.application", "tornado.general", "some_plugin")
    lines = logged(tmp_path / "log", level, *((name, logging.DEBUG, name, ()) for name in names))
    assert {line.rpartition(" ")[2] for line in lines} == heard


def test_what_tornado_may_quote_is_not_heard(tmp_path: Path) -> None:
    general = ("tornado.general", logging.INFO, "Malformed HTTP message: x-api-key", ())
    access = ("tornado.access", logging.ERROR, "500 GET /?key", ())
    assert logged(tmp_path / "log", "debug", general, access) == []


def test_plugins_are_heard_from_warning_up(tmp_path: Path) -> None:
    lines = logged(
        tmp_path / "log",
        "debug",
        ("some_plugin", logging.INFO, "info", ()),
        ("some_plugin", logging.WARNING, "warning", ()),
    )
    assert [line.rpartition(" ")[2] for line in lines] == ["warning"]


def test_the_level_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file, logging_to(file.fileno(), "error"):
        logger.info("before")
        set_level("info")
        logger.info("after")
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()] == ["after"]


def test_everything_is_as_before_afterwards(tmp_path: Path) -> None:
    names = ("tornadoproxy", "asyncio", "tornado", "tornado.general", "tornado.access")
    root = logging.getLogger()
    before = ([logging.getLogger(name).level for name in names], list(root.handlers))
    logged(tmp_path / "log", "debug")
    assert ([logging.getLogger(name).level for name in names], list(root.handlers)) == before
