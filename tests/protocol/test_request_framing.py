"""Framing of requests and chunked bodies, at any split; none that is ambiguous is parsed."""

from __future__ import annotations

import itertools

import pytest

from tornadoproxy.protocol.request_framing import (
    ChunkedBody,
    MalformedChunk,
    MalformedRequest,
    blank_lines,
    end_of_head,
    head_too_large,
    parse_head,
)

BEHIND = b"GET /v1/models HTTP/1.1\r\n\r\n"


def test_chunked_body_is_read_at_any_split() -> None:
    data = b"5\r\nhello\r\n00a\r\n0123456789\r\n0C\r\n\r\n0\r\n\r\n12345\r\n0000\r\n\r\n"
    whole = b"hello0123456789\r\n0\r\n\r\n12345"
    for first, second in itertools.combinations(range(len(data)), 2):
        body = ChunkedBody()
        parts = (data[:first], data[first:second], data[second:] + BEHIND)
        assert b"".join([body.feed(part) for part in parts]) == whole
        assert (body.complete, body.rest) == (True, BEHIND)
    body = ChunkedBody()
    assert [body.feed(bytes([byte])) for byte in data[:19]][-4:] == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "data",
    [
        *(b"\r\nhello", b"+5\r\nhello", b"0x5\r\nhello", b"5;a=b\r\nhello", b"5 \r\nhello"),
        *(b"5\nhello", b"5\rhello", b"5\r\nhello\n0", b"5\r\nhello\r0", b"5\r\nhelloo\r\n0"),
        *(b"00000000000000005\r\nhello", b"0\r\nX: y", "\N{ARABIC-INDIC DIGIT FIVE}\r\n".encode()),
    ],
)
def test_malformed_chunk_is_refused_at_any_split(data: bytes) -> None:
    """Bytes before the fault may be returned, and none after it."""
    for cut in range(len(data)):
        body = ChunkedBody()
        taken: list[bytes] = []
        with pytest.raises(MalformedChunk):
            taken += map(body.feed, (data[:cut], data[cut:]))
        assert b"hello".startswith(b"".join(taken))


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\n\r\n", b"\r\n\n"])
def test_end_of_head_is_found_at_any_split(end: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nA: b" + end
    for searched in range(len(head)):
        assert end_of_head(head[:searched], 0) == 0
        assert end_of_head(head + b"body", searched) == len(head)


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
        (b"HTTP/1.1\r\nHost: a\r\nConnection: te\r\nConnection: x, Close\r\n", False),
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


HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\n"
LENGTH, CODING = HEAD + b"Content-Length: ", HEAD + b"Transfer-Encoding: "
LENGTHS = [
    *(b"5, 5", b"+5", b"-5", b"0x5", b"1_0", b"5 5", b"\xb2", b"5.0", b"", b"1" * 19),
    *(b"5\r\nTransfer-Encoding: chunked", b"5\r\nContent-Length: 5"),  # two framings
]
CODINGS = [
    *(b"xchunked", b"chunked, chunked", b"chunked\r\nTransfer-Encoding: chunked", b"identity"),
    *(b"gzip, chunked", b"chunked;q=1", b"\x0bchunked", b'"chunked"', b"", b"\r\n chunked"),
]
LINES = [
    *(b"X: a\r\n b", b"X: y\nA: b", b"X: y\rA: b", b"X: y\r", b"X: y\r\n\n"),
    *(b"X : y", b"X\t: y", b"X y", b": y", b"X\x00: y", b"X: \x00", b"X: \x07", b"X: \x7f"),
    *(b"Host: b", b"Host: a"),  # a second one
]
HOSTS = [b"a, b", b"a/b", b"a@b", b"a:123456", b"[::1", b"a%2"]
REQUEST_LINES = [
    *(b"GET / HTTP/2.0", b"GET / HTTP/1.2", b"GET / HTTP/1.10", b"GET / http/1.1", b"GET /"),
    *(b"GET / HTTP/1.1 ", b"GET  / HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET / x HTTP/1.1"),
    *(b"GE(T / HTTP/1.1", b" GET / HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET /\x00 HTTP/1.1"),
    *(b"GET / HTTP/1.1\n", b"PRI * HTTP/2.0", b"", b" ", b"\xff\xff", b"HTTP/1.1 200 OK"),
]


@pytest.mark.parametrize(
    "lines",
    [
        *(LENGTH + each for each in LENGTHS),
        *(CODING + each for each in CODINGS),
        HEAD.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked",
        *(HEAD + each for each in LINES),
        *(b"GET / HTTP/1.1\r\nHost: " + each for each in HOSTS),
        b"GET / HTTP/1.1",  # without a Host
        *(each + b"\r\nHost: a" for each in REQUEST_LINES),
    ],
)
def test_malformed_or_ambiguous_head_is_refused(lines: bytes) -> None:
    with pytest.raises(MalformedRequest, match=r"request|Transfer-Encoding") as caught:
        parse_head(lines + b"\r\n\r\n")
    assert caught.value.status == 400


def test_framing_of_a_body_is_its_length_or_chunked() -> None:
    assert parse_head(LENGTH + b"1" * 18 + b"\r\n\r\n").length == int("1" * 18)
    assert parse_head(CODING + b"Chunked\r\n\r\n").chunked


@pytest.mark.parametrize("target", [b"/\xc3\xa9", b"/?\xff"])
def test_target_beyond_ascii_is_refused_with_a_hint(target: bytes) -> None:
    with pytest.raises(MalformedRequest, match="send it percent-encoded"):
        parse_head(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
