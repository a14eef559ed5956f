"""Which web pages may use the proxy from a browser: none, but for those that are configured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tornadoproxy import ConfigurationError, parsers
from tornadoproxy.testing import (
    TEST_TOKEN,
    bytes_response,
    error_response,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
    )

APP = "https://app.example.com"
DEV = "http://localhost:3000"
CHAT = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}]}'
RIGHT = ("x-api-key", TEST_TOKEN)

# what an upstream may say of CORS; none of it is the proxy's
UPSTREAMS_OWN = [
    ("Access-Control-Allow-Origin", "*"),
    ("access-control-allow-credentials", "true"),
    ("ACCESS-CONTROL-EXPOSE-HEADERS", "x-upstreams-own"),
    ("Access-Control-Max-Age", "1"),
    ("Access-Control-Of-Tomorrow", "x"),
    ("X-Kept", "kept"),
]
EVENTS = message_events(message_document("Hi"))


def shares(response: RawResponse) -> dict[str, list[str]]:
    """The CORS headers of an answer, by their names in lower case."""
    names = {name.lower() for name, _ in response.headers}
    return {name: response.all(name) for name in names if name.startswith("access-control-")}


def shared_with(origin: str) -> dict[str, list[str]]:
    return {
        "access-control-allow-origin": [origin],
        "access-control-expose-headers": ["*"],
    }


def vary(response: RawResponse) -> list[str]:
    return [name.strip().lower() for line in response.all("Vary") for name in line.split(",")]


async def ask(
    raw: OpenRaw, method: str, target: str, *lines: tuple[str, str], body: bytes = b""
) -> RawResponse:
    client = await raw()
    await client.send(request_bytes(method, target, lines, body))
    return await client.response(to_head=method == "HEAD")


# -- nothing is configured


@pytest.mark.parametrize("origin", [[], [("Origin", APP)], [("Origin", "null")]])
@pytest.mark.parametrize(
    ("scripted", "body"),
    [
        (bytes_response(b"{}", UPSTREAMS_OWN), b"{}"),
        (sse_response(EVENTS, headers=UPSTREAMS_OWN), b"".join(EVENTS)),
        (bytes_response(b"no", UPSTREAMS_OWN, status=429), b"no"),
    ],
    ids=["json", "events", "error"],
)
async def test_what_the_upstream_says_of_it_does_not_reach_the_client(
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    origin: list[tuple[str, str]],
    scripted: Response,
    body: bytes,
) -> None:
    upstream.script(scripted)
    response = await ask(raw, "POST", "/v1/messages", RIGHT, *origin, body=b"{}")
    assert shares(response) == {}
    assert vary(response) == []
    assert response.header("X-Kept") == "kept"
    assert response.body == body


@pytest.mark.parametrize(
    "scripted",
    [
        sse_response(EVENTS, headers=UPSTREAMS_OWN),
        error_response(429, "rate_limit_error", "Slow down.", UPSTREAMS_OWN),
    ],
    ids=["events", "error"],
)
async def test_nor_in_the_other_dialect(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, scripted: Response
) -> None:
    upstream.script(scripted)
    body = CHAT.replace(b"}]}", b'}], "stream": true}')
    response = await ask(
        raw, "POST", "/openai/v1/chat/completions", RIGHT, ("Origin", APP), body=body
    )
    assert shares(response) == {}
    assert response.body


async def test_blank_is_none(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(ALLOWED_ORIGINS="")
    response = await ask(raw, "GET", "/v1/models", RIGHT, ("Origin", APP))
    assert response.status == 200
    assert shares(response) == {}
    assert vary(response) == []


# -- pages of an allowed origin


@pytest.fixture
def origins() -> str:
    return f"{DEV}, {APP}"


@pytest.mark.parametrize(
    ("method", "target", "lines", "body", "scripted", "status"),
    [
        ("GET", "/v1/models", [RIGHT], b"", None, 200),
        ("HEAD", "/v1/models", [RIGHT], b"", bytes_response(b"{}", UPSTREAMS_OWN), 200),
        ("POST", "/v1/messages", [RIGHT], b"{}", bytes_response(b"{}", UPSTREAMS_OWN), 200),
        ("POST", "/v1/messages", [RIGHT], b"{}", sse_response(EVENTS, headers=UPSTREAMS_OWN), 200),
        ("POST", "/v1/messages", [RIGHT], b"{}", bytes_response(b"x", UPSTREAMS_OWN, 529), 529),
        ("GET", "/v1/x", [RIGHT], b"", bytes_response(b"", UPSTREAMS_OWN, 204), 204),
        ("OPTIONS", "/v1/x", [RIGHT], b"", bytes_response(b"", UPSTREAMS_OWN), 200),
        ("POST", "/openai/v1/chat/completions", [RIGHT], CHAT, None, 200),
        ("POST", "/openai/v1/chat/completions", [RIGHT], b"{", None, 400),
        (
            *("POST", "/openai/v1/chat/completions", [RIGHT], CHAT),
            error_response(429, "rate_limit_error", "Slow down.", UPSTREAMS_OWN),
            429,
        ),
        ("GET", "/openai/v1/models", [RIGHT], b"", None, 200),
        ("GET", "/openai/v1/models/no", [RIGHT], b"", None, 404),
        ("GET", "/v1/models", [], b"", None, 401),
        ("POST", "/openai/v1/chat/completions", [("x-api-key", "wrong")], CHAT, None, 401),
        ("GET", "/nowhere", [RIGHT], b"", None, 404),
        ("GET", "/v1/../x", [RIGHT], b"", None, 400),
        ("POST", "/v1/messages", [RIGHT], b"x" * 101, None, 413),
        ("FROB", "/v1/messages", [RIGHT], b"", None, 405),
        ("GET", "/health", [], b"", None, 200),
        ("OPTIONS", "/health", [], b"", None, 405),
    ],
)
async def test_may_read_every_answer(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    origins: str,
    method: str,
    target: str,
    lines: list[tuple[str, str]],
    body: bytes,
    scripted: Response | None,
    status: int,
) -> None:
    await start_proxy(ALLOWED_ORIGINS=origins, MAX_BODY_SIZE=100)
    if scripted is not None:
        upstream.script(scripted)
    for origin in (APP, DEV):
        response = await ask(raw, method, target, *lines, ("Origin", origin), body=body)
        assert response.status == status
        assert shares(response) == shared_with(origin)
        assert vary(response) == ["origin"]
        if scripted is not None:
            upstream.script(scripted)


async def test_may_read_that_there_are_too_many_or_no_upstream(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(ALLOWED_ORIGINS=APP, MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0)
    upstream.script(silent_response())
    first = await raw()
    await first.send(request_bytes("GET", "/v1/x", [RIGHT, ("Origin", APP)]))
    await upstream.received()
    response = await ask(raw, "GET", "/v1/x", RIGHT, ("Origin", APP))
    assert (response.status, shares(response)) == (529, shared_with(APP))
    await upstream.stop()
    broken = await first.response()
    assert (broken.status, shares(broken)) == (502, shared_with(APP))


async def test_what_they_read_is_the_answer_as_it_came(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(ALLOWED_ORIGINS=APP)
    headers = [("request-id", "req_upstream"), ("Vary", "Accept-Encoding")]
    upstream.script(sse_response(EVENTS, split=1, headers=headers))
    browsers = [("Origin", APP), ("Referer", f"{APP}/x"), ("Sec-Fetch-Site", "cross-site")]
    response = await ask(raw, "POST", "/v1/messages", RIGHT, *browsers, body=b"{}")
    assert response.body == b"".join(EVENTS)
    assert shares(response) == shared_with(APP)
    assert response.header("request-id") == "req_upstream"
    assert vary(response) == ["accept-encoding", "origin"]
    # the upstream refuses web pages; which of them may ask is decided here
    assert [upstream.requests[0].header(name) for name, _ in browsers] == [None] * 3


# -- everybody else


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [("Origin", "https://evil.example")],
        [("Origin", "https://app.example.com.evil.example")],
        [("Origin", "http://app.example.com")],
        [("Origin", "https://app.example.com:8443")],
        [("Origin", "https://x.app.example.com")],
        [("Origin", "https://app.example.com/")],
        [("Origin", "null")],
        [("Origin", "*")],
        [("Origin", "")],
        [("Origin", APP), ("Origin", "https://evil.example")],
        [("Origin", f"{APP} https://evil.example")],
    ],
)
async def test_is_served_as_ever_and_told_nothing(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    origins: str,
    lines: list[tuple[str, str]],
) -> None:
    await start_proxy(ALLOWED_ORIGINS=origins)
    upstream.script(bytes_response(b"{}", UPSTREAMS_OWN))
    relayed = await ask(raw, "GET", "/v1/x", RIGHT, *lines)
    refused = await ask(raw, "GET", "/v1/x", *lines)
    assert (relayed.status, relayed.body, refused.status) == (200, b"{}", 401)
    assert shares(relayed) == shares(refused) == {}
    # a cache must not hand this answer to a page that may read one
    assert vary(relayed) == vary(refused) == ["origin"]


# -- preflights


def preflight(method: str = "POST", headers: str | None = None) -> list[tuple[str, str]]:
    lines = [("Access-Control-Request-Method", method)]
    return lines if headers is None else [*lines, ("Access-Control-Request-Headers", headers)]


@pytest.mark.parametrize(
    "target",
    ["/v1/messages", "/openai/v1/chat/completions", "/openai/v1/models", "/health", "/nowhere"],
)
async def test_a_preflight_is_answered_without_a_credential(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    origins: str,
    target: str,
) -> None:
    await start_proxy(ALLOWED_ORIGINS=origins)
    client = await raw()
    asked = preflight("POST", "anthropic-version,content-type,x-api-key")
    await client.send(request_bytes("OPTIONS", target, [("Origin", APP), *asked]))
    response = await client.response()
    assert (response.status, response.body) == (204, b"")
    assert shares(response) == {
        **shared_with(APP),
        "access-control-allow-methods": ["POST"],
        "access-control-allow-headers": ["anthropic-version, content-type, x-api-key"],
        "access-control-max-age": ["7200"],
    }
    assert "origin" in vary(response)
    assert response.header("Content-Length") is None
    # on the same connection, what was asked for
    await client.send(request_bytes("POST", "/v1/messages", [("Origin", APP)], b"{}"))
    assert (await client.response()).status == 401
    assert upstream.connections == 0
    assert [record.method for record in records.all] == ["POST"]


@pytest.mark.parametrize(
    ("method", "headers", "allowed_methods", "allowed_headers"),
    [
        ("DELETE", None, ["DELETE"], []),
        ("GET", "", ["GET"], []),
        ("PATCH", " , x-a ,,\tx-b", ["PATCH"], ["x-a, x-b"]),
        ("CONNECT", "x-a", [], ["x-a"]),
        ("TRACE", None, [], []),
        ("*", "*", [], ["*"]),
        ("GET, DELETE", None, [], []),
        ("post", None, [], []),
        ("GET", "x a, x:b, x-c, \xe9, authorization", ["GET"], ["x-c, authorization"]),
    ],
)
async def test_a_preflight_is_granted_what_it_names_and_what_is_a_name(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    method: str,
    headers: str | None,
    allowed_methods: list[str],
    allowed_headers: list[str],
) -> None:
    await start_proxy(ALLOWED_ORIGINS=APP)
    asked = preflight(method, headers)
    response = await ask(raw, "OPTIONS", "/v1/x", RIGHT, ("Origin", APP), *asked)
    assert response.status == 204
    assert response.all("Access-Control-Allow-Methods") == allowed_methods
    assert response.all("Access-Control-Allow-Headers") == allowed_headers
    assert upstream.connections == 0


async def test_neither_a_private_network_nor_credentials_are_granted(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    await start_proxy(ALLOWED_ORIGINS=APP)
    private = ("Access-Control-Request-Private-Network", "true")
    local = ("Access-Control-Request-Local-Network", "true")
    response = await ask(raw, "OPTIONS", "/v1/x", ("Origin", APP), *preflight(), private, local)
    assert shares(response).keys() == {
        "access-control-allow-origin",
        "access-control-expose-headers",
        "access-control-allow-methods",
        "access-control-max-age",
    }


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{APP}:8443"])
async def test_a_preflight_of_another_origin_needs_a_credential_and_is_told_nothing(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, origin: str
) -> None:
    await start_proxy(ALLOWED_ORIGINS=APP)
    asked = [("Origin", origin), *preflight("POST", "x-api-key")]
    response = await ask(raw, "OPTIONS", "/v1/messages", *asked)
    assert (response.status, shares(response)) == (401, {})
    assert upstream.connections == 0


async def test_options_that_are_no_preflight_are_an_ordinary_request(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(ALLOWED_ORIGINS=APP)
    page = ("Origin", APP)
    assert (await ask(raw, "OPTIONS", "/v1/x", page)).status == 401
    assert (await ask(raw, "OPTIONS", "/v1/x", *preflight())).status == 401
    upstream.script(bytes_response(b"fine"), bytes_response(b"fine"))
    assert (await ask(raw, "OPTIONS", "/v1/x", page, RIGHT)).body == b"fine"
    assert (await ask(raw, "OPTIONS", "/v1/x", *preflight(), RIGHT)).body == b"fine"
    assert [request.method for request in upstream.requests] == ["OPTIONS", "OPTIONS"]


# -- without a token


async def test_an_allowed_page_may_enter_an_open_proxy_and_no_other_may(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(AUTH_TOKEN=None, ALLOWED_ORIGINS=APP)
    cross_site = ("Host", "localhost"), ("Sec-Fetch-Site", "cross-site")

    response = await ask(raw, "GET", "/v1/models", *cross_site, ("Origin", APP))
    assert (response.status, shares(response)) == (200, shared_with(APP))
    asked = [*cross_site, ("Origin", APP), *preflight()]
    assert (await ask(raw, "OPTIONS", "/v1/messages", *asked)).status == 204
    assert len(upstream.requests) == 1

    for origin in ("https://evil.example", "http://app.example.com", "null", ""):
        for lines in ([], preflight()):
            response = await ask(
                raw, "OPTIONS", "/v1/messages", *cross_site, ("Origin", origin), *lines
            )
            assert (response.status, shares(response)) == (403, {})
    # no Origin, as from an <img> in whatever page
    assert (await ask(raw, "GET", "/v1/models", *cross_site)).status == 403
    assert len(upstream.requests) == 1


async def test_its_name_does_not_open_another_host(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(AUTH_TOKEN=None, ALLOWED_ORIGINS=APP)
    lines = ("Host", "evil.example"), ("Origin", APP)
    response = await ask(raw, "GET", "/v1/models", *lines)
    assert response.status == 403
    assert "ALLOWED_HOSTS" in json.loads(response.body)["error"]["message"]
    assert upstream.requests == []


# -- the setting


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("https://app.example.com", ("https://app.example.com",)),
        ("https://a.example,http://b.example", ("https://a.example", "http://b.example")),
        (" https://a.example \t http://b.example", ("https://a.example", "http://b.example")),
        ("HTTPS://App.Example.COM", ("https://app.example.com",)),
        ("https://app.example.com:443", ("https://app.example.com",)),
        ("http://app.example.com:80", ("http://app.example.com",)),
        ("http://app.example.com:443", ("http://app.example.com:443",)),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("http://127.0.0.1:8080", ("http://127.0.0.1:8080",)),
        ("http://[::1]:8080", ("http://[::1]:8080",)),
        ("http://[0:0:0:0:0:0:0:1]", ("http://[::1]",)),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
    ],
)
def test_origins_become_what_browsers_send(text: str, origins: tuple[str, ...]) -> None:
    assert parsers.origins(text) == origins


@pytest.mark.parametrize(
    "text",
    [
        "app.example.com",
        "localhost:3000",
        "https://",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?x",
        "https://app.example.com#x",
        "https://app.example.com:",
        "https://app.example.com:0",
        "https://app.example.com:65536",
        "https://app.example.com:x",
        "https://app..example.com",
        "https://bücher.example",
        "https://[::1",
        "https://::1",
        "https:app.example.com",
        "//app.example.com",
        "ftp://app.example.com",
        "file://",
        "null",
        "https://a.example https://b.example/",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must (be origins such as|name a host|have a port)"):
        parsers.origins(text)


@pytest.mark.parametrize("text", ["https://word@app.example.com", "https://x:word@app.example.com"])
def test_a_password_in_it_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must hold no user or password") as caught:
        parsers.origins(text)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize("text", ["*", "https://*", "https://*.example.com", f"{APP} *"])
async def test_a_wildcard_stops_at_start_and_the_reason_is_given(
    start_proxy: StartProxy, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await start_proxy(ALLOWED_ORIGINS=text)
    (fault,) = caught.value.faults
    assert "ALLOWED_ORIGINS must name each origin" in fault
    assert "strangers" in fault
