"""Requests to ``/v1/*`` on their way upstream."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
from scene import Scene
from served import CHUNKED, in_chunks, lowered, request

from tornadoproxy.handlers.relay import HELD_BODY
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Proxy,
    Response,
    UpstreamExchange,
    bytes_response,
    raw_response,
    response_head,
)

pytestmark = pytest.mark.usefixtures("proxy")

OK: Response = bytes_response(b"ok", {"Content-Type": "text/plain"})


# -- the body


@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        (
            "/v1/messages",
            b'\r\n\t{ "model" :"claude-sonnet-5-5","max_tokens":1.0e+1, "a":2,"a":3 ,\n'
            b'"escaped":"\\u0041\\/\\ud83d\\ude00 \xc3\xa9","big":12345678901234567890.10}\n\n',
            "application/json",
        ),
        # Tornado would parse this, and refuse so many parts
        (
            "/v1/messages",
            b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nv\r\n' * 2000 + b"--x--\r\n",
            'multipart/form-data; boundary="x"',
        ),
        ("/v1/messages", b"x", ""),
        *(
            ("/v1/files", Random(size).randbytes(size), "application/pdf")
            for size in (HELD_BODY, HELD_BODY + 1, 5 * HELD_BODY)
        ),
    ],
    ids=["JSON", "multipart", "no type", "held", "too large to be held", "large"],
)
async def test_body_crosses_unchanged(
    path: str, body: bytes, content_type: str, scene: Scene
) -> None:
    line, size = ("Content-Type", content_type), len(body)
    for data, length, coding in (
        (request("POST", path, line, body=body), str(size), None),
        (request("POST", path, line, CHUNKED) + in_chunks(body, 7 + size // 9), None, "chunked"),
    ):
        scene.upstream.script(OK)
        assert (await scene.ask(data)).body == b"ok"
        received = scene.upstream.requests[-1]
        assert received.body_length == size
        assert received.body_sha256 == hashlib.sha256(body).hexdigest()
        assert received.all("Content-Type") == [content_type]
        framing = received.header("Content-Length"), received.header("Transfer-Encoding")
        assert framing == (length, coding)


async def test_body_is_held_until_it_is_whole(scene: Scene, proxy: Proxy) -> None:
    """It is released once the response begins."""

    begun = raw_response(response_head(200, {"Content-Length": "2"}), end="hang")
    scene.upstream.script(OK, begun)
    client = await scene.raw()
    data = request("POST", "/v1/files", body=b"x" * HELD_BODY)
    await client.send(data[:-1])
    await scene.ask("/v1/models")
    assert [each.method for each in scene.upstream.requests] == ["GET"]
    assert proxy.server.status().held_bytes > 0
    await client.send(data[-1:])
    assert (await client.head()).status == 200
    assert scene.upstream.requests[1].body_length == HELD_BODY
    assert proxy.server.status().held_bytes == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_empty_body_keeps_its_framing(method: str, scene: Scene) -> None:
    client = await scene.raw()
    await client.ask(request(method, "/v1/x", ("Content-Length", "0")))
    await client.ask(request(method, "/v1/x", CHUNKED) + b"0\r\n\r\n")
    head = f"{method} /v1/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: {TEST_TOKEN}\r\n\r\n"
    await client.ask(head.encode())
    framings = [
        (each.header("Content-Length"), each.header("Transfer-Encoding"), each.body)
        for each in scene.upstream.requests
    ]
    assert framings == [("0", None, b""), (None, "chunked", b""), (None, None, b"")]


async def test_response_before_upload_ends_is_readable(scene: Scene) -> None:
    """The client may read it after its whole body; its connection serves on."""

    async def respond_early(exchange: UpstreamExchange) -> None:
        await exchange.read()
        head = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        await exchange.send(head + b"early")
        exchange.close()

    scene.upstream.script(respond_early, OK)
    client = await scene.send(request("POST", "/v1/files", CHUNKED) + b"3\r\nabc\r\n")
    for _ in range(40):
        await client.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    await client.send(b"0\r\n\r\n" + request("GET", "/v1/x"))
    responses = [await client.response() for _ in range(2)]
    assert [(each.status, each.body) for each in responses] == [(413, b"early"), (200, b"ok")]


# -- headers and target


async def test_headers_cross_in_order_except_those_of_this_hop(scene: Scene) -> None:
    """Connection removes the headers that it names, except framing and the proxy's own."""
    await scene.start(DEFAULT_ANTHROPIC_VERSION="2026-10-21")
    of_this_hop = [
        ("Host", "proxy.example"),
        ("Connection", "X-Named, content-length, host, x-api-key"),
        ("X-Named", "1"),
        ("TE", "trailers"),
        ("Upgrade", "websocket"),
        ("Cookie", "session=secret"),
    ]
    crossing = [
        ("user-agent", "claude-cli/9.9 (external, cli)"),
        ("anthropic-beta", "a-2025-01-01,b-2025-02-02"),
        ("anthropic-beta", "c-2025-03-03"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Content-Encoding", "gzip"),
        ("X-Latin", "caf\xe9"),
        ("X-Empty", ""),
        *((f"x-{number}", str(number)) for number in range(60)),
        ("Content-Length", "4"),
    ]
    await scene.ask("/v1/x", headers=of_this_hop + crossing, body=b"body")
    (received,) = scene.upstream.requests
    own = {"host", "x-api-key", "anthropic-version", "via"}
    headers = lowered(received.headers)
    assert [line for line in headers if line[0] not in own] == lowered(crossing)
    assert received.all("host") == [f"127.0.0.1:{scene.upstream.port}"]
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert received.all("anthropic-version") == ["2026-10-21"]
    assert received.body == b"body"


@pytest.mark.parametrize("prefix", ["", "/gateway/a%20b"])
async def test_path_and_query_cross_verbatim(prefix: str, scene: Scene) -> None:
    """The path of UPSTREAM_BASE_URL goes before them."""
    await scene.start(UPSTREAM_BASE_URL=f"{scene.upstream.url}{prefix}/")
    targets = [
        "/v1/messages??",
        "/v1/x?a=1&a=2&&b&=c&d=%zz%41%2F..%2f+;",
        "/v1/files/..a/b../.c/%E2%82%AC",
        '/v1/"<>^`{|}',
        "/v1/x?" + "q" * 20_000,
    ]
    scene.upstream.script(*[OK] * len(targets))
    for target in targets:
        assert (await scene.ask(target)).body == b"ok", target
    assert [received.target for received in scene.upstream.requests] == [
        prefix + target for target in targets
    ]
