"""The store of responses in a database: what is left in it, and what happens when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import stat
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from postgres import PostgreSQLServer, sqlite_only
from properties import holds_of
from stored import (
    LIFETIME,
    UNLIMITED,
    Clock,
    compare_with_model,
    database_store,
    message,
    operations,
    response,
)

from tornadoproxy import DatabaseLocation, ProxyError, SecretURL
from tornadoproxy.handlers.openai.database_store import DatabaseStore, database

TABLES = ("stored_responses", "stored_contents", "stored_items")


def rows(where: DatabaseLocation) -> list[int]:
    """Return the number of rows of each table, as another process sees it."""
    with database(where).reading() as connection:
        return [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES
        ]


async def put(store: DatabaseStore, number: int, text: str = "Hi", principal: str = "ada") -> None:
    given = [message(f"msg_{number}_{place}", f"{text} {place}") for place in range(3)]
    previous = f"resp_{number - 1}" if number else None
    await store.put(principal, response(f"resp_{number}"), given, previous, 0)


# Any: see `operations`
@holds_of(operations, examples=8)
def test_database_does_what_its_model_does(done: list[Any]) -> None:
    with TemporaryDirectory() as directory:
        opened = partial(database_store, Path(directory, "responses.db"))
        asyncio.run(compare_with_model(done, UNLIMITED, opened))


async def test_two_proxies_share_the_responses(where: DatabaseLocation) -> None:
    async with database_store(where, Clock()) as one, database_store(where, Clock()) as two:
        for number in range(4):
            await put((one, two)[number % 2], number)
        for store in (one, two):
            assert len(await store.history("ada", "resp_3") or ()) == 12
            assert await store.items("ada", ["msg_2_1"]) != {}
        assert await two.delete("ada", "resp_0")
        assert await one.history("ada", "resp_3") is None
    async with database_store(where, Clock()) as later:
        assert await later.get("ada", "resp_1") is not None


async def test_proxies_that_write_equal_parts_lose_none(where: DatabaseLocation) -> None:
    """What one deletes may be what another one is just writing."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(database_store(where, Clock())) for _ in range(3)]

        async def use(store: DatabaseStore, number: int) -> None:
            for _ in range(20):
                await put(store, number)
                kept = await store.get("ada", f"resp_{number}")
                assert kept is not None
                assert len(kept.input) == 3
                await store.delete("ada", f"resp_{number}")

        await asyncio.gather(*(use(store, number) for number, store in enumerate(stores)))
    assert rows(where) == [0, 0, 0]


async def test_equal_parts_are_written_once(where: DatabaseLocation) -> None:
    async with database_store(where, Clock()) as store:
        for number in range(5):
            await put(store, number)
        assert rows(where) == [5, 4, 20]
        await put(store, 0, principal="bob")
        assert rows(where) == [6, 8, 24]
        for number in range(5):
            await put(store, number, "Ho")
        assert rows(where) == [6, 8, 24]


async def test_what_has_expired_is_deleted_in_the_background(where: DatabaseLocation) -> None:
    clock = Clock()
    async with database_store(where, clock) as store:
        for number in range(25):
            await put(store, number, f"{number // 5}")
        clock.now += LIFETIME / 2
        await put(store, 99, "0")
        clock.now += LIFETIME / 2
    async with database_store(where, clock) as store:
        while rows(where) != [1, 4, 4]:
            await asyncio.sleep(0)
        assert await store.history("ada", "resp_99") is None
        assert await store.items("ada", ["msg_99_1"]) == {"msg_99_1": message("msg_99_1", "0 1")}


@sqlite_only
async def test_missing_file_refuses_readers_and_counts_losses(
    where: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with database_store(where, Clock()) as store:
        assert stat.S_IMODE(where.stat().st_mode) == 0o600
        await put(store, 0)
        moved = where.rename(where.with_name("moved.db"))
        for number in range(1, 4):
            await put(store, number)
        for read in (
            store.history("ada", "resp_0"),
            store.items("ada", ["msg_0_1"]),
            store.get("ada", "resp_0"),
            store.delete("ada", "resp_0"),
        ):
            with pytest.raises(ProxyError, match="Try again") as refused:
                await read
            assert (refused.value.status, refused.value.retry_after) == (503, 5)
        status = store.status
        assert (status.name, status.failing, status.lost) == ("RESPONSES_STORE", True, 3)
        moved.rename(where)
        assert await store.get("ada", "resp_0") is not None
        assert (store.status.failing, store.status.lost) == (False, 3)
    lost = [each.message for each in caplog.records if "could not be stored" in each.message]
    assert [each.partition(" ")[0] for each in lost] == ["1", "2"]
    assert f"RESPONSES_STORE={where} cannot be used" in lost[0]


async def test_stalled_server_refuses_readers_and_counts_losses(
    postgres: SecretURL, postgres_server: PostgreSQLServer
) -> None:
    store = DatabaseStore(postgres, LIFETIME, clock=Clock())
    await store.start(0.1)
    await put(store, 0)
    postgres_server.send(signal.SIGSTOP)
    with pytest.raises(ProxyError) as refused:
        await store.get("ada", "resp_0")
    assert (refused.value.status, refused.value.retry_after) == (503, 5)
    await put(store, 1)
    assert (store.status.failing, store.status.lost) == (True, 1)
    postgres_server.send(signal.SIGCONT)
    while store.status.failing:
        with contextlib.suppress(ProxyError):
            assert await store.get("ada", "resp_0") is not None
    assert await store.get("ada", "resp_1") is None
    await store.close()
