"""HTTP/1.1 messages by the strictest reading of RFC 9112, without I/O.

Whatever two servers could read in two ways is a `ProtocolError`. None of the proxy's own parsers is
used, so that an error in one of them is found instead of shared.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e\x80-\xff]+) HTTP/(1\.[01])" % _NAME)
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([0-9]{3}) ([\t\x20-\x7e\x80-\xff]*)")
_HEADER_LINE = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % _NAME)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_HOST = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|([A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(:[0-9]{0,5})?"
)

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header lines in wire order; a mapping if no name is repeated."""

HeaderLines: TypeAlias = list[tuple[str, str]]
"""Names and values in wire order and wire case, decoded as latin-1."""

Framing: TypeAlias = int | Literal["chunked"] | None
"""The length of a body, or ``"chunked"``; ``None`` if no header says where it ends."""


class ProtocolError(Exception):
    """A message that RFC 9112 does not allow, or leaves ambiguous."""


def parse_request_head(raw_head: bytes) -> tuple[str, str, str, HeaderLines]:
    """Return method, target, version and headers of a head that ends with its empty line."""
    first, *lines = raw_head[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError(f"not a request line: {first[:80]!r}")
    method, target, version = (part.decode("latin-1") for part in match.groups())
    headers = _parse_lines(lines)
    hosts = all_values(headers, "Host")
    if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
        raise ProtocolError(f"not exactly one valid Host header: {hosts}")
    return method, target, version, headers


def parse_response_head(raw_head: bytes) -> tuple[str, int, str, HeaderLines]:
    """Return version, status, reason and headers of a head that ends with its empty line."""
    first, *lines = raw_head[:-4].split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError(f"not a status line: {first[:80]!r}")
    version, status, reason = (part.decode("latin-1") for part in match.groups())
    return version, int(status), reason, _parse_lines(lines)


def framing(version: str, headers: HeaderLines) -> Framing:
    """Return how the body of a message is framed."""
    codings = all_values(headers, "Transfer-Encoding")
    lengths = all_values(headers, "Content-Length")
    if codings:
        chunked = [coding.lower() for coding in codings] == ["chunked"]
        if lengths or version == "1.0" or not chunked:
            raise ProtocolError(f"Transfer-Encoding {codings} with Content-Length {lengths}")
        return "chunked"
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise ProtocolError(f"Content-Length {lengths}")
    return int(lengths[0]) if lengths else None


def parse_chunk_line(line: bytes) -> tuple[int, bytes]:
    """Return the size of a chunk and its extensions, from the line before it."""
    match = _CHUNK_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError(f"not the first line of a chunk: {line[:80]!r}")
    return int(match[1], 16), match[2] or b""


def parse_trailer(line: bytes) -> tuple[str, str]:
    """Return the name and value of a trailer."""
    (trailer,) = _parse_lines([line])
    return trailer


def is_persistent(version: str, headers: HeaderLines) -> bool:
    """Return whether the sender of these headers keeps its connection open (RFC 9112 §9.3)."""
    options = {
        option.strip().lower()
        for value in all_values(headers, "Connection")
        for option in value.split(",")
    }
    return "close" not in options and (version == "1.1" or "keep-alive" in options)


def response_head(status: int, headers: Headers = (), reason: str = "") -> bytes:
    """Return the bytes of a response head with these header lines and no others."""
    reason = reason or http.client.responses.get(status, "")
    lines = [f"{name}: {value}" for name, value in header_lines(headers)]
    return "\r\n".join([f"HTTP/1.1 {status} {reason}", *lines, "", ""]).encode("latin-1")


def request_bytes(
    method: str,
    target: str,
    headers: Headers = (),
    body: bytes = b"",
    *,
    token: str | None = None,
) -> bytes:
    """Return the bytes of a request with these header lines.

    `Host`, `Content-Length` and a Bearer `token` are added unless `headers` contains them.
    """
    lines = header_lines(headers)
    added = [("Host", "127.0.0.1")]
    if token is not None:
        added.append(("Authorization", f"Bearer {token}"))
    if (body or method not in {"GET", "HEAD"}) and not all_values(lines, "Transfer-Encoding"):
        added.append(("Content-Length", str(len(body))))
    lines = [*(line for line in added if not all_values(lines, line[0])), *lines]
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + body


def header_lines(headers: Headers) -> HeaderLines:
    """Return the names and values of `headers` as a list of its own."""
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def all_values(headers: HeaderLines, name: str) -> list[str]:
    """Return every value of the header `name`, one for each line."""
    return [value for key, value in headers if key.lower() == name.lower()]


def _parse_lines(lines: list[bytes]) -> HeaderLines:
    headers = []
    for line in lines:
        match = _HEADER_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"not a header line: {line[:80]!r}")
        headers.append((match[1].decode("latin-1"), match[2].decode("latin-1")))
    return headers
