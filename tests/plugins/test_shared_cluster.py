"""The limits of keys and the caps together, in one Redis server and in a cluster."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from budget_team import EACH, Prices, Team, costing
from postgres import sqlite_only
from redis_server import RedisCluster, RedisServer
from tornadoproxy_keys import changes, store
from tornadoproxy_keys.changes import By
from tornadoproxy_keys.store import Limits

pytest_plugins = ("budget_team",)


@sqlite_only
async def test_plugins_share_one_connection_to_the_server(
    team: Team, redis_server: RedisServer, tmp_path: Path
) -> None:
    await team.start(SHARED_LIMITS=redis_server.url, KEYS_DB=tmp_path / "keys.db")
    with redis_server.client() as client:
        assert len(client.client_list(_type="normal")) == 2


@sqlite_only
async def test_limits_and_caps_hold_with_keys_at_all_nodes(
    team: Team, redis_cluster: RedisCluster, tmp_path: Path
) -> None:
    limits = Limits(requests_per_minute=2, tokens_per_minute=1000, concurrency=2)
    people = [f"person-{number}" for number in range(8)]
    team.cap(EACH, 100)
    with store.database(tmp_path / "keys.db") as opened, opened.transaction() as connection:
        now = int(time.time())
        keys = [
            changes.create(connection, name, (), limits, None, now, By("test"))[1]
            for name in people
        ]
    settings = {
        "SHARED_LIMITS": redis_cluster.url,
        "KEYS_DB": tmp_path / "keys.db",
        "BUDGETS_DB": team.where,
        "DISABLED_PLUGINS": "prices",
    }
    proxies = [await team.start_proxy(plugins=[Prices()], **settings) for _ in range(2)]
    team.upstream.script(*[costing(3)] * 16)

    asked = [team.ask(key, to=proxies[number % 2]) for key in keys for number in range(5)]
    responses = await asyncio.gather(*asked)

    assert Counter(response.status for response in responses) == {200: 16, 429: 24}
    counted = [redis_cluster.ask(node, "KEYS", "*:requests") for node in range(3)]
    assert (sum(map(len, counted)), sum(map(bool, counted)) >= 2) == (8, True)
    for node in range(3):
        for key in redis_cluster.ask(node, "KEYS", "*:spent:daily:*:user:*"):
            people.remove(key.decode().rpartition(":")[2])
            async with asyncio.timeout(10):
                while redis_cluster.ask(node, "GET", key) != b"60000000":
                    await asyncio.sleep(0.02)
    assert people == []
