"""Requests to ``/v1/*`` on their way upstream."""

from __future__ import annotations

import asyncio
import hashlib
from random import Random
from typing import TYPE_CHECKING

import pytest
from served import CHUNKED, anthropic_error, in_chunks, lowered, openai_error, request

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, bytes_response, sse_response

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy.testing import (
        Response,
        UpstreamExchange,
    )

pytestmark = pytest.mark.usefixtures("proxy")

MB = 1 << 20
OK: Response = bytes_response(b"ok", {"Content-Type": "text/plain"})


# -- the body


BODIES = [
    (
        b'\r\n\t{ "model" :"claude-sonnet-5-5","max_tokens":1.0e+1, "z":1, "a":2,"a":3 ,\n'
        b'"escaped":"\\u0041\\/\\ud83d\\ude00 \\u00e9 \xc3\xa9","big":12345678901234567890.10}\n\n',
        "application/json",
    ),
    (b'{"truncated": ', "application/json; charset=utf-8"),
    (bytes(range(256)) * 5, "application/octet-stream"),
    (b"\xff\xc3\x28\xed\xa0\x80", "text/plain; charset=utf-8"),
    # Tornado would parse these, and refuse so many parts and fields
    (
        b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nvalue\r\n' * 2000 + b"--x--\r\n",
        'multipart/form-data; boundary="x"',
    ),
    (b"--y\r\nbroken", "multipart/form-data; boundary=x"),
    (b"&".join([b"f=%zz+%41"] * 2000), "application/x-www-form-urlencoded"),
    (b"x", ""),
]


async def test_body_of_any_type_crosses_unchanged(scene: Scene) -> None:
    client = await scene.raw()
    for body, content_type in BODIES:
        lines = [("Content-Type", content_type)]
        for data in (
            request("POST", "/v1/messages", *lines, body=body),
            request("DELETE", "/v1/messages", *lines, body=body),
            request("POST", "/v1/messages", *lines, CHUNKED) + in_chunks(body, len(body)),
            request("POST", "/v1/messages", *lines, CHUNKED) + in_chunks(body, 7),
        ):
            scene.upstream.script(OK)
            assert (await client.ask(data)).status == 200
            received = scene.upstream.requests[-1]
            assert received.body == body
            assert received.all("Content-Type") == [content_type]
            length = str(len(body)) if b"Content-Length" in data else None
            assert received.header("Content-Length") == length
            assert received.header("Transfer-Encoding") == (None if length else "chunked")
    assert len(scene.upstream.requests) == 4 * len(BODIES)


