"""A PostgreSQL database: its connection, schema, transactions and errors.

It works with PostgreSQL 13 and later, and through a pooler such as PgBouncer 1.21 and later.

There is one connection for each plugin, since one thread uses it. It is closed after any error
that leaves its state unknown, and opened again by the next `PostgreSQL.verify`. Of a URL with
several hosts, the one that can be written is used, so that a failover needs no other URL.

An exclusive transaction of a plugin takes an advisory lock of the plugin's, so that work which
reads and then writes behaves in several processes as it does in one, and as in SQLite. Rows that
are only added, or added to, need no lock.

Changes of the tables that a plugin watches are announced with ``NOTIFY`` by triggers, which also
count them. The connection listens; a count is read once a second as well, for the case that a
pooler swallows the announcements.

An error of the library because the database cannot be used becomes `DatabaseUnavailable` here and
nowhere else, without the library's text, which may quote the URL. An error because a statement is
wrong is not changed.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING

import psycopg
from psycopg import conninfo, errors, sql

from tornadoproxy.errors import DatabaseUnavailable
from tornadoproxy.storage import postgres_sql
from tornadoproxy.storage.contract import OutcomeUnknown
from tornadoproxy.storage.postgres_connection import (
    Connection,
    Row,
    Session,
    TextDumper,
    reason_of,
)
from tornadoproxy.storage.schema_version import migration_refusal, reading_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tornadoproxy.secret import SecretURL

COMMAND_TIMEOUT = 600.0  # seconds for a statement of the start or of a command
CONNECT_TIMEOUT = 2  # seconds; PostgreSQL's library takes no less
POLL = 1.0  # seconds between two readings of the count of changes
MARGIN = 0.1  # seconds by which the server gives up before this side does

_MIGRATION_LOCK = 0x7470  # the first of an advisory lock's two numbers; that of transactions is +1

_VERSIONS = """
CREATE TABLE IF NOT EXISTS tornadoproxy_schema (
    name TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    changes BIGINT NOT NULL DEFAULT 0
);
CREATE OR REPLACE FUNCTION tornadoproxy_announce() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tornadoproxy_schema SET changes = changes + 1 WHERE name = TG_ARGV[0];
    PERFORM pg_notify('tornadoproxy', TG_ARGV[0]);
    RETURN NULL;
