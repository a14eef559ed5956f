"""Reads the requests in a client's bytes by the strictest reading of RFC 9112.

It is the measure for what may go upstream: everything that two servers could read in two ways is
a fault here, and so is all that follows it. It shares no code with the proxy, and none with the
scripted upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e\x80-\xff]+) (HTTP/1\.[01])" % _TOKEN)
_HEADER_LINE = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % _TOKEN)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_HOST = re.compile(
    rb"(\[[0-9A-Fa-f:.]+\]|([A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(:[0-9]{0,5})?"
)

Lines: TypeAlias = list[tuple[bytes, bytes]]
"""Header lines, the names in lower case."""


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

    :ivar whole: the requests in no doubt, in order.
    :ivar broken: the one behind them whose head is in no doubt, but whose body ends early or at a
        fault.
    """

    whole: tuple[Request, ...]
    broken: Request | None = None


class _Fault(Exception):
    """From here on there is doubt, or nothing.

    :param body: of the body, what came before.
    """

    def __init__(self, body: bytes = b"") -> None:
        super().__init__()
        self.body = body


def read(sent: bytes) -> Reading:
    """What `sent` holds, up to its first fault or the end of the connection."""
    whole: list[Request] = []
    while True:
        while sent.startswith(b"\r\n"):  # RFC 9112 §2.2
            sent = sent[2:]
        try:
            method, target, version, lines, rest = _head(sent)
            length = _length(version, lines)
        except _Fault:
            return Reading(tuple(whole))
        try:
            body, sent = _chunked(rest) if length is None else _counted(rest, length)
        except _Fault as fault:
            return Reading(tuple(whole), Request(method, target, fault.body))
        whole.append(Request(method, target, body))
        if version == b"HTTP/1.0" or b"close" in _options(lines):
            return Reading(tuple(whole))


def _head(sent: bytes) -> tuple[str, str, bytes, Lines, bytes]:
    head, end, rest = sent.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(first)
    if not end or request_line is None:
        raise _Fault
    lines = []
    for field in fields:
        line = _HEADER_LINE.fullmatch(field)
        if line is None:
            raise _Fault
        lines.append((line[1].lower(), line[2]))
    method, target, version = request_line.groups()
    return method.decode(), target.decode("latin-1"), version, lines, rest


def _length(version: bytes, lines: Lines) -> int | None:
    """The body's length; ``None`` if it is chunked."""
    hosts, lengths, codings = (
        [value for name, value in lines if name == wanted]
        for wanted in (b"host", b"content-length", b"transfer-encoding")
    )
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise _Fault
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise _Fault
    if not all(map(_HOST.fullmatch, hosts)):
        raise _Fault
    if codings:
        if lengths or version == b"HTTP/1.0" or [each.lower() for each in codings] != [b"chunked"]:
            raise _Fault
        return None
    return int(lengths[0]) if lengths else 0


def _counted(rest: bytes, length: int) -> tuple[bytes, bytes]:
    if len(rest) < length:
        raise _Fault(rest)
    return rest[:length], rest[length:]


def _chunked(rest: bytes) -> tuple[bytes, bytes]:
    """Without extensions and trailers: nothing in this API has them."""
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end or not _CHUNK_LINE.fullmatch(line):
            raise _Fault(body)
        size = int(line, 16)
        body += rest[:size]
        if rest[size : size + 2] != b"\r\n":
            raise _Fault(body)
        rest = rest[size + 2 :]
        if not size:
            return body, rest


def _options(lines: Lines) -> Iterator[bytes]:
    for name, value in lines:
        if name == b"connection":
            yield from (option.strip().lower() for option in value.split(b","))
