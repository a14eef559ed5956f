"""Framing of requests and chunked bodies, at any split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornadoproxy.protocol.request_framing import (
    ChunkedBody,
    MalformedChunk,
    MalformedRequest,
    blank_lines,
    end_of_head,
    head_too_large,
    parse_head,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BEHIND = b"GET /v1/models HTTP/1.1\r\n\r\n"

chunk_sizes = st.tuples(st.integers(0, 3), st.booleans())


def coded(chunks: list[bytes], sizes: list[tuple[int, bool]]) -> bytes:
    """`chunks` in the chunked coding, with leading zeros and both cases in their sizes."""
    lines = []
    for chunk, (zeros, upper) in zip(chunks, sizes, strict=True):
        size = "0" * zeros + (f"{len(chunk):X}" if upper else f"{len(chunk):x}")
        lines.append(b"%b\r\n%b\r\n" % (size.encode(), chunk))
    return b"".join(lines) + b"0\r\n\r\n"


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    start = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        yield data[start:cut]
        start = cut


def take(body: ChunkedBody, parts: Iterator[bytes]) -> tuple[bytes, bytes]:
    """The body, and the bytes after it."""
    taken = b""
    for part in parts:
        taken += body.feed(part)
        if body.complete:
            return taken, body.rest + b"".join(parts)
    raise AssertionError("the body did not end")


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), chunk_sizes), max_size=6),
    st.lists(st.integers(0, 500), max_size=8),
)
def test_chunked_body_is_read_at_any_split(
    chunks: list[tuple[bytes, tuple[int, bool]]], cuts: list[int]
) -> None:
    bodies = [chunk for chunk, _ in chunks]
    data = coded(bodies, [size for _, size in chunks]) + BEHIND
    assert take(ChunkedBody(), pieces(data, cuts)) == (b"".join(bodies), BEHIND)


MALFORMED = {
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "an extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
    "a blank": b"5 \r\nhello\r\n0\r\n\r\n",
    "bare LF behind a size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR behind a size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF behind a chunk": b"5\r\nhello\n0\r\n\r\n",
    "bare CR behind a chunk": b"5\r\nhello\r0\r\n\r\n",
    "more than its size": b"5\r\nhelloo\r\n0\r\n\r\n",
    "17 digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "a trailer": b"0\r\nX: y\r\n\r\n",
    "a digit of another script": "\N{ARABIC-INDIC DIGIT FIVE}\r\nhello\r\n".encode(),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_chunk_is_refused_at_any_split(fault: str) -> None:
    """Bytes before the fault may be returned, and none after it."""
    data = MALFORMED[fault]
    for cut in range(len(data)):
        body = ChunkedBody()
        taken: list[bytes] = []
        with pytest.raises(MalformedChunk):
            taken += map(body.feed, (data[:cut], data[cut:]))
        assert b"hello".startswith(b"".join(taken))


def test_chunk_size_counts_once_its_line_ends() -> None:
    body = ChunkedBody()
    assert [body.feed(bytes([byte])) for byte in b"a\r\n0123456789\r\n"] == [
        *[b""] * 3,
        *[b"%d" % digit for digit in range(10)],
        *[b""] * 2,
    ]


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(derandomize=True, database=None, deadline=None, max_examples=200)
def test_end_of_head_is_found_at_any_split(data: bytes, read: int) -> None:
    data = data.replace(b"a", b"\r\n").replace(b"b", b"\n")
    end = end_of_head(data, 0)
    if not end_of_head(data[:read], 0):
        assert end_of_head(data, min(read, len(data))) == end
    if end:
        assert data[:end].endswith((b"\n\n", b"\n\r\n"))


@pytest.mark.parametrize(
    ("data", "length"), [(b"", 0), (b"\r\n\r\nGET", 4), (b"\r", 0), (b"\n", 0), (b"\r\n\rG", 2)]
)
def test_blank_lines_before_a_request_are_counted(data: bytes, length: int) -> None:
    assert blank_lines(data) == length


def test_head_is_read_unchanged() -> None:
    head = parse_head(
        b"POST /v1/x?a=%2F HTTP/1.1\r\nhost: a:1\r\nX-A: 1\r\nx-a:\t2 \r\nX-Empty:\r\n"
        b"X-B: \xe4:\xe4\r\nContent-Length: 12\r\n\r\n"
    )
    assert (head.method, head.target, head.version) == ("POST", "/v1/x?a=%2F", "HTTP/1.1")
    assert (head.length, head.chunked, head.expects_continue) == (12, False, False)
    assert head.headers.get_list("X-A") == ["1", "2"]
    assert head.headers["X-Empty"] == ""
    assert head.headers["X-B"] == "ä:ä"
    assert head.headers["Host"] == "a:1"


@pytest.mark.parametrize(
    ("lines", "keeps_alive"),
    [
        (b"HTTP/1.1\r\nHost: a\r\n", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n", False),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: te\r\nConnection: x, close\r\n", False),
        (b"HTTP/1.0\r\nConnection: keep-alive\r\n", False),
    ],
)
def test_connection_header_and_version_decide_keep_alive(
    lines: bytes, *, keeps_alive: bool
) -> None:
    assert parse_head(b"GET / " + lines + b"\r\n").keeps_alive is keeps_alive


def test_head_over_the_limit_is_refused_with_its_path() -> None:
    error = head_too_large(b"GET /openai/v1/x?y HTTP/1.1\r\nX: ", 30)
    assert (error.status, error.path, "30 bytes" in str(error)) == (431, "/openai/v1/x", True)


@pytest.mark.parametrize("secret", [b"X-Api-Key : hush", b"Authorization hush", b"x: hush\n"])
def test_error_quotes_nothing_of_the_head(secret: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse_head(b"GET /v1/models?key=hush HTTP/1.1\r\n" + secret + b"\r\n\r\n")
    assert "hush" not in str(caught.value)
    assert caught.value.path == "/v1/models"
