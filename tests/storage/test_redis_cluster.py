"""Counters in a Redis cluster: which node has a key, slots that move, and nodes that fail."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from functools import partial

import pytest
from redis.crc import key_slot
from redis_server import BOUNDS, COUNT, PASSWORD, RedisCluster, opened, until, usable

from tornadoproxy import DatabaseUnavailable, Script, SecretURL, SharedCounters

COUNT_BOTH = Script(
    "return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}",
)


def key_at(node: int) -> str:
    """Return a key that this master has at first."""
    names = (f"{{{number}}}" for number in range(1000))
    return next(key for key in names if BOUNDS[node] <= key_slot(key.encode()) < BOUNDS[node + 1])


async def until_counted(counters: SharedCounters, key: str) -> int:
    """Count 1 as soon as that succeeds."""
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(DatabaseUnavailable):
                return int(await counters.run(COUNT, [key], 1))
            await asyncio.sleep(0.02)


async def counted_for_ever(counters: SharedCounters, key: str) -> None:
    async with asyncio.timeout(10):
        while True:
            await counters.run(COUNT, [key], 1)


async def test_each_key_is_at_its_node(redis_cluster: RedisCluster) -> None:
    # one of the named nodes is enough
    before, host, others = redis_cluster.url.reveal().partition("127.0.0.1:")
    async with opened(SecretURL(f"{before}127.0.0.1:1,{host}{others}")) as counters:
        for number in range(100):
            counters.send(COUNT, [f"{{{number}}}"], 2)
            assert await counters.run(COUNT, [f"{{{number}}}"], 1) == 3
        assert await counters.run(Script("return 7"), []) == 7
    sizes = [redis_cluster.ask(node, "DBSIZE") for node in range(3)]
    assert (sum(sizes), min(sizes) > 10) == (100, True)


async def test_slot_that_moves_is_followed(redis_cluster: RedisCluster) -> None:
    key, other = key_at(0), f"{key_at(0)}:other"
    slot = key_slot(key.encode())

    def ask(node: int, *command: str | int) -> None:
        redis_cluster.ask(node, *command)

    def move_key() -> None:
        migrate = "127.0.0.1", redis_cluster.nodes[1].port, key, 0, 5000
        ask(0, "MIGRATE", *migrate, "AUTH", PASSWORD)

    async with opened(redis_cluster.url, deadline=5) as counters:
        assert await counters.run(COUNT, [key], 1) == 1
        ask(1, "CLUSTER SETSLOT", slot, "IMPORTING", redis_cluster.id(0))
        ask(0, "CLUSTER SETSLOT", slot, "MIGRATING", redis_cluster.id(1))
        assert await counters.run(COUNT, [key], 1) == 2
        assert await counters.run(COUNT, [other], 1) == 1, "a new key is made at the new node"
        both = asyncio.create_task(counters.run(COUNT_BOTH, [key, other]))
        await asyncio.sleep(0.1)
        assert not both.done(), "neither node has both keys"
        async with opened(redis_cluster.url) as hurried:
            with pytest.raises(DatabaseUnavailable, match="the cluster is moving its data"):
                await hurried.run(COUNT_BOTH, [key, other])
            await usable(hurried)
        move_key()
        assert await both == [3, 2]
        counters.send(COUNT, [key], 10)
        for node in (1, 0, 2):
            ask(node, "CLUSTER SETSLOT", slot, "NODE", redis_cluster.id(1))
        counters.send(COUNT, [key], 100)
        assert not counters.failing
        assert await counters.run(COUNT, [other], 1) == 3
        async with asyncio.timeout(10):
            while await counters.run(COUNT, [key], 0) != 113:
                await asyncio.sleep(0.01)
        await usable(counters)
    assert counters.status.failures == 0


async def test_replica_takes_over_from_a_dead_node(
    redis_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(redis_cluster.url) as counters:
        assert await counters.run(COUNT, [key_at(0)], 1) == 1
        assert await counters.run(COUNT, [key_at(1)], 1) == 1
        master, *_, replica = redis_cluster.nodes
        await asyncio.to_thread(until, partial(replica.has_all_of, master))
        master.stop()
        with pytest.raises(DatabaseUnavailable, match=r"node 127\.0\.0\.1:\d+: it cannot be"):
            await counters.run(COUNT, [key_at(0)], 1)
        assert counters.failing
        assert await until_counted(counters, key_at(0)) == 2
        assert await until_counted(counters, key_at(1)) >= 2
        await usable(counters)
        await asyncio.to_thread(master.start)
    assert "can be used again" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("stalled", [False, True])
async def test_cluster_without_a_slot_is_down_until_its_node_is_back(
    stalled: bool, redis_cluster: RedisCluster
) -> None:
    async with opened(redis_cluster.url) as counters:
        if stalled:
            redis_cluster.nodes[2].send(signal.SIGSTOP)
        else:
            redis_cluster.nodes[2].stop()
        with pytest.raises(DatabaseUnavailable, match="the cluster is down"):
            await counted_for_ever(counters, key_at(1))
        assert counters.failing
        if stalled:
            redis_cluster.nodes[2].send(signal.SIGCONT)
        else:
            await asyncio.to_thread(redis_cluster.nodes[2].start)
        assert await until_counted(counters, key_at(2)) == 1
        await usable(counters)


async def test_node_of_a_cluster_by_itself_is_refused(redis_cluster: RedisCluster) -> None:
    url = SecretURL(f"redis://:{PASSWORD}@127.0.0.1:{redis_cluster.nodes[0].port}")
    async with opened(url) as counters:
        with pytest.raises(DatabaseUnavailable, match=r"begin the URL with redis\+cluster://"):
            await counters.run(COUNT, [key_at(2)], 1)
