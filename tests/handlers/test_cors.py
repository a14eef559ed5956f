"""Web pages that may use the proxy from a browser: those of ALLOWED_ORIGINS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from served import CHAT_BODY, CHAT_PATH, EVENTS, STREAM

from tornadoproxy.testing import (
    TEST_TOKEN,
    bytes_response,
    error_response,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy.testing import (
        Proxy,
        RawResponse,
        Response,
    )

APP = "https://app.example.com"
DEV = "http://localhost:3000"
ALLOWED = f"{DEV}, {APP}"
FROM_APP = ("Origin", APP)
PREFLIGHT = [FROM_APP, ("Access-Control-Request-Method", "POST")]

# an upstream's own CORS headers, none of which reaches a client
OWN_CORS = [
    ("Access-Control-Allow-Origin", "*"),
    ("access-control-allow-credentials", "true"),
    ("ACCESS-CONTROL-EXPOSE-HEADERS", "x-upstreams-own"),
    ("Access-Control-Of-Tomorrow", "x"),
    ("X-Kept", "kept"),
]
JSON = bytes_response(b"{}", OWN_CORS)
SSE = sse_response(EVENTS, headers=OWN_CORS)
ERROR = error_response(429, "rate_limit_error", "Slow down.", OWN_CORS)


def shares(response: RawResponse) -> dict[str, list[str]]:
    """Return a response's CORS headers, by their names in lower case."""
    names = {name.lower() for name, _ in response.headers}
    return {name: response.all(name) for name in names if name.startswith("access-control-")}


def shared_with(origin: str) -> dict[str, list[str]]:
    return {"access-control-allow-origin": [origin], "access-control-expose-headers": ["*"]}


def vary(response: RawResponse) -> list[str]:
    return [name.strip().lower() for line in response.all("Vary") for name in line.split(",")]


# -- responses


async def test_upstreams_cors_headers_never_cross(proxy: Proxy, scene: Scene) -> None:
    """Without ALLOWED_ORIGINS, or with a blank one, responses have no CORS headers."""
    blank = await scene.start(ALLOWED_ORIGINS="")
    stream = b'{"stream": true,' + CHAT_BODY[1:]
    for to in (proxy, blank):
        for origin in ([], [FROM_APP], [("Origin", "null")]):
            for scripted, path, body, expected in (
                (JSON, "/v1/messages", b"{}", b"{}"),
                (SSE, "/v1/messages", b"{}", STREAM),
                (ERROR, "/v1/messages", b"{}", b"Slow down."),
                (SSE, CHAT_PATH, stream, b"data: [DONE]"),
                (ERROR, CHAT_PATH, CHAT_BODY, b"Slow down."),
            ):
                scene.upstream.script(scripted)
                response = await scene.ask(path, body=body, headers=origin, to=to)
                assert (shares(response), vary(response)) == ({}, [])
                assert expected in response.body
                if path != CHAT_PATH:
                    assert response.header("X-Kept") == "kept"


READABLE: list[tuple[str, str, bytes, str | None, Response | None, int]] = [
    ("GET", "/v1/models", b"", TEST_TOKEN, None, 200),
    ("HEAD", "/v1/models", b"", TEST_TOKEN, JSON, 200),
    ("POST", "/v1/messages", b"{}", TEST_TOKEN, SSE, 200),
    ("POST", "/v1/messages", b"{}", TEST_TOKEN, bytes_response(b"x", OWN_CORS, 529), 529),
    ("GET", "/v1/x", b"", TEST_TOKEN, bytes_response(b"", OWN_CORS, 204), 204),
    ("OPTIONS", "/v1/x", b"", TEST_TOKEN, JSON, 200),
    ("POST", CHAT_PATH, CHAT_BODY, TEST_TOKEN, None, 200),
    ("POST", CHAT_PATH, b"{", TEST_TOKEN, None, 400),
    ("POST", CHAT_PATH, CHAT_BODY, TEST_TOKEN, ERROR, 429),
    ("GET", "/openai/v1/models", b"", TEST_TOKEN, None, 200),
    ("GET", "/openai/v1/models/no", b"", TEST_TOKEN, None, 404),
    ("GET", "/v1/models", b"", None, None, 401),
    ("POST", CHAT_PATH, CHAT_BODY, "wrong", None, 401),
    ("GET", "/nowhere", b"", TEST_TOKEN, None, 404),
    ("GET", "/v1/../x", b"", TEST_TOKEN, None, 400),
    ("POST", "/v1/messages", b"x" * 101, TEST_TOKEN, None, 413),
    ("FROB", "/v1/messages", b"", TEST_TOKEN, None, 405),
    ("GET", "/health", b"", None, None, 200),
    ("OPTIONS", "/health", b"", None, None, 405),
]


