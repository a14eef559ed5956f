"""A proxy without a token: whom it lets in, and what keeps web pages from using it."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from tornadoproxy import ConfigurationError, Identity, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    bytes_response,
    clean_environment,
    message_document,
    message_events,
    request_bytes,
    sse_response,
)

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

# a protected page of each dialect, and what whoever is let in finds there
PAGES = {"/v1/models": 200, "/openai/nothing-here": 404}

FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil.example.localhost.example",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io:8000",
    "notlocalhost",
    "0.0.0.0",
    "0.0.0.0:8000",
    "[::]:8000",
    "0",
    "192.168.1.7",
    "10.0.0.1:8000",
    "169.254.169.254",
    "[2001:db8::1]:8000",
    "proxy.internal",
]
OWN_HOSTS = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.:8000",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.8.8.8",
    "[::1]",
    "[::1]:8000",
]


@pytest.fixture
def open_proxy(io_loop: IOLoop, start_proxy: StartProxy) -> Proxy:
    """A proxy without a token."""

    async def start() -> Proxy:
        return await start_proxy(AUTH_TOKEN=None)

    proxy: Proxy = io_loop.run_sync(start)
    return proxy


async def ask(
    client: RawConnection, page: str, *lines: tuple[str, str], method: str = "GET"
) -> RawResponse:
    """Ask for a page with these header lines; see that no answer invites other origins."""
    await client.send(request_bytes(method, page, lines))
    response = await client.response()
    cors = [name for name, _ in response.headers if name.lower().startswith("access-control-")]
    assert cors == []
    return response


def mend(response: RawResponse, page: str) -> str | None:
    """The message of a 403 in the dialect's shape; ``None`` if the request was accepted."""
    if response.status == PAGES[page]:
        return None
    assert response.status == 403
    document: dict[str, Any] = json.loads(response.body)
    assert document["error"]["type"] == "permission_error"
    if page.startswith("/openai/"):
        assert "code" in document["error"]
    else:
        assert document["type"] == "error"
    message: str = document["error"]["message"]
    return message


# -- who may enter


async def test_every_request_is_accepted_as_an_anonymous_principal(
    open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    client = await raw()
    presented: list[list[tuple[str, str]]] = [
        [],
        [("x-api-key", "anything")],
        [("Authorization", "Bearer anything")],
        [("Authorization", "Basic eDp5")],
        [("Authorization", "Bearer one"), ("Authorization", "Bearer other")],
    ]
    for lines in presented:
        assert (await ask(client, "/v1/models", *lines)).status == 200

    await records.finished(len(presented))
    assert {record.principal for record in records.all} == {"anonymous"}
    for received in upstream.requests:
        assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
        assert received.header("authorization") is None


async def test_the_line_at_start_says_that_anyone_may_enter(open_proxy: Proxy) -> None:
    assert "ANYONE" in dict(open_proxy.lines)["token"]
    assert "AUTH_TOKEN" in dict(open_proxy.lines)["token"]


async def test_the_sdk_with_a_dummy_key_works(
    open_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)

    async with anthropic.AsyncAnthropic(
        base_url=open_proxy.url, api_key="dummy", max_retries=0
    ) as client:
        message = await client.messages.create(
            model="claude-sonnet-5-5",
            max_tokens=20,
            messages=[{"role": "user", "content": "Hi"}],
        )

    assert message.stop_reason == "end_turn"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "proxy.example", "2001:db8::1"])
