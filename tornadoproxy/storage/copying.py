"""A copy of a plugin's data into another database, perhaps of another engine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tornadoproxy.errors import ConfigurationError
from tornadoproxy.storage.sqlite_connection import SQLiteConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tornadoproxy.storage.contract import DatabaseConnection
    from tornadoproxy.storage.database import Database

    Row = tuple[Any, ...]  # Any: each column has a type of its own
    Progress = Callable[[str, int, int], None]

STEP = 1_000  # rows

# The names of tables and columns in the following statements are those of the plugin's schema.
# ruff: noqa: S608


def copy(
    source: Database, target: Database, *, replace: bool, progress: Progress
) -> dict[str, int]:
    """Copy all rows of `source`, as of one moment, into `target`, in one transaction; verify them.

    :param target: an open database with the same schema.
    :param replace: whether data that `target` holds is deleted; otherwise it is refused.
    :param progress: called with a table, the number of its rows copied so far, and of all.
    :return: the number of rows of each table.
    :raises ConfigurationError: one of the two cannot be used, `target` holds data, or the copy is
        not equal to its source; nothing was changed then.
    """
    with source.reading() as old, target.transaction() as new:
        if not replace and _data(target, new) != _initial_data(target):
            raise ConfigurationError(
                f"{target.where} already holds data of {target.name}: name an empty database, or "
                "add --replace to delete that data."
            )
        # the tables that others refer to come first in a schema
        for table in reversed(target.tables):
            new.execute(f"DELETE FROM {table}")
        return {
            table: _copy_table(table, source, old, target, new, progress) for table in target.tables
        }


def _copy_table(
    table: str,
    source: Database,
    old: DatabaseConnection,
    target: Database,
    new: DatabaseConnection,
    progress: Progress,
) -> int:
    (total,) = old.execute(f"SELECT count(*) FROM {table}").fetchone()
    names = old.execute(f"SELECT * FROM {table} LIMIT 0").description or ()
    columns = [f'"{name}"' for name, *_ in names]
    copied, sums = 0, [0] * len(columns)
    for batch in _batches(table, source, old):
        new.insert(table, columns, batch)
        copied += len(batch)
        for row in batch:
            for number, value in enumerate(row):
                if isinstance(value, int):
                    sums[number] += value
        progress(table, copied, total)
    whole = [column for column, value in zip(columns, sums, strict=True) if value]
    wanted = (total, *(value for value in sums if value))
    figures = ", ".join(["count(*)", *(f"CAST(sum({column}) AS BIGINT)" for column in whole)])
    if tuple(new.execute(f"SELECT {figures} FROM {table}").fetchone()) != wanted:
        raise ConfigurationError(
            f"the copy of {table} in {target.where} differs from its source, so nothing was "
            "copied: try again, and report this if it happens again."
        )
    if target.dialect == "postgresql" and '"id"' in columns:
        _continue_counting(table, new)
    return copied


def _batches(
    table: str, source: Database, connection: DatabaseConnection
) -> Iterator[Sequence[Row]]:
    """Yield the rows of a table, `STEP` at a time."""
    rows = f"SELECT * FROM {table}"
    if source.dialect == "postgresql":
        # otherwise the library would fetch all rows at once
        connection.execute(f"DECLARE rows_of_{table} NO SCROLL CURSOR FOR {rows}")
        while batch := connection.execute(f"FETCH {STEP} FROM rows_of_{table}").fetchall():
            yield batch
    else:
        cursor = connection.execute(rows)
        while batch := cursor.fetchmany(STEP):
            yield batch


def _continue_counting(table: str, connection: DatabaseConnection) -> None:
    """Let PostgreSQL give the next row an ``id`` that no copied row has."""
    (counter,) = connection.execute("SELECT pg_get_serial_sequence(?, 'id')", (table,)).fetchone()
    if counter is not None:
        connection.execute(
            f"SELECT setval(?, (SELECT coalesce(max(id), 0) + 1 FROM {table}), false)", (counter,)
        )


def _data(database: Database, connection: DatabaseConnection) -> list[list[Row]]:
    """Return the first rows of each table."""
    return [
        [tuple(row) for row in connection.execute(f"SELECT * FROM {table} LIMIT 2")]
        for table in database.tables
    ]


def _initial_data(database: Database) -> list[list[Row]]:
    """Return the same of a database that has just been created."""
    with contextlib.closing(SQLiteConnection(":memory:")) as connection:
        connection.executescript("\n".join(database.schema))
        return _data(database, connection)
