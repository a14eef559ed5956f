"""Upstream's errors in OpenAI's shape: status and message stay, type and code are OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tornadoproxy.openai import chat_completions
from tornadoproxy.protocol.dialects import Dialect


def shown(status: int, body: bytes) -> tuple[int, dict[str, Any]]:  # Any: JSON
    error = chat_completions.translate_error(status, body)
    document = json.loads(Dialect.OPENAI.error_body(error, "req_1"))
    return Dialect.OPENAI.error_status(error), document["error"]


def upstream_error(kind: str, message: str = "It says why.") -> bytes:
    error = {"type": kind, "message": message}
    return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "shown_type", "code"),
    [
        (400, "invalid_request_error", "invalid_request_error", None),
        (401, "authentication_error", "invalid_request_error", "invalid_api_key"),
        (402, "billing_error", "insufficient_quota", "insufficient_quota"),
        (403, "permission_error", "permission_error", None),
        (404, "not_found_error", "invalid_request_error", None),
        (409, "conflict_error", "invalid_request_error", None),
        (413, "request_too_large", "invalid_request_error", None),
        (429, "rate_limit_error", "rate_limit_error", "rate_limit_exceeded"),
        (429, "billing_error", "insufficient_quota", "insufficient_quota"),
        (500, "api_error", "server_error", None),
        (504, "timeout_error", "server_error", None),
        (529, "overloaded_error", "server_error", None),
        (418, "of the future", "invalid_request_error", None),
    ],
)
def test_errors(status: int, kind: str, shown_type: str, code: str | None) -> None:
    assert shown(status, upstream_error(kind)) == (
        status,
        {"message": "It says why.", "type": shown_type, "param": None, "code": code},
    )


def test_a_model_that_is_not_there() -> None:
    _, error = shown(404, upstream_error("not_found_error", "model: claude-9"))
    assert error["code"] == "model_not_found"
    assert error["message"] == "model: claude-9"


@pytest.mark.parametrize(
    "message",
    [
        "prompt is too long: 213462 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 199000 + 32000 > 200000",
    ],
)
def test_a_prompt_that_is_too_long_has_the_code_that_agents_look_for(message: str) -> None:
    _, error = shown(400, upstream_error("invalid_request_error", message))
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"", "The upstream's response has status 502 and an empty body."),
        (b" \n", "The upstream's response has status 502 and an empty body."),
        (b"x" * 5000, "x" * 500),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"error": "down"}', '{"error": "down"}'),
        (b'{"error": {"type": 7, "message": ["a"]}}', '{"error": {"type": 7, "message": ["a"]}}'),
        (b"[" * 100_000, "[" * 500),
        (b'{"error": {"message": "a\\ud83d"}}', "a?"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_error_of_anthropics_is_quoted(body: bytes, message: str) -> None:
    status, error = shown(502, body)
    assert status == 502
    assert error["message"] == message
    assert error["type"] == "server_error"
