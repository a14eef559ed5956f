"""Caps of several proxies together, with reservations in the server of ``SHARED_LIMITS``."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import pytest
from budget_team import ADA, CENT, EACH, TOGETHER, Team, asking, costing
from people import Held, error_of, pause, until
from redis_server import RedisServer
from tornadoproxy_budgets import shared_reservations, storage

from tornadoproxy.testing import Proxy, silent_response

pytest_plugins = ("budget_team",)


async def start(team: Team, server: RedisServer, **settings: object) -> list[Proxy]:
    """Start four proxies that share a budgets database and a Redis server."""
    return [await team.start(SHARED_LIMITS=server.url, **settings) for _ in range(4)]


async def statuses(team: Team, proxies: list[Proxy], count: int) -> Counter[int]:
    """Return how often each status came in `count` parallel requests of up to 11 cents."""
    team.upstream.script(*[costing(3)] * count)
    asked = [team.ask(to=proxies[number % 4]) for number in range(count)]
    return Counter(response.status for response in await asyncio.gather(*asked))


async def test_cap_is_overspent_by_less_than_one_estimate(
    team: Team, redis_server: RedisServer
) -> None:
    team.cap(EACH, 100)
    proxies = await start(team, redis_server)
    total = Counter[int]()
    for _ in range(12):
        total += await statuses(team, proxies, 20)
    spent = 3 * total[200]
    assert (set(total), 100 <= spent < 100 + 11) == ({200, 429}, True)
    async with asyncio.timeout(10):
        while {await team.spent(to=proxy) for proxy in proxies} != {spent * CENT}:
            await asyncio.sleep(0.05)


async def test_highest_cap_admits_requests(team: Team, redis_server: RedisServer) -> None:
    team.cap(EACH, 10**15 - 1)
    proxy = await team.start(SHARED_LIMITS=redis_server.url)
    for _ in range(2):
        assert (await team.ask(to=proxy)).status == 200


async def test_request_in_flight_at_another_proxy_holds_its_estimate(
    team: Team, redis_server: RedisServer
) -> None:
    team.cap(TOGETHER, 20)
    proxies = await start(team, redis_server)
    team.upstream.script(silent_response())
    held = asyncio.create_task(team.ask("ada", asking(50), to=proxies[0]))
    await team.upstream.received()
    refused = await team.ask("bob", to=proxies[1])
    assert (refused.status, "and requests in flight" in error_of(refused)["message"]) == (429, True)
    held.cancel()


@pytest.mark.parametrize("is_renewed", [False, True])
async def test_reservation_of_a_killed_proxy_ends_by_itself(
    is_renewed: bool, team: Team, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_reservations, "LEASE", 2)
    monkeypatch.setattr(shared_reservations, "RENEWAL", 0.1 if is_renewed else 60.0)
    team.cap(ADA, 20)
    proxies = await start(team, redis_server)
    team.upstream.script(silent_response())
    held = asyncio.create_task(team.ask("ada", asking(50), to=proxies[0]))
    await team.upstream.received()
    with redis_server.client() as client:
        ((_, ends),) = client.zrange("tornadoproxy:{budgets}:leases", 0, -1, withscores=True)
        async with asyncio.timeout(10):
            while client.time()[0] <= ends:  # the lease would have ended by now
                await asyncio.sleep(0.05)
    team.upstream.script(costing(1))
    assert (await team.ask(to=proxies[1])).status == (429 if is_renewed else 200)
    held.cancel()


async def test_client_that_disconnects_while_it_waits_reserves_nothing(
    team: Team, redis_server: RedisServer
) -> None:
    team.cap(ADA, 20)
    proxy, *_ = await start(team, redis_server)
    redis_server.send(signal.SIGSTOP)
    asking_for_it_all = asyncio.create_task(team.ask("ada", asking(50), to=proxy))
    async with asyncio.timeout(10):
        while not proxy.server.status().in_flight:
            await asyncio.sleep(0.005)
        asking_for_it_all.cancel()
        while proxy.server.status().in_flight:
            await asyncio.sleep(0.005)
    redis_server.send(signal.SIGCONT)
    team.upstream.script(costing(1))
    await until(200, lambda: team.ask(to=proxy))


async def test_lost_sums_are_loaded_before_anything_is_spent(
    team: Team, redis_server: RedisServer
) -> None:
    team.cap(ADA, 10)
    proxies = await start(team, redis_server)
    held = Held(costing(1))
    team.upstream.script(held, costing(12))
    open_request = asyncio.create_task(team.ask("ada", asking(1), to=proxies[0]))
    await team.upstream.received()
    assert (await team.ask(to=proxies[0])).status == 200
    async with asyncio.timeout(10):
        while await team.spent(to=proxies[2]) != 12 * CENT:
            await pause()
    with redis_server.client() as client:
        client.flushall()
    # the first sum that the server hears of is that of a proxy which does not know all
    held.released.set()
    assert (await open_request).status == 200
    assert (await team.ask(to=proxies[1])).status == 429


@pytest.mark.parametrize(
    "where", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
async def test_proxies_save_while_a_command_changes_caps(
    team: Team, redis_server: RedisServer
) -> None:
    one, two, *_ = await start(team, redis_server)
    with storage.database(team.where) as database, database.transaction():
        team.upstream.script(costing(3))
        assert (await team.ask(to=one)).status == 200
        async with asyncio.timeout(10):
            while await team.spent(to=two) != 3 * CENT:
                await pause()


@pytest.mark.parametrize(("failure", "expected"), [("refuse", {503: 4}), ("local", {200: 4})])
async def test_caps_without_the_server(
    failure: str, expected: dict[int, int], team: Team, redis_server: RedisServer
) -> None:
    team.cap(EACH, 100)
    proxies = await start(team, redis_server, SHARED_LIMITS_FAILURE=failure)
    redis_server.stop()
    assert await statuses(team, proxies, 4) == expected
    await asyncio.to_thread(redis_server.start)
