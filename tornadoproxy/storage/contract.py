"""What every storage engine offers: its connection, and what `Database` needs of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from msgspec import Struct

from tornadoproxy.secret import SecretURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from tornadoproxy.errors import DatabaseUnavailable

DatabaseLocation: TypeAlias = Path | SecretURL
"""Where a database is: an SQLite file, or a ``postgresql://`` URL."""


class DatabaseStatus(Struct, frozen=True):
    """What a running proxy knows of a database, or of another server that keeps its data.

    :param name: the setting that names it.
    :param failing: whether the last attempt to use it failed.
    :param failures: how many attempts failed since the start.
    :param held: items that wait to be written.
    :param lost: items that were lost since the start.
    """

    name: str
    failing: bool
    failures: int
    held: int = 0
    lost: int = 0


# Any: the types of parameters and columns are those of the statement


class Cursor(Protocol):
    """The result of a statement: an iterator of its rows, which are tuples."""

    @property
    def description(self) -> Sequence[Sequence[Any]] | None:
        """The columns, each a sequence that begins with its name; ``None`` without rows."""
        ...

    @property
    def rowcount(self) -> int:
        """How many rows the statement has changed."""
        ...

    def fetchone(self) -> Any: ...

    def fetchmany(self, size: int, /) -> list[Any]: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class DatabaseConnection(Protocol):
    """A connection to a database within a transaction, as a plugin uses it.

    Parameters are written ``?``, and passed as a sequence, or ``:name``, and passed as a mapping.
    Both engines understand SQL such as ``INSERT … ON CONFLICT (column) DO UPDATE``, ``CASE`` and
    ``coalesce``. Booleans are stored as integers: pass ``int(flag)``.
    """

    def execute(self, statement: str, parameters: Any = ..., /) -> Cursor:
        """Execute one statement."""
        ...

    def executemany(self, statement: str, parameters: Iterable[Any], /) -> Cursor:
        """Execute one statement for each item of `parameters`."""
        ...

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], /) -> None:
        """Insert many rows, in the way that is the engine's fastest.

        :param columns: the columns that the rows have, quoted where SQL demands it.
        :param rows: their values are texts, numbers, bytes or ``None``, a float in a ``REAL`` only:
            elsewhere PostgreSQL may store it in another form, such as ``100000e-6``.
        """


class OutcomeUnknown(Exception):
    """The connection broke while a transaction was committed.

    :ivar committed: returns whether it was committed, as soon as the database can tell; it raises
        `DatabaseUnavailable` until then.
    :ivar error: the failure.
    :ivar result: what the work in the transaction has returned.
    """

    def __init__(self, committed: Callable[[], bool], error: DatabaseUnavailable) -> None:
        super().__init__(str(error))
        self.committed = committed
        self.error = error
        self.result: Any = None


class Engine(Protocol):
    """One database of one plugin, used by one thread at a time.

    Each method that uses the database raises `DatabaseUnavailable`, with one line that says why and
    what to do, if it cannot be used, and no other error of the engine's library, except for a wrong
    statement.

    :ivar title: the database in messages: the setting and its value, without a password.
    """

    title: str

    def check(self, *, created_by: str | None = None) -> None:
        """Validate where the database is, without creating anything.

        :param created_by: the command that creates the database, which must exist then.
        """

    def version(self) -> int:
        """Return the version of the plugin's schema in the database; 0 if it has none."""
        ...

    def open(self) -> None:
        """Open the database, create it if it is absent, and bring its schema up to date.

        Only one process does this at a time.
        """

    def serve(self, timeout: float) -> None:
        """Begin to serve a running proxy: from now on, statements have a deadline.

        :param timeout: seconds for a statement; SQLite has a limit of its own.
        """

    def verify(self) -> None:
        """Verify that the database which was opened is still there; connect again if necessary."""

    def transaction(self, *, exclusive: bool = True) -> AbstractContextManager[DatabaseConnection]:
        """Begin a transaction that may write; an exception rolls it back.

        :param exclusive: whether no other transaction of the plugin may run meanwhile, in any
            process; otherwise others may write at the same time.
        :raises OutcomeUnknown: at the end.
        """
        ...

    def reading(self) -> AbstractContextManager[DatabaseConnection]:
        """Return a second, read-only connection that sees the database as of one moment."""
        ...

    def has_changed(self) -> bool:
        """Return whether another connection has changed what the plugin watches since last asked.

        This is cheap: it reads no data.
        """
        ...

    def unavailable(self, reason: str) -> DatabaseUnavailable:
        """Return the error for `reason`."""
        ...

    def close(self) -> None:
        """Close the connection if it is open."""
