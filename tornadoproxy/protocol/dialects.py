"""The dialects, Anthropic's API and OpenAI's, and the form of errors in each.

The path alone decides the dialect of a request, before anything else happens to it, so that every
error has its client's form, that of a failed authentication included.

Sources: https://docs.anthropic.com/en/api/errors and
https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json
import math
from enum import Enum
from typing import Any

from tornadoproxy.errors import Overloaded, ProxyError, UpstreamError
from tornadoproxy.protocol.json_codec import escape_line_separators

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_OPENAI_TYPES = {
    403: "permission_error",
    429: "rate_limit_error",
}

_PING = b'event: ping\ndata: {"type": "ping"}\n\n'

# OpenAI's type and code for types that a plugin names in Anthropic's words
_OPENAI_NAMES = {"billing_error": "insufficient_quota"}


class Dialect(Enum):
    """The API that a client uses."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"

    # members are singletons; hashing by identity spares a Python call for each look-up
    __hash__ = object.__hash__

    @staticmethod
    def of_path(path: str) -> Dialect:
        """Return the dialect of a request path: OpenAI's below ``/openai``, else Anthropic's."""
        if path.startswith("/openai/") or path == "/openai":
            return Dialect.OPENAI
        return Dialect.ANTHROPIC

    @property
    def request_id_header(self) -> str:
        """The response header that carries the request id."""
        return "X-Request-Id" if self is Dialect.OPENAI else "Request-Id"

    @property
    def ping(self) -> bytes:
        """The event that keeps a quiet stream open.

        OpenAI's clients accept no events but chunks, so for them it is a comment.
        """
        return b": ping\n\n" if self is Dialect.OPENAI else _PING

    def error_status(self, error: ProxyError) -> int:
        """Return the HTTP status of `error`; 503 for OpenAI's clients, which do not know 529."""
        if self is Dialect.OPENAI and isinstance(error, Overloaded):
            return 503
        return error.status

    def error_headers(self, error: ProxyError, request_id: str) -> dict[str, str]:
        """Return the response headers of `error`, the content type of its body included."""
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            self.request_id_header: request_id,
            **error.headers,
        }
        if error.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after))
        return headers

    def error_body(self, error: ProxyError, request_id: str) -> bytes:
        """Return the response body of `error`: JSON in UTF-8."""
        return _dump(self.error_document(error, request_id))

    def stream_error(self, error: ProxyError, request_id: str) -> bytes:
        """Return the server-sent event that reports `error` in a stream that has begun."""
        document = self.error_document(error, request_id)
        if self is Dialect.OPENAI:
            return b"data: " + _dump(document) + b"\n\n"
        if isinstance(error, UpstreamError):
            document["error"]["type"] = "api_error"  # whatever status it would have had
        return b"event: error\ndata: " + _dump(document) + b"\n\n"

    def error_document(self, error: ProxyError, request_id: str) -> dict[str, Any]:
        """Return the response body of `error` as a JSON object."""
        status = self.error_status(error)
        if self is Dialect.OPENAI:
            named = error.error_type or _openai_type(status)
            return {
                "error": {
                    "message": error.message,
                    "type": _OPENAI_NAMES.get(named, named),
                    "param": error.param,
                    "code": error.code or _OPENAI_NAMES.get(named),
                }
            }
        return {
            "type": "error",
            "error": {
                "type": error.error_type or _anthropic_type(status),
                "message": error.message,
            },
            "request_id": request_id,
        }


def read_error(body: bytes) -> tuple[str | None, str | None]:
    """Return the type and message of an error of Anthropic's API; ``None`` for what is missing."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None, None
    return error_of(document)


def error_of(document: object) -> tuple[str | None, str | None]:
    """Return the same of a decoded body, or of a decoded event of a stream."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return None, None
    kind, message = error.get("type"), error.get("message")
    return (
        kind if isinstance(kind, str) else None,
        # UTF-8 cannot encode half of a surrogate pair, which JSON can express
        message.encode(errors="replace").decode() if isinstance(message, str) else None,
    )


def _anthropic_type(status: int) -> str:
    fallback = "api_error" if status >= 500 else "invalid_request_error"
    return _ANTHROPIC_TYPES.get(status, fallback)


def _openai_type(status: int) -> str:
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    return _OPENAI_TYPES.get(status, fallback)


def _dump(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    # a message may quote half of a surrogate pair from a request, which JSON can only escape
    return escape_line_separators(text.encode(errors="backslashreplace"))
