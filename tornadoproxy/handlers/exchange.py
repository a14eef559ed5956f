"""The core's state of one request, from its head to its record.

Every exchange ends in exactly one `RequestRecord`, with exactly one `Outcome`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tornadoproxy.plugin.request import Identity, IncomingRequest, Outcome, RequestRecord
from tornadoproxy.plugin.web.running_proxy import RequestInFlight
from tornadoproxy.protocol.usage import NOTHING_REPORTED, Usage

if TYPE_CHECKING:
    from tornadoproxy.plugin.decisions import Permits
    from tornadoproxy.plugin.request import ModelRequest
    from tornadoproxy.protocol.usage_reader import UsageReader


class Exchange:
    """The state of one request while it is served. Times are monotonic, in seconds."""

    __slots__ = (
        "agent_id",
        "attempts",
        "bytes_in",
        "bytes_out",
        "error",
        "failed_attempts",
        "first_byte_at",
        "first_token_at",
        "identity",
        "model",
        "model_request",
        "parent_agent_id",
        "permits",
        "request",
        "request_id",
        "requested_model",
        "scheme",
        "session_id",
        "started",
        "started_at",
        "status",
        "stop_reason",
        "traceparent",
        "tracestate",
        "upstream",
        "upstream_ended_at",
        "upstream_started_at",
        "usage",
    )

    def __init__(self, request: IncomingRequest, request_id: str, scheme: str = "http") -> None:
        self.request = request
        self.request_id = request_id
        self.scheme = scheme
        self.started = time.time()
        self.started_at = time.monotonic()
        self.upstream_started_at: float | None = None
        self.first_byte_at: float | None = None
        self.first_token_at: float | None = None
        self.upstream_ended_at: float | None = None
        self.identity: Identity | None = None
        self.permits: Permits | None = None
        self.status: int | None = None
        self.error: str | None = None
        self.requested_model: str | None = None
        self.model: str | None = None
        self.model_request: ModelRequest | None = None
        self.usage = NOTHING_REPORTED
        self.stop_reason: str | None = None
        header: Callable[[str], str | None] = request.headers.get
        self.session_id = header("X-Claude-Code-Session-Id")
        self.agent_id = header("X-Claude-Code-Agent-Id")
        self.parent_agent_id = header("X-Claude-Code-Parent-Agent-Id")
        self.traceparent = header("Traceparent")
        self.tracestate = None if self.traceparent is None else header("Tracestate")
        self.upstream: str | None = None
        self.attempts = 0
        self.failed_attempts: tuple[str, ...] = ()
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def billed(self) -> Usage:
        """The usage that is charged: a refusal before any output is not.

        Source: https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
        """
        if self.stop_reason == "refusal" and self.usage.output_tokens == 0:
            return Usage(0, 0, others=self.usage.others)
        return self.usage

    def read(self, reader: UsageReader) -> None:
        """Take in what a reader has read of the response so far."""
        self.model = reader.model
        self.usage = reader.usage
        self.stop_reason = reader.stop_reason
        self.first_token_at = reader.first_token_at

    def snapshot(self, status: int | None) -> RequestInFlight:
        """Return this exchange as it is at present.

        :param status: of the response, if that has begun.
        """
        request = self.request
        return RequestInFlight(
            time=self.started,
            request_id=self.request_id,
            principal=self.identity.principal if self.identity else None,
            method=request.method,
            route=request.path,
            status=status,
            upstream=self.upstream,
            requested_model=self.requested_model,
            model=self.model,
            usage=self.usage,
            duration=time.monotonic() - self.started_at,
        )

    def record(self, outcome: Outcome, cost: int | None) -> RequestRecord:
        """Return the record of this exchange, which ends now.

        :param cost: of what is `billed`, if that is known.
        """
        now = time.monotonic()
        request = self.request
        return RequestRecord(
            time=self.started,
            request_id=self.request_id,
            principal=self.identity.principal if self.identity else None,
            groups=self.identity.groups if self.identity else (),
            method=request.method,
            route=request.path,
            dialect=request.dialect.value,
            scheme=self.scheme,
            remote_ip=request.remote_ip,
            status=self.status,
            outcome=outcome,
            error=self.error,
            requested_model=self.requested_model,
            model=self.model,
            usage=self.usage,
            cost=cost,
            stop_reason=self.stop_reason,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            duration=now - self.started_at,
            time_to_first_byte=_since(self.started_at, self.first_byte_at),
            time_to_first_token=_since(self.started_at, self.first_token_at),
            upstream_time=(
                None
                if self.upstream_started_at is None
                else (self.upstream_ended_at or now) - self.upstream_started_at
            ),
            session_id=self.session_id,
            agent_id=self.agent_id,
            parent_agent_id=self.parent_agent_id,
            traceparent=self.traceparent,
            tracestate=self.tracestate,
            upstream=self.upstream,
            attempts=self.attempts,
            failed_attempts=self.failed_attempts,
        )


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else end - start
