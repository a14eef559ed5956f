"""What plugins are told: a request's id and record, and the current figures of the proxy."""

from __future__ import annotations

import asyncio
import re
import time
from itertools import islice

import pytest
from held_stream import Held
from msgspec.structs import replace
from scene import Scene
from served import anthropic_error, request
from tornado.httputil import HTTPHeaders

from tornadoproxy import Dialect, Identity, IncomingRequest, Status, Usage, hookimpl
from tornadoproxy.handlers.body_budget import UNCHARGED_BODY
from tornadoproxy.handlers.exchange import Exchange
from tornadoproxy.handlers.gateway import request_ids
from tornadoproxy.plugin.request import Outcome
from tornadoproxy.testing import json_response, silent_response

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def exchange_of(**headers: str) -> Exchange:
    lines = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
    incoming = IncomingRequest("POST", "/v1/messages", lines, "192.0.2.7", Dialect.ANTHROPIC)
    return Exchange(incoming, "req_1")


def test_record_holds_what_was_noted() -> None:
    exchange = exchange_of(
        x_claude_code_session_id="session",
        x_claude_code_agent_id="agent",
        x_claude_code_parent_agent_id="parent",
        traceparent=TRACEPARENT,
        tracestate="vendor=1",
        x_api_key="sk-canary",
    )
    exchange.identity = Identity("alice", groups=("staff",))
    noted = {
        "request_id": "req_upstream",
        "status": 200,
        "error": "UpstreamClosed",
        "model": "claude-sonnet-5-5",
        "usage": Usage(1, 2, 3, 4, 5, 6, 7, partial=True),
        "stop_reason": "end_turn",
        "bytes_in": 10,
        "bytes_out": 20,
    }
    for name, value in noted.items():
        setattr(exchange, name, value)
    record = exchange.record(Outcome.COMPLETED, 12_345)
    assert {name: getattr(record, name) for name in noted} == noted
    assert (record.principal, record.groups, record.cost) == ("alice", ("staff",), 12_345)
    agents = (record.session_id, record.agent_id, record.parent_agent_id)
    assert agents == ("session", "agent", "parent")
    assert (record.traceparent, record.tracestate) == (TRACEPARENT, "vendor=1")
    assert "sk-canary" not in repr(record)


def test_record_times_are_differences_of_monotonic_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    exchange = exchange_of()
    exchange.started_at, exchange.upstream_started_at = 100.0, 101.0
    exchange.first_byte_at, exchange.first_token_at = 104.0, 105.0
    for ended_at, upstream_time in ((None, 9.0), (109.0, 8.0)):
        exchange.upstream_ended_at = ended_at
        record = exchange.record(Outcome.COMPLETED, None)
        assert (record.duration, record.upstream_time) == (10.0, upstream_time)
        assert (record.time_to_first_byte, record.time_to_first_token) == (4.0, 5.0)


def test_request_ids_are_unique_beyond_one_block_of_entropy() -> None:
    ids = [*islice(request_ids(), 1000), *islice(request_ids(), 1000)]
    assert len(set(ids)) == 2000
    assert all(re.fullmatch("req_[0-9a-f]{24}", each) for each in ids)


async def test_status_counts_requests_bytes_and_connections(scene: Scene) -> None:
    proxy = await scene.start(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=15, CLIENT_IDLE_TIMEOUT=60)
    idle = replace(proxy.server.status(), plugin_failures={}, plugin_refusals={}, upstreams=())
    assert idle == Status(0, 0, 0, 0, 0, 0, {}, {}, draining=False)
    response = Held(json_response({}))

    def figures() -> tuple[int, ...]:
        now = proxy.server.status()
        upstreams = now.upstream_connections, now.idle_upstream_connections
        return now.in_flight, now.waiting, *upstreams, now.held_bytes

    scene.upstream.script(response)
    first, second = await scene.raw(), await scene.raw()
    size = UNCHARGED_BODY + 1
    post = request("POST", "/v1/messages", body=bytes(size))
    await first.send(post)
    await scene.upstream.received()
    assert figures() == (1, 0, 1, 0, size)
    await second.send(post)
    while not proxy.server.status().waiting:
        await asyncio.sleep(0)
    assert figures()[:2] == (2, 1)
    assert proxy.server.status().client_connections == 2
    response.may_begin.set()
    await first.response()
    await second.response()
    await scene.records.finished(2)
    assert figures() == (0, 0, 0, 1, 0)
    scene.upstream.script(silent_response())
    await first.send(post)
    await scene.upstream.received(3)
    await first.close()
    await scene.records.finished(3)
    assert figures() == (0, 0, 0, 0, 0), "the upstream's connection cannot be used again"
    await second.close()
    while proxy.server.status().client_connections:
        await asyncio.sleep(0)
    await proxy.server.drain()
    assert proxy.server.status().draining


async def test_status_counts_failures_and_refusals_by_plugin(scene: Scene) -> None:
    class Fails:
        @hookimpl
        def request_finished(self) -> None:
            raise KeyError

    class Refuses:
        @hookimpl(tryfirst=True)
        def authenticate(self) -> Identity:
            raise KeyError

    proxy = await scene.start(plugins={"fails": Fails(), "refuses": Refuses()})
    response = await scene.ask("/v1/models")
    assert "temporarily unavailable" in anthropic_error(response, 503, "overloaded_error")
    record = await scene.records.finished()
    assert (record.outcome, record.status, record.principal) == ("failed", 503, None)
    assert scene.upstream.connections == 0
    status = proxy.server.status()
    assert set(status.plugin_failures) == set(status.plugin_refusals) > {"token", "access_log"}
    assert (status.plugin_failures["fails"], status.plugin_refusals["fails"]) == (1, 0)
    assert (status.plugin_failures["refuses"], status.plugin_refusals["refuses"]) == (0, 1)
