"""A proxy with keys, for the tests of the plugin keys."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from people import MESSAGES, Document, Scene, message, until
from tornadoproxy_keys import store
from tornadoproxy_keys.store import Limits, UsageRow

from tornadoproxy import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from tornadoproxy.testing import (
        Proxy,
        RawConnection,
        RawResponse,
    )

pytest_plugins = ("people",)


class Keyed(Scene):
    """A proxy with a keys database, its keys, and what surrounds it."""

    @property
    def path(self) -> Path:
        return self.directory / "keys.db"

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
        return await self.begin(message(), key)

    async def until(self, status: int, key: str) -> RawResponse:
        """Ask for the models until the response has `status`."""
        return await until(status, lambda: self.get(key))


@pytest.fixture
def keyed(scene: Scene) -> Keyed:
    return Keyed(**vars(scene))
