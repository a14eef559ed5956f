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


def test_request_head_is_split_as_it_was_sent() -> None:
    head = b"PUT /v1/a%2Fb?q=\xc3\xa9? HTTP/1.1\r\nhOsT: x\r\nX-Twice: 1\r\nx-twice:  2 \r\n\r\n"
    method, target, version, headers = parse_request_head(head)
    assert (method, version) == ("PUT", "1.1")
    assert target.encode("latin-1") == b"/v1/a%2Fb?q=\xc3\xa9?"
    assert headers == [("hOsT", "x"), ("X-Twice", "1"), ("x-twice", "2")]


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
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


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        ([("content-length", "12")], 12),
        ([("Transfer-Encoding", "Chunked")], "chunked"),
    ],
)
def test_framing_of_a_body(lines: list[tuple[str, str]], expected: object) -> None:
    assert framing("1.1", lines) == expected


@pytest.mark.parametrize(
    ("version", "lines"),
    [
        ("1.1", [("Content-Length", "+1")]),
        ("1.1", [("Content-Length", "1"), ("Content-Length", "1")]),
        ("1.1", [("Content-Length", "1"), ("Transfer-Encoding", "chunked")]),
        ("1.1", [("Transfer-Encoding", "gzip, chunked")]),
        ("1.0", [("Transfer-Encoding", "chunked")]),
    ],
)
def test_ambiguous_framing_is_an_error(version: str, lines: list[tuple[str, str]]) -> None:
    with pytest.raises(ProtocolError):
        framing(version, lines)


def test_chunk_line_has_a_size_and_extensions() -> None:
    assert parse_chunk_line(b"1F;a=b") == (31, b";a=b")
    for line in (b"", b"x", b"-1", b"0x1", b"f" * 17):
        with pytest.raises(ProtocolError):
            parse_chunk_line(line)


@pytest.mark.parametrize(
    ("version", "value", "expected"),
    [
        ("1.1", None, True),
        ("1.1", "x, Close", False),
        ("1.0", None, False),
        ("1.0", "x", False),
        ("1.0", "Keep-Alive", True),
    ],
)
def test_persistence_of_a_connection(version: str, value: str | None, expected: bool) -> None:
    lines = [] if value is None else [("Connection", value)]
    assert is_persistent(version, lines) is expected


def test_request_bytes_adds_what_is_missing() -> None:
    assert request_bytes("POST", "/", {"host": "x"}, b"hi", token="t") == (
        b"POST / HTTP/1.1\r\nAuthorization: Bearer t\r\nContent-Length: 2\r\nhost: x\r\n\r\nhi"
    )
    assert request_bytes("GET", "/") == b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
