"""The limits of keys for several proxies together, in the server of ``SHARED_LIMITS``."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from people import MESSAGES, message, until
from redis_server import RedisServer
from scene import Scene
from test_keys import Keyed
from tornadoproxy_keys import shared_limits
from tornadoproxy_keys.store import Limits

from tornadoproxy.testing import (
    Proxy,
    RawConnection,
    RawResponse,
    json_response,
    message_document,
    request_bytes,
    silent_response,
)


class Team(Keyed):
    """Four proxies that share a keys database and a Redis server."""

    def __init__(self, scene: Scene, path: Path, server: RedisServer) -> None:
        super().__init__(scene, path)
        self.server = server
        self.proxies: list[Proxy] = []

    async def start_all(self, limits: Limits, **settings: Any) -> str:
        """Start the proxies, and return a key with these limits."""
        key = self.create(limits=limits)
        for _ in range(4):
            self.proxies.append(await self.start(SHARED_LIMITS=self.server.url, **settings))
        return key

    async def ask_at(self, proxy: int, key: str) -> RawResponse:
        return await self.request(MESSAGES, message(), token=key, to=self.proxies[proxy % 4])

    async def statuses(self, key: str, count: int) -> Counter[int]:
        """Return how often each status came in `count` parallel requests to all proxies."""
        asked = [self.ask_at(number, key) for number in range(count)]
        return Counter(response.status for response in await asyncio.gather(*asked))

    async def hold(self, key: str, proxy: int) -> RawConnection:
        """Begin a request that the upstream does not respond to."""
        self.upstream.script(silent_response())
        return await self.begin(key, self.proxies[proxy])

    async def until(self, status: int, key: str) -> RawResponse:
        return await until(status, lambda: self.ask_at(1, key))


@pytest.fixture
def team(scene: Scene, tmp_path: Path, redis_server: RedisServer) -> Team:
    return Team(scene, tmp_path / "keys.db", redis_server)


async def test_requests_of_all_proxies_count(team: Team) -> None:
    key = await team.start_all(Limits(requests_per_minute=60))
    assert await team.statuses(key, 500) == {200: 60, 429: 440}
    refused = await team.ask_at(3, key)
    assert 58 <= int(refused.header("retry-after") or 0) <= 61
    assert b"has reached its limit of 60 requests a minute" in refused.body


async def test_requests_in_flight_at_all_proxies_count(team: Team) -> None:
    key = await team.start_all(Limits(concurrency=4))
    held = [await team.hold(key, proxy) for proxy in range(4)]
    refused = await team.ask_at(0, key)
    assert (refused.status, b"its limit of 4 requests at once" in refused.body) == (429, True)
    await held[2].close()
    assert (await team.until(200, key)).status == 200
    assert len(team.upstream.requests) == 5


async def test_tokens_at_all_proxies_count(team: Team) -> None:
    key = await team.start_all(Limits(tokens_per_minute=10))
    assert (await team.ask_at(0, key)).status == 200
    refused = await team.until(429, key)
    assert b"its limit of 10 tokens a minute" in refused.body


async def test_tokens_beyond_any_number_of_the_server_count(team: Team) -> None:
    key = await team.start_all(Limits(tokens_per_minute=10**12))
    names = ("input_tokens", "output_tokens", "cache_creation_input_tokens")
    usage = dict.fromkeys(names, 2**63 - 1)
    team.upstream.script(json_response(message_document("Hi", usage=usage)))
    assert (await team.ask_at(0, key)).status == 200
    assert (await team.until(429, key)).status == 429


async def test_requests_of_a_killed_proxy_end_by_themselves(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "LEASE", 1)
    monkeypatch.setattr(shared_limits, "RENEWAL", 60.0)  # as if the proxy were dead
    key = await team.start_all(Limits(concurrency=1))
    await team.hold(key, 0)
    assert (await team.ask_at(1, key)).status == 429
    await team.until(200, key)


async def test_long_request_keeps_its_place(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "RENEWAL", 0.05)
    key = await team.start_all(Limits(concurrency=1))
    await team.hold(key, 0)
    with team.server.client() as client:
        (name,) = client.keys("*:leases")
        ((lease, ends),) = client.zrange(name, 0, -1, withscores=True)
        async with asyncio.timeout(10):
            while client.zscore(name, lease) == ends:
                await asyncio.sleep(0.02)
    assert (await team.ask_at(1, key)).status == 429


async def test_client_that_disconnects_while_it_waits_takes_no_place(team: Team) -> None:
    key = await team.start_all(Limits(concurrency=1))
    team.server.send(signal.SIGSTOP)
    client = await team.raw(team.proxies[0])
    await client.send(request_bytes("GET", "/v1/models", token=key))
    async with asyncio.timeout(10):
        while not team.proxies[0].server.status().in_flight:
            await asyncio.sleep(0.005)
    await client.close()
    while team.proxies[0].server.status().in_flight:
        await asyncio.sleep(0.005)
    team.server.send(signal.SIGCONT)
    await team.until(200, key)


@pytest.mark.parametrize(
    ("failure", "statuses"), [("refuse", {503: 8}), ("local", {200: 4, 429: 4})]
)
async def test_limits_without_their_server(
    failure: str, statuses: dict[int, int], team: Team
) -> None:
    key = await team.start_all(Limits(requests_per_minute=1), SHARED_LIMITS_FAILURE=failure)
    team.server.stop()
    # the first request of each proxy may find the connection still there
    assert await team.statuses(key, 8) == statuses
    ready = await team.request("/ready", token=None, to=team.proxies[0])
    shown = json.loads(ready.body)["databases"]["keys"]
    assert ready.status == 200
    assert (shown["KEYS_DB"]["failing"], shown["SHARED_LIMITS"]["failing"]) == (False, True)
    await asyncio.to_thread(team.server.start)
    await team.until(200, key)


async def test_key_without_limits_needs_no_server(team: Team) -> None:
    key = await team.start_all(Limits(models=("claude-*",)))
    team.server.stop()
    assert await team.statuses(key, 4) == {200: 4}
    await asyncio.to_thread(team.server.start)
