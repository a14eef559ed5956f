"""Responses to ``/v1/*`` on their way to the client."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from email.utils import parsedate_to_datetime
from random import Random
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped]  # it ships no types
import pytest
import zstandard
from served import EVENT_STREAM, STREAM, in_chunks, lowered, request

from tornadoproxy.testing import (
    TEST_UPSTREAM_KEY,
    bytes_response,
    message_document,
    raw_response,
    response_head,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from anthropic import AsyncAnthropic
    from anthropic.types.messages.batch_create_params import Request
    from scene import Scene

    from tornadoproxy.testing import (
        Response,
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
    headers = [
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("Server", "cloudflare"),
        ("Content-Type", "application/json; charset=UTF-8"),
        ("request-id", "req_upstream"),
        ("retry-after-ms", "2000"),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-unheard-of", "x"),
        ("Etag", 'W/"tag"'),
        ("Content-Disposition", 'attachment; filename="caf\xe9"'),
        ("Vary", "Accept-Encoding"),
        ("vary", "Origin"),
        ("X-Empty", ""),
        ("CF-RAY", "1-FRA"),
    ]
    scene.upstream.script(bytes_response(JSON, headers))
    response = await scene.ask("/v1/x")
    assert lowered(response.headers) == lowered([*headers, ("content-length", str(len(JSON)))])
    assert response.body == JSON


async def test_response_gets_a_date_and_nothing_else(scene: Scene) -> None:
    scene.upstream.script(bytes_response(b"x"))
    length, (name, date) = lowered((await scene.ask("/v1/x")).headers)
    assert (length, name) == (("content-length", "1"), "date")
    assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 60


async def test_response_hop_by_hop_headers_end_here(scene: Scene) -> None:
    scene.upstream.script(
        bytes_response(
            b"x",
            [
                ("Connection", "x-named, keep-alive"),
                ("Connection", "content-length"),
                ("X-Named", "1"),
                ("Keep-Alive", "timeout=5"),
                ("Trailer", "X-T"),
                ("Upgrade", "h2c"),
                ("Set-Cookie", "__cf_bm=1"),
                ("set-cookie", "_cfuvid=2"),
                ("X-Stays", "1"),
                ("Date", "today"),
            ],
        )
    )
    response = await scene.ask("/v1/x")
    expected = [("x-stays", "1"), ("date", "today"), ("content-length", "1")]
    assert (lowered(response.headers), response.body) == (expected, b"x")


async def test_any_status_crosses_unchanged(scene: Scene) -> None:
    """Nothing is retried, and no redirect followed."""
    statuses = [
        (200, "OK", b"{}"),
        (202, "", b""),
        (299, "All is well", b"{}"),
        (302, "Found", b"moved"),
        (307, "Temporary Redirect", b"moved"),
        (400, "Bad Request", b'{"type":"error",  "error":{"message":"too long: \\u0041"}}'),
        (403, "No Way", b"<!DOCTYPE html><h1>403</h1>\n"),
        (404, "Not Found", b""),
        (405, "Method Not Allowed", b"[]"),
        (408, "Request Timeout", b"null"),
        (409, "Conflict", b"\xff\xfe\x00 not text"),
        (429, "Too Many Requests", b'{"type":"error","error":{"type":"rate_limit_error"}}'),
        (500, "Internal Server Error", b"Traceback (most recent call last):\n"),
        (504, "", b"no reason"),
        (529, "Site is overloaded", b'{"type":"error","error":{"type":"overloaded_error"}}'),
        (599, "Network Connect Timeout Error", b"odd"),
    ]
    for count, (status, reason, body) in enumerate(statuses, 1):
        headers = [
            ("Content-Type", "text/html; charset=iso-8859-1"),
            ("Content-Length", str(len(body))),
            ("Location", f"{scene.upstream.url}/v1/elsewhere"),
            ("Retry-After", "17"),
            ("X-Should-Retry", "false"),
            ("Request-Id", "req_of_the_upstream"),
            ("Www-Authenticate", 'Basic realm="upstream"'),
            ("Date", "Tue, 24 Nov 2026 10:28:36 GMT"),
        ]
        lines = [f"{name}: {value}".encode() for name, value in headers]
        scene.upstream.script(raw_response(head(f"{status} {reason}".encode(), *lines) + body))
        response = await scene.ask("/v1/messages", body=b"{}")
        assert (response.status, response.reason, response.body) == (status, reason, body)
        assert response.headers == headers
        assert len(scene.upstream.requests) == count
        record = await scene.records.finished(count)
        assert (record.outcome, record.request_id) == ("completed", "req_of_the_upstream")


# -- without a body


async def test_response_to_head_keeps_its_length(scene: Scene) -> None:
    client = await scene.raw()
    lengths = {
        b"Content-Length: 12345": "12345",
        b"Transfer-Encoding: chunked": None,
        b"X: y": None,
    }
    for framing, length in lengths.items():
        scene.upstream.script(raw_response(head(b"200 OK", framing)), OK)
        response = await client.ask(request("HEAD", "/v1/files/x"), to_head=True)
        assert (response.status, response.header("Content-Length")) == (200, length)
        assert scene.upstream.requests[-1].method == "HEAD"
        assert (await client.ask(GET)).body == b"ok"


async def test_response_without_body_leaves_connection_usable(scene: Scene) -> None:
    """A 204 loses its length: RFC 9110 §8.6 forbids it, and a client might wait for the body."""
    client = await scene.raw()
    for line, length, expected in (
        (b"204 No Content", None, None),
        (b"204 No Content", b"5", None),
        (b"304 Not Modified", None, None),
        (b"304 Not Modified", b"999", "999"),
        (b"200 OK", b"0", "0"),
    ):
        fields = [] if length is None else [b"Content-Length: " + length]
        scene.upstream.script(raw_response(head(line, b'ETag: "a"', *fields)), OK)
        response = await client.ask(request("GET", "/v1/x", ("If-None-Match", '"a"')))
        assert response.status == int(line[:3])
        assert response.header("Content-Length") == expected
        assert response.header("Transfer-Encoding") is None
        # the proxy itself does not compare ETags, or this would be a 304
        assert (await client.ask(request("GET", "/v1/x", ("If-None-Match", "*")))).body == b"ok"


# -- the body


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "br": lambda data: brotli.compress(data, quality=1),
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data), quality=1),
    "made-up": lambda data: data[::-1],
}


async def test_bodies_cross_as_they_are_encoded(scene: Scene) -> None:
    """In both directions, although usage is read from them."""
    kinds = {
        "application/json": JSON,
        "text/event-stream; charset=utf-8": STREAM,
        "application/octet-stream": BINARY,
    }
    client = await scene.raw()
    for content_type, plain in kinds.items():
        for coding, encode in ENCODED.items():
            body = encode(plain)
            headers = {"Content-Type": content_type, "Content-Encoding": coding}
            scene.upstream.script(bytes_response(body, headers))
            accepts = ("Accept-Encoding", "gzip, br, zstd")
            lines = [*headers.items(), accepts]
            response = await client.ask(request("POST", "/v1/messages", *lines, body=body))
            received = scene.upstream.requests[-1]
            assert response.body == body, headers
            assert received.body_sha256 == hashlib.sha256(body).hexdigest(), headers
            assert received.header(accepts[0]) == accepts[1]
            for side in (received, response):
                assert side.header("Content-Length") == str(len(body))
                assert {name: side.header(name) for name in headers} == headers


async def test_event_stream_crosses_at_any_split(scene: Scene) -> None:
    """Within a line end, a character, a field."""
    stream = b': a\r\n\r\nevent: x\rdata: {"\xc3\xa9": "\xf0\x9f\x98\x80\xe2\x80\xa8"}\r\r'
    scripted = [
        *((stream, sse_response([stream[:at], stream[at:]])) for at in range(1, len(stream))),
        *((STREAM, sse_response(STREAM, split=size)) for size in (1, 64)),
    ]
    client = await scene.raw()
    for number, (sent, response) in enumerate(scripted, 1):
        scene.upstream.script(response)
        assert (await client.ask(request("POST", "/v1/messages", body=b"{}"))).body == sent, number


def framed(body: bytes) -> dict[str, Response]:
    """Every framing of a body that an upstream may choose."""
    size = len(body)
    ok = b"200 OK"
    length = b"Content-Length: %d" % size
    coded = b"Transfer-Encoding: Chunked"
    whole = head(ok, length) + body
    return {
        "length": raw_response(whole),
        "length, later": raw_response(head(ok, length), body),
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
        "close, named": raw_response(head(ok, b"Connection: close") + body, end="close"),
        "HTTP/1.0": raw_response(b"HTTP/1.0 200 OK\r\n\r\n" + body, end="close"),
        "HTTP/1.0 length": raw_response(
            b"HTTP/1.0 200 OK\r\n" + length + b"\r\n\r\n" + body, end="close"
        ),
    }


async def test_body_is_whole_however_it_is_framed(scene: Scene) -> None:
    client = await scene.raw()
    count = 0
    for size in (1, 7, 4096, 65_537, 1 << 20):
        for framing, response in framed(BINARY[:size]).items():
            scene.upstream.script(response)
            got = await client.ask(GET)
            assert (got.status, got.body) == (200, BINARY[:size]), framing
            assert got.interim == []
            assert (got.header("X-T"), got.header("X-Hint")) == (None, None)
            count += 1
    await scene.records.finished(count)
    assert {record.outcome for record in scene.records.all} == {"completed"}


@pytest.mark.parametrize("lines", [[], [("Connection", "keep-alive")]])
async def test_http_1_0_connection_ends_with_response(
    lines: list[tuple[str, str]], scene: Scene
) -> None:
    for framing, response in framed(b"one two").items():
        scene.upstream.script(response)
        client = await scene.raw()
        await client.send(request("GET", "/v1/x", *lines, version="1.0"))
        got = await client.head()
        assert not got.chunked
        assert "keep-alive" not in (got.header("Connection") or "").lower()
        assert await client.read_to_end() == b"one two", framing


# -- results_url of batches


BATCHES = "/v1/messages/batches"
BATCH: list[Request] = [
    {
        "custom_id": "one",
        "params": {
            "model": "claude-sonnet-5-5",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Hi"}],
        },
    }
]


async def test_results_url_is_left_alone_by_default(scene: Scene) -> None:
    response = await scene.ask(BATCHES, {"requests": BATCH})
    url = json.loads(response.body)["results_url"]
    assert url.startswith(f"{scene.upstream.url}{BATCHES}/msgbatch_")


async def test_results_url_rewritten_leads_through_the_proxy(
    scene: Scene, anthropic_client: AsyncAnthropic
) -> None:
    proxy = await scene.start(REWRITE_RESULTS_URL="yes")
    batches = anthropic_client.with_options(base_url=proxy.url).messages.batches
    batch = await batches.create(requests=BATCH)
    results = [result async for result in await batches.results(batch.id)]
    assert batch.results_url == f"{proxy.url}{BATCHES}/{batch.id}/results"
    assert [result.custom_id for result in results] == ["one"]
    assert all(each.all("x-api-key") == [TEST_UPSTREAM_KEY] for each in scene.upstream.requests)
    targets = [BATCHES, f"{BATCHES}/{batch.id}", f"{BATCHES}/{batch.id}/results"]
    assert [each.target for each in scene.upstream.requests] == targets


async def test_only_results_url_in_json_is_rewritten(scene: Scene) -> None:
    """The length follows. Batches are asked for uncompressed, since they could not be rewritten."""
    proxy = await scene.start(REWRITE_RESULTS_URL="yes")
    body = (
        b'{ "data" : [{"results_url": "https://api.anthropic.com/pre/v1/messages/batches/a/results",'
        b'"z":1.0e0},{"results_url":null}], "note":"\\u0041 https://api.anthropic.com/v1/messages"}\n'
    )
    rewritten = body.replace(b"https://api.anthropic.com/pre", proxy.url.encode())
    lines = [("Host", f"127.0.0.1:{proxy.port}"), ("Accept-Encoding", "gzip")]
    for target, content_type, expected, accepts in (
        (f"{BATCHES}?limit=2", "application/json", rewritten, "identity"),
        (f"{BATCHES}/a/results", "application/x-jsonl", body, "identity"),
        ("/v1/files", "application/json", body, "gzip"),
    ):
        scene.upstream.script(bytes_response(body, {"Content-Type": content_type}))
        response = await scene.ask(target, headers=lines)
        assert response.body == expected
        assert response.header("Content-Length") == str(len(expected))
        assert scene.upstream.requests[-1].all("Accept-Encoding") == [accepts]


@pytest.mark.parametrize(
    ("trusted", "base_url"),
    [
        ("127.0.0.1", "https://claude.example/claude"),
        ("10.0.0.0/8", "http://claude.example"),
        ("", "http://claude.example"),
    ],
)
async def test_results_url_begins_with_base_url_of_client(
    scene: Scene, trusted: str, base_url: str
) -> None:
    await scene.start(REWRITE_RESULTS_URL="yes", TRUSTED_PROXIES=trusted)
    forwarded = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Prefix", "/claude/")]
    response = await scene.ask(
        BATCHES, {"requests": BATCH}, headers=[("Host", "claude.example"), *forwarded]
    )
    url = json.loads(response.body)["results_url"]
    assert url.startswith(f"{base_url}{BATCHES}/msgbatch_")
