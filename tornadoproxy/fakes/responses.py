"""Responses that a scripted server can send."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tornadoproxy.fakes.exchange import (
    Ending,
    Headers,
    UpstreamExchange,
    header_lines,
    response_head,
)

Response = Callable[[UpstreamExchange], Awaitable[None]]


def bytes_response(body: bytes, headers: Headers = (), status: int = 200) -> Response:
    """Reads the request, then answers with `body` and its length, and with `headers`.

    A 204, a 304 and any 1xx have no body; the answer to HEAD has its length alone.
    """
    lines = header_lines(headers)
    bodiless = status < 200 or status in {204, 304}
    if not bodiless and not _has(lines, "Content-Length"):
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
    """Reads the request, then answers with `document` as JSON."""
    lines = _with_default(header_lines(headers), "Content-Type", "application/json")
    return bytes_response(json.dumps(document).encode(), lines, status)


def sse_response(
    events: bytes | Sequence[bytes],
    *,
    split: int | None = None,
    headers: Headers = (),
    end: Ending = "keep",
) -> Response:
    """Reads the request, then streams server-sent events, each piece a chunk and a write.

    :param events: the pieces; bytes are one piece.
    :param split: cut the whole into pieces of so many bytes instead.
    :param headers: further header lines.
    :param end: ``"keep"`` ends the body; any other leaves it without its last chunk.
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
    """Reads the request, then sends exactly these bytes, each piece a write."""

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        for piece in pieces:
            await exchange.send(piece)
            await exchange.pause()
        await exchange.end(end)

    return response


def silent_response() -> Response:
    """Reads the request, and never answers; ends when the peer leaves."""
    return raw_response(end="hang")


def _has(headers: list[tuple[str, str]], name: str) -> bool:
    return any(key.lower() == name.lower() for key, _ in headers)


def _with_default(headers: list[tuple[str, str]], name: str, value: str) -> list[tuple[str, str]]:
    return headers if _has(headers, name) else [(name, value), *headers]
