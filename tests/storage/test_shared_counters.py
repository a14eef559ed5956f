"""Counters in a Redis server: scripts, and a server that fails."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from functools import partial
from pathlib import Path

import pytest
from redis_server import COUNT, PASSWORD, RedisSentinel, RedisServer, opened, until, usable

from tornadoproxy import ConfigurationError, DatabaseUnavailable, Script, SecretURL, SharedCounters
from tornadoproxy.storage import shared_counters


async def test_scripts_run_in_order_on_one_connection(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as counters:
        counters.send(COUNT, ["a"], 10)
        results = await asyncio.gather(*(counters.run(COUNT, ["a"], 1) for _ in range(100)))
        assert results == list(range(11, 111))
        with redis_server.client() as client:
            assert len(client.client_list(_type="normal")) == 2


async def test_calls_of_a_turn_run_a_script_once(redis_server: RedisServer) -> None:
    each_once = Script(
        "redis.call('RPUSH', KEYS[1], unpack(ARGV)) redis.call('RPUSH', KEYS[1], ';')"
    )
    async with opened(redis_server.url) as counters:
        for argument in range(3):
            counters.send_joined(each_once, ("a",), argument)
        counters.send_joined(each_once, ("b",), 3)
    with redis_server.client() as client:
        assert client.lrange("a", 0, -1) == [b"0", b"1", b"2", b";"]
        assert client.lrange("b", 0, -1) == [b"3", b";"]


async def test_script_is_sent_again_to_a_server_that_forgot_it(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as counters:
        await counters.run(COUNT, ["a"], 1)
        with redis_server.client() as client:
            client.script_flush()
        assert await counters.run(COUNT, ["a"], 1) == 2


async def test_wrong_script_raises_and_spares_the_connection(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as counters:
        with pytest.raises(Exception, match="Wrong number of args"):
            await counters.run(Script("return redis.call('GET')"), [])
        counters.send(Script("return redis.call('GET')"), [])
        assert await counters.run(COUNT, ["a"], 1) == 1


async def test_caller_that_is_cancelled_does_not_shift_responses(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as counters:
        first = asyncio.create_task(counters.run(COUNT, ["a"], 7))
        await asyncio.sleep(0)
        first.cancel()
        assert await counters.run(COUNT, ["b"], 5) == 5


async def test_connection_is_used_until_the_last_plugin_closes(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as counters:
        await counters.open()
        await counters.close()
        assert await counters.run(COUNT, ["a"], 1) == 1
    with pytest.raises(DatabaseUnavailable):
        await counters.run(COUNT, ["a"], 1)


async def test_close_sends_what_is_unsent(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as counters:
        counters.send(COUNT, ["a"], 3)
    with redis_server.client() as client:
        assert client.get("a") == b"3"


async def test_connection_may_be_lost_any_number_of_times(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_counters, "PAUSE", 0.001)
    async with opened(redis_server.url) as counters:
        with redis_server.client() as client:
            for number in range(120):  # the library's pool would count 100
                assert await counters.run(COUNT, ["a"], 1) == number + 1
                client.client_kill_filter(_type="normal", skipme=True)
                async with asyncio.timeout(10):
                    while counters.status.failures == number:
                        await asyncio.sleep(0)
                await usable(counters)


@pytest.mark.parametrize("stalled", [False, True])
async def test_server_that_stops_fails_scripts_until_it_is_back(
    stalled: bool, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(redis_server.url) as counters:
        if stalled:
            redis_server.send(signal.SIGSTOP)
        else:
            redis_server.stop()
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match=r"respond in time|cannot be reached"):
                await counters.run(COUNT, ["a"], 1)
        counters.send(COUNT, ["a"], 1)  # is lost
        assert (counters.status.name, counters.status.failing) == ("SHARED_LIMITS", True)
        if stalled:
            redis_server.send(signal.SIGCONT)
        else:
            await asyncio.to_thread(redis_server.start)
        await usable(counters)
        assert await counters.run(COUNT, ["b"], 1) == 1
        assert counters.status.failing is False
        assert counters.status.failures > 0
    assert "can be used again" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.usefixtures("running_redis")
async def test_server_that_sentinel_puts_in_place_is_used(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        options = "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"
        servers = [RedisServer(tmp_path, *options) for _ in range(2)]
        for server in servers:
            stack.callback(server.stop)
            await asyncio.to_thread(server.start)
        first, second = servers
        with second.client() as client:
            client.replicaof("127.0.0.1", first.port)
        sentinel = RedisSentinel(tmp_path, first.port)
        stack.callback(sentinel.stop)
        await asyncio.to_thread(until, sentinel.knows_a_replica)
        async with opened(sentinel.url) as counters:
            assert await counters.run(COUNT, ["a"], 1) == 1
            await asyncio.to_thread(until, partial(second.has_all_of, first))
            first.stop()
            async with asyncio.timeout(15):
                while (counted := await counted_if_usable(counters)) is None:
                    await asyncio.sleep(0.02)
            assert counted == 2


async def counted_if_usable(counters: SharedCounters) -> int | None:
    try:
        return int(await counters.run(COUNT, ["a"], 1))
    except DatabaseUnavailable:
        return None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:wrong@127.0.0.1:{port}/0", "its password is rejected"),
        ("redis://:{password}@127.0.0.1:1/0", "it cannot be reached"),
        ("redis://:{password}@127.0.0.1:port/0", "is not valid"),
        ("redis+sentinel://:{password}@127.0.0.1:26379", "is not valid"),
        ("redis+sentinel://:{password}@127.0.0.1:1/service", "cannot be used"),
        ("redis+cluster://:wrong@127.0.0.1:{port}", "its password is rejected"),
        ("redis+cluster://:{password}@127.0.0.1:1", "node 127.0.0.1:1: it cannot be reached"),
        ("redis+cluster://:{password}@127.0.0.1:{port}/1", "is not valid"),
        ("redis+cluster://:{password}@:{port}", "is not valid"),
        ("rediss://:{password}@127.0.0.1:{port}?ssl_cert_reqs=maybe", "is not valid"),
        ("rediss://:{password}@127.0.0.1:{port}?ssl_ca_certs=/no/such", "file for TLS that cannot"),
        ("rediss+sentinel://:{password}@127.0.0.1/a?ssl_ca_certs=/no/such", "file for TLS that"),
        ("redis+cluster://:{password}@127.0.0.1:{port}?no_such=1", "is not valid"),
    ],
)
async def test_unusable_server_ends_the_start_in_a_line(
    url: str, reason: str, redis_server: RedisServer
) -> None:
    named = SecretURL(url.format(port=redis_server.port, password=PASSWORD))
    with pytest.raises(ConfigurationError, match=reason) as caught:
        await SharedCounters(named, setting="SHARED_LIMITS", timeout=0.25).open()
    line = str(caught.value)
    assert line.startswith("SHARED_LIMITS=redis")
    assert (PASSWORD in line, "\n" in line, caught.value.__cause__) == (False, False, None)
