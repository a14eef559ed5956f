"""A connection to a PostgreSQL server with a deadline, and what its errors mean."""

from __future__ import annotations

import re
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.types.string import StrDumperUnknown

from tornadoproxy.storage import postgres_sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from psycopg.abc import PQGen

T = TypeVar("T")
Row = tuple[Any, ...]  # Any: each column has a type of its own

# SQLSTATEs and their classes (https://www.postgresql.org/docs/current/errcodes-appendix.html)
_REASONS = {
    "25006": "it is read-only: name the primary server",
    "28": "the user or its password is rejected: correct the URL",
    "3D000": "there is no such database: create it, or correct the URL",
    "40": "it is locked by another transaction: end that transaction",
    "42501": "access is denied: permit the user to create tables in its schema, and to use them",
    "53100": "the server's disk is full: free some space",
    "53300": "the server accepts no more connections: raise its max_connections, or use a pooler",
    "53": "the server lacks resources: see its log",
    "55P03": "it is locked by another transaction: end that transaction",
    "57014": "it did not respond in time",
    "57P": "the server stops or starts",
    "58": "the server fails: see its log",
    "08": "the connection was lost",
    "XX": "the server fails: see its log",
}
_NULL = r"\N"
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_BYTES = (bytes, bytearray, memoryview)
_EXACT = 2**53 / 1e6  # above it, not every whole number of millionths is a float
_UNREACHABLE = "it cannot be reached: start the server, or correct the URL"
_CONNECTING = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        ("authentication|no password|pg_hba|role .* does not exist", _REASONS["28"]),
        ("database .* does not exist", _REASONS["3D000"]),
        ("too many|connection slots", _REASONS["53300"]),
        ("read-only|standby", _REASONS["25006"]),
        ("starting up|shutting down|recovery", _REASONS["57P"]),
        ("certificate|SSL", "its TLS certificate is not accepted: see sslmode and sslrootcert"),
        ("closed the connection|reset by peer|broken pipe", _REASONS["08"]),
        ("time", _REASONS["57014"]),
    )
)


class Connection(psycopg.Connection[Row]):
    """A connection that is given up if the server does not respond to a statement.

    :ivar deadline: seconds for a response; the server's own timeout needs a server that responds.
    """

    deadline: float | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        return super().wait(gen, interval, self.deadline if timeout is None else timeout)


class Session:
    """A connection as plugins use it; see `DatabaseConnection`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(
        self, statement: str, parameters: Sequence[object] | Mapping[str, object] = (), /
    ) -> psycopg.Cursor[Row]:
        cursor = self._connection.cursor()
        if parameters:
            return cursor.execute(postgres_sql.statement(statement), parameters)
        return cursor.execute(statement.encode())

    def executemany(
        self,
        statement: str,
        parameters: Iterable[Sequence[object] | Mapping[str, object]],
        /,
    ) -> psycopg.Cursor[Row]:
        cursor = self._connection.cursor()
        cursor.executemany(postgres_sql.statement(statement), parameters)
        return cursor

    def insert(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]], /
    ) -> None:
        # a third of the time of one statement for each row; the library's lines take a third longer
        statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        fields = zip(*map(_fields, zip(*rows, strict=True)), strict=True)
        with self._connection.cursor().copy(statement.encode()) as copy:
            copy.write("".join(["\t".join(line) + "\n" for line in fields]))


class TextDumper(StrDumperUnknown):
    """Sends text with what PostgreSQL cannot store, NUL and half a surrogate pair, escaped."""

    def dump(self, obj: str) -> bytes:
        return _storable(obj)


def _storable(text: str) -> bytes:
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace")


def _fields(column: Sequence[Any]) -> Iterable[str]:
    """Return the values of a column in COPY's text format, most columns without a look at each."""
    kinds = set(map(type, column))
    if kinds == {NoneType}:
        return [_NULL] * len(column)
    if kinds == {int}:
        return map(str, column)
    if kinds == {str} and _is_plain("".join(column)):
        return column
    return map(_field, column)


def _is_plain(text: str) -> bool:
    return text.isprintable() and "\\" not in text


def _field(value: object) -> str:
    """Return a value in COPY's text format (https://www.postgresql.org/docs/current/sql-copy.html).

    A float of whole millionths is written as such: Python takes a tenth of the time for an integer.
    """
    if value is None:
        return _NULL
    if isinstance(value, str):
        return value if _is_plain(value) else _storable(value).decode().translate(_ESCAPES)
    if isinstance(value, float) and abs(value) < _EXACT:
        millionths = round(value * 1e6)
        return f"{millionths}e-6" if millionths / 1e6 == value else str(value)
    return rf"\\x{value.hex()}" if isinstance(value, _BYTES) else str(value)


def reason_of(error: psycopg.Error) -> str | None:
    """Return why the database cannot be used; `None` if only the statement is wrong."""
    state = error.sqlstate
    if state is None:
        if not isinstance(error, psycopg.OperationalError):
            return None
        # the library gives no code if it cannot connect
        return next(
            (reason for pattern, reason in _CONNECTING if pattern.search(str(error))), _UNREACHABLE
        )
    for length in (5, 3, 2):
        if state[:length] in _REASONS:
            return _REASONS[state[:length]]
    return None
