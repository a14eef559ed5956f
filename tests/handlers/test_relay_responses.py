"""Responses to ``/v1/*`` on their way to the client."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from random import Random

import brotli  # type: ignore[import-untyped]  # it ships no types
import pytest
import zstandard
from scene import Scene
from served import EVENT_STREAM, MESSAGE_FIELDS, STREAM, in_chunks, lowered, request

from tornadoproxy.testing import (
    Proxy,
    Response,
    bytes_response,
    message_document,
    raw_response,
    response_head,
)

pytestmark = pytest.mark.usefixtures("proxy")

OK: Response = bytes_response(b"ok")
JSON = json.dumps(message_document("Häßlich, 😀 and \u2028 " * 300), indent=3).encode()
BINARY = Random(2).randbytes(1 << 20)
GET = request("GET", "/v1/x")


def head(line: bytes, *headers: bytes) -> bytes:
    return b"HTTP/1.1 " + b"\r\n".join([line, *headers]) + b"\r\n\r\n"


# -- status and headers


async def test_response_headers_cross_in_order(scene: Scene) -> None:
    """Those of this hop end here."""
    headers = [
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("Server", "cloudflare"),
        ("Content-Disposition", 'attachment; filename="caf\xe9"'),
        ("Vary", "Accept-Encoding"),
        ("vary", "Origin"),
        ("X-Empty", ""),
    ]
    of_this_hop = [
        ("Connection", "x-named, content-length"),
        ("X-Named", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Upgrade", "h2c"),
        ("Set-Cookie", "__cf_bm=1"),
    ]
    scene.upstream.script(bytes_response(b"x", of_this_hop + headers))
    response = await scene.ask("/v1/x")
    assert lowered(response.headers) == lowered([*headers, ("content-length", "1")])
    assert response.body == b"x"


async def test_response_gets_a_date_and_nothing_else(scene: Scene) -> None:
    scene.upstream.script(bytes_response(b"x"))
    length, (name, date) = lowered((await scene.ask("/v1/x")).headers)
    assert (length, name) == (("content-length", "1"), "date")
    assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 60


@pytest.mark.parametrize(
    ("status", "reason", "body"),
    [
        (299, "", b""),
        (307, "Temporary Redirect", b"\xff\xfe\x00 not text"),
        (400, "Bad Request", b'{"type":"error",  "error":{"message":"too long: \\u0041"}}'),
        (529, "Site is overloaded", b'{"type":"error","error":{"type":"overloaded_error"}}'),
    ],
)
async def test_any_status_crosses_unchanged(
    status: int, reason: str, body: bytes, scene: Scene
) -> None:
    """Nothing is retried, and no redirect followed."""
    headers = [
        ("Content-Type", "text/html; charset=iso-8859-1"),
        ("Content-Length", str(len(body))),
        ("Location", f"{scene.upstream.url}/v1/elsewhere"),
        ("Retry-After", "17"),
        ("Request-Id", "req_of_the_upstream"),
        ("Www-Authenticate", 'Basic realm="upstream"'),
        ("Date", "Tue, 24 Nov 2026 10:28:36 GMT"),
    ]
    lines = [f"{name}: {value}".encode() for name, value in headers]
    scene.upstream.script(raw_response(head(f"{status} {reason}".encode(), *lines) + body))
    response = await scene.ask("/v1/messages", body=b"{}")
    assert (response.status, response.reason, response.body) == (status, reason, body)
    assert response.headers == headers
    assert len(scene.upstream.requests) == 1
    record = await scene.records.finished()
    assert (record.outcome, record.request_id) == ("completed", "req_of_the_upstream")


# -- without a body


@pytest.mark.parametrize(
    ("method", "line", "framing", "length"),
    [
        ("HEAD", b"200 OK", b"Content-Length: 12345", "12345"),
        ("HEAD", b"200 OK", b"Transfer-Encoding: chunked", None),
        ("GET", b"204 No Content", b"X: y", None),
        ("GET", b"204 No Content", b"Content-Length: 5", None),
        ("GET", b"304 Not Modified", b"Content-Length: 999", "999"),
        ("GET", b"200 OK", b"Content-Length: 0", "0"),
    ],
)
async def test_response_without_body_leaves_connection_usable(
    method: str, line: bytes, framing: bytes, length: str | None, scene: Scene
) -> None:
    """A 204 loses its length: RFC 9110 §8.6 forbids it, and a client might wait for the body."""
    client = await scene.raw()
    scene.upstream.script(raw_response(head(line, b'ETag: "a"', framing)), OK)
    asked = request(method, "/v1/x", ("If-None-Match", '"a"'))
    response = await client.ask(asked, to_head=method == "HEAD")
    assert response.status == int(line[:3])
    assert response.header("Content-Length") == length
    assert response.header("Transfer-Encoding") is None
    # the proxy itself does not compare ETags, or this would be a 304
    assert (await client.ask(request("GET", "/v1/x", ("If-None-Match", "*")))).body == b"ok"


# -- the body


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data), quality=1),
    "made-up": lambda data: data[::-1],
}


@pytest.mark.parametrize("coding", ENCODED)
@pytest.mark.parametrize(
    ("content_type", "plain"),
    [("application/json", JSON), ("text/event-stream; charset=utf-8", STREAM)],
    ids=["JSON", "events"],
)
async def test_bodies_cross_as_they_are_encoded(
    content_type: str, plain: bytes, coding: str, scene: Scene
) -> None:
    """In both directions, although usage is read from them."""
    body = ENCODED[coding](plain)
    headers = {"Content-Type": content_type, "Content-Encoding": coding}
    scene.upstream.script(bytes_response(body, headers))
    response = await scene.ask("/v1/messages", headers=[*headers.items()], body=body)
    (received,) = scene.upstream.requests
    assert response.body == received.body == body
    for side in (received, response):
        assert side.header("Content-Length") == str(len(body))
        assert {name: side.header(name) for name in headers} == headers
    usage = (await scene.records.finished()).usage
    assert usage.partial == (coding in {"gzip, br", "made-up"}), "these are not read"


def framed(body: bytes) -> dict[str, Response]:
    """Every framing of a body that an upstream may choose."""
    size = len(body)
    ok = b"200 OK"
    length = b"Content-Length: %d" % size
    coded = b"Transfer-Encoding: Chunked"
    whole = head(ok, length) + body
    return {
        "length": raw_response(whole),
        "chunks": raw_response(head(ok, coded) + in_chunks(body, 1 + size // 9)),
        "extensions and trailers": raw_response(
            head(ok, coded, b"Trailer: X-T"),
            b'000%x;name=value;quoted="a;b"\r\n%b\r\n' % (size, body),
            b"0;last\r\nX-T: 1\r\nX-Checksum: abc\r\n\r\n",
        ),
        "events": raw_response(response_head(200, EVENT_STREAM) + in_chunks(body, 1 + size // 3)),
        "interim": raw_response(
            head(b"103 Early Hints", b"Link: </a>", b"X-Hint: 1") + head(b"102 Processing"),
            head(b"100 Continue") + whole,
        ),
        "close": raw_response(head(ok), body, end="close"),
        "HTTP/1.0": raw_response(b"HTTP/1.0 200 OK\r\n\r\n" + body, end="close"),
        "HTTP/1.0 length": raw_response(
            b"HTTP/1.0 200 OK\r\n" + length + b"\r\n\r\n" + body, end="close"
        ),
    }


@pytest.mark.parametrize("size", [1, 4096, 1 << 20])
async def test_body_is_whole_however_it_is_framed(size: int, scene: Scene) -> None:
    """To HTTP/1.1 on a connection that goes on, to HTTP/1.0 on one that ends with the response."""
    client = await scene.raw()
    responses = framed(BINARY[:size])
    for framing, response in responses.items():
        scene.upstream.script(response, response)
        got = await client.ask(GET)
        assert (got.status, got.body) == (200, BINARY[:size]), framing
        assert got.interim == []
        assert (got.header("X-T"), got.header("X-Hint")) == (None, None)
        asked = request("GET", "/v1/x", ("Connection", "keep-alive"), version="1.0")
        old_client = await scene.send(asked)
        got = await old_client.head()
        assert not got.chunked
        assert "keep-alive" not in (got.header("Connection") or "").lower()
        assert await old_client.read_to_end() == BINARY[:size], framing
    await scene.records.finished(2 * len(responses))
    assert {record.outcome for record in scene.records.all} == {"completed"}


# -- results_url of batches


BATCHES = "/v1/messages/batches"
BATCH = [{"custom_id": "one", "params": MESSAGE_FIELDS}]


async def test_only_results_url_in_json_is_rewritten_if_asked(proxy: Proxy, scene: Scene) -> None:
    """The length follows. Batches are asked for uncompressed, since they could not be rewritten."""
    rewriting = await scene.start(REWRITE_RESULTS_URL="yes")
    body = (
        b'{ "data" : [{"results_url": "https://api.anthropic.com/pre/v1/messages/batches/a/results",'
        b'"z":1.0e0},{"results_url":null}], "note":"\\u0041 https://api.anthropic.com/v1/messages"}\n'
    )
    rewritten = body.replace(b"https://api.anthropic.com/pre", rewriting.url.encode())
    lines = [("Host", f"127.0.0.1:{rewriting.port}"), ("Accept-Encoding", "gzip")]
    for to, target, content_type, expected, accepts in (
        (rewriting, f"{BATCHES}?limit=2", "application/json", rewritten, "identity"),
        (rewriting, f"{BATCHES}/a/results", "application/x-jsonl", body, "identity"),
        (rewriting, "/v1/files", "application/json", body, "gzip"),
        (proxy, BATCHES, "application/json", body, "gzip"),
    ):
        scene.upstream.script(bytes_response(body, {"Content-Type": content_type}))
        response = await scene.ask(target, headers=lines, to=to)
        assert response.body == expected
        assert response.header("Content-Length") == str(len(expected))
        assert scene.upstream.requests[-1].all("Accept-Encoding") == [accepts]


@pytest.mark.parametrize(
    ("trusted", "base_url"),
    [("127.0.0.1", "https://claude.example/claude"), ("10.0.0.0/8", "http://claude.example")],
)
async def test_results_url_begins_with_base_url_of_client(
    trusted: str, base_url: str, scene: Scene
) -> None:
    await scene.start(REWRITE_RESULTS_URL="yes", TRUSTED_PROXIES=trusted)
    forwarded = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Prefix", "/claude/")]
    lines = [("Host", "claude.example"), *forwarded]
    response = await scene.ask(BATCHES, {"requests": BATCH}, headers=lines)
    url = json.loads(response.body)["results_url"]
    assert url.startswith(f"{base_url}{BATCHES}/msgbatch_")
