"""An SQLite file: its path, schema, transactions and errors.

The file is in WAL mode, with ``synchronous=NORMAL`` (https://www.sqlite.org/wal.html): other
processes can read it at any time, and write to it between transactions. If the process is killed,
the file stays sound and contains everything that was committed. If the machine crashes, the last
commits may be lost.

An error of SQLite because the file cannot be used (locked for seconds, full, corrupt) becomes
`DatabaseUnavailable` here and nowhere else. An error because a statement is wrong is not changed.

A file that was deleted, moved or replaced since it was opened cannot be used, and no new one is
created: data written to a deleted file would be lost silently, and an empty file would accept
people whom the deleted one rejected. The same file can be used again when it is back; the next
start opens another one.

`sqlite3` is imported when a file is opened, so that a proxy without a database does not load it.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from tornadoproxy.errors import DatabaseUnavailable
from tornadoproxy.storage.schema_version import migration_refusal, reading_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tornadoproxy.storage.sqlite_connection import SQLiteConnection

BUSY_TIMEOUT = 2.0  # seconds to wait for a lock of another connection
OPEN_TIMEOUT = 10.0  # seconds to wait for locks while opening

# SQLite's result codes (https://www.sqlite.org/rescode.html), without their extensions
_REASONS = {
    3: "access is denied: permit the proxy's user to read and write it",
    5: "it is locked by another program: end that program's transaction",
    6: "it is locked by another program: end that program's transaction",
    8: "it cannot be written: permit the proxy's user to write it and its directory",
    10: "the disk fails, or cannot be reached",
    11: "it is corrupt: stop the proxy and restore a backup",
    13: "the disk is full: free some space",
    14: "it cannot be opened: permit the proxy's user to read and write it and its directory",
    26: "it is not an SQLite database: name another file, or restore a backup",
}
_BUSY = (5, 6)
# Python's own module, ERROR (such as no such table), TOOBIG, CONSTRAINT, MISMATCH, MISUSE, RANGE
_ERRORS_OF_STATEMENTS = (0, 1, 18, 19, 20, 21, 25)

_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS tornadoproxy_schema "
    "(name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
)


class SQLiteFile:
    """One SQLite file and the connection to it, for one thread at a time.

    The parameters are those of `Database`; see `Engine` for the methods.

    :ivar title: the file in messages.
    """

    def __init__(self, path: Path, schema: Sequence[str], name: str, title: str) -> None:
        self.title = title
        self._path = path
        self._schema = tuple(schema)
        self._name = name
        self._connection: SQLiteConnection | None = None
        self._opened: tuple[int, int] | None = None
        self._data_version = 0

    @property
    def connection(self) -> SQLiteConnection:
        assert self._connection is not None, "open() comes first"
        return self._connection

    def unavailable(self, reason: str) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"{self.title} cannot be used: {reason}")

    def check(self, *, created_by: str | None = None) -> None:
        try:
            path = self._path.absolute()
            if path.is_dir():
                raise self.unavailable("it is a directory: name a file in it")
            if path.exists() and not path.is_file():
                raise self.unavailable("it is not a regular file: name another path")
            directory = path.parent
            if not directory.exists():
                raise self.unavailable(
                    f"the directory {directory} does not exist: create it, or correct the path"
                )
        except OSError as error:
            raise self.unavailable(f"it cannot be reached: {error.strerror}") from None
        if not directory.is_dir():
            raise self.unavailable(f"{directory} is not a directory: name another path")
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise self.unavailable(_REASONS[3])
        if not os.access(directory, os.W_OK | os.X_OK):
            raise self.unavailable(f"the proxy's user cannot write to {directory}: permit it")
        if created_by is not None and not path.exists():
            raise self.unavailable(f"it does not exist; `{created_by}` creates it")

    def version(self) -> int:
        if not self._path.exists():
            return 0
        with self._mapped(), contextlib.closing(self._connect("ro")) as connection:
            return self._version(connection)

    def serve(self, timeout: float) -> None:
        """Do nothing: SQLite waits at most `BUSY_TIMEOUT` for a lock anyway."""
        del timeout
        assert self._connection is not None, "open() comes first"

    def open(self) -> None:
        self.check()
        deadline = time.monotonic() + OPEN_TIMEOUT
        while True:
            try:
                with self._mapped():
                    self._open()
            except BaseException as error:
                self.close()
                if isinstance(error, OSError):
                    raise self.unavailable(f"it cannot be created: {error.strerror}") from None
                # the switch to WAL mode does not wait for other processes that open the file
                if _code(error.__cause__) not in _BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def verify(self) -> None:
        assert self._opened is not None, "open() comes first"
        try:
            there = _identity(self._path)
        except OSError as error:
            raise self.unavailable(
                f"it was deleted or moved ({error.strerror}): put it back"
            ) from None
        if there != self._opened:
            raise self.unavailable(
                "another file is in its place: restart the proxy to use that one"
            )

    @contextlib.contextmanager
    def transaction(self, *, exclusive: bool = True) -> Iterator[SQLiteConnection]:
        """Begin a transaction; SQLite permits one writer at a time, so each is exclusive."""
        del exclusive
        connection = self.connection
        with self._mapped():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[SQLiteConnection]:
        try:
            self._path.stat()
        except FileNotFoundError:
            raise self.unavailable(
                "there is no such file: the proxy creates it when it starts"
            ) from None
        except OSError as error:
            raise self.unavailable(f"it cannot be reached: {error.strerror}") from None
        with self._mapped(), contextlib.closing(self._connect("ro")) as connection:
            connection.execute("BEGIN")
            version = self._version(connection)
            if refusal := reading_refusal(version, len(self._schema), self._name):
                raise self.unavailable(refusal)
            yield connection

    def has_changed(self) -> bool:
        before = self._data_version
        with self._mapped():
            (self._data_version,) = self.connection.execute("PRAGMA data_version").fetchone()
        return self._data_version != before

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """Raise `DatabaseUnavailable` instead of an error of SQLite about the file."""
        import sqlite3

        try:
            yield
        except sqlite3.Error as error:
            if _code(error) in _ERRORS_OF_STATEMENTS:
                raise
            name: str = getattr(error, "sqlite_errorname", type(error).__name__)
            raise self.unavailable(_REASONS.get(_code(error), name)) from error

    def _open(self) -> None:
        """Try once to open the file."""
        self._make_file()
        self._connection = connection = self._connect("rw")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise self.unavailable(
                f"its file system does not support WAL ({mode}): name a path on a local disk"
            )
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        self._migrate(connection)
        self._opened = _identity(self._path)
        self.has_changed()

    def _connect(self, mode: str) -> SQLiteConnection:
        import sqlite3

        from tornadoproxy.storage.sqlite_connection import SQLiteConnection

        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,  # this module begins and ends transactions itself
            check_same_thread=False,  # one thread opens it, and another one uses it
            factory=SQLiteConnection,
        )

    def _make_file(self) -> None:
        # an existing file is not opened here: closing it would drop SQLite's locks on it
        # (https://www.sqlite.org/howtocorrupt.html, 2.2)
        with contextlib.suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self._path, flags, 0o600))

    def _migrate(self, connection: SQLiteConnection) -> None:
        # usually the schema is up to date, which needs no lock
        if self._version(connection) == len(self._schema):
            return
        with self.transaction():
            connection.execute(_VERSIONS)
            version = self._version(connection)
            if refusal := migration_refusal(version, len(self._schema)):
                raise self.unavailable(refusal)
            for script in self._schema[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(
                "INSERT OR REPLACE INTO tornadoproxy_schema VALUES (?, ?)",
                (self._name, len(self._schema)),
            )

    def _version(self, connection: SQLiteConnection) -> int:
        if not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'tornadoproxy_schema'"
        ).fetchone():
            return 0
        row = connection.execute(
            "SELECT version FROM tornadoproxy_schema WHERE name = ?", (self._name,)
        ).fetchone()
        return int(row[0]) if row else 0


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _code(error: BaseException | None) -> int:
    """Return SQLite's result code without its extension; 0 for an error of another origin."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _statements(script: str) -> Iterator[str]:
    """Split `script` into statements; `executescript` would end the transaction first."""
    import sqlite3

    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
