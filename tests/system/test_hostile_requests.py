"""Requests that try to leave ``/v1/``, are too large, or come from a web page."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tornadoproxy.testing import TEST_TOKEN, Truncated, bytes_response, request_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")

OK = bytes_response(b"ok")
MB = 1 << 20

# every kind of route that goes upstream, or tells what there is
ROUTES = [
    ("GET", "/v1/models"),
    ("HEAD", "/v1/models"),
    ("POST", "/v1/messages?beta=true"),
    ("POST", "/v1/messages/count_tokens"),
    ("DELETE", "/v1/files/file_1"),
    ("OPTIONS", "/v1/anything"),
    ("POST", "/openai/v1/chat/completions"),
    ("GET", "/openai/v1/models"),
    ("GET", "/openai/v1/models/claude-sonnet-5-5"),
    ("GET", "/nowhere"),
    ("GET", "/openai/nowhere"),
]
PROBES = ["/", "/health", "/ready", "/api/hello"]


def check_error(response: RawResponse, path: str, status: int, error_type: str) -> str:
    """An error in the shape of the path's dialect; return its message."""
    assert response.status == status
    assert response.header("Content-Type") == "application/json"
    document: dict[str, Any] = json.loads(response.body)
    error = document["error"]
    assert error["type"] == error_type
    if path.startswith("/openai/"):
        assert error.keys() == {"message", "type", "param", "code"}
        assert response.header("X-Request-Id")
    else:
        assert document["type"] == "error"
        assert document["request_id"] == response.header("Request-Id")
    message: str = error["message"]
    assert message
    return message


async def ask(client: RawConnection, request: bytes) -> RawResponse:
    await client.send(request)
    return await client.response(to_head=request.startswith(b"HEAD "))


def words(table: str) -> list[str]:
    return table.split()


# -- paths that lead elsewhere

LEADS_ELSEWHERE = words(r"""
/openai/../v1/messages /openai/v1/../../v1/messages /openai/v1/models/..
/openai/v1/models/../chat/completions /openai/v1/models/%2e%2e
/openai/v1/models/%2E%2e%2Fmessages /openai/v1/models/..%2f..%2fmessages
/openai/v1/models/..;x/messages /openai/v1/models/..\messages /openai/v1/models/..%5Cmessages
/openai/v1/models//x /openai/v1/models/x#y /openai//v1/models /openai/v1/chat/completions/..
/openai/v1/chat/completions/%2e /openai/v1/chat%2fcompletions /openai\v1\models
/health/../v1/messages /health/%2e%2e/v1/messages /health/..;/v1/messages
/ready/..%2fv1%2fmessages /api/../v1/messages /api/hello/../../v1/messages //health
//v1/messages /./v1/messages /%2e/v1/messages /.;/v1/messages /;/../v1/messages /v1%2f..%2f
/v1/%2E.%2e/..%2F /v1/messages/%2e%2E%5c /v1/a/b/c/../../../../../../etc/passwd /v1/.;%2e/../x
/v1/..%3b/admin /v1/%2e.%3Bx=1/admin /openai/v1/models/.%3b /v1/x/%2e;a=b;c/y /v1/messages/.
/v1/messages?x#/../y
""")


async def test_path_that_leads_elsewhere_is_400_with_token(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, subtests: pytest.Subtests
) -> None:
    client = await raw()
    for path in LEADS_ELSEWHERE:
        for method in ("GET", "POST", "DELETE"):
            with subtests.test(method=method, path=path):
                request = request_bytes(method, path, body=b"{}", token="wrong")
                assert (await ask(client, request)).status == 401
                request = request_bytes(method, path, body=b"{}", token=TEST_TOKEN)
                check_error(await ask(client, request), path, 400, "invalid_request_error")
    assert upstream.connections == 0


