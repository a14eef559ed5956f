"""Load: many streams that stay open, requests in numbers; nothing mixed, lost or left."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from proxy_process import Peer, ProxyProcess, peer_process, proxy_process, until

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc"),
]

MEGABYTE = 1 << 20


def load(scenario: str, **arguments: float) -> AbstractAsyncContextManager[Peer]:
    """Clients that do as `scenario` of ``load_client.py`` has it."""
    return peer_process("load_client.py", scenario, json.dumps(arguments))


@pytest.mark.gen_test(timeout=240)
@pytest.mark.timeout(270)
async def test_idle_streams_stay_open(tmp_path: Path) -> None:
    """10,000 in one process: all stay, others are served, a part leaves, the rest ends whole."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # two descriptors each: where less than 20,400 are allowed, as many as there is room for
    count = min(10_000, (hard - 400) // 4 * 2)
    leaving = count // 4 * 2
    async with (
        peer_process("fast_upstream.py") as upstream,
        proxy_process(
            tmp_path,
            f"http://127.0.0.1:{await upstream.says()}",
            MAX_CONCURRENT_REQUESTS="20000",
        ) as proxy,
    ):
        before = await proxy.baseline()
        async with load("hold", port=proxy.port, count=count, leaving=leaving) as clients:
            assert await clients.says() == {"open": count}
            assert await upstream.ask("count") == {"open": count, "held": count}
            assert proxy.descriptors() >= before + 2 * count
            async with asyncio.timeout(10):
                for _ in range(100):
                    assert (await proxy.ask()).status == 200
            assert await clients.ask("leave") == {"left": leaving}
            await until(lambda: proxy.descriptors() <= before + 2 * (count - leaving), 10)
            await upstream.ask("release")
            assert await clients.says() == {"whole": count - leaving, "faults": []}
        await until(lambda: proxy.descriptors() <= before, 5)
    assert recorded(proxy) == {
        ("anthropic", "abandoned"): leaving / 2,
        ("openai", "abandoned"): leaving / 2,
        ("anthropic", "completed"): (count - leaving) / 2,
        ("openai", "completed"): (count - leaving) / 2,
    }


@pytest.mark.gen_test(timeout=400)
@pytest.mark.timeout(430)
async def test_requests_in_numbers_leave_nothing_behind(tmp_path: Path) -> None:
    """100,000, of every kind, of which a tenth leaves within the response."""
    warming, count = 10_000, 100_000
    async with (
        peer_process("fast_upstream.py") as upstream,
        proxy_process(
            tmp_path,
            f"http://127.0.0.1:{await upstream.says()}",
            UPSTREAM_KEEPALIVE_TIMEOUT="1",
        ) as proxy,
    ):

        async def ask(first: int, count: int) -> None:
            async with load(
                "ask", port=proxy.port, first=first, count=count, at_once=64
            ) as clients:
                said = await clients.says()
            assert said == {"answered": count * 9 / 10, "left": count / 10, "faults": []}
            await until(lambda: proxy.descriptors() <= before, 10)

        before = await proxy.baseline()
        await ask(1, warming)
        warm = proxy.memory()
        await ask(warming + 1, count)
        assert proxy.memory() - warm < 16 * MEGABYTE
        assert (await upstream.ask("count"))["open"] == 0
    total = warming + count
    # of ten requests, three whole ones are in the OpenAI dialect, and every second one that is left
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
