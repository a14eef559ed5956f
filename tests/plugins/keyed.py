"""A proxy with keys, for the tests of the plugin keys."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from people import MESSAGES, Document, message, until
from tornadoproxy_keys import store
from tornadoproxy_keys.store import Limits, UsageRow

from tornadoproxy import Database
from tornadoproxy.testing import request_bytes

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from scene import Scene

    from tornadoproxy.testing import Proxy, RawConnection, RawResponse


class Keyed:
    """A proxy with a keys database, its keys, and what surrounds it."""

    def __init__(self, scene: Scene, path: Path) -> None:
        self.path = path
        self.start_proxy, self.request, self.raw = scene.start, scene.ask, scene.raw
        self.upstream, self.records = scene.upstream, scene.records

    async def start(self, **given: Any) -> Proxy:
        return await self.start_proxy(**{"KEYS_DB": self.path, **given})

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction in the way that a command does."""
        database = Database(self.path, store.SCHEMA, name="keys")
        with database, database.transaction() as connection:
            yield connection

    def create(
        self,
        name: str = "ada",
        limits: Limits | None = None,
        *,
        groups: tuple[str, ...] = (),
        expires: int | None = None,
    ) -> str:
        with self.database() as connection:
            now = int(time.time())
            return store.create(connection, name, groups, limits or Limits(), expires, now)

    def revoke(self, name: str = "ada") -> None:
        with self.database() as connection:
            store.revoke(connection, name, int(time.time()))

    def rotate(self, name: str = "ada", *, grace: int = 0) -> str:
        with self.database() as connection:
            return store.rotate(connection, name, grace, int(time.time()))[1]

    def usage(self) -> UsageRow:
        """Return the usage of the only key that has been used."""
        with self.database() as connection:
            (row,) = store.read_usage(connection, "2000-01-01")
        return row

    async def get(self, *keys: str, target: str = "/v1/models") -> RawResponse:
        """Send a GET with these lines of ``x-api-key``."""
        headers = [("X-Api-Key", key) for key in keys]
        return await self.request(target, headers=headers, token=None)

    async def ask(
        self, key: str, target: str = MESSAGES, document: Document | None = None
    ) -> RawResponse:
        return await self.request(target, document or message(), token=key)

    async def send(self, key: str) -> RawConnection:
        """Send a request for a message, whose response is still to be read."""
        connection = await self.raw()
        body = json.dumps(message()).encode()
        await connection.send(request_bytes("POST", MESSAGES, body=body, token=key))
        return connection

    async def until(self, status: int, key: str) -> RawResponse:
        """Ask for the models until the response has `status`."""
        return await until(status, lambda: self.get(key))


@pytest.fixture
def keyed(scene: Scene, tmp_path: Path) -> Keyed:
    return Keyed(scene, tmp_path / "keys.db")