async def test_target_that_is_no_plain_path_is_400(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    own = f"http://127.0.0.1:{proxy.port}"
    for target in (
        *(f"{own}/v1/messages", f"{own}/openai/v1/models", f"{own}/health", own),
        *(f"http://127.0.0.1:{upstream.port}/v1/messages", "https://api.anthropic.com/v1/models"),
        *("127.0.0.1:443", "*", "v1/messages", "?", "file:///etc/passwd", "data:,x", "http:"),
    ):
        for method in ("GET", "POST", "OPTIONS"):
            response = await ask(client, request_bytes(method, target, token=TEST_TOKEN))
            check_error(response, "", 400, "invalid_request_error")
    assert upstream.connections == 0


# no dot segment or slash to a server that decodes once, as the RFC has it
VERBATIM = rb"""
/v1/%252e%252e/admin /v1/%252E%252e%252fadmin /v1/..%252fadmin /v1/%25252e%25252e/admin
/v1/%c0%ae%c0%ae/admin /v1/%c0%af /v1/%u002e%u002e/admin /v1/%00 /v1/%0d%0aHost:%20evil
/v1/x%3f/y%23z /v1/x?%2e%2e%2f=../..//\;&%ff
""".split()
# servers decode these differently: overlong and fullwidth dots and slashes, U+2025
BEYOND_ASCII = (
    b"/v1/\xc0\xae\xc0\xae/admin /v1/\xe2\x80\xa5/admin /v1/\xef\xbc\x8e\xef\xbc\x8e/admin"
    b" /v1/\xef\xbc\x8f\xef\xbc\x8f /v1/\xff\xfe\x80 /v1/x?\xff"
).split(b" ")


async def test_path_encoded_twice_goes_upstream_unchanged(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for target in VERBATIM:
        upstream.script(OK)
        head = request_bytes("GET", "/TARGET", token=TEST_TOKEN).replace(b"/TARGET", target)
        assert (await ask(client, head)).body == b"ok", target
        assert upstream.requests[-1].raw_head.startswith(b"GET " + target + b" HTTP/1.1\r\n")


async def test_target_beyond_ascii_is_400(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    for target in BEYOND_ASCII:
        head = request_bytes("GET", "/TARGET", token=TEST_TOKEN).replace(b"/TARGET", target)
        check_error(await ask(await raw(), head), "/v1/x", 400, "invalid_request_error")
    assert upstream.connections == 0


# -- too much of it


@pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/models", "/nowhere"])
@pytest.mark.parametrize("where", ["path", "query"])
async def test_url_over_64_kb_is_414_or_431(
    where: str, path: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    for size in (64 * 1024, 100_000):
        client = await raw()
        target = path + ("/" if where == "path" else "?") + "x" * size
        await client.send(request_bytes("GET", target, token=TEST_TOKEN))
        response = await client.response()
        assert response.status in {414, 431}
        check_error(response, path, response.status, "invalid_request_error")
        assert await client.read() == b""
    assert upstream.connections == 0


@pytest.mark.parametrize("where", ["path", "query"])
async def test_url_of_60_kb_goes_upstream(
    where: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK)
    target = "/v1/x" + ("/" if where == "path" else "?") + "x" * 60_000
    response = await ask(await raw(), request_bytes("GET", target, token=TEST_TOKEN))
    assert response.body == b"ok"
    assert upstream.requests[0].target == target


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/" + b"x" * 4 * MB + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: " + b"a" * 4 * MB + b"\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * MB + b"\r\n",
        b"GET /v1/x HTTP/1.1\r\n" + b"x" * 4 * MB,
        b"x" * 4 * MB,
        b"\r\n" * 2 * MB,
        bytes(4 * MB),
    ],
    ids=["URL", "Host", "lines", "name", "method", "line ends", "zeros"],
)
async def test_unbounded_head_is_refused_or_cut(
    head: bytes, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(CLIENT_IDLE_TIMEOUT=0.5)
    client = await raw()
    try:
        async with asyncio.timeout(5):
            await client.send(head)
    except ConnectionError:
        pass
    try:
        async with asyncio.timeout(5):
            assert 400 <= (await client.response()).status < 500
            assert await client.read() == b""
    except (Truncated, ConnectionResetError):
        pass
    assert (await ask(await raw(), request_bytes("GET", "/health"))).status == 200
    assert upstream.connections == 0


async def test_4000_header_lines_go_upstream(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK)
    lines = [(f"X-{number}", "y") for number in range(2000)] + [("X-Same", "z")] * 2000
    request = request_bytes("GET", "/v1/x", lines, token=TEST_TOKEN)
    assert (await ask(await raw(), request)).body == b"ok"
    (received,) = upstream.requests
    assert received.all("X-1999") == ["y"]
    assert received.all("X-Same") == ["z"] * 2000


MANY_LINES = {
    "short ones": b"a:\r\n" * 16_000,
    "of different names": b"".join(b"%x:\r\n" % number for number in range(8000)),
    "credentials": b"x-api-key: no\r\n" * 4000,
    "bearers": b"authorization: bearer no\r\n" * 2000,
    "names in Connection": b"connection: " + b"a," * 30_000 + b"\r\n",
    "Connections": b"connection: a\r\n" * 4000,
    "cookies": b"cookie: a=b\r\n" * 4000,
    "Via": b"via: 1.1 a\r\n" * 4000,
    "forwarded addresses": b"x-forwarded-for: 192.0.2.7, 192.0.2.8\r\n" * 1500,
    "a long name": b"x" * 60_000 + b": y\r\n",
    "dashes": b"-" * 60_000 + b": y\r\n",
    "blanks": b"x:" + b" " * 60_000 + b"y\r\n",
    "tabs": b"x:" + b"\t" * 60_000 + b"y" + b"\t" * 1000 + b"\r\n",
    "blanks alone": b"x:" + b" \t" * 30_000 + b"\r\n",
    "bytes beyond ASCII": b"x: " + b"\xff" * 60_000 + b"\r\n",
}


@pytest.mark.parametrize("path", ["/v1/x", "/openai/v1/models", "/nowhere"])
async def test_costly_headers_are_answered_within_2_seconds(
    path: str,
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    subtests: pytest.Subtests,
) -> None:
    """Quadratic work would take seconds."""
    for what, lines in MANY_LINES.items():
        with subtests.test(what):
            upstream.script(*[] if path.startswith("/openai") else [OK])
            head = request_bytes("GET", path, token=TEST_TOKEN).removesuffix(b"\r\n")
            client = await raw()
            async with asyncio.timeout(2):
                response = await ask(client, head + lines + b"\r\n")
            assert response.status in {200, 400, 401, 404, 431}
            assert (await ask(await raw(), request_bytes("GET", "/health"))).status == 200


LIMITS = [
    ("/v1/messages", 500 * MB, "request_too_large"),
    ("/v1/files", 500 * MB, "request_too_large"),
    ("/openai/v1/chat/completions", 32 * MB, "invalid_request_error"),
]


@pytest.mark.parametrize(("path", "limit", "error_type"), LIMITS)
async def test_content_length_over_limit_is_413_before_body(
    path: str,
    limit: int,
    error_type: str,
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    lengths = (limit + 1, 2**31, 2**32 + 5, 2**53, 10**18 - 1)
    for number, length in enumerate(lengths, 1):
        headers = {"Content-Length": str(length)}
        client = await raw()
        response = await ask(client, request_bytes("POST", path, headers, token=TEST_TOKEN))
        assert str(limit) in check_error(response, path, 413, error_type)
        record = await records.finished(number)
        assert (record.status, record.outcome, record.bytes_in) == (413, "denied", 0)
    assert upstream.connections == 0


@pytest.mark.parametrize(("path", "limit", "error_type"), LIMITS)
async def test_body_of_the_default_limit_is_asked_for(
    path: str, limit: int, error_type: str, proxy: Proxy, raw: OpenRaw
) -> None:
    headers = {"Content-Length": str(limit), "Expect": "100-continue"}
    client = await raw()
    await client.send(request_bytes("POST", path, headers, token=TEST_TOKEN))
    assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize(("path", "error_type"), [(path, kind) for path, _, kind in LIMITS])
async def test_chunks_over_limit_are_413(
    path: str,
    error_type: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(MAX_BODY_SIZE=1000)
    head = request_bytes("POST", path, {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    for number, chunks in enumerate(
        [
            b"3e9\r\n" + b"x" * 1001,
            b"1\r\nx\r\n" * 1001,
            b"100000\r\n" + b"x" * MB,
            b"ffffffffffffffff\r\n" + b"x" * 1001,
            b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n0\r\n\r\n",
        ],
        1,
    ):
        upstream.script(OK)
        client = await raw()
        response = await ask(client, head + chunks)
        check_error(response, path, 413, error_type)
        await client.close()
        assert (await records.finished(number)).outcome == "denied"
    for request in upstream.requests:
        with pytest.raises(ConnectionError):
            await request.complete()
        assert request.body_length <= 1000


# -- web pages, when no token is needed; tests/protocol/test_browser_guard.py has the rules


@pytest.fixture
def open_proxy(io_loop: IOLoop, start_proxy: StartProxy) -> Proxy:
    """A proxy without a token."""

    async def start() -> Proxy:
        return await start_proxy(AUTH_TOKEN=None)

    proxy: Proxy = io_loop.run_sync(start)
    return proxy


# names that an attacker can have resolve to 127.0.0.1; xn--lcalhost-n4a looks like localhost
REBOUND = words("""
evil.example evil.example. evil.example:80 EVIL.example.:8000 localhost.evil.example.
localhost.localdomain 127.0.0.1.evil.example.:8000 localhost-evil.example xn--lcalhost-n4a
xn--e1afmkfd.xn--p1ai:8000 localhost%00.evil.example localhost%2eevil.example
a.localhost.evil:8000
""")
# addresses of other machines, and unusual spellings of loopback
ADDRESSES = words("""
[2001:db8::1] [2001:db8::1]:8000 [::] [::2]:8000 [::ffff:192.0.2.1] [::ffff:c000:201]:8000
[::1].evil.example [::1]:8000.evil.example 192.0.2.1:8000 0.0.0.0:8000 0x7f.0.0.1 0177.0.0.1
017700000001 2130706433:8000 127.1 127.0.0.1.1 127.0.0.256 localhost:8000:evil localhost:evil
evil.example:localhost
""")
# with é, a fullwidth l and an ideographic full stop in UTF-8
MALFORMED: list[str | bytes] = [
    "localhost evil.example",
    "localhost:" + "8" * 5000,
    *words(r"""
    localhost@evil.example localhost:x@evil.example:8000 evil.example@localhost
    http://localhost:8000 localhost/evil.example localhost,evil.example evil.example#localhost
    evil.example?localhost localhost\evil.example
    """),
    *(b"\xc3\xa9vil.example", b"\xef\xbd\x8cocalhost", b"localhost\xe3\x80\x82evil.example"),
]
FOREIGN_ORIGINS: list[str | bytes] = [
    "",
    "http://localhost:8000 http://evil.example",
    "http://localhost:8000, https://evil.example",
    "https://evil.example, http://localhost:8000",
    b"http://\xc3\xa9vil.example",
    *words("""
    https://evil.example http://evil.example:8000 null NULL http://localhost:3000
    http://127.0.0.1:8000 http://localhost.:8000 http://localhost.evil.example:8000
    http://xn--lcalhost-n4a:8000 http://evil.example#http://localhost:8000
    http://localhost:8000@evil.example http://localhost:8000/ http://localhost:80008
    http://localhost:8000.evil.example ftp://localhost:8000 file://
    chrome-extension://localhost:8000 moz-extension://5e1f00d5 http://[::1]:8000 http://[::1
    """),
]
# what does not help a foreign origin
MORE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Referer": "http://localhost:8000/"},
    {"X-Api-Key": "anything", "X-Forwarded-Host": "localhost:8000"},
    {"Upgrade": "websocket", "Connection": "Upgrade"},
    {"X-Forwarded-For": "127.0.0.1", "Forwarded": "host=localhost"},
]
OWN_ORIGIN, FOREIGN_ORIGIN = ("Origin", "http://localhost:8000"), ("Origin", "https://evil.example")


def from_page() -> Iterator[tuple[list[tuple[str, str]], set[int]]]:
    """The headers of a request that a web page could send, and the statuses that refuse it."""
    own = ("Host", "localhost:8000")
    for host in REBOUND:
        yield [("Host", host)], {403}
    for host in ADDRESSES:
        yield [("Host", host)], {400, 403}
    for malformed in MALFORMED:
        yield [("Host", text(malformed))], {400}
    for origin in FOREIGN_ORIGINS:
        yield [own, ("Origin", text(origin))], {403}
    for more in MORE:
        yield [own, FOREIGN_ORIGIN, *more.items()], {403}
    for origins in (
        [OWN_ORIGIN, FOREIGN_ORIGIN],
        [FOREIGN_ORIGIN, OWN_ORIGIN],
        [OWN_ORIGIN, ("origin", "null")],
        [OWN_ORIGIN, OWN_ORIGIN, FOREIGN_ORIGIN],
    ):
        yield [own, *origins], {403}


def text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_request_of_foreign_page_is_refused_unreadably(
    method: str, path: str, open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for headers, statuses in from_page():
        await client.send(request_bytes(method, path, headers))
        response = await client.response(to_head=method == "HEAD")
        assert response.status in statuses, headers
        assert [name for name, _ in response.headers if name.lower().startswith("access-")] == []
        if method != "HEAD":
            kind = "permission_error" if response.status == 403 else "invalid_request_error"
            check_error(response, path, response.status, kind)
        if response.header("Connection") == "close":
            client = await raw()
    assert upstream.connections == 0


async def test_foreign_page_sees_the_same_error_for_every_path(
    open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    messages = set()
    for path in ("/v1/models", "/v1/x", "/v1/..%2fx", "/nowhere", "/metrics", "//x"):
        response = await ask(client, request_bytes("GET", path, {"Host": "evil.example"}))
        messages.add(check_error(response, path, 403, "permission_error"))
    assert len(messages) == 1
    assert upstream.connections == 0


async def test_absolute_target_does_not_replace_foreign_host(
    open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """An absolute target goes before Host (RFC 9112 §3.2.2): here it is refused."""
    client = await raw()
    for target, host in (
        ("http://localhost:8000/v1/models", "evil.example"),
        ("http://evil.example/v1/models", "localhost:8000"),
        ("//localhost:8000/v1/models", "evil.example"),
    ):
        response = await ask(client, request_bytes("GET", target, {"Host": host}))
        assert response.status in {400, 403}
    assert upstream.connections == 0


@pytest.mark.parametrize("path", PROBES)
async def test_probe_answers_any_host_and_no_page_may_read(
    path: str, open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """A load balancer asks under whatever name it has."""
    headers = {"Host": "10.1.2.3:8000", "Origin": "https://evil.example"}
    response = await ask(await raw(), request_bytes("GET", path, headers))
    assert (response.status, response.body) == (200, b'{"status":"ok"}')
    assert [name for name, _ in response.headers if name.lower().startswith("access-")] == []
    assert upstream.connections == 0


async def test_foreign_host_leaves_the_connection_usable(
    open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for host, status in (
        *[("localhost:8000", 200), ("evil.example", 403), ("[::1]:8000", 200)],
        *[("evil.example:8000", 403), ("127.0.0.1", 200), ("LOCALHOST.", 200)],
    ):
        response = await ask(client, request_bytes("GET", "/v1/models", {"Host": host}))
        assert response.status == status, host
    assert len(upstream.requests) == 4
