"""Responses of an upstream: what is parsed, and what is rejected."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from tornadoproxy.errors import UpstreamError
from tornadoproxy.protocol.wire import ResponseHead
from tornadoproxy.upstream.connection import MAX_HEAD, UpstreamConnection

HEADERS = b"HTTP/1.1 200 OK\r\n"
WHOLE = HEADERS + b"Content-Length: 2\r\n\r\nok"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"
CHUNKED = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"


class Transport:
    """What a connection needs of a transport."""

    def __init__(self, own: socket.socket) -> None:
        self.own = own

    def get_extra_info(self, name: str) -> Any:  # as asyncio's
        return {"socket": self.own}.get(name)

    def abort(self) -> None:
        self.own.close()


class User:
    """The transcript of one response."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def response_began(self, head: ResponseHead, first: bytes) -> None:
        self.events += [head.status, first]

    def response_continued(self, chunk: bytes) -> None:
        self.events.append(chunk)

    def response_ended(self, *, reusable: bool) -> None:
        self.events.append("reusable" if reusable else "not reusable")

    def response_failed(self, error: UpstreamError, *, unreceived: bool) -> None:
        self.events.append(type(error).__name__)

    def writing_resumed(self) -> None:
        raise AssertionError

    def deadline_passed(self) -> None:
        raise AssertionError


def transcript(*reads: bytes, head_only: bool = False) -> list[object]:
    """Return what comes of a response that arrives in these reads."""
    own, peer = socket.socketpair()
    with own, peer:
        connection = UpstreamConnection()
        connection.connection_made(cast("asyncio.Transport", Transport(own)))
        user = User()
        connection.begin(user, head_only=head_only)
        for data in reads:
            connection.data_received(data)
            if connection.closed:
                break
    return user.events


@pytest.mark.parametrize(
    ("reads", "events"),
    [
        ([WHOLE], [200, b"ok", "reusable"]),
        ([WHOLE[:17], WHOLE[17:-2], b"o", b"k"], [200, b"", b"o", b"k", "reusable"]),
        ([CHUNKED + b"1\r\no\r\n", b"1\r\nk\r\n0\r\n\r\n"], [200, b"o", b"k", "reusable"]),
        ([CHUNKED + b"2;x=y\r\nok\r\n0\r\nX: trailer\r\n\r\n"], [200, b"ok", "reusable"]),
        ([b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n" + WHOLE], [200, b"ok", "reusable"]),
        ([WHOLE + WHOLE], [200, b"ok", "not reusable"]),
        ([CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + WHOLE], [200, b"ok", "not reusable"]),
        ([HEADERS + b"Connection: close\r\n" + WHOLE[17:]], [200, b"ok", "not reusable"]),
        ([HEADERS + b"Connection: x, CLOSE\r\n" + WHOLE[17:]], [200, b"ok", "not reusable"]),
        ([WHOLE.replace(b"/1.1", b"/1.0")], [200, b"ok", "not reusable"]),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], [204, b"", "reusable"]),
        ([NOT_MODIFIED], [304, b"", "reusable"]),
        ([NOT_MODIFIED + WHOLE], [304, b"", "not reusable"]),
    ],
)  # fmt: skip
async def test_response_is_passed_on_read_by_read(reads: list[bytes], events: list[object]) -> None:
    assert transcript(*reads) == events


async def test_response_to_head_has_no_body() -> None:
    head = HEADERS + b"Content-Length: 52\r\n\r\n"
    assert transcript(head, head_only=True) == [200, b"", "reusable"]
    assert transcript(head + HEADERS, head_only=True) == [200, b"", "not reusable"]


@pytest.mark.parametrize(
    "data",
    [
        HEADERS + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        HEADERS + b"Content-Length: 1, 2\r\n\r\nx",
        HEADERS + b"Content-Length: %d\r\n\r\n" % 10**30,
        HEADERS + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEADERS + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEADERS + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        HEADERS + b"Name : value\r\n\r\n",
        HEADERS + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
        HEADERS[:-2] + b"\nContent-Length: 0\n\n",
        b"\0\x01\x02garbage\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
async def test_head_that_is_not_http_is_an_error(data: bytes) -> None:
    assert transcript(data) == ["UpstreamProtocolError"]


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (HEADERS, b"X-Endless: " + b"x" * 1000 + b"\r\n"),
        (HEADERS + b"X-Endless: ", b"x" * 1000),
        (b"HTTP/1.1 200 ", b"x" * 1000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10),
    ],
    ids=["headers", "one header", "reason", "interim responses"],
)
async def test_head_that_is_too_long_is_an_error(first: bytes, more: bytes) -> None:
    reads = [more] * (MAX_HEAD // len(more) + 1)
    assert transcript(first, *reads) == ["UpstreamProtocolError"]


@pytest.mark.parametrize(
    "data",
    [
        b"2\r\nok\r\nx\r\n",
        b"2\r\nokay\r\n0\r\n\r\n",
        b"2\nok\n0\n\n",
        b"2\r\nok\r\n0\r\nno trailer\r\n\r\n",
    ],
)
async def test_malformed_chunk_is_an_error(data: bytes) -> None:
    events = transcript(CHUNKED, data)
    assert (events[0], events[-1]) == (200, "UpstreamProtocolError")
