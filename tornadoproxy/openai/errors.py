"""The translation of the upstream's errors into OpenAI's form, with status and message unchanged.

Sources: https://docs.anthropic.com/en/api/errors and
https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from typing import Any

from tornadoproxy.errors import ProxyError, UpstreamReported
from tornadoproxy.protocol.dialects import error_of, read_error

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

# The codes that a failed response can have beside those that follow from the status.
_FAILURES = ("context_length_exceeded", "insufficient_quota")

# The upstream's messages for a request that is too long. Agents shorten theirs on OpenAI's code.
_TOO_LONG = ("prompt is too long", "input length and `max_tokens` exceed context limit")

_MAX_QUOTED = 500  # characters of a response that is not an error of Anthropic's API


def translate_error(status: int, body: bytes) -> ProxyError:
    """Return the error in the upstream's response.

    :param status: its HTTP status, which stays.
    :param body: an error of Anthropic's API; anything else, such as a load balancer's page, is
        quoted.
    """
    kind, message = read_error(body)
    if message is None:
        message = body[:_MAX_QUOTED].decode("utf-8", "replace").strip()
        message = message or f"The upstream's response has status {status} and an empty body."
    return _error(status, kind, message)


def translate_event(event: dict[str, Any]) -> ProxyError:  # Any: JSON from upstream
    """Return the error that the upstream sent within a stream."""
    kind, message = error_of(event)
    status = _STATUS_OF_TYPE.get(kind or "", 500)
    return _error(status, kind, message or "The upstream failed in the middle of its response.")


def failure_code(error: ProxyError) -> str:
    """Return the code of a response that failed with `error`.

    It decides what clients do: Codex retries a ``server_error`` and a ``rate_limit_exceeded``, and
    shows the message of an ``invalid_prompt``.
    """
    if error.code in _FAILURES:
        return error.code
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"


def _error(status: int, kind: str | None, message: str) -> ProxyError:
    code = _CODES.get(kind or "")
    if kind == "not_found_error" and "model" in message:
        code = "model_not_found"
    elif kind == "invalid_request_error" and message.startswith(_TOO_LONG):
        code = "context_length_exceeded"
    return UpstreamReported(message, status=status, error_type=_TYPES.get(kind or ""), code=code)
