"""A plugin's table of numbers, in a file or on a server."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tornadoproxy import Database, DatabaseConnection, DatabaseLocation
from tornadoproxy.storage import sqlite_file, worker

SCHEMA = ("CREATE TABLE numbers (number INTEGER NOT NULL);",)
WORDS = "CREATE TABLE words (word TEXT);"


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "test.db"


@pytest.fixture
def short_timeouts(short_locks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait only briefly for locks, and at the end; comes before `opened`."""
    monkeypatch.setattr(sqlite_file, "OPEN_TIMEOUT", 0.1)
    monkeypatch.setattr(worker, "CLOSE_TIMEOUT", 0.3)


@contextlib.asynccontextmanager
async def started(where: DatabaseLocation) -> AsyncIterator[Database]:
    """Open a database, and start its thread."""
    opened = Database(where, SCHEMA, name="test", watched=["numbers"])
    await opened.start()
    await opened.changed()
    try:
        yield opened
    finally:
        await opened.close()


def add(numbers: Sequence[int | None], connection: DatabaseConnection) -> None:
    connection.executemany("INSERT INTO numbers VALUES (?)", [(each,) for each in numbers])


def adding(number: int) -> Callable[[DatabaseConnection], int]:
    """Return what adds this number, and returns it."""

    def work(connection: DatabaseConnection) -> int:
        add([number], connection)
        return number

    return work


def numbers(connection: DatabaseConnection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT number FROM numbers ORDER BY 1")]


def insert(where: DatabaseLocation, number: int) -> None:
    """Create a database, if it is absent, and add a number."""
    with Database(where, SCHEMA, name="test") as opened, opened.transaction() as connection:
        add([number], connection)


def numbers_in(path: Path) -> list[int]:
    """Return what a file contains for another process, in the order in which it was written."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT number FROM numbers ORDER BY rowid")
        return [number for (number,) in found]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another connection in the middle of a transaction that writes."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
