"""Logging: one line per record on standard error.

Lines are written by a `LineWriter`, so that a terminal or a pipe that blocks delays no request.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tornadoproxy.server.line_writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(0x20), 0x7F)}


@contextlib.contextmanager
def logging_to(fd: int, level: str) -> Iterator[LineWriter]:
    """Log to the file descriptor `fd`, from `level` up, while the context lasts.

    Records of plugins' own loggers are logged from ``warning`` up.

    :return: the writer, for lines that are not log records.
    """
    writer = LineWriter(fd)
    handler = _LineHandler(writer)
    root = logging.getLogger()
    before = {name: logging.getLogger(name).level for name in _levels(level)}
    root.addHandler(handler)
    set_level(level)
    try:
        yield writer
    finally:
        root.removeHandler(handler)
        for name, number in before.items():
            logging.getLogger(name).setLevel(number)
        writer.close()


def set_level(level: str) -> None:
    """Log from `level` up: ``debug``, ``info``, ``warning`` or ``error``."""
    for name, number in _levels(level).items():
        logging.getLogger(name).setLevel(number)


def _levels(level: str) -> dict[str, int]:
    wanted: int = getattr(logging, level.upper())
    return {
        "tornadoproxy": wanted,
        "asyncio": wanted,
        "tornado": wanted,
        # below warning it quotes malformed header lines, which may hold credentials
        "tornado.general": max(wanted, logging.WARNING),
        # its lines have the whole URI, query included; the access log is a plugin's
        "tornado.access": logging.CRITICAL + 1,
    }


class _LineHandler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:
            # logging itself would print the record's arguments, and block on standard error
            text = f"a record of {record.name} does not fit its format: {type(error).__name__}"
        for line in text.splitlines():
            self._writer.write(line.encode("utf-8", "backslashreplace"))


class _Formatter(logging.Formatter):
    """A format that keeps a record's message on one line, whatever it contains."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's
        """Return the time by RFC 3339, in UTC, as in the access log."""
        time = datetime.fromtimestamp(record.created, UTC)
        return time.isoformat(timespec="milliseconds")[:-6] + "Z"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's  # logging's own name
        return super().formatMessage(record).translate(_CONTROLS)
