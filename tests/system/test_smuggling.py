"""Request smuggling: requests that two servers could read in two ways.

Each case is a client's bytes followed by a well-formed request, the sentinel. An ambiguous case is
refused and its connection closed, since the sentinel may be a request or part of a body. An
unambiguous one goes upstream as one request, and the sentinel as the next.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from strict_reading import Request, read
from upstream_record import check_clean, settled

from tornadoproxy.testing import (
    TEST_TOKEN,
    bytes_response,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        ScriptedUpstream,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")

TARGET, CHAT = b"/v1/messages", b"/openai/v1/chat/completions"
TOKEN = b"Authorization: Bearer %b\r\n" % TEST_TOKEN.encode()
LINES = b"Host: a\r\n" + TOKEN
START = b"POST %b HTTP/1.1\r\n" % TARGET
HEAD = START + LINES
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# what an attacker would like to have read as a request
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\n" + LINES + b"\r\n"
SENTINEL = request_bytes("GET", "/v1/sentinel", token=TEST_TOKEN)

OK = bytes_response(b"ok")


@dataclass(frozen=True)
class Case:
    """What a client sends, and what the proxy must do with it.

    :ivar responses: the statuses of the responses to it, in order.
    :ivar forwarded: the requests that reach the upstream whole.
    :ivar goes_on: whether the sentinel is served on the same connection; else that is closed.
    """

    sent: bytes
    responses: tuple[int, ...]
    forwarded: tuple[Request, ...] = ()
    goes_on: bool = False


def served(sent: bytes, body: bytes = b"", method: str = "POST", *, goes_on: bool = True) -> Case:
    """Unambiguous: one request with exactly that body goes upstream."""
    return Case(sent, (200,), (Request(method, TARGET.decode(), body),), goes_on)


def answered(sent: bytes, status: int) -> Case:
    """Unambiguous, but answered by the proxy itself; the connection stays open."""
    return Case(sent, (status,), goes_on=True)


def head_with(*lines: bytes, start: bytes = START) -> bytes:
    return start + LINES + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def with_host(lines: bytes) -> bytes:
    return HEAD.replace(b"Host: a", lines) + b"\r\n" + SMUGGLED


LENGTH, CODING = b"Content-Length: 5", b"Transfer-Encoding: chunked"
NO_LENGTH = b"Content-Length: 0"
LAST_CHUNK = b"0\r\n\r\n"
HTTP_1_0 = START.replace(b"1.1", b"1.0")
CODED_1_0 = head_with(CODING, start=HTTP_1_0)

# Each of the following is refused with 400. What stands behind it is a request of its own for one
# of the two readings. `|` separates cases, `~` is CR LF.

BOTH = [  # a length beside a coding: the chunks are empty, or five bytes long
    *([LENGTH, CODING], [CODING, LENGTH], [LENGTH, CODING, LENGTH], [CODING, LENGTH, CODING]),
    *([NO_LENGTH, CODING], [CODING, NO_LENGTH], [LENGTH, *[b"X: y"] * 50, CODING]),
    [b"Content-Length: %d" % len(LAST_CHUNK + SMUGGLED), CODING],
    [b"CONTENT-LENGTH: 5", b"transfer-encoding: CHUNKED"],
    *([b"Content-Length: x", CODING], [LENGTH, b"Transfer-Encoding: x"]),
    *([LENGTH, b"Transfer-Encoding:"], [LENGTH, b"Transfer-Encoding: identity"]),
    [LENGTH, CODING, b"Connection: transfer-encoding"],
    [LENGTH, CODING, b"Connection: content-length"],
]

LENGTHS = (  # each is followed by what is a request to a reader that takes it for 5
    b"+5|-5|-0|+0|0x5|0o5|a|5.0|5e0|0_5|0 5|5,|,5|5,5|5 ,\t5|5, 6|0, 5|\"5\"|'5'|5;x=y|\x0b5|5\x0b"
    b"|\x0c5|5\x00|5\r|\r5|\xa05|\xb2|\xef\xbc\x95|\xd9\xa5|| \t |five|chunked"
    b"|18446744073709551621|" + b"9" * 40 + b"|" + b"9" * 5000
)
TWO_LENGTHS = (
    b"Content-Length: 6|Content-Length: 5|content-length: 5|Content-Length: 05|Content-Length:"
)

CODINGS = (  # U+212A, the Kelvin sign, is a k in lower case
    b"| \t|identity|gzip|gzip, chunked|chunked, identity|chunked, chunked|chunked,|,chunked"
    b'|xchunked|chunkedx|x chunked|chunked x|chunke|chun ked|chunked;|chunked;q=1|"chunked"'
    b"|'chunked'|(chunked)|\x0bchunked|chunked\x0b|\x0cchunked|x\x08chunked|chunked\x00|\x00chunked"
    b"|chunked\r|\rchunked|\xa0chunked|chunked\x85|chun\xe2\x84\xaaed|: chunked|=chunked"
)
TWO_CODINGS = (
    b"Transfer-Encoding: chunked~Transfer-Encoding: chunked"
    b"|Transfer-Encoding: chunked~Transfer-Encoding: identity"
    b"|Transfer-Encoding: identity~Transfer-Encoding: chunked"
    b"|Transfer-Encoding: chunked~Transfer-encoding: cow"
    b"|Transfer-Encoding: chunked~Transfer-Encoding:"
)

FIELDS = (  # malformed and folded lines, control characters
    b"Transfer-Encoding : chunked|Content-Length\t: 5|Content-Length\r: 5|Content-Length\x0b: 5"
    b"|Content-Length\x00: 5|\x00Content-Length: 5|Content Length: 5| Content-Length: 5"
    b'|\tTransfer-Encoding: chunked|\x0bTransfer-Encoding: chunked|"Content-Length": 5'
    b"|C\xc3\xb6ntent-Length: 5|Content-Length\xa0: 5|: 5|Content-Length 5|Content-Length=5"
    b"|HTTP/1.1 200 OK|GET /v1/smuggled HTTP/1.1|Transfer-Encoding:~ chunked"
    b"|Transfer-Encoding:~\tchunked|X: y~ Transfer-Encoding: chunked"
    b"|Transfer-Encoding: chunked~ , identity|Content-Length: 5~ 0|X: y~ \t|X: a\x00b|X: a\x07b"
    b"|X: a\x7fb|X: a\x0bb"
    # ends of lines
    b"|X: y\nTransfer-Encoding: chunked|X: a\n b|X: y\n\rTransfer-Encoding: chunked"
    b"|X: y\rTransfer-Encoding: chunked|X: y\r|X: a\rb|X:\ry|\rTransfer-Encoding: chunked|\r: y"
    b"|X: y\r\r|X: y~\r"
)
HEADS = [  # whole heads with a wrong line end
    HEAD.replace(b"\r\n", b"\n") + b"\n",
    START[:-2] + b"\n" + LINES + b"\r\n",
    *(HEAD + end for end in (b"X: y\n\r\n", b"X: y\r\n\n", b"X: y\n\n")),
    b"\n" + HEAD + b"\r\n",
    START[:-2] + b"\r" + LINES + b"\r\n",
    b"\r" + HEAD + b"\r\n",
    START + b" X: y\r\n" + LINES + b"\r\n",
]

STARTS = (
    b"GET /v1/messages|GET /v1/messages HTTP/0.9|HTTP/1.2|HTTP/2.0|HTTP/1|HTTP/1.10|HTTP/01.1"
    b"|HTTP/1,1|HTTP/+1.1|HTTP/1.1x|http/1.1|HTTPS/1.1|DESCRIBE /v1/messages RTSP/1.0|/1.1"
    b"|HTTP/\xef\xbc\x91.\xef\xbc\x91|HTTP /1.1|HTTP/1.1 |HTTP/1.1\t|HTTP/1.1 HTTP/1.1"
    b"|POST  /v1/messages HTTP/1.1|POST /v1/messages  HTTP/1.1|POST\t/v1/messages\tHTTP/1.1"
    b"|POST\x0b/v1/messages\x0bHTTP/1.1|POST /v1/messages\x0cHTTP/1.1|POST /v1/messages\rHTTP/1.1"
    b"|POST /v1/messages\xa0HTTP/1.1| POST /v1/messages HTTP/1.1|POST /v1/messages x HTTP/1.1"
    b"|POST /v1/messages\x00 HTTP/1.1|POST /v1/messages\tx HTTP/1.1|POST /v1/messages\x7f HTTP/1.1"
    b"|POST /v1/messages HTTP/1.1\rHost: b\rX: /v1/messages HTTP/1.1|PO\x00ST /v1/messages HTTP/1.1"
    b'|POST: /v1/messages HTTP/1.1|P\xc3\x96ST /v1/messages HTTP/1.1|"POST" /v1/messages HTTP/1.1'
    b"| /v1/messages HTTP/1.1|POST  HTTP/1.1|POST"
)

HOSTS = (
    b'a, b#a b#a/b#user@a#http://a#a?b#a\\b#"a"#<a>#{a}#a^b#a|b#a`b#a\x00#a\tb#a\x0b#a\rb#\xc3\xa4#a%2'
    b"#a:" + b"9" * 5000
)

# chunks of which all but one thing is right
CHUNKS = (
    b'+5~hello~|-5~hello~|0x5~hello~|5h~hello~|0_5~hello~|5.0~hello~|"5"~hello~|5,~hello~| 5~hello~'
    b"|5 ~hello~|\t5~hello~|5\t~hello~|5\x0b~hello~|5\x00~hello~|5\r~hello~|5\rXhello~|5\nhello~"
    b"|5\n\rhello~|\xef\xbc\x95~hello~|\xd9\xa5~hello~|\xb2~he~|g~hello~|~hello~|  ~hello~"
    b"|10000000000000005~hello~|ffffffffffffffffffff100000005~hello~|5~hello!~|6~hello~|5~hello~~"
    b"|5~hello|5~hello\n|5~hello\rX|5~hello\n\r|5~hello\r~|5;x=y~hello~|5;x~hello~|5;~hello~"
    b'|5;x="y"~hello~|5 ; x = y~hello~|5;\nxx~hello~|5;x\rxx~hello~|5;\x00~hello~'
    b'|5;x="~hello"~'
)
ENDS_OF_CHUNKS = (  # after the last two the next request's lines stand where trailers would
    b"-0~~|0X0~~|5~hello~0;x=y~~|5~hello~0~X: y~~|5~hello~0~Content-Length: 5~~"
    b"|5~hello~0~Transfer-Encoding: chunked~~|5~hello~0~Host: b~~|5~hello~0~ X: y~~"
    b"|5~hello~0~X: \x00~~|5~hello~0\n~|5~hello~0~\n|5~hello~0~\rX|5~hello~-0~~|5~hello~0~|5~hello~"
)


def parted(cases: bytes, sign: bytes = b"|") -> list[bytes]:
    return [case.replace(b"~", b"\r\n") for case in cases.split(sign)]


def followed(head: bytes) -> bytes:
    """Return the head and a request that only one of its two readings sees."""
    lines = head.removeprefix(HEAD).lower()
    hidden = LAST_CHUNK if b"chunked" in lines else b"hello" if b"length" in lines else b""
    return head + hidden + SMUGGLED


def started(line: bytes) -> bytes:
    if line.lower().startswith((b"http", b"/")):
        line = b"POST /v1/messages " + line
    return line + b"\r\n" + LINES + b"\r\n" + SMUGGLED


REFUSED = [
    Case(sent, (400,))
    for sent in (
        *(followed(head_with(*lines)) for lines in BOTH),
        followed(head_with(LENGTH, CODING).replace(b"POST", b"GET")),
        *(CODED_1_0 + LAST_CHUNK, head_with(LENGTH, CODING, start=HTTP_1_0) + LAST_CHUNK),
        head_with(CODING, b"Connection: keep-alive", start=HTTP_1_0) + LAST_CHUNK,
        *(followed(head_with(b"Content-Length: " + value)) for value in parted(LENGTHS)),
        *(followed(head_with(LENGTH, line)) for line in parted(TWO_LENGTHS)),
        followed(head_with(LENGTH, b"Content-Length: 6", start=HTTP_1_0)),
        followed(head_with(LENGTH, NO_LENGTH).replace(b"POST", b"GET")),
        *(
            head_with(b"Transfer-Encoding: " + value) + LAST_CHUNK + SMUGGLED
            for value in parted(CODINGS)
        ),
        *(followed(head_with(lines)) for lines in parted(TWO_CODINGS)),
        *(followed(head_with(line)) for line in parted(FIELDS)),
        *(head + SMUGGLED for head in HEADS),
        b"GET /v1/messages\r\n",
        *map(started, parted(STARTS)),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04" + bytes(5),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + SMUGGLED,
        *(with_host(b"Host: " + value) for value in parted(HOSTS, b"#")),
        with_host(b"Host: a#b"),
        *(with_host(b"Host: a\r\n" + line) for line in parted(b"Host: b|Host: a|HOST: a|Host:")),
        *(START + lines + TOKEN + b"\r\n" + SMUGGLED for lines in parted(b"|Host:~ a~|Host : a~")),
        head_with(b"Host: b", start=HTTP_1_0) + SMUGGLED,
        head_with(b"Host: b", start=b"GET http://a/v1/messages HTTP/1.1\r\n") + SMUGGLED,
        *(CHUNKED + sent + LAST_CHUNK + SMUGGLED for sent in parted(CHUNKS)),
        *(CHUNKED + sent + SMUGGLED for sent in parted(ENDS_OF_CHUNKS)),
    )
]

# -- what is in no doubt, however odd

CHUNK_OF_A_REQUEST = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
LENGTH_OF_A_REQUEST = b"Content-Length: %d" % len(SMUGGLED)
CUT = len(b"GET ")


def with_method(method: bytes, *lines: bytes) -> bytes:
    return head_with(*lines).replace(b"POST", method)


PLAIN = [
    served(head_with(LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED),
    served(CHUNKED + CHUNK_OF_A_REQUEST, SMUGGLED),
    served(with_method(b"GET", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "GET"),
    served(with_method(b"GET", CODING) + CHUNK_OF_A_REQUEST, SMUGGLED, "GET"),
    served(with_method(b"HEAD", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "HEAD"),
    served(with_method(b"HEAD", CODING) + CHUNK_OF_A_REQUEST, SMUGGLED, "HEAD"),
    served(with_method(b"DELETE", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "DELETE"),
    served(with_method(b"OPTIONS", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "OPTIONS"),
    served(head_with(LENGTH) + LAST_CHUNK, LAST_CHUNK),
    served(CHUNKED + b"5\r\n" + LAST_CHUNK + b"\r\n0\r\n\r\n", LAST_CHUNK),
    served(HEAD + b"\r\n"),
    served(head_with(b"Content-Length: 0")),
    served(head_with(b"Content-Length: 00000")),
    served(head_with(b"Content-Length: 0005") + b"hello", b"hello"),
    served(head_with(b"Content-Length: \t5 \t") + b"hello", b"hello"),
    served(head_with(b"Content-Length:5") + b"hello", b"hello"),
    served(head_with(b"TRANSFER-ENCODING: CHUNKED") + LAST_CHUNK),
    served(head_with(b"Transfer-Encoding:\tchunked \t") + LAST_CHUNK),
    # names that only look like it
    served(head_with(b"Content_Length: 5", b"Transfer_Encoding: chunked", b"X-Content-Length: 5")),
    served(head_with(b"X: Transfer-Encoding: chunked", b"Y: Content-Length: 5")),
    # TE and Trailer, which are no framing
    served(
        head_with(b"TE: chunked, trailers", b"Trailer: Content-Length", LENGTH) + b"hello",
        b"hello",
    ),
    served(
        CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0005\r\nhello\r\n000\r\n\r\n",
        b"0123456789" * 2 + b"hello",
    ),
    served(b"\r\n" + HEAD + b"\r\n"),
    served(head_with(LENGTH, start=HTTP_1_0) + b"hello", b"hello", goes_on=False),
    served(
        head_with(LENGTH, b"Connection: keep-alive", start=HTTP_1_0) + b"hello",
        b"hello",
        goes_on=False,
    ),
    served(HTTP_1_0 + TOKEN + b"\r\n", goes_on=False),
    served(head_with(LENGTH, b"Connection: close") + b"hello", b"hello", goes_on=False),
    served(HEAD.replace(b"Host: a", b"Host:") + b"\r\n"),
    served(head_with(b"X: \xff\x80")),
    # a body that comes unasked
    served(head_with(LENGTH_OF_A_REQUEST, b"Expect: 100-continue") + SMUGGLED, SMUGGLED),
    served(head_with(CODING, b"Expect: 100-Continue") + CHUNK_OF_A_REQUEST, SMUGGLED),
    served(head_with(b"Expect: 100-continue")),
    served(
        head_with(LENGTH, b"Expect: 100-continue", start=HTTP_1_0) + b"hello",
        b"hello",
        goes_on=False,
    ),
    served(head_with(LENGTH_OF_A_REQUEST, b"Connection: content-length") + SMUGGLED, SMUGGLED),
    served(head_with(CODING, b"Connection: Transfer-Encoding") + CHUNK_OF_A_REQUEST, SMUGGLED),
    # Connection names what the proxy sets
    served(
        head_with(
            b"Connection: host, x-api-key, authorization, via, anthropic-version, expect, cookie",
            b"X-Api-Key: " + TEST_TOKEN.encode(),
            b"Cookie: a=b",
        )
    ),
    served(
        with_method(
            b"GET",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            b"Sec-WebSocket-Version: 13",
        ),
        method="GET",
    ),
    served(
        head_with(
            LENGTH_OF_A_REQUEST,
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
        )
        + SMUGGLED,
        SMUGGLED,
    ),
]

ABSOLUTE = b"POST http://a/v1/messages HTTP/1.1\r\n"
TARGETS = [
    answered(head_with(start=b"CONNECT a:443 HTTP/1.1\r\n"), 405),
    answered(head_with(LENGTH_OF_A_REQUEST, start=b"CONNECT a:443 HTTP/1.1\r\n") + SMUGGLED, 405),
    answered(with_method(b"TRACE", LENGTH_OF_A_REQUEST) + SMUGGLED, 405),
    answered(with_method(b"FROB", LENGTH_OF_A_REQUEST) + SMUGGLED, 405),
    answered(with_method(b"post", LENGTH_OF_A_REQUEST) + SMUGGLED, 405),
    answered(head_with(start=b"OPTIONS * HTTP/1.1\r\n"), 400),
    answered(head_with(LENGTH_OF_A_REQUEST, start=ABSOLUTE) + SMUGGLED, 400),
    answered(head_with(CODING, start=ABSOLUTE.replace(b"//a", b"//b")) + CHUNK_OF_A_REQUEST, 400),
    answered(head_with(LENGTH_OF_A_REQUEST, start=b"POST /v1/../x HTTP/1.1\r\n") + SMUGGLED, 400),
    answered(head_with(LENGTH_OF_A_REQUEST, b"X-Api-Key: wrong") + SMUGGLED, 401),
    answered(head_with(CODING, b"X-Api-Key: wrong") + CHUNK_OF_A_REQUEST, 401),
    answered(head_with(CODING, start=b"POST /nowhere HTTP/1.1\r\n") + CHUNK_OF_A_REQUEST, 404),
]
MODELS = Request("GET", "/v1/models", b"")
SEQUENCES = [
    # a probe with a body
    Case(head_with(LENGTH_OF_A_REQUEST, start=b"GET /health HTTP/1.1\r\n") + SMUGGLED, (413,)),
    # a body longer than its length
    Case(
        head_with(b"Content-Length: %d" % CUT) + SMUGGLED,
        (200, 400),
        (Request("POST", TARGET.decode(), SMUGGLED[:CUT]),),
    ),
    Case(
        request_bytes("GET", "/v1/models", token=TEST_TOKEN) * 2
        + head_with(LENGTH, CODING)
        + LAST_CHUNK
        + SMUGGLED,
        (200, 200, 400),
        (MODELS, MODELS),
    ),
    Case(
        request_bytes("GET", "/v1/models", token=TEST_TOKEN) + CHUNKED + b"5 \r\nhello\r\n",
        (200, 400),
        (MODELS,),
    ),
    Case(
        CHUNKED + b"5\r\nhello\r\n0\r\n\r\nX" + SMUGGLED,
        (200, 405),
        (Request("POST", TARGET.decode(), b"hello"),),
        goes_on=True,
    ),
]

CORPUS = [*REFUSED, *PLAIN, *TARGETS, *SEQUENCES]


# -- what becomes of them


class Checker:
    """Sends cases to a proxy, and compares what its upstream received."""

    def __init__(self, raw: OpenRaw, upstream: ScriptedUpstream) -> None:
        self._raw = raw
        self._upstream = upstream
        self._other: RawConnection | None = None

    async def check(self, case: Case, pieces: list[bytes], target: bytes = TARGET) -> None:
        upstream = self._upstream
        upstream.script(*[OK] * 10)
        before = len(upstream.requests)
        client = await self._raw()
        try:
            await send(client, [*pieces[:-1], pieces[-1] + SENTINEL])
            await self._check_responses(client, case, target)
        finally:
            await client.close()
            await self._still_serves()

        received = upstream.requests[before:]
        whole, cut = await settled(received)
        expected = [*case.forwarded, *([Request("GET", "/v1/sentinel", b"")] * case.goes_on)]
        assert whole == [*expected, Request("GET", "/v1/after", b"")]
        reading = read(case.sent + SENTINEL)
        assert [each for each in expected if each not in reading.whole] == []
        for each in cut:
            assert reading.broken is not None
            assert (each.method, each.target) == (reading.broken.method, reading.broken.target)
            assert reading.broken.body.startswith(each.body)
        for request in received:
            check_clean(request, f"127.0.0.1:{upstream.port}")

    async def _check_responses(self, client: RawConnection, case: Case, target: bytes) -> None:
        for status in case.responses:
            response = await client.response(to_head=case.sent.startswith(b"HEAD "))
            assert response.status == status
        if case.goes_on:
            assert (await client.response()).body == b"ok"
            return
        await ended(client, orderly=status == 400)
        if status == 400:
            check_error(response, case.sent.replace(TARGET, target))

    async def _still_serves(self) -> None:
        """A good request works; and had more gone upstream, it would be there by now."""
        if self._other is None:
            self._other = await self._raw()
        await self._other.send(request_bytes("GET", "/v1/after", token=TEST_TOKEN))
        assert (await self._other.response()).body == b"ok"


async def send(client: RawConnection, pieces: list[bytes]) -> None:
    """Send each piece so that it is read by itself."""
    try:
        for piece in pieces:
            await client.send(piece)
            # the loop looks at its sockets between two turns, and the proxy is in the same one
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    except ConnectionError:
        pass  # refused already; the answer tells


async def ended(client: RawConnection, *, orderly: bool) -> None:
    """The proxy ends the connection, and sends nothing more.

    :param orderly: without a reset for what it does not read, which could overtake the answer.
    """
    try:
        async with asyncio.timeout(5):
            assert await client.read() == b""
    except ConnectionResetError:
        assert not orderly


def check_error(response: RawResponse, sent: bytes) -> None:
    """An error in the shape of its path's dialect, and the end of the connection announced."""
    assert response.header("Content-Type") == "application/json"
    assert response.header("Connection") == "close"
    document = json.loads(response.body)
    assert document["error"]["message"]
    path = re.match(rb"[!-~]+ (/[!-~]*) ", sent)
    if path is None:  # then there is none whose dialect it could be
        return
    if path[1].startswith(b"/openai/"):
        assert document["error"].keys() == {"message", "type", "param", "code"}
        assert (response.header("X-Request-Id") or "").startswith("req_")
    else:
        assert document["type"] == "error"
        assert document["request_id"] == response.header("Request-Id")


