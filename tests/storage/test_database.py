"""The SQLite engine while the proxy runs: work, items written behind, and a file that fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from storage.conftest import add, adding, locked, numbers, numbers_in, started
from tornado.ioloop import IOLoop

from tornadoproxy import Database, DatabaseConnection, DatabaseUnavailable
from tornadoproxy.storage import sqlite_file, worker


@pytest.fixture
def opened(io_loop: IOLoop, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database that is open and started, and collects items for a short time only."""
    monkeypatch.setattr(worker, "LINGER", 0.05)
    stack = contextlib.AsyncExitStack()
    yield io_loop.run_sync(lambda: stack.enter_async_context(started(path)))
    io_loop.run_sync(stack.aclose)


@contextlib.asynccontextmanager
async def busy(opened: Database) -> AsyncIterator[None]:
    """Keep the thread busy with a job until the block ends."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(_: DatabaseConnection) -> None:
        begun.set()
        go_on.wait()

    working = asyncio.create_task(opened.run(wait))
    await asyncio.to_thread(begun.wait)
    yield
    go_on.set()
    await working


async def failure(opened: Database) -> None:
    """Wait until the database has tried to use the file, and failed."""
    while not opened.failing:  # no event of the thread is visible here
        await asyncio.sleep(0.005)


# -- work


async def test_work_is_done_in_one_other_thread(opened: Database, path: Path) -> None:
    threads: set[int] = set()
    opened.write_behind(lambda *_: threads.add(threading.get_ident()), None)
    for number in (1, 2):
        await opened.run(adding(number))
        threads.add(await opened.run(lambda _: threading.get_ident()))
    assert await opened.run(numbers) == [1, 2]
    assert numbers_in(path) == [1, 2]
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_work_that_commits_itself_raises(opened: Database) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await opened.run(lambda connection: connection.execute("COMMIT"))
    assert await opened.run(adding(1)) == 1


async def test_work_of_a_cancelled_caller_is_not_done(opened: Database) -> None:
    async with busy(opened):
        second = asyncio.create_task(opened.run(adding(2)))
        third = asyncio.create_task(opened.run(adding(3)))
        await asyncio.sleep(0)  # both are queued
        second.cancel()
        await asyncio.sleep(0)  # the cancellation arrives
    await third
    assert await opened.run(numbers) == [3]
    with pytest.raises(asyncio.CancelledError):
        await second


# -- items written behind


async def test_items_are_written_in_order_without_being_awaited(
    opened: Database, path: Path
) -> None:
    for number in range(100):
        opened.write_behind(add, number)
    while len(numbers_in(path)) < 100:
        await asyncio.sleep(0.01)
    assert numbers_in(path) == list(range(100))
    assert opened.lost == 0


async def test_run_sees_the_items_written_behind_before(opened: Database) -> None:
    async with busy(opened):
        opened.write_behind(add, 1)
        reading = asyncio.create_task(opened.run(numbers))
        await asyncio.sleep(0)  # it is queued
    assert await reading == [1]


async def test_consecutive_items_of_a_function_are_one_call(opened: Database) -> None:
    calls: list[list[int]] = []

    def write(items: Sequence[int], connection: DatabaseConnection) -> None:
        calls.append(list(items))
        add(items, connection)

    async with busy(opened):
        for number in range(5):
            opened.write_behind(write, number)
        opened.write_behind(add, 5)
        opened.write_behind(write, 6)
    assert await opened.run(numbers) == list(range(7))
    assert calls == [[0, 1, 2, 3, 4], [6]]


async def test_item_that_fails_is_lost_without_the_others(
    opened: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(items: Sequence[int], connection: DatabaseConnection) -> None:
        add(items, connection)
        raise ValueError("sk-secret")

    for number in range(3):
        opened.write_behind(add, number)
        opened.write_behind(broken, 99)
        opened.write_behind(lambda _, c: c.execute("SELECT 1 FROM nowhere"), None)
    assert await opened.run(numbers) == [0, 1, 2]
    assert opened.lost == 6
    for number in range(3, 100):
        opened.write_behind(add, None if number in (3, 50, 99) else number)
    assert await opened.run(numbers) == [0, 1, 2, *range(4, 50), *range(51, 99)]
    assert opened.lost == 9
    assert not opened.failing
    assert "1 items were lost, the last one because it raised ValueError in" in caplog.text
    assert "4 items were lost, the last one because it raised OperationalError" in caplog.text
    assert "sk-secret" not in caplog.text


async def test_items_beyond_the_limit_are_counted_and_logged(
    short_timeouts: None,
    opened: Database,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker, "MAX_HELD", 10)
    with locked(path):
        for number in range(25):
            opened.write_behind(add, number)
        assert opened.lost == 15
    assert await opened.run(numbers) == list(range(10))
    opened.write_behind(add, 99)
    assert await opened.run(numbers) == [*range(10), 99]
    assert opened.lost == 15
    await opened.close()
    losses = re.findall(r"(\d+) items were lost", caplog.text)
    assert losses == ["1", "2", "4", "8", "15"]
    assert all(each.levelno >= logging.ERROR for each in caplog.records if "lost" in each.message)


# -- the end


async def test_close_writes_the_held_items(opened: Database, path: Path) -> None:
    for number in range(5_000):
        opened.write_behind(add, number)
    await opened.close()
    assert numbers_in(path) == list(range(5_000))
    assert not path.with_name("test.db-wal").exists(), "one whole file remains"


async def test_closed_database_accepts_nothing(
    opened: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await opened.close()
    opened.write_behind(add, 1)
    assert opened.lost == 1
    with pytest.raises(DatabaseUnavailable, match="it is closed"):
        await opened.run(numbers)
    assert "1 items were lost" in caplog.text


async def test_close_waits_for_a_lock(short_timeouts: None, opened: Database, path: Path) -> None:
    with locked(path):
        opened.write_behind(add, 1)
        await failure(opened)
        closing = asyncio.create_task(opened.close())
        await asyncio.sleep(0.02)  # no event says that it has begun
        assert not closing.done()
    await closing
    assert numbers_in(path) == [1]
    assert opened.lost == 0


async def test_close_gives_up_and_logs_the_lost_items(
    short_timeouts: None, opened: Database, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(path):
        for number in range(3):
            opened.write_behind(add, number)
        await opened.close()
    assert opened.lost == 3
    assert "3 items were lost, the last one because they could not be written" in caplog.text
    assert numbers_in(path) == []


# -- a file that cannot be used


async def test_lock_is_waited_for(opened: Database, path: Path) -> None:
    with locked(path):
        waiting = asyncio.create_task(opened.run(adding(1)))
        await asyncio.sleep(0.02)  # no event says that it waits
        assert not waiting.done()
    await waiting
    assert numbers_in(path) == [1]


async def test_lock_fails_run_and_holds_items(
    short_timeouts: None, opened: Database, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = asyncio.Event()
    loop = asyncio.get_running_loop()
    with locked(path):
        for number in range(3):
            opened.write_behind(add, number)
        with pytest.raises(DatabaseUnavailable, match="it is locked by another program: end "):
            await opened.run(numbers)
        assert opened.failing
        for number in range(3, 1000):
            opened.write_behind(add, number)
        calls = [opened.run(numbers), opened.changed()]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {DatabaseUnavailable}
        assert numbers_in(path) == []
        opened.write_behind(lambda *_: loop.call_soon_threadsafe(written.set), None)
    await written.wait()
    assert await opened.run(numbers) == list(range(1000))
    assert opened.lost == 0
    assert "locked by another program: end that program's transaction (1 consec" in caplog.text
    assert "can be used again" in caplog.text


async def test_lock_fails_all_waiting_callers_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 0.5)  # time enough for all to be queued
    async with started(path) as opened:
        with locked(path):
            first = asyncio.create_task(opened.run(numbers))
            await asyncio.sleep(0)  # it is queued
            while opened._worker._jobs:  # until the thread waits for the lock
                await asyncio.sleep(0)
            calls = [first, *(opened.run(numbers) for _ in range(20))]
            results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailable] * 21
    assert "1 consecutive failures" in caplog.text
    assert "2 consecutive failures" not in caplog.text


async def test_full_disk_holds_items(opened: Database, path: Path) -> None:
    def fill(connection: DatabaseConnection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    opened.write_behind(add, -1)
    await opened.run(fill)
    for number in range(5_000):
        opened.write_behind(add, number)
    await failure(opened)
    with pytest.raises(DatabaseUnavailable, match="the disk is full: free some space"):
        await opened.run(numbers)
    assert opened.failing
    assert numbers_in(path) == [-1]
    # not by run(), which would write the held items first
    engine = opened._engine
    assert isinstance(engine, sqlite_file.SQLiteFile)
    engine.connection.execute("PRAGMA max_page_count = 1000000")
    assert await opened.run(numbers) == [-1, *range(5_000)]
    assert opened.lost == 0


async def test_corrupt_page_fails_run(path: Path) -> None:
    async with started(path) as opened:
        await opened.run(adding(1))
    content = bytearray(path.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'numbers'"
        (root,) = connection.execute(query).fetchone()
    content[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    async with started(path) as opened:
        with pytest.raises(DatabaseUnavailable, match="it is corrupt: stop the proxy and restore"):
            await opened.run(numbers)
        assert opened.failing


@pytest.mark.parametrize(
    ("replacement", "told"),
    [
        (None, r"it was deleted or moved .*: put it back"),
        (b"another", "another file is in its place: restart the "),
    ],
)
async def test_file_that_was_replaced_is_not_written(
    short_timeouts: None,
    opened: Database,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    replacement: bytes | None,
    told: str,
) -> None:
    path.unlink()
    if replacement:
        path.write_bytes(replacement)
    opened.write_behind(add, 1)
    with pytest.raises(DatabaseUnavailable, match=told):
        await opened.run(numbers)
    with pytest.raises(DatabaseUnavailable, match=told):
        await opened.changed()
    await opened.close()
    assert (path.read_bytes() if path.exists() else None) == replacement
    assert opened.lost == 1
    assert re.search(told, caplog.text)


async def test_file_that_is_back_is_used_again(opened: Database, path: Path) -> None:
    await opened.run(adding(1))
    path.rename(path.with_name("elsewhere"))
    opened.write_behind(add, 2)
    await failure(opened)
    path.with_name("elsewhere").rename(path)
    assert await opened.run(numbers) == [1, 2]
    assert opened.lost == 0


KILLED = """
import asyncio, sys
from pathlib import Path
from tornadoproxy import Database

def add(numbers, connection):
    connection.executemany("INSERT INTO numbers VALUES (?)", [(each,) for each in numbers])

async def main():
    database = Database(Path(sys.argv[1]), ["CREATE TABLE numbers (number INTEGER)"], name="test")
    await database.start()
    for number in range(100_000):
        database.write_behind(add, number)
        print(number, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


async def test_killed_process_loses_at_most_its_last_second(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    printed: list[tuple[float, int]] = []
    async for line in process.stdout:
        printed.append((loop.time(), int(line)))
        if printed[-1][0] - printed[0][0] > 1.3:
            break
    killed_at = loop.time()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    found = numbers_in(path)
    assert found == list(range(len(found))), "in order, without a gap"
    assert len(found) > max(number for at, number in printed if at < killed_at - 1)
