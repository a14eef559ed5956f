"""The ledger: a row for each request in a database, and the command ``usage`` with its sums.

``LEDGER_DB`` names the SQLite file or PostgreSQL database; without it the plugin is inactive. A row
is passed to a thread when its request ends, and is written within half a second; the stop of the
proxy writes the rest. While the database cannot be used, 10,000 rows are held; the number of rows
lost beyond that is logged, see `tornadoproxy.Database`. No request waits for the database or is
rejected because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from tornadoproxy import (
    DATABASE_TIMEOUT,
    INACTIVE,
    Command,
    ConfigurationError,
    DatabaseUnavailable,
    Inactive,
    RequestRecord,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from tornadoproxy import Database, DatabaseLocation, DatabaseStatus, admin
    from tornadoproxy_ledger.spool import Spool

DAY = 86_400.0  # seconds
PAUSE = 0.1  # seconds between two steps of a deletion, so that other writers get their turn

LEDGER_DB: Setting[DatabaseLocation | None] = Setting(
    "LEDGER_DB",
    parsers.database,
    default=None,
    help="SQLite file, created if missing, or postgresql:// URL that gets a row for each request",
    fixed=True,
    fallbacks=("DATABASE_URL",),
)
LEDGER_RETENTION_DAYS: Setting[int | None] = Setting(
    "LEDGER_RETENTION_DAYS",
    parsers.integer(1, 36_500),
    default=None,
    help="days after which the ledger's rows are deleted; without it they are kept",
)
LEDGER_SPOOL: Setting[Path | None] = Setting(
    "LEDGER_SPOOL",
    parsers.path,
    default=None,
    help=(
        "SQLite file on a local disk in which rows wait while a PostgreSQL server cannot be used; "
        "without it, 10,000 rows wait in memory"
    ),
    fixed=True,
)
LEDGER_SPOOL_SIZE: Setting[int] = Setting(
    "LEDGER_SPOOL_SIZE",
    parsers.size,
    default=1 << 30,
    help="bytes that LEDGER_SPOOL may have; further rows are lost, and logged",
    fixed=True,
)


class Ledger:
    """The plugin: it writes a row for each finished request."""

    def __init__(self) -> None:
        self._where: DatabaseLocation | None = None
        self._days: int | None = None
        self._timeout = DATABASE_TIMEOUT.default
        self._database: Database | None = None
        self._write: Callable[[RequestRecord], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._spool: Spool | None = None

    @hookimpl
    def declare_settings(
        self,
    ) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        return LEDGER_DB, LEDGER_RETENTION_DAYS, LEDGER_SPOOL, LEDGER_SPOOL_SIZE

    @hookimpl
    def commands(self) -> tuple[Command, ...]:
        return (
            Command(
                "usage",
                "show usage and cost by key, group, model or day, from LEDGER_DB",
                _arguments,
                _usage,
            ),
        )

    @hookimpl
    def databases(
        self,
    ) -> dict[Setting[DatabaseLocation | None], Callable[[DatabaseLocation], Database]]:
        return {LEDGER_DB: _ledger}

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the database and the retention.

        :raises ConfigurationError: the database is invalid.
        """
        where = settings[LEDGER_DB]
        if where is None:
            for each in (LEDGER_RETENTION_DAYS, LEDGER_SPOOL):
                if settings[each] is not None:
                    raise ConfigurationError(
                        f"{each.name} is set without LEDGER_DB; set both or neither."
                    )
            return INACTIVE
        if self._database is None:
            _ledger(where).check()
            self._spool = _spool(settings)
        self._where = where
        self._days = settings[LEDGER_RETENTION_DAYS]
        self._timeout = settings[DATABASE_TIMEOUT]
        kept = "forever" if self._days is None else f"for {self._days} days"
        return f"a row for each request in {where}, kept {kept}"

    @hookimpl
    def admin_api(self) -> admin.Api:
        from tornadoproxy_ledger.api import ReportsApi  # few proxies serve the Admin API

        assert self._where is not None, "configure() has returned that this plugin is active"
        # apart from the one that writes, whose statements have a deadline for requests
        return ReportsApi(_ledger(self._where)).api()

    @hookimpl
    async def startup(self) -> None:
        """Open the database, and create it if it does not exist.

        :raises ConfigurationError: the database cannot be used.
        """
        from tornadoproxy_ledger.rows import insert
        from tornadoproxy_ledger.summing import Summing

        assert self._where is not None, "configure() has returned that this plugin is active"
        database = _ledger(self._where, self._spool)
        open_spool = None if self._spool is None else partial(self._spool.open, database)
        await database.start(open_spool, statement_timeout=self._timeout)
        self._database = database
        self._write = partial(database.write_behind, insert)
        summing = Summing(database, _ledger(self._where))
        self._tasks = [
            asyncio.create_task(each) for each in (self._delete_daily(database), summing.keep_up())
        ]

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        if self._write is not None:
            self._write(record)

    @hookimpl
    def database_status(self) -> list[DatabaseStatus]:
        kept = (self._database, self._spool)
        return [each.status for each in kept if each is not None]

    @hookimpl
    async def shutdown(self) -> None:
        """Write the rows that are held."""
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(0)  # they pass their last statements to the database before it closes
        if self._database is not None:
            await self._database.close()
        if self._spool is not None:
            await self._spool.close()

    async def _delete_daily(self, database: Database) -> None:
        while True:
            # the database has logged the failure; the next day's deletion makes up for it
            with contextlib.suppress(DatabaseUnavailable):
                await self._delete_old(database)
            await asyncio.sleep(DAY)

    async def _delete_old(self, database: Database) -> None:
        if self._days is None:
            return
        from tornadoproxy_ledger.rows import delete_some

        before = time.time() - self._days * DAY
        while await database.run(partial(delete_some, before)):
            await asyncio.sleep(PAUSE)


def _ledger(where: DatabaseLocation, spool: Spool | None = None) -> Database:
    from tornadoproxy import Database  # an inactive ledger does without
    from tornadoproxy_ledger.rows import SCHEMA

    overflow = None if spool is None else spool.take
    return Database(where, SCHEMA, name="ledger", setting=LEDGER_DB.name, overflow=overflow)


def _spool(settings: Settings) -> Spool | None:
    path = settings[LEDGER_SPOOL]
    if path is None:
        return None
    if path == settings[LEDGER_DB]:
        raise ConfigurationError("LEDGER_SPOOL is the file of LEDGER_DB; name another file.")
    from tornadoproxy_ledger.spool import Spool

    spool = Spool(path, settings[LEDGER_SPOOL_SIZE])
    spool.check()
    return spool


# imported by the command alone, so that a start does not load them


def _arguments(parser: argparse.ArgumentParser) -> None:
    from tornadoproxy_ledger.usage_command import add_arguments

    add_arguments(parser)


def _usage(arguments: argparse.Namespace, settings: Settings) -> int:
    from tornadoproxy_ledger.usage_command import run

    where = settings[LEDGER_DB]
    if where is None:
        raise ConfigurationError(
            "LEDGER_DB is not set; set it to the database that the proxy writes."
        )
    return run(arguments, _ledger(where))
