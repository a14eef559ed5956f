"""A Redis server for tests: one for each test process, emptied for each test."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tornado.testing import bind_unused_port

from tornadoproxy import SecretURL

PASSWORD = "word-of-the-counters"


class RedisServer:
    """A Redis server of its own, on a free port of the loopback interface.

    :ivar port: its port, which it keeps when it is started again.
    """

    def __init__(self, directory: Path) -> None:
        listener, self.port = bind_unused_port()
        listener.close()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> SecretURL:
        return SecretURL(f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0")

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url.reveal())

    def start(self) -> None:
        """Start the server, and wait until it accepts commands."""
        program = shutil.which("redis-server")
        assert program is not None
        self._process = subprocess.Popen(
            [program, "--port", str(self.port), "--save", "", "--requirepass", PASSWORD],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
        )
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except redis.RedisError:
                assert self._process.poll() is None
                time.sleep(0.02)
            else:
                return

    def send(self, which: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(which)

    def stop(self) -> None:
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the server."""
    for item in items:
        if "running_redis" in getattr(item, "fixturenames", ()):
            item.add_marker("redis")


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is absent")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(running_redis: RedisServer) -> RedisServer:
    """A running server without data."""
    with running_redis.client() as client:
        client.flushall()
    return running_redis
