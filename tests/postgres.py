"""A PostgreSQL server for tests: one for each process, with an empty database for each test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest
from tornado.testing import bind_unused_port

from bench import postgresql
from tornadoproxy import DatabaseLocation, SecretURL
from tornadoproxy.storage import sqlite_file

EMPTY = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO PUBLIC;
"""

USER, PASSWORD = "tornadoproxy", "p%40ss%2Fword-of-the-database"


class PostgreSQLServer(postgresql.Server):
    """A PostgreSQL server that is started and stopped by tests, always on the same port."""

    def __init__(self, directory: Path) -> None:
        listener, port = bind_unused_port()
        listener.close()
        super().__init__(directory, port, USER, password=unquote(PASSWORD))
        self._numbers = itertools.count()
        self._unused: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start the server, and wait until it accepts connections."""
        self._process = self.launch(
            *("-c", "fsync=off", "-c", "max_connections=200", "-c", "deadlock_timeout=100ms"),
            *options,
        )
        while True:
            try:
                self.connect("postgres").close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log.read_text()[-1000:]
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End the server: at once with SIGQUIT, without any preparation with SIGKILL."""
        processes = self.send(how)
        assert self._process is not None
        self._process.wait()
        # orphans still hold the memory that a new server looks for
        while any(Path(f"/proc/{process}").exists() for process in processes):
            time.sleep(0.01)

    def send(self, which: signal.Signals) -> list[int]:
        """Send a signal to all processes of the server, and return their numbers."""
        assert self._process is not None
        main = self._process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for process in (processes := [main, *map(int, children)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, which)
        return processes

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self.url(database).reveal(), autocommit=True)

    def url(self, database: str, port: int | None = None) -> SecretURL:
        return SecretURL(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port or self.port}/{database}")

    @contextlib.contextmanager
    def empty_database(self) -> Iterator[SecretURL]:
        """Yield the URL of an empty database, which a later test gets again.

        Emptying a database takes a tenth of the time that creating one takes.
        """
        if self._unused:
            name = self._unused.pop()
            with contextlib.closing(self.connect(name)) as connection:
                connection.execute(EMPTY)
        else:
            name = f"test_{next(self._numbers)}"
            with contextlib.closing(self.connect("postgres")) as connection:
                connection.execute(f"CREATE DATABASE {name}")
        yield self.url(name)
        self._unused.append(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the server."""
    for item in items:
        if "postgres_server" in getattr(item, "fixturenames", ()):
            item.add_marker("postgres")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgreSQLServer]:
    """A running server for all tests of a process."""
    if postgresql.program("postgres") is None:
        pytest.skip("PostgreSQL is absent")
    # not pytest's directory, which only the user who runs the tests may enter
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as directory:
        server = PostgreSQLServer(Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def postgres(postgres_server: PostgreSQLServer) -> Iterator[SecretURL]:
    """The URL of an empty database."""
    with postgres_server.empty_database() as url:
        yield url


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A directory in memory, on Linux: there, a database does not wait for the disk."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tornadoproxy-", dir=parent) as directory:
        yield Path(directory)


@pytest.fixture
def memory_path(memory: Path) -> Path:
    """An empty directory in memory."""
    for old in memory.iterdir():  # not at the end of its test, whose proxy stops later
        shutil.rmtree(old)
    return Path(tempfile.mkdtemp(dir=memory))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def where(request: pytest.FixtureRequest) -> DatabaseLocation:
    """An SQLite file that does not exist yet, or an empty PostgreSQL database."""
    if request.param == "sqlite":
        directory: Path = request.getfixturevalue("memory_path")
        return directory / "plugin.db"
    url: SecretURL = request.getfixturevalue("postgres")
    return url


@pytest.fixture
def short_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an SQLite file wait only briefly for a lock; comes before it is opened."""
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 0.05)


sqlite_only = pytest.mark.parametrize("where", ["sqlite"], indirect=True)
"""For a test of what a file does."""


class Line:
    """A TCP line to a server that is cut, once, at a statement.

    :ivar cut_at: the bytes that cut it when a client sends them.
    :ivar delivered: whether the server gets them, and only its response is lost.
    """

    def __init__(self, to: int) -> None:
        self.cut_at: bytes | None = None
        self.delivered = False
        self._to = to
        self._is_last = False
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Listen on a port."""
        async with await asyncio.start_server(self._serve, "127.0.0.1") as server:
            yield server.sockets[0].getsockname()[1]
            server.close()
            self._cut()
            await asyncio.gather(*self._tasks)

    def _cut(self) -> None:
        self.cut_at = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, server_writer]
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._pass_on(reader, server_writer, to_server=True),
                self._pass_on(server_reader, writer, to_server=False),
            )

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        while data := await reader.read(65_536):
            if to_server:
                self._is_last = self.cut_at is not None and self.cut_at in data
            if self._is_last and to_server != self.delivered:
                self._cut()
            else:
                writer.write(data)
        writer.close()