async def test_allowed_origin_may_read_every_response(scene: Scene) -> None:
    await scene.start(ALLOWED_ORIGINS=ALLOWED, MAX_BODY_SIZE=100)
    for method, path, body, token, scripted, status in READABLE:
        for origin in (APP, DEV):
            if scripted is not None:
                scene.upstream.script(scripted)
            lines = [("Origin", origin)]
            response = await scene.ask(path, method=method, headers=lines, body=body, token=token)
            assert response.status == status, path
            assert shares(response) == shared_with(origin)
            assert vary(response) == ["origin"]


async def test_allowed_origin_may_read_529_and_502(scene: Scene) -> None:
    await scene.start(ALLOWED_ORIGINS=APP, MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0)
    scene.upstream.script(silent_response())
    first = await scene.raw()
    await first.send(request_bytes("GET", "/v1/x", [FROM_APP], token=TEST_TOKEN))
    await scene.upstream.received()
    refused = await scene.ask("/v1/x", headers=[FROM_APP])
    await scene.upstream.stop()
    broken = await first.response()
    assert (refused.status, broken.status) == (529, 502)
    assert shares(refused) == shares(broken) == shared_with(APP)


async def test_allowed_origin_reads_the_response_as_it_came(scene: Scene) -> None:
    """Upstream refuses web pages; which of them may ask is decided in the proxy."""
    await scene.start(ALLOWED_ORIGINS=APP)
    headers = [("request-id", "req_upstream"), ("Vary", "Accept-Encoding")]
    scene.upstream.script(sse_response(EVENTS, split=7, headers=headers))
    lines = [FROM_APP, ("Referer", f"{APP}/x"), ("Sec-Fetch-Site", "cross-site")]
    response = await scene.ask("/v1/messages", headers=lines, body=b"{}")
    assert response.body == STREAM
    assert shares(response) == shared_with(APP)
    assert response.header("request-id") == "req_upstream"
    assert vary(response) == ["accept-encoding", "origin"]
    assert [scene.upstream.requests[0].header(name) for name, _ in lines] == [None] * 3


async def test_other_origin_is_served_but_may_not_read(scene: Scene) -> None:
    """A cache must not hand the response to a page that may read one: hence Vary."""
    await scene.start(ALLOWED_ORIGINS=ALLOWED)
    for origins in (
        [],
        ["https://evil.example"],
        ["https://app.example.com.evil.example"],
        ["http://app.example.com"],
        ["https://app.example.com:8443"],
        ["https://x.app.example.com"],
        ["https://app.example.com/"],
        ["null"],
        ["*"],
        [""],
        [APP, "https://evil.example"],
        [f"{APP} https://evil.example"],
    ):
        scene.upstream.script(JSON)
        lines = [("Origin", origin) for origin in origins]
        relayed = await scene.ask("/v1/x", headers=lines)
        refused = await scene.ask("/v1/x", headers=lines, token=None)
        assert (relayed.status, relayed.body, refused.status) == (200, b"{}", 401)
        assert shares(relayed) == shares(refused) == {}, origins
        assert vary(relayed) == vary(refused) == ["origin"]


# -- preflights


async def test_preflight_needs_no_credential(scene: Scene) -> None:
    """Neither credentials nor a private network are granted."""
    await scene.start(ALLOWED_ORIGINS=ALLOWED)
    client = await scene.raw()
    lines = [
        *PREFLIGHT,
        ("Access-Control-Request-Headers", "anthropic-version,content-type,x-api-key"),
        ("Access-Control-Request-Private-Network", "true"),
        ("Access-Control-Request-Local-Network", "true"),
    ]
    for target in ("/v1/messages", CHAT_PATH, "/openai/v1/models", "/health", "/nowhere"):
        response = await client.ask(request_bytes("OPTIONS", target, lines))
        assert (response.status, response.body) == (204, b"")
        assert shares(response) == {
            **shared_with(APP),
            "access-control-allow-methods": ["POST"],
            "access-control-allow-headers": ["anthropic-version, content-type, x-api-key"],
            "access-control-max-age": ["7200"],
        }
        assert "origin" in vary(response)
        assert response.header("Content-Length") is None
    # the request itself, on the same connection
    response = await client.ask(request_bytes("POST", "/v1/messages", [FROM_APP], b"{}"))
    assert response.status == 401
    assert scene.upstream.connections == 0
    assert [record.method for record in scene.records.all] == ["POST"]


