"""What a running proxy holds of a database in memory, kept up to date with other processes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from tornadoproxy.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornadoproxy.storage.database import Database

_logger = logging.getLogger(__name__)


class Follower:
    """Loads what is held of a database again when another process has changed it.

    It asks about once a second, which reads no data, so that a change takes effect within two
    seconds, and no request waits for the database.

    A database that cannot be read may contain a revocation. What is held is therefore used for
    `MAX_UNVERIFIED` seconds without being verified, so that a short lock rejects nobody; after that
    `check` raises until the database is readable again.

    :param database: the database; the caller opens and closes it.
    :param load: replaces what is held.
    :param what: what is held, for the log: ``keys``.
    """

    INTERVAL = 1.0  # seconds between two questions to the database
    MAX_UNVERIFIED = 30.0  # seconds

    def __init__(
        self, database: Database, load: Callable[[], Awaitable[object]], what: str
    ) -> None:
        self._database = database
        self._load = load
        self._what = what
        self._stale = True
        self._verified_at = 0.0
        self._reason = "it has not been checked for too long"
        self._refused = False
        self._following: asyncio.Task[None] | None = None

    def start(self, tick: Callable[[], object] = lambda: None) -> None:
        """Begin to follow the database.

        :param tick: called before each question to the database; it must not block or raise.
        """
        self._following = asyncio.create_task(self._keep_following(tick))

    def stop(self) -> None:
        """Follow the database no more."""
        if self._following is not None:
            self._following.cancel()

    def check(self) -> None:
        """Refuse to use what is held if it was not verified for too long.

        :raises DatabaseUnavailable: the database could not be read for `MAX_UNVERIFIED` seconds.
        """
        if time.monotonic() - self._verified_at > self.MAX_UNVERIFIED:
            raise DatabaseUnavailable(self._reason)

    async def follow(self) -> None:
        """Load what is held again if another process has changed the database.

        :raises DatabaseUnavailable: the database cannot be used.
        """
        asked_at = time.monotonic()
        if await self._database.changed() or self._stale:
            await self.reload()
        self._verified_at = asked_at

    async def reload(self) -> None:
        """Load what is held again, after a change by this process.

        :raises DatabaseUnavailable: the database cannot be used; the next question loads it.
        """
        # a change while it is loaded makes it stale again
        self._stale = False
        try:
            await self._load()
        except BaseException:
            self._stale = True
            raise

    async def _keep_following(self, tick: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(self.INTERVAL)
            tick()
            try:
                await self.follow()
            except DatabaseUnavailable as error:
                self._reason = str(error)
            # whatever the error is, nothing is verified, and the next question may succeed
            except Exception as error:
                where = self._database.where
                self._reason = f"{where} cannot be read: {type(error).__name__}"
            self._log_whether_refused()

    def _log_whether_refused(self) -> None:
        refused = time.monotonic() - self._verified_at > self.MAX_UNVERIFIED
        if refused and not self._refused:
            _logger.error(
                "rejecting all %s: revocations cannot be verified: %s", self._what, self._reason
            )
        elif self._refused and not refused:
            _logger.warning("accepting %s again: %s is readable", self._what, self._database.where)
        self._refused = refused
