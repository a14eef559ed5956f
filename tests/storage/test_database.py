"""A plugin's SQLite file: what is done in it, and what becomes of it when it cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from tornadoproxy import ConfigurationError, Database, DatabaseUnavailable
from tornadoproxy.storage import database, sqlite_file

SCHEMA = ("CREATE TABLE numbers (number INTEGER NOT NULL);",)
Numbers: TypeAlias = list[int]
needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@contextlib.asynccontextmanager
async def started(path: Path) -> AsyncIterator[Database]:
    opened = Database(path, SCHEMA, name="test")
    await asyncio.to_thread(opened.open)
    opened.start()
    try:
        yield opened
    finally:
        await opened.close()


def add(numbers: Sequence[int], connection: sqlite3.Connection) -> None:
    connection.executemany("INSERT INTO numbers VALUES (?)", [(each,) for each in numbers])


def adding(number: int) -> Callable[[sqlite3.Connection], None]:
    return lambda connection: add([number], connection)


def numbers(connection: sqlite3.Connection) -> Numbers:
    return [number for (number,) in connection.execute("SELECT number FROM numbers ORDER BY rowid")]


def numbers_in(path: Path) -> Numbers:
    """What the file holds, as another process would see it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return numbers(connection)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another connection in the middle of a transaction that writes."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def refusal(path: Path, schema: tuple[str, ...] = SCHEMA) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Database(path, schema, name="test").open()
    (fault,) = caught.value.faults
    assert "\n" not in fault
    assert fault.startswith(f"the database {path} of test cannot be used: ")
    return fault.removeprefix(f"the database {path} of test cannot be used: ")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of another connection is waited for only shortly."""
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 0.02)
    monkeypatch.setattr(sqlite_file, "OPEN_TIMEOUT", 0.1)


async def failing(opened: Database) -> None:
    """Wait until the database has tried, and failed."""
    while not opened.failing:  # what another thread does has no event here
        await asyncio.sleep(0.01)


# What is done in it


async def test_work_is_done_and_its_answer_returned(path: Path) -> None:
    async with started(path) as opened:
        await opened.run(adding(1))
        assert await opened.run(numbers) == [1]
        assert numbers_in(path) == [1]


async def test_the_work_is_done_in_a_thread_of_its_own(path: Path) -> None:
    async with started(path) as opened:
        there = {await opened.run(lambda _: threading.get_ident()) for _ in range(3)}
        opened.write_behind(lambda *_: there.add(threading.get_ident()), None)
        await opened.run(numbers)
    assert len(there) == 1
    assert there != {threading.get_ident()}


async def test_work_that_raises_changes_nothing_and_tells_its_caller(path: Path) -> None:
    def broken(connection: sqlite3.Connection) -> None:
        adding(1)(connection)
        raise KeyError("mine")

    async with started(path) as opened:
        with pytest.raises(KeyError, match="mine"):
            await opened.run(broken)
        with pytest.raises(sqlite3.IntegrityError):
            await opened.run(
                lambda connection: connection.execute("INSERT INTO numbers VALUES(NULL)")
            )
        assert await opened.run(numbers) == []
        assert not opened.failing


async def test_what_is_written_behind_is_written_in_order_and_by_itself(path: Path) -> None:
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    async with started(path) as opened:
        for number in range(100):
            opened.write_behind(add, number)
        opened.write_behind(lambda *_: loop.call_soon_threadsafe(written.set), None)
        await written.wait()
        assert await opened.run(numbers) == list(range(100))
        assert opened.lost == 0


async def test_who_reads_sees_what_was_written_behind_before(path: Path) -> None:
    async with started(path) as opened:
        for number in range(20):
            opened.write_behind(add, number)
            assert len(await opened.run(numbers)) == number + 1


async def test_who_reads_sees_what_was_written_behind_while_others_were_busy(path: Path) -> None:
    busy, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        busy.set()
        go_on.wait()

    async with started(path) as opened:
        opened.write_behind(slow, None)
        await asyncio.to_thread(busy.wait)
        opened.write_behind(add, 1)
        reading = asyncio.create_task(opened.run(numbers))
        await asyncio.sleep(0)  # it asks
        go_on.set()
        assert await reading == [1]


async def test_closing_writes_out_what_is_held(path: Path) -> None:
    async with started(path) as opened:
        for number in range(5_000):
            opened.write_behind(add, number)
    assert numbers_in(path) == list(range(5_000))
    assert not path.with_name("test.db-wal").exists(), "one whole file remains"


async def test_after_closing_nothing_is_taken(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with started(path) as opened:
        pass
    opened.write_behind(add, 1)
    assert opened.lost == 1
    with pytest.raises(DatabaseUnavailable, match="it is closed"):
        await opened.run(numbers)
    assert "1 items were lost" in caplog.text


async def test_a_caller_who_left_before_its_turn_is_not_served(path: Path) -> None:
    go_on = threading.Event()
    async with started(path) as opened:
        first = asyncio.create_task(opened.run(lambda _: go_on.wait()))
        second = asyncio.create_task(opened.run(adding(2)))
        third = asyncio.create_task(opened.run(adding(3)))
        await asyncio.sleep(0)  # they ask
        second.cancel()
        await asyncio.sleep(0)  # the cancellation arrives
        go_on.set()
        await asyncio.gather(first, third)
        assert await opened.run(numbers) == [3]
        with pytest.raises(asyncio.CancelledError):
            await second


async def test_one_faulty_work_costs_the_others_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(items: Sequence[int], connection: sqlite3.Connection) -> None:
        add(items, connection)
        raise ValueError("sk-secret")

    async with started(path) as opened:
        for number in range(3):
            opened.write_behind(add, number)
            opened.write_behind(broken, 99)
            opened.write_behind(lambda _, c: c.execute("SELECT 1 FROM nowhere"), None)
        assert await opened.run(numbers) == [0, 1, 2]
        assert opened.lost == 6
        assert not opened.failing
    assert "1 items were lost, the last one because it raised ValueError in" in caplog.text
    assert "4 items were lost, the last one because it raised OperationalError" in caplog.text
    assert "sk-secret" not in caplog.text


async def test_what_is_left_in_a_row_is_written_at_once(path: Path) -> None:
    calls: list[list[int]] = []
    busy, go_on = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        busy.set()
        go_on.wait()

    def write(items: Sequence[int], connection: sqlite3.Connection) -> None:
        calls.append(list(items))
        add(items, connection)

    async with started(path) as opened:
        waiting = asyncio.create_task(opened.run(slow))
        await asyncio.to_thread(busy.wait)
        for number in range(5):
            opened.write_behind(write, number)
        opened.write_behind(add, 5)
        opened.write_behind(write, 6)
        go_on.set()
        await waiting
        assert await opened.run(numbers) == list(range(7))
    assert calls == [[0, 1, 2, 3, 4], [6]]


async def test_one_faulty_item_among_many_costs_the_others_nothing(path: Path) -> None:
    def write(items: Sequence[int | None], connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO numbers VALUES (?)", [(each,) for each in items])

    async with started(path) as opened:
        for number in range(100):
            opened.write_behind(write, None if number in (0, 50, 99) else number)
        assert await opened.run(numbers) == [*range(1, 50), *range(51, 99)]
        assert opened.lost == 3


async def test_changes_of_others_are_noticed_and_ones_own_are_not(path: Path) -> None:
    async with started(path) as opened, started(path) as other:
        await opened.changed()
        await opened.run(adding(1))
        assert not await opened.changed()
        await other.run(adding(2))
        assert await opened.changed()
        assert not await opened.changed()
        script = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1])\n"
            "c.execute('INSERT INTO numbers VALUES (3)'); c.commit(); c.close()"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(path))
        assert await process.wait() == 0
        assert await opened.changed()
        assert await opened.run(numbers) == [1, 2, 3]


# The file


def test_it_is_made_for_its_owner_alone(path: Path) -> None:
    with Database(path, SCHEMA, name="test") as opened:
        with opened.transaction() as connection:
            adding(1)(connection)
        made = [path, *path.parent.glob("test.db-*")]
        assert len(made) == 3
        assert {stat.S_IMODE(each.stat().st_mode) for each in made} == {0o600}


@pytest.mark.parametrize("name", ["a b?mode=ro#x%41&.db", "größe.db", os.fsdecode(b"\xff.db")])
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with Database(path, SCHEMA, name="test") as opened, opened.transaction() as connection:
        adding(1)(connection)
    assert numbers_in(path) == [1]
    assert os.listdir(tmp_path) == [name]


def test_a_relative_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Database(Path("test.db"), SCHEMA, name="test"):
        pass
    assert numbers_in(tmp_path / "test.db") == []


def test_what_was_written_is_there_at_the_next_start(path: Path) -> None:
    for number in range(3):
        with Database(path, SCHEMA, name="test") as opened, opened.transaction() as connection:
            adding(number)(connection)
    assert numbers_in(path) == [0, 1, 2]


def test_a_transaction_that_raises_changes_nothing(path: Path) -> None:
    def use(opened: Database) -> None:
        with opened.transaction() as connection:
            adding(1)(connection)
            raise KeyError("mine")

    with Database(path, SCHEMA, name="test") as opened, pytest.raises(KeyError, match="mine"):
        use(opened)
    assert numbers_in(path) == []


def test_the_schema_is_brought_up_to_date(path: Path) -> None:
    with Database(path, SCHEMA, name="test") as opened, opened.transaction() as connection:
        adding(1)(connection)
    newer = (
        *SCHEMA,
        "ALTER TABLE numbers ADD COLUMN word TEXT;\n-- why; not\nCREATE INDEX i ON numbers (word)",
        "UPDATE numbers SET word = 'a;b';",
    )
    for _ in range(2):
        with Database(path, newer, name="test") as opened, opened.transaction() as connection:
            assert connection.execute("SELECT * FROM numbers").fetchall() == [(1, "a;b")]
            assert connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'i'").fetchone()


def test_a_step_that_fails_leaves_the_version_before(path: Path) -> None:
    with Database(path, SCHEMA, name="test"):
        pass
    broken = (*SCHEMA, "CREATE TABLE words (word TEXT); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        Database(path, broken, name="test").open()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_schema WHERE name='words'").fetchone()
    with Database(path, SCHEMA, name="test"):
        pass


def test_a_newer_schema_is_refused(path: Path) -> None:
    with Database(path, (*SCHEMA, "CREATE TABLE words (word TEXT);"), name="test"):
        pass
    assert refusal(path) == (
        "it was written by a newer version of the plugin (schema 2, and this one has 1): install "
        "the newer one, or name another file"
    )


async def test_two_plugins_share_a_file(path: Path) -> None:
    words = ("CREATE TABLE words (word TEXT);", "INSERT INTO words VALUES ('first');")
    async with started(path) as opened:
        other = Database(path, words, name="other")
        await asyncio.to_thread(other.open)
        other.start()
        for number in range(200):
            opened.write_behind(add, number)
            other.write_behind(lambda _, c: c.execute("INSERT INTO words VALUES ('x')"), None)
            if number % 20 == 0:
                await asyncio.gather(opened.run(adding(-1)), other.run(adding(-1)))
        await other.close()
        assert await opened.run(numbers)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM words").fetchone() == (201,)
        assert connection.execute("SELECT count(*) FROM numbers").fetchone() == (220,)


def test_many_processes_may_make_it_at_once(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tornadoproxy import Database\n"
        "with Database(Path(sys.argv[1]), ['CREATE TABLE numbers (number)'], name='test') as d:\n"
        "    with d.transaction() as c: c.execute('INSERT INTO numbers VALUES (1)')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert numbers_in(path) == [1] * 4


def test_the_library_is_not_imported_for_those_who_use_none() -> None:
    script = "import sys, tornadoproxy; sys.exit('sqlite3' in sys.modules)"
    # whoever measures coverage has it imported, by what is in the environment
    subprocess.run([sys.executable, "-c", script], env={}, check=True)


# Files that cannot be used


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "it is a directory: name a file in it"


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "test.db") == (
        f"{tmp_path}/file is not a directory: name another path"
    )


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "it is not a regular file: name another path"


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert refusal(tmp_path / "link").startswith("it cannot be opened: permit the proxy's user")


def test_database_in_an_absent_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere" / "test.db") == (
        f"the directory {tmp_path / 'nowhere'} does not exist: create it, or correct the path"
    )
    assert list(tmp_path.iterdir()) == []


@needs_permissions
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert refusal(tmp_path / "test.db") == (
            f"the proxy's user cannot write to {tmp_path}: permit it"
        )
    finally:
        tmp_path.chmod(0o700)


@needs_permissions
def test_a_file_that_cannot_be_written_is_refused(path: Path) -> None:
    with Database(path, SCHEMA, name="test"):
        pass
    path.chmod(0o400)
    assert refusal(path) == "access is denied: permit the proxy's user to read and write it"


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database\n" * 100)
    assert refusal(path) == ("it is not an SQLite database: name another file, or restore a backup")
    assert path.read_bytes() == b"not a database\n" * 100
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_corrupt_file_is_refused(path: Path) -> None:
    with Database(path, SCHEMA, name="test"):
        pass
    content = bytearray(path.read_bytes())
    content[100:3000] = b"\xff" * 2900  # the schema's own page, behind the file's header
    path.write_bytes(content)
    assert refusal(path) == "it is corrupt: stop the proxy and restore a backup"


def test_a_file_that_stays_locked_is_refused(path: Path, impatient: None) -> None:
    with Database(path, SCHEMA, name="test"):
        pass
    with locked(path):
        with Database(path, SCHEMA, name="test"):
            pass  # as it is, nothing has to be written
        assert refusal(path, (*SCHEMA, "CREATE TABLE words (word TEXT);")) == (
            "it is locked by another program: end that program's transaction"
        )


def test_a_command_is_told_of_a_lock_in_a_line(path: Path, impatient: None) -> None:
    with Database(path, SCHEMA, name="test") as opened, locked(path):
        with pytest.raises(ConfigurationError) as caught, opened.transaction():
            pass
        (fault,) = caught.value.faults
        assert fault.endswith("it is locked by another program: end that program's transaction")


# Reading only


async def test_a_reader_sees_one_moment_while_others_write(path: Path) -> None:
    async with started(path) as opened:
        await opened.run(adding(1))
        with Database(path, SCHEMA, name="test").reading() as connection:
            assert numbers(connection) == [1]
            await opened.run(adding(2))
            assert numbers(connection) == [1]
        with locked(path), Database(path, SCHEMA, name="test").reading() as connection:
            assert numbers(connection) == [1, 2]


def test_a_reader_cannot_write(path: Path) -> None:
    with Database(path, SCHEMA, name="test"):
        pass
    reader = Database(path, SCHEMA, name="test")
    with pytest.raises(ConfigurationError, match="it cannot be written"), reader.reading() as found:
        adding(1)(found)
    assert numbers_in(path) == []


def test_a_reader_makes_no_file(path: Path) -> None:
    reader = Database(path, SCHEMA, name="test", setting="TEST_DB")
    with pytest.raises(ConfigurationError) as caught, reader.reading():
        pass
    assert caught.value.faults == (
        f"TEST_DB={path} cannot be used: there is no such file: the proxy creates it when it "
        "starts",
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("schema", "name", "fault"),
    [
        (SCHEMA * 2, "test", "it was written by another version of the plugin: start this version"),
        ((), "test", "it was written by another version of the plugin: start this version"),
        (SCHEMA, "other", "other has never written to it: name the file of other"),
    ],
)
def test_a_reader_refuses_what_it_does_not_understand(
    path: Path, schema: tuple[str, ...], name: str, fault: str
) -> None:
    with Database(path, SCHEMA, name="test"):
        pass
    with (
        pytest.raises(ConfigurationError, match=fault),
        Database(path, schema, name=name).reading(),
    ):
        pass


# Files that cannot be used any more


async def test_a_lock_is_waited_for(path: Path) -> None:
    async with started(path) as opened:
        with locked(path):
            waiting = asyncio.create_task(opened.run(adding(1)))
            await asyncio.sleep(0.05)  # it is being waited for: nothing can tell of that
            assert not waiting.done()
        await waiting
        assert numbers_in(path) == [1]


async def test_a_lock_fails_who_waits_and_holds_what_is_written_behind(
    path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(path) as opened:
        with locked(path):
            for number in range(3):
                opened.write_behind(add, number)
            with pytest.raises(DatabaseUnavailable, match="it is locked by another program: end "):
                await opened.run(numbers)
            assert opened.failing
            for number in range(3, 6):
                opened.write_behind(add, number)
            asked = [opened.run(numbers), opened.changed()]
            responses = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(response) for response in responses} == {DatabaseUnavailable}
            assert numbers_in(path) == []
        assert await opened.run(numbers) == [0, 1, 2, 3, 4, 5]
        assert opened.lost == 0
    assert (
        "is locked by another program: end that program's transaction (1 consecutive failures"
        in caplog.text
    )
    assert "can be used again" in caplog.text


async def test_who_waits_for_a_lock_is_not_failed_one_after_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 0.5)
    async with started(path) as opened:
        with locked(path):
            first = asyncio.create_task(opened.run(numbers))
            await asyncio.sleep(0)  # it asks
            while opened._jobs:  # until the thread has taken it, and waits for the lock
                await asyncio.sleep(0)
            asked = [first, *(opened.run(numbers) for _ in range(20))]
            responses = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(response) for response in responses] == [DatabaseUnavailable] * 21
    assert "1 consecutive failures" in caplog.text
    assert "2 consecutive failures" not in caplog.text


async def test_what_was_held_through_a_lock_is_written_by_itself(
    path: Path, impatient: None
) -> None:
    written = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with started(path) as opened:
        with locked(path):
            for number in range(1000):
                opened.write_behind(add, number)
            await failing(opened)
            opened.write_behind(lambda *_: loop.call_soon_threadsafe(written.set), None)
        await written.wait()
    assert numbers_in(path) == list(range(1000))


async def test_what_there_is_no_room_for_is_counted_and_told(
    path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "MAX_HELD", 10)
    async with started(path) as opened:
        with locked(path):
            for number in range(25):
                opened.write_behind(add, number)
            assert opened.lost == 15
        assert await opened.run(numbers) == list(range(10))
        opened.write_behind(add, 99)
        assert await opened.run(numbers) == [*range(10), 99]
        assert opened.lost == 15
    losses = re.findall(r"(\d+) items were lost", caplog.text)
    assert losses == ["1", "2", "4", "8", "15"]
    assert all(each.levelno >= logging.ERROR for each in caplog.records if "lost" in each.message)


async def test_closing_through_a_lock_waits_for_its_end(path: Path, impatient: None) -> None:
    async with started(path) as opened:
        with locked(path):
            opened.write_behind(add, 1)
            await failing(opened)
            closing = asyncio.create_task(opened.close())
            await asyncio.sleep(0.05)  # it begins: nothing can tell of that
            assert not closing.done()
        await closing
    assert numbers_in(path) == [1]
    assert opened.lost == 0


async def test_closing_gives_up_in_the_end_and_says_what_was_lost(
    path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "CLOSE_TIMEOUT", 0.3)
    async with started(path) as opened:
        with locked(path):
            for number in range(3):
                opened.write_behind(add, number)
            await opened.close()
        assert opened.lost == 3
    assert "3 items were lost, the last one because they could not be written" in caplog.text
    assert numbers_in(path) == []


async def test_a_full_disk_holds_what_is_written_behind(path: Path) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    async with started(path) as opened:
        opened.write_behind(add, -1)
        await opened.run(fill)
        for number in range(5_000):
            opened.write_behind(add, number)
        await failing(opened)
        with pytest.raises(DatabaseUnavailable, match="the disk is full: free some space"):
            await opened.run(numbers)
        assert opened.failing
        assert numbers_in(path) == [-1]
        # not by run(): it first writes what is held
        opened._file.connection.execute("PRAGMA max_page_count = 1000000")
        assert await opened.run(numbers) == [-1, *range(5_000)]
        assert opened.lost == 0


async def test_a_file_that_becomes_corrupt_fails_who_waits(path: Path) -> None:
    async with started(path) as opened:
        await opened.run(adding(1))
    content = bytearray(path.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'numbers'"
        ).fetchone()
    content[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    async with started(path) as opened:
        with pytest.raises(DatabaseUnavailable, match="it is corrupt: stop the proxy and restore"):
            await opened.run(numbers)
        assert opened.failing


async def test_a_file_that_is_deleted_fails_and_none_is_made_in_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "CLOSE_TIMEOUT", 0.3)
    async with started(path) as opened:
        path.unlink()
        opened.write_behind(add, 1)
        with pytest.raises(DatabaseUnavailable, match=r"it was deleted or moved .*: put it back"):
            await opened.run(numbers)
        with pytest.raises(DatabaseUnavailable, match="it was deleted or moved"):
            await opened.changed()
        assert not path.exists()
    assert opened.lost == 1
    assert "it was deleted or moved" in caplog.text
    assert "1 items were lost" in caplog.text


async def test_it_goes_on_when_the_file_is_back(path: Path) -> None:
    async with started(path) as opened:
        await opened.run(adding(1))
        path.rename(path.with_name("elsewhere"))
        opened.write_behind(add, 2)
        await failing(opened)
        path.with_name("elsewhere").rename(path)
        assert await opened.run(numbers) == [1, 2]
        assert opened.lost == 0


async def test_another_file_in_its_place_is_not_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CLOSE_TIMEOUT", 0.3)
    async with started(path) as opened:
        path.rename(path.with_name("elsewhere"))
        path.write_bytes(b"another")
        with pytest.raises(DatabaseUnavailable, match="another file is in its place: restart the "):
            await opened.run(adding(1))
        opened.write_behind(add, 1)
    assert path.read_bytes() == b"another"
    assert opened.lost == 1


async def test_work_that_ends_its_transaction_does_not_end_the_thread(path: Path) -> None:
    async with started(path) as opened:
        with pytest.raises(sqlite3.OperationalError):
            await opened.run(lambda connection: connection.execute("COMMIT"))
        assert await opened.run(numbers) == []


# Crashes

CRASH = """
import asyncio, sys
from functools import partial
from pathlib import Path
from tornadoproxy import Database

