"""The record of an exchange."""

from __future__ import annotations

import time

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import Dialect, Identity, IncomingRequest, Usage
from tornadoproxy.handlers.exchange import Exchange
from tornadoproxy.plugin.request import Outcome
from tornadoproxy.testing import request_record

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def exchange_of(**headers: str) -> Exchange:
    lines = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
    request = IncomingRequest("POST", "/v1/messages", lines, "192.0.2.7", Dialect.ANTHROPIC)
    return Exchange(request, "req_1")


def test_record_of_request_without_response() -> None:
    before = time.time()
    record = exchange_of().record(Outcome.DENIED, None)
    after = time.time()
    assert before <= record.time <= after
    assert 0 <= record.duration <= after - before + 1
    assert record == request_record(
        time=record.time,
        principal=None,
        remote_ip="192.0.2.7",
        status=None,
        outcome=Outcome.DENIED,
        model=None,
        usage=Usage(),
        bytes_in=0,
        bytes_out=0,
        duration=record.duration,
        time_to_first_byte=None,
        upstream_time=None,
    )


def test_record_of_request_with_response() -> None:
    exchange = exchange_of(
        x_claude_code_session_id="session",
        x_claude_code_agent_id="agent",
        x_claude_code_parent_agent_id="parent",
        traceparent=TRACEPARENT,
        tracestate="vendor=1",
        x_api_key="sk-canary",
    )
    usage = Usage(1, 2, 3, 4, 5, 6, 7, partial=True)
    exchange.request_id = "req_upstream"
    exchange.identity = Identity("alice", groups=("staff",))
    exchange.status = 200
    exchange.error = "UpstreamClosed"
    exchange.model = "claude-sonnet-5-5"
    exchange.usage = usage
    exchange.stop_reason = "refusal"
    exchange.bytes_in = 10
    exchange.bytes_out = 20
    record = exchange.record(Outcome.COMPLETED, 12_345)
    assert record == request_record(
        time=record.time,
        request_id="req_upstream",
        principal="alice",
        groups=("staff",),
        remote_ip="192.0.2.7",
        error="UpstreamClosed",
        usage=usage,
        cost=12_345,
        stop_reason="refusal",
        bytes_in=10,
        bytes_out=20,
        duration=record.duration,
        time_to_first_byte=None,
        upstream_time=None,
        session_id="session",
        agent_id="agent",
        parent_agent_id="parent",
        traceparent=TRACEPARENT,
        tracestate="vendor=1",
    )
    assert "sk-canary" not in repr(record)


@pytest.mark.parametrize("ended", [True, False])
def test_record_times_are_differences_of_monotonic_times(*, ended: bool) -> None:
    exchange = exchange_of()
    exchange.started_at = 100.0
    exchange.upstream_started_at = 101.0
    exchange.first_byte_at = 104.0
    exchange.first_token_at = 105.0
    if ended:
        exchange.upstream_ended_at = 109.0
    before = time.monotonic()
    record = exchange.record(Outcome.COMPLETED, None)
    after = time.monotonic()
    assert (record.time_to_first_byte, record.time_to_first_token) == (4.0, 5.0)
    assert before - 100.0 <= record.duration <= after - 100.0
    assert record.upstream_time is not None
    if ended:
        assert record.upstream_time == 8.0
    else:
        assert before - 101.0 <= record.upstream_time <= after - 101.0
