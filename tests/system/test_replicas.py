"""Four replicas behind HAProxy that share PostgreSQL and Redis: what they count, and what dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from postgres import PostgreSQLServer
from program import Program, run, running
from redis_server import RedisServer
from served import MESSAGE_FIELDS
from tornado.testing import bind_unused_port
from tornadoproxy_ledger.rows import SCHEMA

from tornadoproxy import Database, SecretURL
from tornadoproxy.testing import (
    TEST_UPSTREAM_KEY,
    RawConnection,
    RawResponse,
    ScriptedUpstream,
    Truncated,
    json_response,
    message_document,
    request_bytes,
    silent_response,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(120), pytest.mark.gen_test(timeout=100)]

BODY = json.dumps({**MESSAGE_FIELDS, "max_tokens": 1000}).encode()
REPLICAS = 4


class Replicas:
    """The replicas, and the balancer in front of them.

    :ivar port: the balancer's.
    """

    def __init__(self, directory: Path, environment: dict[str, Any]) -> None:
        self.directory = directory
        self.programs: list[Program] = []
        self.ports: list[int] = []
        self.port = 0
        self._environment = environment

    def command(self, *arguments: str) -> str:
        """Run a command of the program, and return what it prints."""
        done = run(self.directory, *arguments, **self._environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextlib.asynccontextmanager
    async def running(self, upstream: ScriptedUpstream) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(REPLICAS):
                program = running(self.directory, upstream, **self._environment)
                self.programs.append(await stack.enter_async_context(program))
            self.ports = [await program.port() for program in self.programs]
            await stack.enter_async_context(self._balancer())
            yield

    @contextlib.asynccontextmanager
    async def _balancer(self) -> AsyncIterator[None]:
        listener, self.port = bind_unused_port()
        listener.close()
        servers = "\n".join(
            f"  server r{port} 127.0.0.1:{port} check inter 100ms fall 1 rise 1"
            for port in self.ports
        )
        config = self.directory / "haproxy.cfg"
        # a dead replica refuses connections; without "timeout check" one would also be taken for
        # dead if it responds later than in 100 ms, as all do on a busy machine
        config.write_text(
            "defaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n"
            "  timeout check 10s\n  timeout server 30s\n  retries 2\n  option redispatch\n"
            f"frontend all\n  bind 127.0.0.1:{self.port}\n  default_backend replicas\n"
            f"backend replicas\n  option httpchk GET /ready\n{servers}\n"
        )
        process = await asyncio.create_subprocess_exec("haproxy", "-q", "-f", str(config))
        try:
            while True:
                with contextlib.suppress(OSError):
                    await (await RawConnection.open(self.port)).close()
                    break
                await asyncio.sleep(0.02)
            yield
        finally:
            process.terminate()
            await process.wait()

    async def ask(self, key: str, port: int | None = None) -> RawResponse:
        client = await RawConnection.open(port or self.port)
        try:
            await client.send(request_bytes("POST", "/v1/messages", body=BODY, token=key))
            return await client.response()
        finally:
            await client.close()

    async def cost(self, requests: int) -> float:
        """Return the cost of this many requests in dollars, as soon as the ledger has them all."""
        async with asyncio.timeout(30):
            while True:
                shown = await asyncio.to_thread(self.command, "usage", "--format", "json")
                total = json.loads(shown)["total"]
                if total["requests"] - total["errors"] == requests:
                    return float(total["cost_usd"])

    async def statuses(self, key: str, count: int) -> Counter[int]:
        """Return how often each status came in `count` parallel requests."""
        responses = await asyncio.gather(*(self.ask(key) for _ in range(count)))
        failed = [(each.headers, each.body) for each in responses if each.status >= 500]
        assert not failed, failed[0]  # which shows who has sent it
        return Counter(response.status for response in responses)


@pytest.fixture
def replicas(tmp_path: Path, postgres: SecretURL, redis_server: RedisServer) -> Replicas:
    if shutil.which("haproxy") is None:
        pytest.skip("HAProxy is absent")
    return Replicas(
        tmp_path,
        {
            "DATABASE_URL": postgres.reveal(),
            "SHARED_LIMITS": redis_server.url.reveal(),
            "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
            "DATABASE_TIMEOUT": "5",  # the machine may be busy
        },
    )


def rows(where: SecretURL) -> list[str]:
    """Return the request ids of the ledger's rows."""
    with Database(where, SCHEMA, name="ledger").reading() as connection:
        return [id_ for (id_,) in connection.execute("SELECT request_id FROM requests")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def test_limits_of_a_key_hold_for_all_replicas(
    replicas: Replicas, upstream: ScriptedUpstream
) -> None:
    key = replicas.command("keys", "create", "--name", "ada", "--requests-per-minute", "60")
    alone = replicas.command("keys", "create", "--name", "bob", "--concurrency", "4")
    async with replicas.running(upstream):
        assert await replicas.statuses(key, 500) == {200: 60, 429: 440}
        upstream.script(*[silent_response()] * 4)
        held = [asyncio.create_task(replicas.ask(alone)) for _ in range(40)]
        done, pending = await asyncio.wait(held, timeout=1000, return_when=asyncio.FIRST_COMPLETED)
        while len(pending) > 4:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result().status for task in done} == {429}
        await until(lambda: len(upstream.requests) >= 64)
        assert len(upstream.requests) == 64
        for task in pending:
            task.cancel()


