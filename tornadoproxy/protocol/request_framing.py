"""The framing of requests: where one begins and ends in a connection's bytes. Sans-io.

A message that two servers could frame differently is refused: bare line feeds, folded lines,
``Transfer-Encoding`` beside ``Content-Length`` or with HTTP/1.0, several or malformed lengths,
anything but digits as the size of a chunk (RFC 9112 §2.2, §5.2, §6, §7.1, §11.2). So is a target
with bytes beyond ASCII (RFC 3986 §2), which servers decode in different ways.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy.protocol.headers import request_headers

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = rb"(%b) ([\x21-\x7e]+) (HTTP/1\.[01])\r\n" % _TOKEN
# possessive (*+): no line matches in two ways, so backtracking would only take time
_FIELD_LINES = rb"((?:%b+:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n" % _TOKEN
_HEAD = re.compile(_REQUEST_LINE + _FIELD_LINES)
_FIELD = re.compile(r"([^:]+):([^\r]*)\r\n")  # for lines that matched _FIELD_LINES
_BARE_END_OF_HEAD = rb"\r?\n\r?\n"
_MOST_DIGITS = 18  # of a Content-Length
# RFC 9110 §7.2, except for a comma; the port is short, since Tornado converts it to a number
_HOST = r"(\[[A-Za-z0-9\-._~%:]+\]|([A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})*)(:[0-9]{0,5})?"
_IN_MOST_HOSTS = string.ascii_letters + string.digits + "-."

_HEX_DIGITS = b"0123456789ABCDEFabcdef"
_MOST_HEX_DIGITS = 16  # of a chunk's size


class MalformedRequest(Exception):
    """A request that cannot be framed or read safely.

    :param path: the path as far as it is readable; it decides the dialect of the error.
    """

    def __init__(self, message: str, path: str, status: int = 400) -> None:
        super().__init__(message)
        self.path = path
        self.status = status


class RequestHead(Struct):
    """A request's head.

    :param target: the request target as received.
    :param version: ``HTTP/1.1`` or ``HTTP/1.0``.
    :param length: the length of the body in bytes; 0 if there is none, or if it is chunked.
    :param expects_continue: whether the client waits for a 100 before it sends the body.
    """

    method: str
    target: str
    version: str
    headers: HTTPHeaders
    length: int
    chunked: bool
    expects_continue: bool

    __repr__ = object.__repr__  # a field may hold a credential

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow. With HTTP/1.0, only closing ends the response."""
        if self.version == "HTTP/1.0":
            return False
        lines = self.headers.get_list("Connection")
        return not lines or "close" not in {
            option.strip().lower() for line in lines for option in line.split(",")
        }


def end_of_head(data: bytes | bytearray, searched: int) -> int:
    """Return where the first head in `data` ends, after its blank line; 0 if it is incomplete.

    :param searched: how many bytes of `data` are known to hold no end.
    """
    start = max(0, searched - 3)
    end = data.find(b"\r\n\r\n", start)
    if end >= 0:
        return end + 4  # a bare line feed before it is refused when the head is parsed
    # compiled when it is used: nearly all heads come in one piece
    found = re.compile(_BARE_END_OF_HEAD).search(data, start)
    return 0 if found is None else found.end()


def blank_lines(data: bytes | bytearray) -> int:
    """Return the length of the empty lines before a request (RFC 9112 §2.2)."""
    end = 0
    while data.startswith(b"\r\n", end):
        end += 2
    return end


def parse_head(head: bytes) -> RequestHead:
    """Read a request's head, its blank line included.

    :raises MalformedRequest: its syntax is invalid, or its framing is ambiguous.
    """
    match = _HEAD.fullmatch(head)
    if match is None:
        raise MalformedRequest(_fault_of_syntax(head), _path(head))
    method, target, version = (match[at].decode("latin-1") for at in (1, 2, 3))
    headers = request_headers(_FIELD.findall(match[4].decode("latin-1")))
    fault = _fault_of_framing(version, headers)
    if fault is not None:
        raise MalformedRequest(fault, target.partition("?")[0])
    expects = "Expect" in headers and headers["Expect"].lower() == "100-continue"
    return RequestHead(
        method,
        target,
        version,
        headers,
        int(headers.get("Content-Length", "0")),
        "Transfer-Encoding" in headers,
        # RFC 9110 §10.1.1: an expectation in an HTTP/1.0 request is to be ignored
        expects and version == "HTTP/1.1",
    )


