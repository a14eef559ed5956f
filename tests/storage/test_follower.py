"""What a proxy holds of a database, kept up to date."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from storage.conftest import add, insert, numbers, started
from tornado.ioloop import IOLoop

from tornadoproxy import Database, DatabaseUnavailable, Follower


class Held:
    """Numbers held in memory.

    :ivar loading: set while they are loaded.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.numbers: list[int] = []
        self.loads = 0
        self.before_end = contextlib.AsyncExitStack()
        self.follower = Follower(database, self._load, "numbers")

    async def _load(self) -> None:
        self.loads += 1
        self.numbers = await self.database.run(numbers, exclusive=False)
        await self.before_end.aclose()

    async def until(self, *wanted: int) -> None:
        while self.numbers != list(wanted):
            await asyncio.sleep(0.005)  # the follower's task makes no event


@contextlib.asynccontextmanager
async def holding(path: Path) -> AsyncIterator[Held]:
    async with started(path) as database:
        held = Held(database)
        await held.follower.follow()
        yield held
        held.follower.stop()


@pytest.fixture
def held(
    io_loop: IOLoop, path: Path, monkeypatch: pytest.MonkeyPatch, short_timeouts: None
) -> Iterator[Held]:
    monkeypatch.setattr(Follower, "INTERVAL", 0.01)
    stack = contextlib.AsyncExitStack()
    yield io_loop.run_sync(lambda: stack.enter_async_context(holding(path)))
    io_loop.run_sync(stack.aclose)


async def test_change_of_another_process_is_loaded_once(held: Held, path: Path) -> None:
    ticks = asyncio.Semaphore(0)
    held.follower.start(ticks.release)
    insert(path, 1)
    await held.until(1)
    while not ticks.locked():
        await ticks.acquire()
    loads = held.loads
    for _ in range(5):
        await ticks.acquire()
    assert held.loads == loads


async def test_own_change_is_loaded_by_reload(held: Held) -> None:
    await held.database.run(lambda on: add([1], on))
    await held.follower.follow()
    assert held.numbers == []
    await held.follower.reload()
    assert held.numbers == [1]


async def test_reload_that_fails_is_made_up_for(held: Held, path: Path) -> None:
    await held.database.run(lambda on: add([1], on))
    away = path.with_name("away")
    path.rename(away)
    with pytest.raises(DatabaseUnavailable):
        await held.follower.reload()
    away.rename(path)
    await held.follower.follow()
    assert held.numbers == [1]


async def test_failed_reload_during_a_load_is_not_missed(held: Held, path: Path) -> None:
    away = path.with_name("away")

    async def change_again() -> None:
        await held.database.run(lambda on: add([2], on))
        path.rename(away)
        with pytest.raises(DatabaseUnavailable):
            await held.follower.reload()
        away.rename(path)

    held.before_end.push_async_callback(change_again)
    await held.database.run(lambda on: add([1], on))
    await held.follower.reload()
    assert held.numbers == [1]
    await held.follower.follow()
    assert held.numbers == [1, 2]


async def test_unreadable_database_is_refused_after_a_while(
    held: Held, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Follower, "MAX_UNVERIFIED", 0.2)
    held.follower.start()
    held.follower.check()
    away = path.with_name("away")
    path.rename(away)
    while "rejecting all numbers: revocations cannot be verified" not in caplog.text:
        await asyncio.sleep(0.005)
    with pytest.raises(DatabaseUnavailable, match=str(path)):
        held.follower.check()
    away.rename(path)
    while "accepting numbers again" not in caplog.text:
        await asyncio.sleep(0.005)
    held.follower.check()
