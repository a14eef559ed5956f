"""What a plugin keeps: an SQLite file or a PostgreSQL database, and the thread that uses it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tornadoproxy.errors import ConfigurationError, DatabaseUnavailable
from tornadoproxy.storage.contract import DatabaseStatus, OutcomeUnknown
from tornadoproxy.storage.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from tornadoproxy.storage.contract import DatabaseConnection, DatabaseLocation, Engine

T = TypeVar("T")

_TABLE = re.compile(r"^\s*CREATE TABLE (?:IF NOT EXISTS )?(\w+)", re.IGNORECASE | re.MULTILINE)


class Database:
    """One database of a plugin, and the thread of its own that uses it.

    In the proxy, the hook ``startup`` awaits `start`, and ``shutdown`` `close`. The event loop
    never waits for the database: `run` is awaited, `write_behind` queues. In a command, ``with
    database:`` opens and closes it, and `transaction` is used in the calling thread; `reading` is
    enough for a command that changes nothing.

    While the proxy runs, `DatabaseUnavailable` says that the database cannot be used. `check`,
    `open` and the commands raise `ConfigurationError` then, with one line that says why and what to
    do. No other error of the engine's library is raised, except for a wrong statement.

    :param where: an SQLite file, or a ``postgresql://`` URL. A file is created if it is absent,
        readable for the proxy's user only; its directory is not, because a path may be misspelled.
    :param schema: ``schema[i]`` is the SQL script that migrates version i to i + 1. A released
        script is never changed; new ones are appended. It is written in SQLite's types; on
        PostgreSQL, ``INTEGER`` is ``BIGINT``, ``REAL`` is ``DOUBLE PRECISION`` and ``BLOB`` is
        ``BYTEA``.
    :param name: the plugin's name, under which the version is stored, so that several plugins can
        share a database.
    :param setting: the setting that names the database, for messages.
    :param watched: the tables whose changes `changed` reports on PostgreSQL; in SQLite, it reports
        every change of the file.
    :param overflow: called with items for `write_behind` that cannot be held while the database
        fails, or not be written before `close` ends; it must not block. It returns whether it has
        taken them; otherwise they are lost.
    :ivar where: the database.
    :ivar name: the plugin's name.
    :ivar schema: the scripts.
    :ivar tables: the tables that they create.
    """

    def __init__(
        self,
        where: DatabaseLocation,
        schema: Sequence[str],
        *,
        name: str,
        setting: str | None = None,
        watched: Sequence[str] = (),
        overflow: Callable[[Sequence[Any]], bool] | None = None,
    ) -> None:
        self.where = where
        self.name = name
        self.schema = tuple(schema)
        self._setting = setting or name
        self.tables = tuple(_TABLE.findall("\n".join(schema)))
        title = f"the database {where} of {name}" if setting is None else f"{setting}={where}"
        self._engine = _engine(where, schema, name, title, watched)
        self._worker = Worker(self._engine, f"database of {name}", overflow)

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        """The SQL that the database understands, for statements that the engines do not share."""
        return "sqlite" if isinstance(self.where, Path) else "postgresql"

    @property
    def failing(self) -> bool:
        """Whether the last attempt to use the database failed."""
        return self._worker.failures.last

    @property
    def lost(self) -> int:
        """How many items passed to `write_behind` have been lost."""
        return self._worker.lost

    @property
    def status(self) -> DatabaseStatus:
        """The database in figures, for the hook ``database_status``."""
        failures = self._worker.failures
        return DatabaseStatus(
            self._setting, failures.last, failures.total, self._worker.held, self._worker.lost
        )

    def check(self, *, created_by: str | None = None) -> None:
        """Validate the setting that names the database, without creating anything.

        :param created_by: the command that creates the database, which must exist then.
        :raises ConfigurationError: the setting is wrong.
        """
        with _configuration_errors():
            self._engine.check(created_by=created_by)

    def version(self) -> int:
        """Return the version of the plugin's schema in the database; 0 if it has none.

        :raises ConfigurationError: the database cannot be used.
        """
        with _configuration_errors():
            self._engine.check()
            return self._engine.version()

    def open(self) -> None:
        """Open the database, create it if it is absent, and bring its schema up to date.

        This blocks: it is for commands.

        :raises ConfigurationError: the database cannot be used.
        """
        with _configuration_errors():
            self._engine.open()

    async def start(
        self,
        load: Callable[[], Awaitable[object]] | None = None,
        *,
        statement_timeout: float = 0.25,
    ) -> None:
        """Open the database as `open` does, and begin to serve `run` and `write_behind`.

        :param load: awaited then; if it raises, the database is closed.
        :param statement_timeout: seconds that a PostgreSQL server may take for a statement; usually
            ``settings[DATABASE_TIMEOUT]``.
        :raises ConfigurationError: the database cannot be used.
        """
        await asyncio.to_thread(self.open)
        self._engine.serve(statement_timeout)
        self._worker.start()
        if load is None:
            return
        try:
            with _configuration_errors():
                await load()
        except BaseException:
            await self.close()
            raise

    async def run(self, work: Callable[[DatabaseConnection], T], *, exclusive: bool = True) -> T:
        """Do `work` in one transaction outside of the event loop, and return its result.

        Everything that was written behind before is written first. An exception of `work` is raised
        here, and the transaction is rolled back. If the caller is cancelled, `work` is not done
        unless it has begun; then it is finished.

        :param exclusive: whether no other transaction of the plugin may run meanwhile, in any
            process. Work that only reads, or adds in a way that commutes, does without, and many
            processes can then do it at the same time.
        :raises DatabaseUnavailable: the database cannot be used; nothing was changed.
        """

        def job() -> T:
            try:
                with self._engine.transaction(exclusive=exclusive) as connection:
                    result = work(connection)
            except OutcomeUnknown as unknown:
                unknown.result = result
                raise
            return result

        return await self._worker.do(job)

    def write_behind(
        self, write: Callable[[Sequence[T], DatabaseConnection], object], item: T
    ) -> None:
        """Write `item` within half a second, in order, many items in one transaction.

        Never blocks and never raises. `write` is called with all consecutive items that it was
        passed for, since one statement for many is far cheaper. Other processes may write to the
        same tables at the same time.

        While the database cannot be used, items are held, and `write` is called again until its
        transaction is committed, which happens exactly once; it must never commit itself. If
        `write` itself fails, it is called for each item alone, and the items that fail are lost,
        as are those beyond the number that is held. Each is counted in `lost`, and logged.
        """
        self._worker.write_behind(write, item)

    async def changed(self) -> bool:
        """Return whether others have changed the database since the previous call.

        This is cheap: it reads no data.

        :raises DatabaseUnavailable: the database cannot be used.
        """
        return await self._worker.do(self._engine.has_changed)

    async def close(self) -> None:
        """Write what is held, for at most 4 seconds, and close the database."""
        await self._worker.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[DatabaseConnection]:
        """Begin a transaction in the calling thread, for commands; an exception rolls it back.

        :raises ConfigurationError: the database cannot be used; nothing was changed, unless the
            message says that this is unknown.
        """
        with _configuration_errors():
            self._engine.verify()
            with self._engine.transaction() as connection:
                yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[DatabaseConnection]:
        """Return a read-only connection to the database as of one moment, for commands.

        It works without `open` and while the proxy writes, and creates no database.

        :raises ConfigurationError: there is no database, or it cannot be read.
        """
        with _configuration_errors(), self._engine.reading() as connection:
            yield connection

    def __enter__(self) -> Self:
        """Open the database; see `open`."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the database."""
        self._engine.close()


def _engine(
    where: DatabaseLocation, schema: Sequence[str], name: str, title: str, watched: Sequence[str]
) -> Engine:
    if isinstance(where, Path):
        from tornadoproxy.storage.sqlite_file import SQLiteFile

        return SQLiteFile(where, schema, name, title)
    try:
        from tornadoproxy.storage.postgres import PostgreSQL
    except ImportError:
        raise ConfigurationError(
            f"{title} needs psycopg: install it with `pip install 'tornadoproxy[postgres]'`."
        ) from None
    return PostgreSQL(where, schema, name, title, watched)


@contextlib.contextmanager
def _configuration_errors() -> Iterator[None]:
    """Raise `ConfigurationError` instead of `DatabaseUnavailable`, for the start and commands."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise ConfigurationError(str(error)) from None
    except OutcomeUnknown as unknown:
        raise ConfigurationError(
            f"{unknown.error}; whether the change was made is unknown: look before you repeat it."
        ) from None