def head_too_large(head: bytes, limit: int) -> MalformedRequest:
    """Return the error for a head over `limit` bytes; `head` is at least its beginning."""
    return MalformedRequest(f"The request's head is larger than {limit} bytes.", _path(head), 431)


def _path(head: bytes) -> str:
    """Return the path in a head's first line, as far as it is readable."""
    target = head.partition(b"\n")[0].partition(b" ")[2].partition(b" ")[0]
    return target.strip().partition(b"?")[0].decode("latin-1")


def _fault_of_syntax(head: bytes) -> str:
    # errors quote nothing of the head, which may hold a credential
    if re.search(rb"(?<!\r)\n", head):
        return "A line of the request's head ends in a bare line feed."
    if not re.match(_REQUEST_LINE, head):
        if not head.partition(b"\r\n")[0].isascii():
            return "The request target is not ASCII: send it percent-encoded."
        return "The request line is not one of HTTP/1.1."
    return "A header line of the request is malformed."


def _is_length(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS


def _is_host(value: str) -> bool:
    name, _, port = value.partition(":")
    if not name.strip(_IN_MOST_HOSTS) and not port.strip(string.digits) and len(port) <= 5:
        return True  # faster than the pattern, which takes a thousandth of the start to compile
    return re.fullmatch(_HOST, value) is not None


def _fault_of_framing(version: str, headers: HTTPHeaders) -> str | None:
    lengths = headers.get_list("Content-Length")
    if lengths and (len(lengths) > 1 or not _is_length(lengths[0])):
        return "The request needs one Content-Length, a whole number."
    if "Transfer-Encoding" in headers:
        if lengths:
            return "The request has both Transfer-Encoding and Content-Length."
        if version == "HTTP/1.0":
            return "Transfer-Encoding needs HTTP/1.1."
        if [line.lower() for line in headers.get_list("Transfer-Encoding")] != ["chunked"]:
            return "The only Transfer-Encoding supported is chunked."
    hosts = headers.get_list("Host")
    if len(hosts) > 1 or (not hosts and version == "HTTP/1.1"):
        return "The request needs one Host header."
    if hosts and not _is_host(hosts[0]):
        return "The request's Host header is malformed."
    return None


class MalformedChunk(Exception):
    """The body is not in the chunked transfer coding."""


class ChunkedBody:
    """Decoder of the chunked transfer coding (RFC 9112 §7.1).

    Extensions and trailers are refused: no client needs them, and attacks use them.
    """

    __slots__ = ("_before_line_end", "_held", "_is_last", "_left", "complete", "rest")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current chunk that are still to come
        self._before_line_end = False  # whether the line end after a chunk comes next
        self._is_last = False
        self._held = b""  # an incomplete line
        self.complete = False
        self.rest = b""
        """The bytes after the body."""

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body in `data`.

        :raises MalformedChunk: `data` is not in the chunked coding.
        """
        if self._held:
            data = self._held + data
        pieces = []
        at, end = 0, len(data)
        while at < end and not self.complete:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._before_line_end = not self._left
            elif self._before_line_end:
                line_end = data[at : at + 2]
                if line_end == b"\r":
                    break
                if line_end != b"\r\n":
                    raise MalformedChunk
                at += 2
                self._before_line_end = False
                self.complete = self._is_last
            else:
                line = data[at : at + _MOST_HEX_DIGITS + 2]
                size, line_end, _ = line.partition(b"\r\n")
                if not line_end:
                    size = size.removesuffix(b"\r")
                if not size or len(size) > _MOST_HEX_DIGITS or size.strip(_HEX_DIGITS):
                    raise MalformedChunk
                if not line_end:
                    break
                at += len(size) + 2
                self._left = int(size, 16)
                self._is_last = self._before_line_end = not self._left
        if self.complete:
            self.rest = data[at:]
        else:
            self._held = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
