"""Records of requests that never happened, for tests of plugins."""

from __future__ import annotations

from typing import Any

from tornadoproxy.plugin.request import Outcome, RequestRecord
from tornadoproxy.protocol.usage import Usage


def request_record(**changes: Any) -> RequestRecord:  # any field of a record
    """Return the record of a completed ``POST /v1/messages``, with these fields changed."""
    fields: dict[str, Any] = {
        "time": 1_796_000_000.0,
        "request_id": "req_1",
        "principal": "ada",
        "method": "POST",
        "route": "/v1/messages",
        "dialect": "anthropic",
        "remote_ip": "127.0.0.1",
        "status": 200,
        "outcome": Outcome.COMPLETED,
        "error": None,
        "model": "claude-sonnet-5-5",
        "usage": Usage(10, 5),
        "bytes_in": 100,
        "bytes_out": 200,
        "duration": 0.5,
        "time_to_first_byte": 0.1,
        "upstream_time": 0.4,
        "session_id": None,
        "agent_id": None,
        "parent_agent_id": None,
    }
    return RequestRecord(**{**fields, **changes})
