"""Requests of web pages: those of ALLOWED_ORIGINS, and all others where no token is asked for."""

from __future__ import annotations

import pytest
from scene import Scene
from served import CHAT_BODY, CHAT_PATH, EVENTS, RESPONSES_BODY, RESPONSES_PATH, STREAM

from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    RawResponse,
    Response,
    bytes_response,
    error_response,
    request_bytes,
    sse_response,
)

APP = "https://app.example.com"
DEV = "http://localhost:3000"
ALLOWED = f"{DEV}, {APP}"
FROM_APP = ("Origin", APP)
FOREIGN = ("Origin", "https://evil.example")
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
    for to in (proxy, blank):
        for scripted, path, body, expected in (
            (JSON, "/v1/messages", b"{}", b"{}"),
            (SSE, "/v1/messages", b"{}", STREAM),
            (SSE, CHAT_PATH, b'{"stream": true,' + CHAT_BODY[1:], b"data: [DONE]"),
            (ERROR, CHAT_PATH, CHAT_BODY, b"Slow down."),
            (SSE, RESPONSES_PATH, b'{"stream": true,' + RESPONSES_BODY[1:], b"response.completed"),
        ):
            scene.upstream.script(scripted)
            response = await scene.ask(path, body=body, headers=[FROM_APP], to=to)
            assert (shares(response), vary(response)) == ({}, [])
            assert expected in response.body
            assert path != "/v1/messages" or response.header("X-Kept") == "kept"


READABLE: list[tuple[str, str, bytes, str | None, Response | None, int]] = [
    ("HEAD", "/v1/models", b"", TEST_TOKEN, JSON, 200),
    ("POST", "/v1/messages", b"{}", TEST_TOKEN, SSE, 200),
    ("GET", "/v1/x", b"", TEST_TOKEN, bytes_response(b"", OWN_CORS, 204), 204),
    ("POST", CHAT_PATH, CHAT_BODY, TEST_TOKEN, None, 200),
    ("POST", CHAT_PATH, CHAT_BODY, TEST_TOKEN, ERROR, 429),
    ("GET", "/v1/models", b"", None, None, 401),
    ("GET", "/v1/../x", b"", TEST_TOKEN, None, 400),
    ("POST", "/v1/messages", b"x" * 101, TEST_TOKEN, None, 413),
    ("FROB", "/v1/messages", b"", TEST_TOKEN, None, 405),
    ("GET", "/health", b"", None, None, 200),
]


@pytest.mark.parametrize("origin", [APP, DEV])
async def test_allowed_origin_may_read_every_response(origin: str, scene: Scene) -> None:
    await scene.start(ALLOWED_ORIGINS=ALLOWED, MAX_BODY_SIZE=100)
    lines = [("Origin", origin)]
    for method, path, body, token, scripted, status in READABLE:
        if scripted is not None:
            scene.upstream.script(scripted)
        response = await scene.ask(path, method=method, headers=lines, body=body, token=token)
        assert response.status == status, path
        assert shares(response) == shared_with(origin)
        assert vary(response) == ["origin"]


async def test_allowed_origin_reads_the_response_as_it_came(scene: Scene) -> None:
    """Upstream refuses web pages; which of them may ask is decided in the proxy."""
    await scene.start(ALLOWED_ORIGINS=APP)
    scene.upstream.script(bytes_response(b"{}", [("Vary", "Accept-Encoding")]))
    lines = [FROM_APP, ("Referer", f"{APP}/x"), ("Sec-Fetch-Site", "cross-site")]
    response = await scene.ask("/v1/messages", headers=lines, body=b"{}")
    assert vary(response) == ["accept-encoding", "origin"]
    assert [scene.upstream.requests[0].header(name) for name, _ in lines] == [None] * 3


@pytest.mark.parametrize(
    "origins",
    [
        [],
        ["https://app.example.com.evil.example"],
        ["http://app.example.com"],
        ["https://app.example.com:8443"],
        ["null"],
        ["*"],
        [APP, "https://evil.example"],
    ],
    ids=" ".join,
)
async def test_other_origin_is_served_but_may_not_read(origins: list[str], scene: Scene) -> None:
    """A cache must not hand the response to a page that may read one: hence Vary."""
    await scene.start(ALLOWED_ORIGINS=ALLOWED)
    scene.upstream.script(JSON)
    lines = [("Origin", origin) for origin in origins]
    relayed = await scene.ask("/v1/x", headers=lines)
    refused = await scene.ask("/v1/x", headers=lines, token=None)
    assert (relayed.status, relayed.body, refused.status) == (200, b"{}", 401)
    assert shares(relayed) == shares(refused) == {}
    assert vary(relayed) == vary(refused) == ["origin"]


