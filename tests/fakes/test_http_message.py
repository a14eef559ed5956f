"""HTTP/1.1 messages by the strictest reading, without I/O."""

from __future__ import annotations

import pytest

from tornadoproxy.fakes.http_message import (
    ProtocolError,
    framing,
    is_persistent,
    parse_chunk_line,
    parse_request_head,
    parse_response_head,
    request_bytes,
)

GET = b"GET / HTTP/1.1\r\n"
HOST = b"Host: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/2\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n" + GET + HOST + b"\r\n",
        GET + b"\r\n",
        GET + HOST + HOST + b"\r\n",
        GET + b"Host: a/b\r\n\r\n",
        GET + b"Host : x\r\n\r\n",
        GET + b"Host: x\nEvil: y\r\n\r\n",
        GET + HOST + b" folded\r\n\r\n",
    ],
)
def test_ambiguous_request_head_is_an_error(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request_head(head)


@pytest.mark.parametrize("head", [b"HTTP/2 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 200 OK\r\nX : y"])
def test_ambiguous_response_head_is_an_error(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_response_head(head + b"\r\n\r\n")


LENGTH = ("Content-Length", "1")
CHUNKED = ("Transfer-Encoding", "Chunked")


def test_framing_of_a_body_is_unambiguous() -> None:
    assert framing("1.1", []) is None
    assert framing("1.1", [("content-length", "12")]) == 12
    assert framing("1.1", [CHUNKED]) == "chunked"
    ambiguous = [("Content-Length", "+1")], [LENGTH, LENGTH], [LENGTH, CHUNKED]
    for lines in (*ambiguous, [("Transfer-Encoding", "gzip, chunked")]):
        with pytest.raises(ProtocolError):
            framing("1.1", lines)
    with pytest.raises(ProtocolError):
        framing("1.0", [CHUNKED])


def test_chunk_line_has_a_size_and_extensions() -> None:
    assert parse_chunk_line(b"1F;a=b") == (31, b";a=b")
    for line in (b"", b"x", b"-1", b"0x1", b"f" * 17):
        with pytest.raises(ProtocolError):
            parse_chunk_line(line)


def test_connection_persists_by_version_and_header() -> None:
    assert is_persistent("1.1", [])
    assert not is_persistent("1.1", [("Connection", "x, Close")])
    assert not is_persistent("1.0", [("Connection", "x")])
    assert is_persistent("1.0", [("Connection", "Keep-Alive")])


def test_request_bytes_adds_what_is_missing() -> None:
    assert request_bytes("POST", "/", {"host": "x"}, b"hi", token="t") == (
        b"POST / HTTP/1.1\r\nAuthorization: Bearer t\r\nContent-Length: 2\r\nhost: x\r\n\r\nhi"
    )
    assert request_bytes("GET", "/") == b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