async def test_cap_and_revocation_hold_for_all_replicas(
    replicas: Replicas, upstream: ScriptedUpstream
) -> None:
    key = replicas.command("keys", "create", "--name", "ada")
    replicas.command("budgets", "set", "--user", "ada", "--period", "daily", "--amount", "1")
    usage = {"input_tokens": 0, "output_tokens": 1000}
    async with replicas.running(upstream):
        total = Counter[int]()
        while total[429] < 20:
            upstream.script(*[json_response(message_document("Hi", usage=usage))] * 20)
            total += await replicas.statuses(key, 20)
        assert set(total) == {200, 429}
        cost = await replicas.cost(total[200])
        # each cost as much as its estimate, apart from the few tokens of input
        each = cost / total[200]
        assert 1 <= cost < 1 + 1.1 * each
        replicas.command("keys", "revoke", "ada")
        async with asyncio.timeout(30):
            for port in replicas.ports:
                while (await replicas.ask(key, port)).status != 401:
                    await asyncio.sleep(0.02)


class Load:
    """Clients that ask again and again until they are told to stop.

    :ivar statuses: how often each status came; 0 is a connection that broke.
    :ivar ids: when each complete response came, by its request id.
    """

    def __init__(self, replicas: Replicas, key: str) -> None:
        self.statuses = Counter[int]()
        self.ids: dict[str, float] = {}
        self._replicas = replicas
        self._key = key
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(8)]

    async def _ask(self) -> None:
        while True:
            try:
                response = await self._replicas.ask(self._key)
            except (OSError, Truncated):
                self.statuses[0] += 1
                continue
            self.statuses[response.status] += 1
            if response.status == 200:
                self.ids[response.header("request-id") or ""] = time.monotonic()

    async def more(self, count: int = 100) -> None:
        """Wait for more complete responses."""
        wanted = len(self.ids) + count
        async with asyncio.timeout(30):
            while len(self.ids) < wanted:
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("part", ["replica", "PostgreSQL", "Redis", "stalled PostgreSQL"])
async def test_death_of_a_part_counts_nothing_twice(
    part: str,
    replicas: Replicas,
    upstream: ScriptedUpstream,
    postgres: SecretURL,
    postgres_server: PostgreSQLServer,
    redis_server: RedisServer,
) -> None:
    key = replicas.command("keys", "create", "--name", "ada", "--requests-per-minute", "1000000")
    async with replicas.running(upstream):
        load = Load(replicas, key)
        await load.more(2000 if part == "replica" else 100)
        killed_at = time.monotonic()
        if part == "replica":
            replicas.programs[0].send_signal(signal.SIGKILL)
        elif part == "Redis":
            await asyncio.to_thread(redis_server.stop)
            await asyncio.to_thread(redis_server.start)
        elif part == "PostgreSQL":
            await asyncio.to_thread(postgres_server.stop, signal.SIGKILL)
            await load.more()
            await asyncio.to_thread(postgres_server.start)
        else:
            postgres_server.send(signal.SIGSTOP)
            await load.more()
            postgres_server.send(signal.SIGCONT)
        await load.more()
        await load.stop()
        # without Redis, and after 5 seconds without PostgreSQL, limited requests are refused
        may_fail = {0, 502, 503} if part == "replica" else {503}
        assert set(load.statuses) - {200} <= may_fail
        # a replica that is killed takes the rows of its last half second with it
        lost_from = killed_at - 2 if part == "replica" else math.inf
        wanted = {id_ for id_, came_at in load.ids.items() if came_at < lost_from}
        await until(lambda: wanted <= set(rows(postgres)))
        assert set(Counter(rows(postgres)).values()) == {1}