def whole(sent: bytes) -> Iterator[bytes]:
    yield sent


def byte_by_byte(sent: bytes) -> Iterator[bytes]:
    for start in range(len(sent)):
        yield sent[start : start + 1]


def at_each_line_end(sent: bytes) -> Iterator[bytes]:
    """Before, within and behind each CR and LF."""
    yield from re.split(rb"(?<=[\r\n])|(?=[\r\n])", sent)


BYTE_BY_BYTE = pytest.param(
    byte_by_byte,
    marks=[pytest.mark.long, pytest.mark.gen_test(timeout=150), pytest.mark.timeout(170)],
)


@pytest.mark.parametrize("split", [whole, at_each_line_end, BYTE_BY_BYTE])
async def test_framing_in_doubt_is_refused_all_else_forwarded(
    split: Callable[[bytes], Iterable[bytes]],
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    subtests: pytest.Subtests,
) -> None:
    checker = Checker(raw, upstream)
    for case in CORPUS:
        with subtests.test(sent=case.sent[:400]):
            await checker.check(case, [*split(case.sent)])


@pytest.mark.parametrize("split", [whole, BYTE_BY_BYTE])
async def test_framing_in_doubt_is_refused_on_openai_route(
    split: Callable[[bytes], Iterable[bytes]],
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    subtests: pytest.Subtests,
) -> None:
    """Translation starts with a whole body, so that no part of a doubtful one goes upstream."""
    checker = Checker(raw, upstream)
    for case in REFUSED:
        with subtests.test(sent=case.sent[:400]):
            count = len(upstream.requests)
            await checker.check(case, [*split(case.sent.replace(TARGET, CHAT))], CHAT)
            assert len(upstream.requests) == count + 1


def test_corpus_agrees_with_the_strictest_reading() -> None:
    assert len({case.sent for case in CORPUS}) == len(CORPUS)
    for case in REFUSED:
        assert read(case.sent + SENTINEL).whole == (), case.sent
    for case in (*PLAIN, *TARGETS):
        reading = read(case.sent + SENTINEL)
        assert len(reading.whole) == 1 + case.goes_on, case.sent
        assert reading.broken is None
