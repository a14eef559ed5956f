"""The plugin in a real proxy, and a scripted collector."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    Ask,
    Proxy,
    ReceivedRequest,
    Records,
    ScriptedServer,
    StartProxy,
    bytes_response,
    silent_response,
)

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

DONE = bytes_response(b"", status=204)

Start: TypeAlias = Callable[..., Awaitable[Proxy]]


@pytest.fixture
def collector(io_loop: IOLoop) -> Iterator[ScriptedServer]:
    collector = ScriptedServer()
    io_loop.run_sync(collector.start)
    yield collector
    io_loop.run_sync(collector.stop)
    assert collector.failures == []


@pytest.fixture
def start(start_proxy: StartProxy, collector: ScriptedServer) -> Start:
    def start(**given: Any) -> Awaitable[Proxy]:  # Any: variables, and plugins
        defaults = {
            "BATCH_LOG_URL": f"{collector.url}/requests",
            "BATCH_LOG_TOKEN": "the-collectors-token",
            "BATCH_LOG_SECONDS": 3600,
        }
        return start_proxy(**{**defaults, **given})

    return start


async def lines(request: ReceivedRequest) -> list[dict[str, Any]]:
    await request.complete()
    return [json.loads(line) for line in request.body.splitlines()]


async def test_a_full_batch_is_sent(
    start: Start, ask: Ask, collector: ScriptedServer, records: Records
) -> None:
    collector.script(DONE)
    await start(BATCH_LOG_RECORDS=3)
    for _ in range(3):
        await ask("/v1/models")

    request = await collector.received()
    assert (request.method, request.target) == ("POST", "/requests")
    assert request.header("content-type") == "application/x-ndjson"
    assert request.header("authorization") == "Bearer the-collectors-token"
    sent = await lines(request)
    assert [line["request_id"] for line in sent] == [each.request_id for each in records.all]
    assert sent[0]["principal"] == "token"
    assert sent[0]["outcome"] == "completed"
    assert sent[0]["usage"]["input_tokens"] is None
    assert TEST_TOKEN not in request.body.decode()


async def test_incomplete_batch_is_sent_after_its_time(
    start: Start, ask: Ask, collector: ScriptedServer
) -> None:
    collector.script(DONE)
    await start(BATCH_LOG_SECONDS=0.05)
    await ask("/v1/models")

    assert len(await lines(await collector.received())) == 1


async def test_stop_sends_the_queued_records(
    start: Start, ask: Ask, collector: ScriptedServer
) -> None:
    collector.script(DONE, DONE)
    proxy = await start(BATCH_LOG_RECORDS=2, BATCH_LOG_SECONDS=3600)
    responses = [ask("/v1/models") for _ in range(3)]
    await asyncio.gather(*responses)
    await proxy.server.drain()

    assert [len(await lines(request)) for request in collector.requests] == [2, 1]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_failed_batch_is_retried(
    start: Start, ask: Ask, collector: ScriptedServer, status: int
) -> None:
    collector.script(bytes_response(b"", status=status), DONE)
    await start(BATCH_LOG_RECORDS=1)
    await ask("/v1/models")

    first, second = await collector.received(1), await collector.received(2)
    assert await lines(first) == await lines(second)


async def test_refused_batch_is_lost_and_logged(
    start: Start, ask: Ask, collector: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    collector.script(bytes_response(b"", status=400), DONE)
    await start(BATCH_LOG_RECORDS=1)
    await ask("/v1/models")
    refused = await lines(await collector.received())
    await ask("/v1/models")

    assert await lines(await collector.received(2)) != refused
    assert "1 records lost so far: the collector refused them with 400" in caplog.text


async def test_full_queue_loses_records(
    start: Start, ask: Ask, collector: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    collector.script(DONE)
    proxy = await start(BATCH_LOG_QUEUE=2)
    for _ in range(5):
        await ask("/v1/models")
    await proxy.server.drain()

    assert len(await lines(await collector.received())) == 2
    assert "1 records lost so far: the queue is full" in caplog.text


async def test_stop_does_not_wait_for_a_missing_collector(
    start: Start, ask: Ask, collector: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await start()
    await ask("/v1/models")
    await collector.stop()
    await proxy.server.drain()

    assert "1 records lost so far: the proxy stops" in caplog.text


async def test_stop_gives_up_on_a_hanging_collector(
    start: Start, ask: Ask, collector: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    collector.script(silent_response())
    proxy = await start(BATCH_LOG_RECORDS=1)
    await ask("/v1/models")
    await collector.received()
    await proxy.server.drain()

    assert "1 records lost so far: the proxy stops" in caplog.text
    assert "failed in shutdown" not in caplog.text


async def test_request_does_not_wait_for_the_collector(
    start: Start, ask: Ask, collector: ScriptedServer, records: Records
) -> None:
    collector.script(silent_response())
    await start(BATCH_LOG_RECORDS=1)
    await ask("/v1/models")
    stuck = await collector.received()

    assert (await ask("/v1/models")).status == 200
    assert stuck.disconnected_at is None, "it still hangs"


async def test_without_a_url_the_plugin_is_inactive(start: Start) -> None:
    proxy = await start(BATCH_LOG_URL=None, BATCH_LOG_TOKEN=None, BATCH_LOG_SECONDS=None)

    states = {info.name: info.state for info in proxy.plugins.describe()}
    assert states["batch_logger"] == "inactive"
