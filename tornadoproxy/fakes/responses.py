"""Responses that a scripted server can send."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tornadoproxy.fakes.exchange import Ending, UpstreamExchange
from tornadoproxy.fakes.http_message import (
    HeaderLines,
    Headers,
    all_values,
    header_lines,
    response_head,
)

Response = Callable[[UpstreamExchange], Awaitable[None]]
"""What responds to one request."""


def bytes_response(body: bytes, headers: Headers = (), status: int = 200) -> Response:
    """Return a response that reads the request, then sends `headers`, a length and `body`.

    With status 1xx, 204 or 304 it has no body, and as a response to HEAD only its length.
    """
    lines = header_lines(headers)
    bodiless = status < 200 or status in {204, 304}
    if not bodiless and not all_values(lines, "Content-Length"):
        lines.append(("Content-Length", str(len(body))))

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        head = response_head(status, lines)
        await exchange.send(head if bodiless or exchange.request.method == "HEAD" else head + body)

    return response


def json_response(
    document: Any,  # a JSON document may be anything
    status: int = 200,
    headers: Headers = (),
) -> Response:
    """Return a response that reads the request, then sends `document` as JSON."""
    lines = _with_default(header_lines(headers), "Content-Type", "application/json")
    return bytes_response(json.dumps(document).encode(), lines, status)


def sse_response(
    events: bytes | Sequence[bytes],
    *,
    split: int | None = None,
    headers: Headers = (),
    end: Ending = "keep",
) -> Response:
    """Return a response that reads the request, then streams server-sent events.

    Each piece is one chunk and one write.

    :param events: the pieces; bytes are one piece.
    :param split: the size in bytes of the pieces that the whole is cut into instead.
    :param headers: further header lines.
    :param end: ``"keep"`` ends the body; any other value omits the last chunk.
    """
    pieces = [events] if isinstance(events, bytes) else list(events)
    if split is not None:
        whole = b"".join(pieces)
        pieces = [whole[start : start + split] for start in range(0, len(whole), split)]
    lines = _with_default(header_lines(headers), "Content-Type", "text/event-stream; charset=utf-8")
    lines = _with_default(lines, "Cache-Control", "no-cache")
    lines = _with_default(lines, "Transfer-Encoding", "chunked")

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, lines)
        for piece in pieces:
            await exchange.pause()
            await exchange.chunk(piece)
        if end == "keep":
            await exchange.last_chunk()
        await exchange.end(end)

    return response


def raw_response(*pieces: bytes, end: Ending = "keep") -> Response:
    """Return a response that reads the request, then sends exactly these bytes, a write each."""

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        for piece in pieces:
            await exchange.send(piece)
            await exchange.pause()
        await exchange.end(end)

    return response


def silent_response() -> Response:
    """Return a response that reads the request, then waits until the peer disconnects."""
    return raw_response(end="hang")


def _with_default(headers: HeaderLines, name: str, value: str) -> HeaderLines:
    return headers if all_values(headers, name) else [(name, value), *headers]
