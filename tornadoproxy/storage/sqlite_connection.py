"""A connection to an SQLite file, as plugins use it.

It is imported when a file is opened, so that a proxy without a database does not load `sqlite3`.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PARAMETERS = 999  # of one statement (https://www.sqlite.org/limits.html, 9)


class SQLiteConnection(sqlite3.Connection):
    """See `DatabaseConnection`."""

    # Any: each column has a type of its own
    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], /) -> None:
        """Insert rows."""
        # one statement for many rows costs half as much as one for each
        places = f"({', '.join('?' for _ in columns)})"
        one = f"INSERT INTO {table} ({', '.join(columns)}) VALUES {places}"  # noqa: S608  # the plugin's
        many = MAX_PARAMETERS // len(columns)
        several = one + f", {places}" * (many - 1)
        whole = len(rows) - len(rows) % many
        for start in range(0, whole, many):
            self.execute(several, [value for row in rows[start : start + many] for value in row])
        self.executemany(one, rows[whole:])
