"""Copies of a plugin's data from one engine to the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tornadoproxy import ConfigurationError, Database, SecretURL
from tornadoproxy.storage import copying

SCHEMA = (
    """CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, hash BLOB, "groups" INTEGER, at REAL);
    CREATE TABLE revision (revision INTEGER NOT NULL);
    INSERT INTO revision VALUES (0);""",
)
ROWS = [(1, "ä%?:a", b"\\x00\\xff", 7, 0.1), (5, None, None, None, None)]


@pytest.fixture(params=["to PostgreSQL", "to SQLite"])
def databases(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: SecretURL
) -> tuple[Database, Database]:
    """A database with data, and an empty one of the other engine."""
    where: list[Path | SecretURL] = [tmp_path / "test.db", postgres]
    if request.param == "to SQLite":
        where.reverse()
    source, target = (Database(each, SCHEMA, name="test") for each in where)
    with source, source.transaction() as connection:
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", ROWS)
        connection.execute("UPDATE revision SET revision = 3")
    return source, target


def test_copy_is_equal_and_counts_on(
    databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = databases
    monkeypatch.setattr(copying, "STEP", 1)
    told: list[tuple[str, int, int]] = []
    with target:
        copied = copying.copy(source, target, replace=False, progress=lambda *it: told.append(it))
        with target.transaction() as connection:
            assert connection.execute("SELECT * FROM items ORDER BY id").fetchall() == ROWS
            assert connection.execute("SELECT revision FROM revision").fetchall() == [(3,)]
            connection.execute("INSERT INTO items (name) VALUES ('new')")
            assert connection.execute("SELECT max(id) FROM items").fetchone() == (6,)
    assert copied == {"items": 2, "revision": 1}
    assert told == [("items", 1, 2), ("items", 2, 2), ("revision", 1, 1)]


def test_copy_replaces_data_only_if_told(databases: tuple[Database, Database]) -> None:
    source, target = databases
    with target:
        for replace in (False, True):
            copying.copy(source, target, replace=replace, progress=lambda *_: None)
        with pytest.raises(ConfigurationError, match="already holds data of test"):
            copying.copy(source, target, replace=False, progress=lambda *_: None)
        with target.transaction() as connection:
            assert connection.execute("SELECT count(*) FROM items").fetchone() == (2,)


def test_copy_that_differs_is_undone(databases: tuple[Database, Database]) -> None:
    source, target = databases
    trigger = {
        "sqlite": "CREATE TRIGGER worse AFTER INSERT ON items BEGIN"
        ' UPDATE items SET "groups" = 8 WHERE id = 1; END',
        "postgresql": "CREATE FUNCTION worse() RETURNS TRIGGER LANGUAGE plpgsql AS"
        ' $$ BEGIN UPDATE items SET "groups" = 8 WHERE id = 1; RETURN NULL; END $$;'
        " CREATE TRIGGER worse AFTER INSERT ON items EXECUTE FUNCTION worse()",
    }
    with target:
        with target.transaction() as connection:
            connection.execute(trigger[target.dialect])
        with pytest.raises(ConfigurationError, match="the copy of items"):
            copying.copy(source, target, replace=False, progress=lambda *_: None)
        with target.transaction() as connection:
            assert connection.execute("SELECT * FROM items").fetchall() == []