async def test_preflight_needs_no_credential(scene: Scene) -> None:
    """Neither credentials nor a private network are granted."""
    await scene.start(ALLOWED_ORIGINS=ALLOWED)
    client = await scene.raw()
    lines = [
        *PREFLIGHT,
        ("Access-Control-Request-Headers", "anthropic-version,content-type,x-api-key"),
        ("Access-Control-Request-Private-Network", "true"),
    ]
    for target in ("/v1/messages", CHAT_PATH, "/health", "/nowhere"):
        response = await client.ask(request_bytes("OPTIONS", target, lines))
        assert (response.status, response.body) == (204, b"")
        assert shares(response) == {
            **shared_with(APP),
            "access-control-allow-methods": ["POST"],
            "access-control-allow-headers": ["anthropic-version, content-type, x-api-key"],
            "access-control-max-age": ["7200"],
        }
        assert vary(response) == ["origin"]
        assert response.header("Content-Length") is None
    # the request itself, on the same connection
    response = await client.ask(request_bytes("POST", "/v1/messages", [FROM_APP], b"{}"))
    assert response.status == 401
    assert scene.upstream.connections == 0
    assert [record.method for record in scene.records.all] == ["POST"]


@pytest.mark.parametrize(
    ("method", "names", "granted"),
    [
        ("DELETE", None, (["DELETE"], [])),
        ("PATCH", " , x-a ,,\tx-b", (["PATCH"], ["x-a, x-b"])),
        ("TRACE", "*", ([], ["*"])),
        ("GET, DELETE", "", ([], [])),
        ("post", "x a, x:b, x-c, \xe9, authorization", ([], ["x-c, authorization"])),
    ],
)
async def test_preflight_grants_what_is_a_method_and_a_name(
    method: str, names: str | None, granted: tuple[list[str], list[str]], scene: Scene
) -> None:
    await scene.start(ALLOWED_ORIGINS=APP)
    lines = [FROM_APP, ("Access-Control-Request-Method", method)]
    if names is not None:
        lines.append(("Access-Control-Request-Headers", names))
    response = await scene.ask("/v1/x", method="OPTIONS", headers=lines)
    assert response.status == 204
    headers = ("Access-Control-Allow-Methods", "Access-Control-Allow-Headers")
    assert tuple(map(response.all, headers)) == granted


@pytest.mark.parametrize("lines", [[FROM_APP], PREFLIGHT[1:], [FOREIGN, *PREFLIGHT[1:]]])
async def test_options_but_preflights_of_allowed_origins_are_relayed(
    lines: list[tuple[str, str]], scene: Scene
) -> None:
    await scene.start(ALLOWED_ORIGINS=APP)
    scene.upstream.script(bytes_response(b"fine"))
    refused = await scene.ask("/v1/x", method="OPTIONS", headers=lines, token=None)
    assert refused.status == 401
    assert (await scene.ask("/v1/x", method="OPTIONS", headers=lines)).body == b"fine"
    assert [received.method for received in scene.upstream.requests] == ["OPTIONS"]


# -- without a token


async def test_allowed_hosts_are_accepted_but_no_wildcard(scene: Scene) -> None:
    hosts = "Proxy.Internal, 10.1.2.3"
    await scene.start(HOST="0.0.0.0", ALLOW_ANONYMOUS=1, AUTH_TOKEN=None, ALLOWED_HOSTS=hosts)
    for host, status in (("PROXY.internal:8000", 200), ("10.1.2.3", 200), ("0.0.0.0", 403)):
        response = await scene.ask("/v1/models", headers=[("Host", host)], token=None)
        assert response.status == status, host


async def test_open_proxy_serves_pages_of_allowed_origins_only(scene: Scene) -> None:
    await scene.start(AUTH_TOKEN=None, ALLOWED_ORIGINS=APP)
    cross_site = [("Host", "localhost"), ("Sec-Fetch-Site", "cross-site")]
    response = await scene.ask("/v1/models", headers=[*cross_site, FROM_APP], token=None)
    assert (response.status, shares(response)) == (200, shared_with(APP))
    for lines in (
        [*cross_site, FOREIGN],
        cross_site,  # a page's <img> sends no Origin
        [("Host", "evil.example"), FROM_APP],
    ):
        assert (await scene.ask("/v1/models", headers=lines, token=None)).status == 403
    assert len(scene.upstream.requests) == 1


async def test_request_with_token_may_have_any_host_and_origin(proxy: Proxy, scene: Scene) -> None:
    for line in (("Host", "evil.example"), FOREIGN, ("Sec-Fetch-Site", "cross-site")):
        assert (await scene.ask("/v1/models", headers=[line])).status == 200, line
