"""Rows that wait in a local SQLite file until the ledger's database can be used again.

A row is moved in two transactions, first into the database and then out of the file. If the process
ends between the two, the next move finds the row in the database and does not write it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

from tornadoproxy import Database, DatabaseUnavailable
from tornadoproxy_ledger import rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tornadoproxy import DatabaseStatus, RequestRecord

PAUSE = 1.0  # seconds between two attempts to move rows

_logger = logging.getLogger(__name__)


class Spool:
    """The file of ``LEDGER_SPOOL``.

    :param most: bytes that the file may have; it takes no more rows then.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._most = most
        self._file = Database(path, rows.SCHEMA, name="ledger", setting="LEDGER_SPOOL")
        self._may_have_rows = True
        self._moving: asyncio.Task[None] | None = None

    @property
    def status(self) -> DatabaseStatus:
        """The file in figures."""
        return self._file.status

    def check(self) -> None:
        """Refuse an invalid path.

        :raises ConfigurationError: in one line.
        """
        self._file.check()

    async def open(self, database: Database) -> None:
        """Open the file, and begin to move its rows into `database`.

        :raises ConfigurationError: the file cannot be used.
        """
        await self._file.start()
        self._moving = asyncio.create_task(self._keep_moving(database))

    def take(self, records: Sequence[RequestRecord]) -> bool:
        """Write the rows of `records` soon; return whether there is room for them."""
        try:
            if self._path.stat().st_size >= self._most:
                return False
        except OSError:
            return False
        if not self._may_have_rows:
            _logger.warning("the ledger's rows wait in %s", self._path)
            self._may_have_rows = True
        for record in records:
            self._file.write_behind(rows.insert, record)
        return True

    async def close(self) -> None:
        """Write the rows that were taken, and close the file."""
        if self._moving is not None:
            self._moving.cancel()
        await self._file.close()

    async def _keep_moving(self, database: Database) -> None:
        while True:
            if self._may_have_rows and not database.failing:
                # the database that failed has logged it
                with contextlib.suppress(DatabaseUnavailable):
                    await self._move(database)
            await asyncio.sleep(PAUSE)

    async def _move(self, database: Database) -> None:
        moved = 0
        self._may_have_rows = False  # unless some are taken meanwhile
        try:
            while waiting := await self._file.run(rows.oldest):
                await database.run(partial(rows.insert_missing, waiting))
                await self._file.run(partial(rows.delete, waiting))
                moved += len(waiting)
        except BaseException:
            self._may_have_rows = True
            raise
        if moved:
            _logger.warning("moved %d rows of the ledger out of %s", moved, self._path)
