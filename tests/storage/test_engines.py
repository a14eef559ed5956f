"""What a plugin's database does on either engine: transactions, schemas, changes of others."""

from __future__ import annotations

import asyncio
from math import inf

import pytest
from storage.conftest import SCHEMA, WORDS, add, adding, insert, numbers, started

from tornadoproxy import ConfigurationError, Database, DatabaseConnection, DatabaseLocation

ANOTHER_VERSION = "it was written by another version of the plugin: start this version"


async def test_work_that_raises_changes_nothing_and_raises(where: DatabaseLocation) -> None:
    def broken(connection: DatabaseConnection) -> None:
        adding(1)(connection)
        raise KeyError("mine")

    async with started(where) as opened:
        with pytest.raises(KeyError, match="mine"):
            await opened.run(broken)
        with pytest.raises(Exception, match=r"(?i)not.null"):
            await opened.run(lambda connection: add([None], connection))
        assert await opened.run(numbers) == []
        assert not opened.failing


def test_transaction_that_raises_changes_nothing(where: DatabaseLocation) -> None:
    def use(opened: Database) -> None:
        with opened.transaction() as connection:
            add([1], connection)
            raise KeyError("mine")

    with Database(where, SCHEMA, name="test") as opened:
        with pytest.raises(KeyError, match="mine"):
            use(opened)
        with opened.transaction() as connection:
            assert numbers(connection) == []


async def test_changes_of_others_are_told_and_own_ones_are_not(where: DatabaseLocation) -> None:
    async with started(where) as one, started(where) as two:
        await one.run(adding(1))
        assert not await one.changed()
        while not await two.changed():  # a server's notice takes a moment
            await asyncio.sleep(0)
        assert not await two.changed()
        assert await two.run(numbers) == [1]


def test_schema_is_migrated_once(where: DatabaseLocation) -> None:
    insert(where, 1)
    newer = (
        *SCHEMA,
        "ALTER TABLE numbers ADD COLUMN word TEXT;\n-- why; not\nCREATE INDEX i ON numbers (word)",
        "UPDATE numbers SET word = 'a;b';",
    )
    for statement in ("SELECT 1", "DROP INDEX i"):
        with Database(where, newer, name="test") as opened, opened.transaction() as connection:
            assert connection.execute("SELECT * FROM numbers").fetchall() == [(1, "a;b")]
            connection.execute(statement)


def test_migration_that_fails_leaves_the_previous_version(where: DatabaseLocation) -> None:
    insert(where, 1)
    broken = (*SCHEMA, f"{WORDS} INSERT INTO nowhere VALUES (1);")
    with pytest.raises(Exception, match="nowhere"):
        Database(where, broken, name="test").open()
    insert(where, 2)
    with Database(where, (*SCHEMA, WORDS), name="test") as opened:
        assert opened.version() == 2, "there were no words before"


def test_database_of_a_newer_version_is_refused(where: DatabaseLocation) -> None:
    with Database(where, (*SCHEMA, WORDS), name="test"):
        pass
    with pytest.raises(ConfigurationError) as caught:
        Database(where, SCHEMA, name="test").open()
    assert caught.value.faults == (
        f"the database {where} of test cannot be used: it was written by a newer version of the "
        "plugin (schema 2, and this one has 1): install the newer one, or name another database",
    )


@pytest.mark.parametrize(
    ("schema", "name", "reason"),
    [
        (SCHEMA * 2, "test", ANOTHER_VERSION),
        ((), "test", ANOTHER_VERSION),
        (SCHEMA, "other", "other has never written to it: name the database of other"),
    ],
)
def test_reader_refuses_another_schema(
    where: DatabaseLocation, schema: tuple[str, ...], name: str, reason: str
) -> None:
    insert(where, 1)
    reader = Database(where, schema, name=name)
    with pytest.raises(ConfigurationError, match=reason), reader.reading():
        pass


TEXTS = ["", "\\N", "\\.", "a\tb\nc\r\\d", "'\"ä€", "a", None]
DATA = b"\\x00\0\xff"
BLOBS = [DATA, bytearray(DATA), memoryview(DATA), b"", DATA, DATA, None]
PARTS = [0.1, 1 / 3, 1_764_550_000.123456, -2.5e-7, 1e300, -inf, None]


@pytest.mark.parametrize("count", [0, 1, len(PARTS)])
def test_many_rows_are_inserted_as_they_are(where: DatabaseLocation, count: int) -> None:
    schema = ("CREATE TABLE kinds (word TEXT, part REAL, whole INTEGER, data BLOB, no TEXT);",)
    rows = [
        (word, part, -(2**63), data, None)
        for word, part, data in zip(TEXTS, PARTS, BLOBS, strict=True)
    ]
    with Database(where, schema, name="test") as opened, opened.transaction() as connection:
        connection.insert("kinds", ("word", "part", "whole", "data", "no"), rows[:count])
        found = connection.execute("SELECT * FROM kinds")
        assert [tuple(row) for row in found] == rows[:count]
