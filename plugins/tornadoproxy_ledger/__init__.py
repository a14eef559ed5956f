"""The ledger: a row for each request in an SQLite file, and the command ``usage`` that sums it up.

``LEDGER_DB`` names the file; without it the plugin does nothing. A row is handed to a thread when
its request has ended, and is in the file within half a second; the rest is written when the proxy
stops. While the file is locked or full, 10,000 rows are held. What is lost beyond that is logged
with its number; see `tornadoproxy.Database`. A request never waits for the file, and is never
refused because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tornadoproxy import (
    INACTIVE,
    Command,
    ConfigurationError,
    Database,
    DatabaseUnavailable,
    Inactive,
    RequestRecord,
    Setting,
    Settings,
    hookimpl,
    parsers,
)
from tornadoproxy_ledger.rows import SCHEMA, delete_some, insert

if TYPE_CHECKING:
    import argparse

DAY = 86_400.0  # seconds
PAUSE = 0.1  # seconds between two steps of deleting, for all others that write

LEDGER_DB: Setting[Path | None] = Setting(
    "LEDGER_DB",
    parsers.path,
    default=None,
    help="The SQLite file that a row for each request goes to; it is made if it is not there.",
)
LEDGER_RETENTION_DAYS: Setting[int | None] = Setting(
    "LEDGER_RETENTION_DAYS",
    parsers.integer(1, 36_500),
    default=None,
    help="Days after which the ledger's rows are deleted; they are kept for ever by default.",
)


class Ledger:
    """Writes a row for each finished request to ``LEDGER_DB``."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._days: int | None = None
        self._database: Database | None = None
        self._deleting: asyncio.Task[None] | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Path | None] | Setting[int | None], ...]:
        return LEDGER_DB, LEDGER_RETENTION_DAYS

    @hookimpl
    def commands(self) -> tuple[Command, ...]:
        return (
            Command("usage", "Sum up who has used how much, from LEDGER_DB", _arguments, _usage),
        )

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the path, which only a start changes, and the retention.

        :raises ConfigurationError: the path cannot be right, or has changed.
        """
        path = settings[LEDGER_DB]
        if self._database is not None and path != self._path:
            raise ConfigurationError(
                f"LEDGER_DB cannot change from {self._path} while the proxy runs: start it again."
            )
        if path is None:
            if settings[LEDGER_RETENTION_DAYS] is not None:
                raise ConfigurationError(
                    "LEDGER_RETENTION_DAYS is set and LEDGER_DB is not: set both, or neither."
                )
            return INACTIVE
        if self._database is None:
            _ledger(path).check()
        self._path = path
        self._days = settings[LEDGER_RETENTION_DAYS]
        kept = "for ever" if self._days is None else f"for {self._days} days"
        return f"a row for each request, to {path}, kept {kept}"

    @hookimpl
    async def startup(self) -> None:
        """Open the file, and make it if it is not there.

        :raises ConfigurationError: it cannot be used.
        """
        assert self._path is not None, "configure() said INACTIVE"
        database = _ledger(self._path)
        await asyncio.to_thread(database.open)
        database.start()
        self._database = database
        self._deleting = asyncio.create_task(self._delete_daily(database))

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        if self._database is not None:
            self._database.write_behind(insert, record)

    @hookimpl
    async def shutdown(self) -> None:
        """Write out what is held."""
        if self._deleting is not None:
            self._deleting.cancel()
        if self._database is not None:
            await self._database.close()

    async def _delete_daily(self, database: Database) -> None:
        while True:
            # what keeps it from being done has been logged, and it is done the next day
            with contextlib.suppress(DatabaseUnavailable):
                await self._delete_old(database)
            await asyncio.sleep(DAY)

    async def _delete_old(self, database: Database) -> None:
        if self._days is None:
            return
        before = time.time() - self._days * DAY
        while await database.run(partial(delete_some, before)):
            await asyncio.sleep(PAUSE)


def _ledger(path: Path) -> Database:
    return Database(path, SCHEMA, name="ledger", setting=LEDGER_DB.name)


# only the command itself pays for what it imports


def _arguments(parser: argparse.ArgumentParser) -> None:
    from tornadoproxy_ledger.usage_command import add_arguments

    add_arguments(parser)


def _usage(arguments: argparse.Namespace, settings: Settings) -> int:
    from tornadoproxy_ledger.usage_command import run

    path = settings[LEDGER_DB]
    if path is None:
        raise ConfigurationError("LEDGER_DB is not set: name the file that the proxy writes to.")
    return run(arguments, _ledger(path))