async def test_preflight_grants_what_is_a_method_and_a_name(scene: Scene) -> None:
    await scene.start(ALLOWED_ORIGINS=APP)
    for method, names, allowed_methods, allowed_names in (
        ("DELETE", None, ["DELETE"], []),
        ("GET", "", ["GET"], []),
        ("PATCH", " , x-a ,,\tx-b", ["PATCH"], ["x-a, x-b"]),
        ("CONNECT", "x-a", [], ["x-a"]),
        ("TRACE", None, [], []),
        ("*", "*", [], ["*"]),
        ("GET, DELETE", None, [], []),
        ("post", None, [], []),
        ("GET", "x a, x:b, x-c, \xe9, authorization", ["GET"], ["x-c, authorization"]),
    ):
        lines = [FROM_APP, ("Access-Control-Request-Method", method)]
        if names is not None:
            lines.append(("Access-Control-Request-Headers", names))
        response = await scene.ask("/v1/x", method="OPTIONS", headers=lines)
        assert response.status == 204
        assert response.all("Access-Control-Allow-Methods") == allowed_methods
        assert response.all("Access-Control-Allow-Headers") == allowed_names
    assert scene.upstream.connections == 0


async def test_options_but_preflights_of_allowed_origins_are_relayed(scene: Scene) -> None:
    await scene.start(ALLOWED_ORIGINS=APP)
    others = [("Origin", "https://evil.example"), ("Origin", "null"), ("Origin", f"{APP}:8443")]
    for lines in ([FROM_APP], PREFLIGHT[1:], *([other, *PREFLIGHT[1:]] for other in others)):
        scene.upstream.script(bytes_response(b"fine"))
        refused = await scene.ask("/v1/x", method="OPTIONS", headers=lines, token=None)
        assert refused.status == 401
        assert shares(refused) == (shared_with(APP) if FROM_APP in lines else {})
        assert (await scene.ask("/v1/x", method="OPTIONS", headers=lines)).body == b"fine"
    assert [received.method for received in scene.upstream.requests] == ["OPTIONS"] * 5


# -- without a token


async def test_open_proxy_serves_pages_of_allowed_origins_only(scene: Scene) -> None:
    await scene.start(AUTH_TOKEN=None, ALLOWED_ORIGINS=APP)
    cross_site = [("Host", "localhost"), ("Sec-Fetch-Site", "cross-site")]
    response = await scene.ask("/v1/models", headers=[*cross_site, FROM_APP], token=None)
    assert (response.status, shares(response)) == (200, shared_with(APP))
    lines = [*cross_site, *PREFLIGHT]
    preflight = await scene.ask("/v1/messages", method="OPTIONS", headers=lines, token=None)
    assert preflight.status == 204
    for origin in ("https://evil.example", "http://app.example.com", "null", ""):
        for more in ([], PREFLIGHT[1:]):
            lines = [*cross_site, ("Origin", origin), *more]
            response = await scene.ask("/v1/messages", method="OPTIONS", headers=lines, token=None)
            assert (response.status, shares(response)) == (403, {})
    # a page's <img> sends no Origin
    assert (await scene.ask("/v1/models", headers=cross_site, token=None)).status == 403
    assert len(scene.upstream.requests) == 1


async def test_allowed_origin_does_not_open_another_host(scene: Scene) -> None:
    await scene.start(AUTH_TOKEN=None, ALLOWED_ORIGINS=APP)
    lines = [("Host", "evil.example"), FROM_APP]
    response = await scene.ask("/v1/models", headers=lines, token=None)
    assert response.status == 403
    assert "ALLOWED_HOSTS" in json.loads(response.body)["error"]["message"]
    assert scene.upstream.requests == []