async def test_body_of_any_size_crosses_whole(scene: Scene) -> None:
    """Up to 1 MB it is held, and then it streams."""
    client = await scene.raw()
    for size in (65_537, MB, MB + 1, 5 * MB):
        body = Random(size).randbytes(size)
        scene.upstream.script(OK, OK, OK)
        for data in (
            request("POST", "/v1/files", body=body),
            request("POST", "/v1/files", CHUNKED) + in_chunks(body, size),
            request("POST", "/v1/files", CHUNKED) + in_chunks(body, 1 + size // 9),
        ):
            assert (await client.ask(data)).body == b"ok"
            received = scene.upstream.requests[-1]
            assert received.body_length == size
            assert received.body_sha256 == hashlib.sha256(body).hexdigest()


async def test_empty_body_keeps_its_framing(scene: Scene) -> None:
    client = await scene.raw()
    for method in ("GET", "POST", "DELETE"):
        scene.upstream.script(OK, OK, OK)
        await client.ask(request(method, "/v1/x", ("Content-Length", "0")))
        await client.ask(request(method, "/v1/x", CHUNKED) + b"0\r\n\r\n")
        head = f"{method} /v1/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: {TEST_TOKEN}\r\n\r\n"
        await client.ask(head.encode())
        framings = [
            (each.header("Content-Length"), each.header("Transfer-Encoding"), each.body)
            for each in scene.upstream.requests[-3:]
        ]
        assert framings == [("0", None, b""), (None, "chunked", b""), (None, None, b"")]


async def test_response_overlaps_upload(scene: Scene) -> None:
    async def echo(exchange: UpstreamExchange) -> None:
        await exchange.head(200, [CHUNKED])
        while piece := await exchange.read():
            await exchange.chunk(piece.upper())
        await exchange.last_chunk()

    scene.upstream.script(echo)
    client = await scene.raw()
    await client.send(request("POST", "/v1/x", CHUNKED))
    assert (await client.head()).status == 200
    for word in (b"one", b"two", b"three"):
        await client.send(b"%x\r\n%b\r\n" % (len(word), word))
        assert await client.chunk() == word.upper()
    await client.send(b"0\r\n\r\n")
    assert await client.chunk() == b""
    assert (await scene.records.finished()).outcome == "completed"
    assert scene.upstream.requests[0].body == b"onetwothree"


@pytest.mark.parametrize("reads_first", [True, False])
async def test_response_before_upload_ends_is_readable(reads_first: bool, scene: Scene) -> None:
    """The client may read it at once or after its whole body; its connection serves on."""

    async def respond_early(exchange: UpstreamExchange) -> None:
        await exchange.read()
        connection = b"" if reads_first else b"Connection: close\r\n"
        head = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n" + connection
        await exchange.send(head + b"\r\nearly")
        if not reads_first:
            exchange.close()

    scene.upstream.script(respond_early, OK)
    client = await scene.raw()
    responses = []
    await client.send(request("POST", "/v1/files", CHUNKED) + b"3\r\nabc\r\n")
    if reads_first:
        responses.append(await client.response())
    for _ in range(40):
        await client.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    await client.send(b"0\r\n\r\n" + request("GET", "/v1/x"))
    while len(responses) < 2:
        responses.append(await client.response())
    assert [(each.status, each.body) for each in responses] == [(413, b"early"), (200, b"ok")]


# -- headers


async def test_headers_cross_in_order_and_repeated(scene: Scene) -> None:
    sent = [
        ("user-agent", "claude-cli/9.9 (external, cli)"),
        ("accept-encoding", "gzip, br;q=0.5, zstd"),
        ("ANTHROPIC-VERSION", "beta, and caf\xe9"),
        ("anthropic-beta", "a-2025-01-01,b-2025-02-02"),
        ("anthropic-beta", "c-2025-03-03"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("anthropic-unheard-of", "1"),
        ("idempotency-key", "key-1"),
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
        ("If-None-Match", '"abc"'),
        ("X-Empty", ""),
        ("X-Blanks", "a  b\tc"),
        ("X-Latin", "caf\xe9 \xc3\xa9"),
        ("X-Quoted", 'a="b, c"; d'),
        ("x-under_score.and~more", "1"),
        *((f"x-{number}", str(number)) for number in range(60)),
        ("x-again", "1"),
        ("X-Again", "2, 3"),
        ("x-AGAIN", "1"),
        ("Content-Length", "2"),
    ]
    scene.upstream.script(OK)
    await scene.ask("/v1/messages", headers=sent, body=b"{}")
    received = lowered(scene.upstream.requests[0].headers)
    own = {"host", "x-api-key", "via"}
    assert [line for line in received if line[0] not in own] == lowered(sent)


async def test_hop_by_hop_and_credentials_are_replaced(scene: Scene) -> None:
    """Connection removes the headers that it names, except framing and the proxy's own."""
    scene.upstream.script(OK, OK)
    lines = [
        ("Host", "proxy.example"),
        ("Connection", "X-Named, content-length, transfer-encoding, host, x-api-key"),
        ("X-Named", "1"),
        ("TE", "trailers"),
        ("Upgrade", "websocket"),
        ("Cookie", "session=secret"),
        ("X-Api-Key", TEST_TOKEN),
        ("Authorization", f"Bearer {TEST_TOKEN}"),
        ("Anthropic-Version", "1"),
        ("Via", "1.1 corporate"),
    ]
    await scene.ask("/v1/x", headers=lines, body=b"body")
    await scene.ask("/v1/x", headers=[*lines, CHUNKED], body=b"4\r\nbody\r\n0\r\n\r\n")
    framings = [("content-length", "4"), ("transfer-encoding", "chunked")]
    for received, framing in zip(scene.upstream.requests, framings, strict=True):
        *others, own_via = lowered(received.headers)
        assert sorted(others) == sorted(
            [
                framing,
                ("anthropic-version", "1"),
                ("host", f"127.0.0.1:{scene.upstream.port}"),
                ("via", "1.1 corporate"),
                ("x-api-key", TEST_UPSTREAM_KEY),
            ]
        )
        assert own_via[1].startswith("1.1 tornadoproxy-")
        assert received.body == b"body"


async def test_anthropic_version_has_a_default(scene: Scene) -> None:
    await scene.ask("/v1/models")
    await scene.start(DEFAULT_ANTHROPIC_VERSION="2026-10-21")
    await scene.ask("/v1/models")
    versions = [received.all("Anthropic-Version") for received in scene.upstream.requests]
    assert versions == [["2023-06-01"], ["2026-10-21"]]


# -- the target


TARGETS = [
    "/v1/",
    "/v1/messages?beta=true",
    "/v1/messages??",
    "/v1/x?a=1&a=2&&b&=c&d=%zz%41%2F..%2f+;",
    "/v1/x?to=http://other.example//a/../b\\c&e=%00%0d%0a",
    "/v1/a%20b%zz%41%",
    "/v1/files/..a/b../.c/%E2%82%AC",
    "/v1/x;y=1/a:b@c!$&'()*+,=~_-",
    "/v1/%252e%252e/openai/v1/models",
    '/v1/"<>^`{|}',
    "/v1/x?" + "q" * 20_000,
]


async def test_path_and_query_cross_verbatim(scene: Scene) -> None:
    client = await scene.raw()
    scene.upstream.script(*[OK] * len(TARGETS))
    for target in TARGETS:
        assert (await client.ask(request("GET", target))).body == b"ok", target
    assert [received.target for received in scene.upstream.requests] == TARGETS


async def test_path_prefix_of_base_url_is_kept(scene: Scene) -> None:
    await scene.start(UPSTREAM_BASE_URL=f"{scene.upstream.url}/gateway/a%20b/")
    scene.upstream.script(OK)
    await scene.ask("/v1/messages?beta=true")
    assert scene.upstream.requests[0].target == "/gateway/a%20b/v1/messages?beta=true"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_ambiguous_target_is_400_and_stays_here(method: str, scene: Scene) -> None:
    targets = [
        "/v1/../admin",
        "/v1/%2e%2E;x/admin",
        "/v1/a%2Fb",
        "/v1\\..\\admin",
        "//evil.example/v1/messages",
        "/v1/messages?a#fragment",
        "http://evil.example/v1/messages",
        "v1/messages",
        "evil.example:443",
        "*",
        "?",
    ]
    for target in targets:
        response = await scene.ask(target, method=method)
        anthropic_error(response, 400, "invalid_request_error")
    openai_error(await scene.ask("/openai/v1/../admin", method=method), 400)
    await scene.records.finished(len(targets) + 1)
    assert {record.outcome for record in scene.records.all} == {"denied"}
    assert scene.upstream.connections == 0


# -- the client's connection


async def test_pipelined_requests_are_served_in_order(scene: Scene) -> None:
    async def echo(exchange: UpstreamExchange) -> None:
        body = exchange.request.target.encode() + await exchange.body()
        await bytes_response(body)(exchange)

    scene.upstream.script(*[echo] * 4)
    client = await scene.raw()
    await client.send(
        request("GET", "/v1/a")
        + request("POST", "/v1/b", body=b"GET / HTTP/1.1\r\n\r\n")
        + request("GET", "/health")
        + request("POST", "/v1/c", CHUNKED)
        + b"2\r\nxy\r\n0\r\n\r\n"
        + request("GET", "/v1/d")
    )
    assert [(await client.response()).body for _ in range(5)] == [
        b"/v1/a",
        b"/v1/bGET / HTTP/1.1\r\n\r\n",
        b'{"status":"ok"}',
        b"/v1/cxy",
        b"/v1/d",
    ]
    assert scene.upstream.connections == 1


async def test_one_connection_serves_requests_of_every_kind(scene: Scene) -> None:
    body = b"x" * 1000
    served = [
        (request("POST", "/v1/x", body=body), 200),
        (request("GET", "/health"), 200),
        (request("POST", "/v1/x", ("X-Api-Key", "wrong"), body=body), 401),
        (request("POST", "/v1/x", body=b"{}"), 200),
        (request("POST", "/nowhere", body=body), 404),
        (request("DELETE", "/v1/x"), 204),
        (request("POST", "/v1/../x", body=body), 400),
        (request("GET", "/v1/x"), 429),
        (request("HEAD", "/v1/x"), 200),
        (request("TRACE", "/v1/x"), 405),
        (request("GET", "/openai/nowhere"), 404),
    ]
    client = await scene.raw()
    for number in range(3):
        scene.upstream.script(
            bytes_response(b"%d" % number),
            sse_response([b"event: ping\n\n"] * 3),
            bytes_response(b"", status=204),
            bytes_response(b"x", status=429),
            bytes_response(b"abc"),
        )
        for data, status in served:
            response = await client.ask(data, to_head=data.startswith(b"HEAD"))
            assert response.status == status, data
    assert scene.upstream.connections == 1


async def test_expected_chunked_body_is_asked_for(scene: Scene) -> None:
    scene.upstream.script(OK)
    client = await scene.raw()
    await client.send(request("POST", "/v1/x", ("Expect", "100-continue"), CHUNKED))
    async with asyncio.timeout(3):
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    assert (await client.ask(in_chunks(b"body", 4))).body == b"ok"
    (received,) = scene.upstream.requests
    assert (received.body, received.header("Expect")) == (b"body", None)


async def test_refused_body_is_not_asked_for(scene: Scene) -> None:
    lines = [("Expect", "100-continue"), ("Content-Length", str(1 << 40))]
    for target, status in (("/nowhere", 404), ("/v1/..", 400), ("/v1/x", 413)):
        response = await scene.ask(target, method="POST", headers=lines)
        assert (response.status, response.interim) == (status, [])
    assert scene.upstream.requests == []