def add(numbers, connection):
    connection.executemany("INSERT INTO numbers VALUES (?)", [(each,) for each in numbers])

async def main():
    database = Database(Path(sys.argv[1]), ["CREATE TABLE numbers (number INTEGER)"], name="test")
    database.open()
    database.start()
    number = 0
    while True:
        for _ in range(10):
            number += 1
            database.write_behind(add, number)
        print(number, flush=True)
        await asyncio.sleep(0.01)

asyncio.run(main())
"""


async def test_a_killed_process_loses_at_most_its_last_second(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASH, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    told: list[tuple[float, int]] = []
    async for line in process.stdout:
        told.append((loop.time(), int(line)))
        if told[-1][0] - told[0][0] > 2:
            break
    killed_at = loop.time()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await process.stdout.read()
    found = numbers_in(path)
    assert found == list(range(1, len(found) + 1)), "in order, without a gap"
    assert len(found) >= max(number for at, number in told if at < killed_at - 1)


async def test_a_killed_process_loses_nothing_that_was_waited_for(path: Path) -> None:
    script = CRASH.replace(
        "database.write_behind(add, number)", "await database.run(partial(add, [number]))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    told = 0
    async for line in process.stdout:
        told = int(line)
        if told >= 200:
            break
    process.send_signal(signal.SIGKILL)
    await process.wait()
    told = max([told, *map(int, (await process.stdout.read()).split())])
    found = numbers_in(path)
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= told