async def test_another_address_without_a_token_stops_at_start_and_names_both_ways_out(
    host: str, start_proxy: StartProxy
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await start_proxy(AUTH_TOKEN=None, HOST=host)

    (fault,) = caught.value.faults
    for part in (f"HOST is {host}", "no AUTH_TOKEN is set: set one", "ALLOW_ANONYMOUS=yes"):
        assert part in fault


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
async def test_loopback_needs_neither(host: str, start_proxy: StartProxy) -> None:
    proxy = await start_proxy(AUTH_TOKEN=None, HOST=host)

    client = await RawConnection.open(proxy.port, host if host != "localhost" else "127.0.0.1")
    response = await ask(client, "/v1/models", ("Host", f"{host}:{proxy.port}"))
    await client.close()

    assert response.status == 200


@pytest.mark.parametrize("way_out", [{"AUTH_TOKEN": TEST_TOKEN}, {"ALLOW_ANONYMOUS": 1}])
async def test_both_ways_out_are_ways_out(
    way_out: dict[str, object], start_proxy: StartProxy, raw: OpenRaw
) -> None:
    variables: dict[str, Any] = {"AUTH_TOKEN": None, "HOST": "0.0.0.0", **way_out}
    await start_proxy(**variables)

    response = await ask(await raw(), "/v1/models", ("x-api-key", TEST_TOKEN))

    assert response.status == 200


# -- web pages


@pytest.mark.parametrize("page", PAGES)
async def test_a_foreign_host_is_refused_and_the_mend_named(
    page: str, open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    client = await raw()
    for host in FOREIGN_HOSTS:
        message = mend(await ask(client, page, ("Host", host)), page)
        assert message is not None, host
        for way_out in ("localhost", "ALLOWED_HOSTS", "AUTH_TOKEN"):
            assert way_out in message

    record = await records.finished(len(FOREIGN_HOSTS))
    assert (record.status, record.outcome) == (403, "denied")
    assert upstream.connections == 0


@pytest.mark.parametrize(
    "host", ["localhost@evil.example", "evil.example@localhost", "localhost,evil", "local host"]
)
async def test_a_malformed_host_is_400_in_shape(host: str, open_proxy: Proxy, raw: OpenRaw) -> None:
    for page, error_type in (("/v1/models", "error"), ("/openai/x", None)):
        response = await ask(await raw(), page, ("Host", host))
        assert response.status == 400
        document = json.loads(response.body)
        assert document.get("type") == error_type
        assert document["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("page", PAGES)
async def test_loopback_hosts_are_accepted(page: str, open_proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    for host in OWN_HOSTS:
        assert mend(await ask(client, page, ("Host", host)), page) is None, host


async def test_allowed_hosts_are_accepted_with_any_port_and_case_and_nothing_else_is(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    await start_proxy(AUTH_TOKEN=None, ALLOWED_HOSTS="Proxy.Internal, 10.1.2.3 2001:db8::7")
    client = await raw()

    for host in (
        *("proxy.internal", "PROXY.internal:8000", "proxy.internal.", "10.1.2.3:80"),
        *("[2001:db8::7]:8000", "localhost"),
    ):
        assert (await ask(client, "/v1/models", ("Host", host))).status == 200, host
    for host in ("internal", "x.proxy.internal", "proxy.internal.evil", "10.1.2.30", "0.0.0.0"):
        assert (await ask(client, "/v1/models", ("Host", host))).status == 403, host


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
async def test_a_wildcard_address_is_no_host_of_ours(
    bound: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    if bound == "::" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    proxy = await start_proxy(AUTH_TOKEN=None, HOST=bound, ALLOW_ANONYMOUS=1)
    client = await RawConnection.open(proxy.port, "::1" if bound == "::" else "127.0.0.1")

    for host in ("0.0.0.0", f"0.0.0.0:{proxy.port}", "[::]", f"[::]:{proxy.port}"):
        assert (await ask(client, "/v1/models", ("Host", host))).status == 403, host
    assert (await ask(client, "/v1/models", ("Host", "localhost"))).status == 200
    await client.close()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "PROPFIND"])
async def test_a_foreign_origin_is_refused_whatever_the_method(
    method: str, open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for origin in (
        *("https://evil.example", "http://localhost:3000", "http://127.0.0.1", "null", ""),
        *("file://", "http://localhost", "http://evil.example:8000", "chrome-extension://abcdef"),
    ):
        lines = ("Host", "localhost:8000"), ("Origin", origin)
        response = await ask(client, "/v1/messages", *lines, method=method)
        assert response.status == 403, origin
        assert "asks for no credential" in json.loads(response.body)["error"]["message"]
    assert upstream.connections == 0


async def test_the_proxys_own_origin_is_accepted(open_proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    own = f"localhost:{open_proxy.port}"

    lines = ("Host", own), ("Origin", f"http://{own}")
    assert (await ask(client, "/v1/models", *lines)).status == 200
    lines = ("Host", own.upper()), ("Origin", f"http://{own}")
    assert (await ask(client, "/v1/models", *lines)).status == 200


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)],
)
async def test_the_site_that_a_browser_names(
    site: str, status: int, open_proxy: Proxy, raw: OpenRaw
) -> None:
    response = await ask(await raw(), "/v1/models", ("Host", "localhost"), ("Sec-Fetch-Site", site))

    assert response.status == status


async def test_a_foreign_page_is_refused_before_its_body_is_read(
    open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    response = await ask(
        await raw(),
        "/v1/messages",
        ("Origin", "https://evil.example"),
        ("Content-Length", "1000000"),
        ("Content-Type", "text/plain"),
        method="POST",
    )

    assert response.status == 403
    assert upstream.connections == 0


# -- no answer invites other origins: `ask` looks at each


PREFLIGHT = [
    ("Host", "localhost"),
    ("Access-Control-Request-Method", "POST"),
    ("Access-Control-Request-Headers", "content-type, x-api-key"),
    ("Access-Control-Request-Private-Network", "true"),
]


async def test_a_preflight_is_refused(open_proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    foreign = ("Origin", "https://evil.example")

    for path in ("/v1/messages", "/openai/v1/chat/completions", "/nothing"):
        assert (await ask(client, path, *PREFLIGHT, foreign, method="OPTIONS")).status == 403
    for path in ("/", "/health", "/ready", "/api/hello"):
        assert (await ask(client, path, *PREFLIGHT, foreign, method="OPTIONS")).status == 405


async def test_no_answer_of_any_kind_has_a_cors_header(
    open_proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        bytes_response(b"fine"),
        sse_response(message_events(message_document("Hi"))),
        bytes_response(b"", status=204),
        bytes_response(b"broken", status=500),
    )
    client = await raw()
    own = ("Host", "localhost"), ("Origin", "http://localhost")

    statuses = [
        (await ask(client, path, *own, method=method)).status
        for method, path in [
            *[("GET", "/v1/models"), ("POST", "/v1/messages"), ("OPTIONS", "/v1/messages")],
            *[("GET", "/v1/models"), ("GET", "/health"), ("GET", "/ready"), ("GET", "/")],
            *[("GET", "/nothing"), ("GET", "/openai/x"), ("GET", "/v1//x"), ("FROB", "/v1/x")],
        ]
    ]

    assert statuses == [200, 200, 204, 500, 200, 200, 200, 404, 404, 400, 405]


async def test_with_a_token_no_answer_has_a_cors_header_either(proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    foreign = ("Origin", "https://evil.example")
    right = ("x-api-key", TEST_TOKEN)

    assert (await ask(client, "/v1/models", *PREFLIGHT, foreign, method="OPTIONS")).status == 401
    assert (await ask(client, "/v1/models", foreign, right)).status == 200
    assert (await ask(client, "/nothing", foreign, right)).status == 404


# -- who has a credential is no web page


async def test_with_a_token_host_and_origin_do_not_matter(proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    right = ("x-api-key", TEST_TOKEN)

    for host in (*FOREIGN_HOSTS, *OWN_HOSTS):
        assert (await ask(client, "/v1/models", ("Host", host), right)).status == 200, host
    for line in (("Origin", "https://app.example"), ("Sec-Fetch-Site", "cross-site")):
        assert (await ask(client, "/v1/models", line, right)).status == 200, line


class AnyBody:
    """Vouches for nobody in particular."""

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity:
        return Identity("guest", anonymous=True)


async def test_another_plugins_anonymous_requests_are_protected_as_well(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(plugins=[AnyBody()])
    client = await raw()

    assert (await ask(client, "/v1/models", ("Host", "evil.example"))).status == 403
    assert (await ask(client, "/v1/models", ("Origin", "https://evil.example"))).status == 403
    assert upstream.connections == 0
    assert (await ask(client, "/v1/models")).status == 200


async def test_reload_that_takes_the_token_away_protects_from_web_pages(
    proxy: Proxy, raw: OpenRaw
) -> None:
    client = await raw()
    foreign = ("Host", "evil.example")
    assert (await ask(client, "/v1/models", foreign)).status == 401

    proxy.reload(AUTH_TOKEN=None, ALLOW_ANONYMOUS="yes")

    assert (await ask(client, "/v1/models", foreign)).status == 403
    assert (await ask(client, "/v1/models")).status == 200
