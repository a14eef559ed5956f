"""The upstream's errors in OpenAI's form: status and message stay, type and code are OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tornadoproxy.openai import chat_completions
from tornadoproxy.protocol.dialects import Dialect

TOO_LONG = "context_length_exceeded"


def shown(status: int, body: bytes) -> tuple[int, dict[str, Any]]:  # Any: JSON
    error = chat_completions.translate_error(status, body)
    document = json.loads(Dialect.OPENAI.error_body(error, "req_1"))
    return Dialect.OPENAI.error_status(error), document["error"]


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected", "code"),
    [
        (400, "invalid_request_error", "No.", "invalid_request_error", None),
        (401, "authentication_error", "No.", "invalid_request_error", "invalid_api_key"),
        (402, "billing_error", "No.", "insufficient_quota", "insufficient_quota"),
        (403, "permission_error", "No.", "permission_error", None),
        (404, "not_found_error", "No.", "invalid_request_error", None),
        (404, "not_found_error", "model: x", "invalid_request_error", "model_not_found"),
        (429, "rate_limit_error", "No.", "rate_limit_error", "rate_limit_exceeded"),
        (529, "overloaded_error", "No.", "server_error", None),
        (418, "of the future", "No.", "invalid_request_error", None),
        # agents shorten their context when they see this code
        *(
            (400, "invalid_request_error", message, "invalid_request_error", TOO_LONG)
            for message in (
                "prompt is too long: 213462 tokens > 200000 maximum",
                "input length and `max_tokens` exceed context limit: 199000 + 32000 > 200000",
            )
        ),
    ],
)
def test_error_has_openais_type_and_code(
    status: int, kind: str, message: str, expected: str, code: str | None
) -> None:
    error = {"type": kind, "message": message}
    found = shown(status, json.dumps({"type": "error", "error": error}).encode())
    assert found == (status, {"message": message, "type": expected, "param": None, "code": code})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b" \n", "The upstream's response has status 502 and an empty body."),
        (b"x" * 501, "x" * 500),
        (b"\xff\xfe", "\ufffd\ufffd"),
        *((body, body.decode()) for body in (b"[1]", b'{"error": "down"}', b'{"error": []}')),
        (b'{"error": {"type": 7, "message": ["a"]}}', '{"error": {"type": 7, "message": ["a"]}}'),
        (b"[" * 100_000, "[" * 500),
        (b'{"error": {"message": "a\\ud83d"}}', "a?"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_body_that_is_no_error_of_anthropics_is_quoted(body: bytes, message: str) -> None:
    status, error = shown(502, body)
    assert (status, error["message"], error["type"]) == (502, message, "server_error")
