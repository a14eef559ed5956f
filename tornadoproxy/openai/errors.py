"""Translates upstream's errors into OpenAI's shape, keeping what they say.

Sources: https://docs.anthropic.com/en/api/errors and
https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from typing import Any

from tornadoproxy.errors import ProxyError, UpstreamError
from tornadoproxy.protocol.dialects import Dialect, error_of, read_error

_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}

_CODES = {
    "authentication_error": "invalid_api_key",
    "billing_error": "insufficient_quota",
    "rate_limit_error": "rate_limit_exceeded",
}
_TYPES = {"billing_error": "insufficient_quota", "rate_limit_error": "rate_limit_error"}

# How upstream says that a request is too long. Agents shorten theirs when they see OpenAI's code.
_TOO_LONG = ("prompt is too long", "input length and `max_tokens` exceed context limit")

_MAX_QUOTED = 500  # characters of an answer that is no error of Anthropic's


def translate_error(status: int, body: bytes) -> ProxyError:
    """The error that upstream answered with.

    :param status: its HTTP status, which stays.
    :param body: Anthropic's shape; anything else, such as a load balancer's page, is quoted.
    """
    kind, message = read_error(body)
    if message is None:
        message = body[:_MAX_QUOTED].decode("utf-8", "replace").strip()
        message = message or f"The upstream answered with status {status} and nothing else."
    return _error(status, kind, message)


def translate_event(event: dict[str, Any]) -> bytes:  # Any: JSON from upstream
    """The error that upstream sent in the middle of a stream, as a JSON document."""
    kind, message = error_of(event)
    status = _STATUS_OF_TYPE.get(kind or "", 500)
    error = _error(status, kind, message or "The upstream failed in the middle of its answer.")
    return Dialect.OPENAI.error_body(error, "")


def _error(status: int, kind: str | None, message: str) -> ProxyError:
    code = _CODES.get(kind or "")
    if kind == "not_found_error" and "model" in message:
        code = "model_not_found"
    elif kind == "invalid_request_error" and message.startswith(_TOO_LONG):
        code = "context_length_exceeded"
    return UpstreamError(message, status=status, error_type=_TYPES.get(kind or ""), code=code)