END $$
"""


class PostgreSQL:
    """One database of a PostgreSQL server and the connection to it, for one thread at a time.

    The parameters are those of `Database`; see `Engine` for the methods.

    :ivar title: the database in messages.
    """

    def __init__(
        self, url: SecretURL, schema: Sequence[str], name: str, title: str, watched: Sequence[str]
    ) -> None:
        self.title = title
        self._url = url
        self._schema = tuple(schema)
        self._name = name
        self._watched = tuple(watched)
        self._literal = sql.Literal(name).as_string()
        self._lock = zlib.crc32(name.encode()) - 2**31  # any number of its own, of four bytes
        self._deadline = COMMAND_TIMEOUT
        self._connection: Connection | None = None
        self._changes = 0  # the count of changes that the plugin knows of
        self._others_changed = False
        self._poll_at = 0.0

    def unavailable(self, reason: str) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"{self.title} cannot be used: {reason}")

    def check(self, *, created_by: str | None = None) -> None:
        """Validate the URL; connect only if the database must exist."""
        try:
            conninfo.conninfo_to_dict(self._url.reveal())
        except psycopg.Error:  # its text quotes the URL
            raise self.unavailable(
                "its URL is not valid: write postgresql://user:password@host:5432/database, with "
                "the special characters of user and password percent-encoded"
            ) from None
        if created_by is not None and self.version() == 0:
            raise self.unavailable(f"{self._name} has no tables in it; `{created_by}` creates them")

    def version(self) -> int:
        with self._mapped(), contextlib.closing(self._connect()) as connection:
            return _version(connection, self._name)

    def open(self) -> None:
        self.check()
        try:
            self.verify()
        except BaseException:
            self.close()
            raise

    def serve(self, timeout: float) -> None:
        self._deadline = timeout
        self._open_connection.deadline = timeout + MARGIN

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def verify(self) -> None:
        if self._connection is not None and not self._connection.closed:
            return
        with self._mapped():
            self._connection = connection = self._connect()
            self._migrate(connection)
            if self._watched:
                connection.execute("LISTEN tornadoproxy")
        # whatever changed while there was no connection is found by the count
        self._poll_at = 0.0

    @contextlib.contextmanager
    def transaction(self, *, exclusive: bool = True) -> Iterator[Session]:
        connection = self._open_connection
        with self._mapped():
            try:
                before, transaction = self._begin(connection, exclusive=exclusive)
                yield Session(connection)
                if exclusive:
                    after, transaction = self._row(
                        connection, "changes, pg_current_xact_id_if_assigned()::text"
                    )
            except BaseException:
                self._roll_back(connection)
                raise
        self._commit(connection, transaction)
        if exclusive and self._watched:
            # nobody else could change anything after the lock was taken
            self._others_changed |= before != self._changes
            self._changes = after

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        self.check()
        with self._mapped(), contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            version = _version(connection, self._name)
            if refusal := reading_refusal(version, len(self._schema), self._name):
                raise self.unavailable(refusal)
            yield Session(connection)

    def has_changed(self) -> bool:
        connection = self._open_connection
        with self._mapped():
            told = [each.payload == self._name for each in connection.notifies(timeout=0)]
            if any(told) or time.monotonic() >= self._poll_at:
                self._poll_at = time.monotonic() + POLL
                (changes,) = self._row(connection, "changes")
                self._others_changed |= changes != self._changes
                self._changes = changes
        changed, self._others_changed = self._others_changed, False
        return changed

    @property
    def _open_connection(self) -> Connection:
        assert self._connection is not None, "open() comes first"
        return self._connection

    def _connect(self) -> Connection:
        parameters = {
            "connect_timeout": CONNECT_TIMEOUT,
            "application_name": f"tornadoproxy {self._name}",
            "target_session_attrs": "read-write",
            **conninfo.conninfo_to_dict(self._url.reveal()),
            "client_encoding": "utf8",
        }
        # this module begins and ends transactions itself
        connection = Connection.connect(conninfo.make_conninfo("", **parameters), autocommit=True)
        connection.deadline = self._deadline + MARGIN
        connection.adapters.register_dumper(str, TextDumper)
        return connection

    def _begin(self, connection: Connection, *, exclusive: bool) -> Row:
        """Begin a transaction in one round trip.

        :return: the count of changes, and the transaction's number, each unless it is not needed or
            not known yet.
        """
        statements = [
            "BEGIN",
            f"SET LOCAL statement_timeout = {self._deadline * 1000:.0f}",
            "SELECT NULL, pg_current_xact_id()::text",
        ]
        if exclusive:
            statements[2:] = [
                f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK + 1}, {self._lock})",
                f"SELECT changes, NULL FROM tornadoproxy_schema WHERE name = {self._literal}",  # noqa: S608  # quoted
            ]
        cursor = connection.execute("; ".join(statements), prepare=False)
        while cursor.nextset():
            pass
        return _first(cursor)

    def _commit(self, connection: Connection, transaction: str | None) -> None:
        """Commit a transaction; `transaction` is its number, if it has changed anything.

        :raises DatabaseUnavailable: it was rolled back.
        :raises OutcomeUnknown: the connection broke meanwhile.
        """
        try:
            connection.execute("COMMIT")
        except psycopg.Error as error:
            self.close()
            failure = self.unavailable(reason_of(error) or "a transaction was not committed")
            state = error.sqlstate
            # what the server reports itself is certain, unless it was stopped meanwhile
            if transaction is None or (state is not None and not state.startswith(("08", "57P"))):
                raise failure from None
            raise OutcomeUnknown(partial(self._was_committed, transaction), failure) from None

    def _was_committed(self, transaction: str) -> bool:
        """Return whether a transaction was committed, over a new connection."""
        connection = self._open_connection
        with self._mapped():
            try:
                (status,) = _first(
                    connection.execute("SELECT pg_xact_status(%s::xid8)", (transaction,))
                )
            except errors.InvalidParameterValue:
                return False  # this server never had it, so it was lost in a failover
        if status == "in progress":
            raise self.unavailable("it still ends the last transaction")
        return bool(status == "committed")

    def _roll_back(self, connection: Connection) -> None:
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def _row(self, connection: Connection, columns: str) -> Row:
        """Return columns of the plugin's row in the table of versions."""
        return _first(
            connection.execute(
                f"SELECT {columns} FROM tornadoproxy_schema WHERE name = %s",  # noqa: S608  # constants
                (self._name,),
            )
        )

    def _migrate(self, connection: Connection) -> None:
        # usually the schema is up to date, which needs no lock
        if _version(connection, self._name) == len(self._schema) and self._is_watching(connection):
            return
        connection.execute("BEGIN")
        try:
            # whoever comes first migrates, and the others find that it is done
            connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_MIGRATION_LOCK,))
            connection.execute(_VERSIONS, prepare=False)
            self._migrate_from(_version(connection, self._name), connection)
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise

    def _is_watching(self, connection: Connection) -> bool:
        (triggers,) = _first(
            connection.execute(
                "SELECT count(*) FROM pg_trigger WHERE tgname = 'tornadoproxy_announce' "
                "AND tgrelid IN (SELECT to_regclass(unnest(%s::text[])))",
                (list(self._watched),),
            )
        )
        return bool(triggers == len(self._watched))

    def _migrate_from(self, version: int, connection: Connection) -> None:
        if refusal := migration_refusal(version, len(self._schema)):
            raise self.unavailable(refusal)
        for script in self._schema[version:]:
            connection.execute(postgres_sql.script(script), prepare=False)
        for table in self._watched:
            connection.execute(
                f"DROP TRIGGER IF EXISTS tornadoproxy_announce ON {table}; "
                "CREATE TRIGGER tornadoproxy_announce "
                f"AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT "
                f"EXECUTE FUNCTION tornadoproxy_announce({self._literal})",
                prepare=False,
            )
        connection.execute(
            "INSERT INTO tornadoproxy_schema VALUES (%s, %s)"
            " ON CONFLICT (name) DO UPDATE SET version = excluded.version",
            (self._name, len(self._schema)),
        )

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """Raise `DatabaseUnavailable` instead of an error of psycopg about the database."""
        try:
            yield
        except psycopg.Error as error:
            reason = reason_of(error)
            if reason is None:
                raise
            # a statement without a response would be answered to the next one
            if self._connection is not None and not _is_idle(self._connection):
                self.close()
            raise self.unavailable(reason) from None


def _first(cursor: psycopg.Cursor[Row]) -> Row:
    row = cursor.fetchone()
    assert row is not None, "each query of this module has a row"
    return row


def _version(connection: Connection, name: str) -> int:
    (exists,) = _first(connection.execute("SELECT to_regclass('tornadoproxy_schema') IS NOT NULL"))
    if not exists:
        return 0
    row = connection.execute(
        "SELECT version FROM tornadoproxy_schema WHERE name = %s", (name,)
    ).fetchone()
    return int(row[0]) if row else 0


def _is_idle(connection: Connection) -> bool:
    return connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
