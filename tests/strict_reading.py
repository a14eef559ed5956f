"""The requests in a client's bytes by the strictest reading of RFC 9112.

It is the measure for what may go upstream: everything that two servers could read in two ways ends
the reading. It shares the grammar with the scripted peers, and no code with the proxy.
"""

from __future__ import annotations

from typing import NamedTuple

from tornadoproxy.fakes.http_message import (
    ProtocolError,
    framing,
    is_persistent,
    parse_chunk_line,
    parse_request_head,
)


class Request(NamedTuple):
    """One request; its body is without chunk framing."""

    method: str
    target: str
    body: bytes


def read(sent: bytes) -> list[Request]:
    """Return the whole requests in `sent`, up to its first fault or the end of the connection."""
    whole: list[Request] = []
    while True:
        while sent.startswith(b"\r\n"):  # RFC 9112 §2.2
            sent = sent[2:]
        head, end, rest = sent.partition(b"\r\n\r\n")
        if not end:
            return whole
        try:
            method, target, version, headers = parse_request_head(head + end)
            length = framing(version, headers) or 0
            body, sent = _chunked(rest) if length == "chunked" else _counted(rest, length)
        except ProtocolError:
            return whole
        whole.append(Request(method, target, body))
        if version == "1.0" or not is_persistent(version, headers):
            return whole


def _counted(rest: bytes, length: int) -> tuple[bytes, bytes]:
    if len(rest) < length:
        raise ProtocolError("the body ends early")
    return rest[:length], rest[length:]


def _chunked(rest: bytes) -> tuple[bytes, bytes]:
    """Return a chunked body and what follows it.

    Extensions and trailers are faults: no client of this API sends them.
    """
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        size, extensions = parse_chunk_line(line)
        body += rest[:size]
        if not end or extensions or rest[size : size + 2] != b"\r\n":
            raise ProtocolError("the chunks are malformed")
        rest = rest[size + 2 :]
        if not size:
            return body, rest
