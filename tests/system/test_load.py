"""Load: many streams that stay open, requests in numbers; nothing is mixed up, lost or left."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from load_content import Dialect, How, check_response, request
from proxy_process import ProxyProcess, fast_upstream, proxy_process, until

from tornadoproxy.testing import RawConnection

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc"),
]

MEGABYTE = 1 << 20
AT_ONCE = 64  # connections being opened, or clients that ask
PATIENCE = 20.0  # seconds for one request


@pytest.fixture
def descriptors() -> Iterator[int]:
    """The number of descriptors that a process may have, which this one gets as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def dialect_of(number: int) -> Dialect:
    return "openai" if number % 2 else "anthropic"


@pytest.mark.gen_test(timeout=240)
@pytest.mark.timeout(270)
async def test_idle_streams_stay_open(tmp_path: Path, descriptors: int) -> None:
    """10,000 in one process: all stay, others are served, some disconnect, the rest end whole."""
    # two descriptors each: where less than 20,400 are allowed, as many as there is room for
    count = min(10_000, (descriptors - 400) // 4 * 2)
    disconnecting = count // 4 * 2
    room = asyncio.Semaphore(AT_ONCE)

    async def begin(number: int) -> tuple[RawConnection, bytes]:
        async with room:
            connection = await RawConnection.open(proxy.port)
            await connection.send(request(dialect_of(number), "hold", number))
            await connection.head()
            return connection, await connection.chunk()

    async def finish(number: int, connection: RawConnection, body: bytes) -> None:
        while chunk := await connection.chunk():
            body += chunk
        check_response(dialect_of(number), "hold", number, 200, body)
        await connection.close()

    async with (
        fast_upstream() as upstream,
        proxy_process(tmp_path, upstream.url, MAX_CONCURRENT_REQUESTS="20000") as proxy,
    ):
        before = await proxy.baseline()
        streams = await asyncio.gather(*(begin(number) for number in range(1, count + 1)))
        assert await upstream.ask("count") == {"open": count, "held": count}
        assert proxy.descriptors() >= before + 2 * count
        async with asyncio.timeout(10):
            for _ in range(100):
                assert (await proxy.ask()).status == 200
        for number, (connection, _) in enumerate(streams[:disconnecting], 1):
            await (connection.reset() if number % 3 else connection.close())
        await until(lambda: proxy.descriptors() <= before + 2 * (count - disconnecting), 10)
        rest = [
            asyncio.create_task(finish(number, *stream))
            for number, stream in enumerate(streams[disconnecting:], disconnecting + 1)
        ]
        await upstream.ask("release")
        await asyncio.gather(*rest)
        await until(lambda: proxy.descriptors() <= before, 5)
    assert recorded(proxy) == {
        ("anthropic", "abandoned"): disconnecting / 2,
        ("openai", "abandoned"): disconnecting / 2,
        ("anthropic", "completed"): (count - disconnecting) / 2,
        ("openai", "completed"): (count - disconnecting) / 2,
    }


async def answered(connection: RawConnection, number: int) -> None:
    """Make a request; its response is whole."""
    dialect: Dialect = "openai" if number % 10 in {1, 2, 3} else "anthropic"
    how: How = "stream" if number % 10 in {3, 4, 5} else "json"
    response = await connection.ask(request(dialect, how, number))
    check_response(dialect, how, number, response.status, response.body)


async def disconnected(connection: RawConnection, number: int) -> None:
    """Disconnect within the response, by FIN or by RST, in either dialect."""
    await connection.send(request(dialect_of(number // 10), "hold", number))
    await connection.head()
    await connection.chunk()
    await (connection.reset() if number // 10 & 2 else connection.close())


@pytest.mark.gen_test(timeout=400)
@pytest.mark.timeout(430)
async def test_requests_in_numbers_leave_nothing_behind(tmp_path: Path) -> None:
    """100,000, of every kind; a tenth of the clients disconnect within the response."""
    warming, total = 10_000, 110_000

    async def client(numbers: Iterator[int]) -> None:
        connection = await RawConnection.open(proxy.port)
        for number in numbers:
            async with asyncio.timeout(PATIENCE):
                if number % 10:
                    await answered(connection, number)
                else:
                    await disconnected(connection, number)
                    connection = await RawConnection.open(proxy.port)
        await connection.close()

    async def ask(numbers: range) -> None:
        remaining = iter(numbers)
        await asyncio.gather(*(client(remaining) for _ in range(AT_ONCE)))
        await until(lambda: proxy.descriptors() <= before, 10)

    async with (
        fast_upstream() as upstream,
        proxy_process(tmp_path, upstream.url, UPSTREAM_KEEPALIVE_TIMEOUT="1") as proxy,
    ):
        before = await proxy.baseline()
        await ask(range(1, warming + 1))
        warm = proxy.memory()
        await ask(range(warming + 1, total + 1))
        assert proxy.memory() - warm < 16 * MEGABYTE
        assert (await upstream.ask("count"))["open"] == 0
    # of ten requests, three whole ones are in the OpenAI dialect, and every second one that is cut
    assert recorded(proxy) == {
        ("anthropic", "abandoned"): total / 20,
        ("openai", "abandoned"): total / 20,
        ("anthropic", "completed"): total * 6 / 10,
        ("openai", "completed"): total * 3 / 10,
    }
    assert "WARNING" not in proxy.log()
    assert "ERROR" not in proxy.log()


def recorded(proxy: ProxyProcess) -> Counter[tuple[str, str]]:
    """How many requests were recorded of each dialect and outcome, each of them once."""
    records = proxy.records()
    numbers = sorted(int(record["session_id"]) for record in records)
    assert numbers == list(range(1, len(records) + 1))
    return Counter((record["dialect"], record["outcome"]) for record in records)
