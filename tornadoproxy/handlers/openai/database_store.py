"""Responses in an SQLite file or a PostgreSQL database, which several proxies can share.

A response is in the database before its request ends, so that the next request finds it through
any proxy. An expired response does not exist for clients, and is deleted within the hour.

While the database cannot be used, requests that need it are refused with 503; others are served,
and their responses are lost, which is counted and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from tornadoproxy.config.responses_settings import RESPONSES_STORE
from tornadoproxy.errors import DatabaseUnavailable, ProxyError
from tornadoproxy.handlers.openai import stored_rows
from tornadoproxy.handlers.openai.response_store import Losses
from tornadoproxy.handlers.openai.stored_parts import (
    items_of,
    parts_of,
    put_together,
    too_large,
)
from tornadoproxy.protocol.request_fields import MAX_MESSAGE_BODY
from tornadoproxy.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tornadoproxy.handlers.openai.response_store import Stored
    from tornadoproxy.handlers.openai.stored_parts import Part
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.storage.contract import (
        DatabaseConnection,
        DatabaseLocation,
        DatabaseStatus,
    )

T = TypeVar("T")

NAME = "responses"
"""The name under which the database keeps its version, and others show it."""

INTERVAL = 3_600.0  # seconds between two deletions of expired responses
PAUSE = 0.1  # seconds between two steps of a deletion, so that other writers get their turn
RETRY_AFTER = 5.0


def database(where: DatabaseLocation) -> Database:
    """Return the database of stored responses."""
    return Database(where, stored_rows.SCHEMA, name=NAME, setting=RESPONSES_STORE.name)


class DatabaseStore:
    """See `ResponseStore`.

    :param where: the database.
    :param lifetime: seconds for which responses are kept.
    :param clock: returns the time in seconds since the epoch.
    """

    def __init__(
        self, where: DatabaseLocation, lifetime: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database(where)
        self._lifetime = lifetime
        self._clock = clock
        self._losses = Losses()
        self._deleting: asyncio.Task[None] | None = None

    async def start(self, statement_timeout: float) -> None:
        """Open the database.

        :raises ConfigurationError: it cannot be used.
        """
        await self._database.start(statement_timeout=statement_timeout)
        self._deleting = asyncio.create_task(self._delete_hourly())

    async def close(self) -> None:
        """Close the database."""
        if self._deleting is not None:
            self._deleting.cancel()
        await self._database.close()

    @property
    def status(self) -> DatabaseStatus:
        """The database in figures; the items lost are responses."""
        return replace(self._database.status, lost=self._losses.total)

    async def put(
        self,
        principal: str,
        response: Json,
        own_input: Sequence[Json],
        previous: str | None,
        size: int,
    ) -> None:
        now = self._clock()
        lifetime = stored_rows.Lifetime(int(now), int(now + self._lifetime))

        def write(connection: DatabaseConnection) -> None:
            parts = parts_of(response, own_input, previous)
            stored_rows.put(principal, parts, lifetime, connection)

        try:
            await self._database.run(write)
        except DatabaseUnavailable as error:
            self._losses.count(str(error))

    async def history(self, principal: str, response_id: str) -> list[Json] | None:
        def read(connection: DatabaseConnection) -> list[Json] | None:
            items = stored_rows.history(principal, response_id, self._clock(), connection)
            return None if items is None else items_of("previous_response_id", items)

        return await self._run(read)

    async def items(self, principal: str, ids: Collection[str]) -> dict[str, Json]:
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Part] = {}
        # each step a transaction, so that others get their turn
        for start in range(0, len(wanted), stored_rows.PARAMETERS):
            some = wanted[start : start + stored_rows.PARAMETERS]
            found |= await self._run(partial(stored_rows.items, principal, some, self._clock()))
            if sum(len(item.body) for item in found.values()) > MAX_MESSAGE_BODY:
                raise too_large("input")
        decoded = await asyncio.to_thread(items_of, "input", found.values())
        return dict(zip(found, decoded, strict=True))

    async def get(self, principal: str, response_id: str) -> Stored | None:
        def read(connection: DatabaseConnection) -> Stored | None:
            parts = stored_rows.get(principal, response_id, self._clock(), connection)
            return None if parts is None else put_together(parts)

        return await self._run(read)

    async def delete(self, principal: str, response_id: str) -> bool:
        return await self._run(
            partial(stored_rows.delete, principal, response_id, self._clock()), exclusive=True
        )

    async def _run(self, work: Callable[[DatabaseConnection], T], *, exclusive: bool = False) -> T:
        try:
            return await self._database.run(work, exclusive=exclusive)
        except DatabaseUnavailable:
            raise ProxyError(
                "Stored responses cannot be read at present. Try again, or send the whole "
                "conversation as input.",
                status=503,
                retry_after=RETRY_AFTER,
            ) from None

    async def _delete_hourly(self) -> None:
        while True:
            # the database has logged the failure; the next deletion makes up for it
            with contextlib.suppress(DatabaseUnavailable):
                while await self._database.run(partial(stored_rows.delete_expired, self._clock())):
                    await asyncio.sleep(PAUSE)
            await asyncio.sleep(INTERVAL)
