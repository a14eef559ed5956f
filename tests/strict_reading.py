"""The requests in a client's bytes by the strictest reading of RFC 9112.

It is the measure for what may go upstream: everything that two servers could read in two ways ends
the reading. It shares the grammar with the scripted peers, and no code with the proxy.
"""

from __future__ import annotations

from dataclasses import dataclass

from tornadoproxy.fakes.http_message import (
    ProtocolError,
    framing,
    is_persistent,
    parse_chunk_line,
    parse_request_head,
)


@dataclass(frozen=True)
class Request:
    """One request.

    :ivar body: without chunk framing; of a request that is not whole, what came before the fault.
    """

    method: str
    target: str
    body: bytes


@dataclass(frozen=True)
class Reading:
    """What a client's bytes hold.

    :ivar whole: the unambiguous requests, in order.
    :ivar broken: the one after them whose head is unambiguous, but whose body ends early or at a
        fault.
    """

    whole: tuple[Request, ...]
    broken: Request | None = None


class _Fault(Exception):
    """A body that ends early or is ambiguous.

    :param body: the part before that.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body


def read(sent: bytes) -> Reading:
    """Return what `sent` holds, up to its first fault or the end of the connection."""
    whole: list[Request] = []
    while True:
        while sent.startswith(b"\r\n"):  # RFC 9112 §2.2
            sent = sent[2:]
        head, end, rest = sent.partition(b"\r\n\r\n")
        if not end:
            return Reading(tuple(whole))
        try:
            method, target, version, headers = parse_request_head(head + end)
            length = framing(version, headers) or 0
        except ProtocolError:
            return Reading(tuple(whole))
        try:
            body, sent = _chunked(rest) if length == "chunked" else _counted(rest, length)
        except _Fault as fault:
            return Reading(tuple(whole), Request(method, target, fault.body))
        whole.append(Request(method, target, body))
        if version == "1.0" or not is_persistent(version, headers):
            return Reading(tuple(whole))


def _counted(rest: bytes, length: int) -> tuple[bytes, bytes]:
    if len(rest) < length:
        raise _Fault(rest)
    return rest[:length], rest[length:]


def _chunked(rest: bytes) -> tuple[bytes, bytes]:
    """Return a chunked body and what follows it.

    Extensions and trailers are faults: no client of this API sends them.
    """
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        try:
            size, extensions = parse_chunk_line(line)
        except ProtocolError:
            raise _Fault(body) from None
        if not end or extensions:
            raise _Fault(body)
        body += rest[:size]
        if rest[size : size + 2] != b"\r\n":
            raise _Fault(body)
        rest = rest[size + 2 :]
        if not size:
            return body, rest
