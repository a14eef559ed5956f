"""A Redis server for tests: one for each test process, emptied for each test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from tornadoproxy import Script, SecretURL, SharedCounters

PASSWORD = "word-of-the-counters"
COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
PROGRAM = shutil.which(os.environ.get("REDIS_SERVER", "redis-server"))
"""The server's program: Redis, or with ``REDIS_SERVER=valkey-server`` Valkey."""


def unused_port() -> int:
    """Return a port below those of outgoing connections, which might take it before a server."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Certificate(NamedTuple):
    """The files of a certificate, of its key, and of the authority that has issued it."""

    cert: Path
    key: Path
    ca: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Options of a server, each followed by its value."""
        return (
            *("--tls-cert-file", str(self.cert), "--tls-key-file", str(self.key)),
            *("--tls-ca-cert-file", str(self.ca), "--tls-auth-clients", "no"),
            *("--tls-replication", "yes"),
        )


class RedisServer:
    """A Redis server of its own, on a free port of the loopback interface.

    :param tls: the certificate for a second port, with TLS.
    :ivar port: its port, which it keeps when it is started again.
    :ivar tls_port: the port with TLS.
    """

    def __init__(self, directory: Path, *options: str, tls: Certificate | None = None) -> None:
        self.port, self.tls_port = unused_port(), unused_port()
        self._directory = directory
        self._options = options
        if tls is not None:
            self._options += ("--tls-port", str(self.tls_port), *tls.options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> SecretURL:
        return SecretURL(f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0")

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url.reveal())

    def start(self) -> None:
        """Start the server, and wait until it accepts commands."""
        assert PROGRAM is not None
        self._process = subprocess.Popen(
            [
                *(PROGRAM, "--port", str(self.port), "--save", "", "--requirepass", PASSWORD),
                *self._options,
            ],
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

    def has_all_of(self, master: RedisServer) -> bool:
        """Return whether this replica has received all that its master has written."""
        with self.client() as client, master.client() as of_master:
            mine, others = client.info("replication"), of_master.info("replication")
        is_linked = bool(mine["master_link_status"] == "up")
        return is_linked and bool(mine["slave_repl_offset"] == others["master_repl_offset"])

    def send(self, which: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(which)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class RedisSentinel:
    """A Sentinel of its own, for one server, which it calls ``main``.

    :param options: further ones.
    """

    def __init__(self, directory: Path, master: int, *options: str) -> None:
        self.port = unused_port()
        config = directory / "sentinel.conf"
        config.write_text(
            f"sentinel monitor main 127.0.0.1 {master} 1\n"
            f"sentinel auth-pass main {PASSWORD}\nsentinel down-after-milliseconds main 500\n"
        )
        assert PROGRAM is not None
        self._process = subprocess.Popen(
            [PROGRAM, str(config), "--sentinel", "--port", str(self.port), *options],
            stdout=subprocess.DEVNULL,
        )

    @property
    def url(self) -> SecretURL:
        return SecretURL(f"redis+sentinel://:{PASSWORD}@127.0.0.1:{self.port}/main/0")

    def knows_a_replica(self) -> bool:
        try:
            with redis.Redis(port=self.port) as client:
                return any(each["flags"] == "slave" for each in client.sentinel_slaves("main"))
        except redis.RedisError:
            return False

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


BOUNDS = [REDIS_CLUSTER_HASH_SLOTS * number // 3 for number in range(4)]


class RedisCluster:
    """Three masters that divide the slots, and a replica of the first."""

    def __init__(self, directory: Path, tls: Certificate | None = None) -> None:
        self._has_tls = tls is not None
        self._buses = [unused_port() for _ in range(4)]
        self.nodes = [self._node(directory / str(bus), bus, tls) for bus in self._buses]

    @property
    def url(self) -> SecretURL:
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return SecretURL(f"redis+cluster://:{PASSWORD}@{places}")

    def ask(self, node: int, *command: str | int) -> Any:
        """Return a node's response to a command. Any: each has a type of its own."""
        with self.nodes[node].client() as client:
            return client.execute_command(*command)

    def id(self, node: int) -> str:
        return str(self.ask(node, "CLUSTER MYID"), "ascii")

    def start(self) -> None:
        """Start the nodes, and wait until they are a cluster."""
        for number, node in enumerate(self.nodes):
            node.start()
            self.ask(number, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                slots = BOUNDS[number], BOUNDS[number + 1] - 1
                self.ask(number, "CLUSTER ADDSLOTSRANGE", *slots)
            if number > 0:
                first = self.nodes[0]
                port = first.tls_port if self._has_tls else first.port
                meet = "127.0.0.1", port, self._buses[0]
                self.ask(number, "CLUSTER MEET", *meet)
        until(lambda: all(len(self._known(node)) == 4 for node in range(4)))
        self.ask(3, "CLUSTER REPLICATE", self.id(0))
        until(self.is_up)

    def is_up(self) -> bool:
        """Return whether all nodes agree that each slot is served, and the replica is ready."""
        with self.nodes[3].client() as client:
            link = client.info("replication").get("master_link_status")
        return link == "up" and all(
            self.ask(node, "CLUSTER INFO")["cluster_state"] == "ok" for node in range(4)
        )

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def _known(self, node: int) -> list[str]:
        nodes = self.ask(node, "CLUSTER NODES")
        return [place for place in nodes if "handshake" not in nodes[place]["flags"]]

    @staticmethod
    def _node(directory: Path, bus: int, tls: Certificate | None) -> RedisServer:
        directory.mkdir()
        return RedisServer(
            directory,
            *("--cluster-enabled", "yes", "--cluster-port", str(bus), "--masterauth", PASSWORD),
            *("--cluster-node-timeout", "500", "--repl-diskless-sync-delay", "0"),
            *([] if tls is None else ("--tls-cluster", "yes")),
            tls=tls,
        )


@contextlib.asynccontextmanager
async def opened(url: SecretURL, deadline: float = 0.25) -> AsyncIterator[SharedCounters]:
    """Open counters.

    :param deadline: seconds for a script.
    """
    counters = SharedCounters(url, setting="SHARED_LIMITS", timeout=deadline)
    await counters.open()
    try:
        yield counters
    finally:
        await counters.close()


async def usable(counters: SharedCounters) -> None:
    """Wait until no connection of these counters is missing."""
    async with asyncio.timeout(15):
        while counters.failing:
            await asyncio.sleep(0.01)


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; a test's own timeout ends it."""
    while not condition():
        time.sleep(0.02)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server."""
    for item in items:
        if {"running_redis", "redis_cluster"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker("redis")


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if PROGRAM is None:
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


@pytest.fixture
def redis_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A running cluster without data, which a test may change."""
    if PROGRAM is None:
        pytest.skip("Redis is absent")
    cluster = RedisCluster(tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
