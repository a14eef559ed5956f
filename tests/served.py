"""Pieces of HTTP, checks of the proxy's own errors, and a plugin, for tests of served requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

from tornadoproxy import Identity, IncomingRequest, ModelRequest, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    RawResponse,
    message_document,
    message_events,
    request_bytes,
)

CHUNKED = ("Transfer-Encoding", "chunked")
EVENT_STREAM = [("Content-Type", "text/event-stream"), CHUNKED]
EVENTS = message_events(message_document("Grüße, 世界 und 😀!"))
STREAM = b"".join(EVENTS)

MESSAGE_FIELDS: dict[str, Any] = {  # Any: JSON
    "model": "claude-sonnet-5-5",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "Hi"}],
}
MESSAGE_BODY = b'{"model":"claude-sonnet-5-5","max_tokens":9,"messages":[],"stream":true}'
CHAT_BODY = b'{"model":"claude-sonnet-5-5","messages":[{"role":"user","content":"Hi"}]}'


def request(
    method: str, target: str, *headers: tuple[str, str], body: bytes = b"", version: str = "1.1"
) -> bytes:
    """Return an authenticated request's bytes."""
    data = request_bytes(method, target, headers, body, token=TEST_TOKEN)
    return data.replace(b" HTTP/1.1\r\n", f" HTTP/{version}\r\n".encode(), 1)


MESSAGE = request("POST", "/v1/messages", body=MESSAGE_BODY)
CHAT_PATH = "/openai/v1/chat/completions"
CHAT = request("POST", CHAT_PATH, body=CHAT_BODY)
CHAT_STREAM = request("POST", CHAT_PATH, body=b'{"stream":true,' + CHAT_BODY[1:])
RESPONSES_PATH = "/openai/v1/responses"
RESPONSES_FIELDS = {"model": "claude-sonnet-5-5", "max_output_tokens": 20, "input": "Hi"}
RESPONSES_BODY = b'{"model":"claude-sonnet-5-5","input":"Hi"}'
RESPONSES = request("POST", RESPONSES_PATH, body=RESPONSES_BODY)
RESPONSES_STREAM = request("POST", RESPONSES_PATH, body=b'{"stream":true,' + RESPONSES_BODY[1:])
UPLOAD = request("POST", "/v1/files", CHUNKED)


def chunks(*pieces: bytes) -> bytes:
    """Return a chunk for each piece that is not empty."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)


def in_chunks(body: bytes, size: int) -> bytes:
    """Return a whole chunked body of chunks of at most this size."""
    return chunks(*split(body, size)) + b"0\r\n\r\n"


def split(data: bytes, size: int) -> Iterable[bytes]:
    """Yield pieces of at most this size."""
    return (data[start : start + size] for start in range(0, len(data), size))


def lowered(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return header lines with their names in lower case."""
    return [(name.lower(), value) for name, value in lines]


def anthropic_error(response: RawResponse, status: int, error_type: str) -> str:
    """Check that a response is the proxy's error in the Anthropic shape; return its message."""
    assert response.status == status
    (request_id,) = response.all("request-id")
    assert response.header("x-request-id") is None
    document = _error_document(response, request_id)
    message: str = document["error"]["message"]
    assert document == {
        "type": "error",
        "error": {"type": error_type, "message": message},
        "request_id": request_id,
    }
    assert len(message) > 10
    return message


def openai_error(
    response: RawResponse,
    status: int,
    error_type: str = "invalid_request_error",
    *,
    code: str | None = None,
    param: str | None = None,
) -> str:
    """Check that a response is the proxy's error in the OpenAI shape; return its message."""
    assert response.status == status
    (request_id,) = response.all("x-request-id")
    assert response.header("request-id") is None
    document = _error_document(response, request_id)
    message: str = document["error"]["message"]
    assert document == {
        "error": {"message": message, "type": error_type, "param": param, "code": code}
    }
    assert len(message) > 10
    return message


def _error_document(response: RawResponse, request_id: str) -> Any:  # Any: JSON
    assert request_id.startswith("req_")
    assert response.header("Content-Type") == "application/json"
    assert response.header("Server") is None
    return json.loads(response.body)


async def held(proxy: Proxy, size: int) -> None:
    """Wait until the proxy holds this many bytes of bodies."""
    while proxy.server.status().held_bytes < size:
        await asyncio.sleep(0)


class Authorizer:
    """Records what it is asked, and decides with this function."""

    def __init__(self, decide: Callable[[ModelRequest | None], object] = lambda _: None) -> None:
        self._decide = decide
        self.asked: list[tuple[IncomingRequest, Identity, ModelRequest | None]] = []

    @hookimpl
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Any:  # Any: what is tested
        self.asked.append((request, identity, model_request))
        return self._decide(model_request)

    def models(self) -> list[ModelRequest]:
        """The requests for a model that it was asked about."""
        return [each for _, _, each in self.asked if each is not None]
