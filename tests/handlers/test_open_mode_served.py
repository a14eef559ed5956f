"""A proxy without a token: whom it accepts, and how it refuses web pages."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tornadoproxy import ConfigurationError, Identity, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    bytes_response,
    message_document,
    message_events,
    request_bytes,
    sse_response,
)

if TYPE_CHECKING:
    from scene import Scene
    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import (
        Proxy,
        RawResponse,
        StartProxy,
    )

Line = tuple[str, str]
TOKEN: Line = ("x-api-key", TEST_TOKEN)
FOREIGN: Line = ("Origin", "https://evil.example")


@pytest.fixture
def open_proxy(io_loop: IOLoop, start_proxy: StartProxy) -> Proxy:
    """A proxy without a token."""

    async def start() -> Proxy:
        return await start_proxy(AUTH_TOKEN=None)

    proxy: Proxy = io_loop.run_sync(start)
    return proxy


async def ask(
    client: RawConnection, page: str, *lines: Line, method: str = "GET", body: bytes = b""
) -> RawResponse:
    """Return the response, which must not allow other origins."""
    await client.send(request_bytes(method, page, lines, body))
    response = await client.response()
    assert not [name for name, _ in response.headers if name.lower().startswith("access-control-")]
    return response


# -- who is accepted


async def test_any_credential_is_accepted_as_anonymous(open_proxy: Proxy, scene: Scene) -> None:
    line = dict(open_proxy.lines)["token"]
    assert "ANYONE" in line
    assert "AUTH_TOKEN" in line
    client = await scene.raw()
    presented: list[list[Line]] = [
        [],
        [("x-api-key", "anything")],
        [("Authorization", "Basic eDp5")],
        [("Authorization", "Bearer one"), ("Authorization", "Bearer other")],
    ]
    for lines in presented:
        assert (await ask(client, "/v1/models", *lines)).status == 200
    await scene.records.finished(len(presented))
    assert {record.principal for record in scene.records.all} == {"anonymous"}
    for received in scene.upstream.requests:
        assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
        assert received.header("authorization") is None


async def test_other_address_without_token_ends_start(scene: Scene) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await scene.start(AUTH_TOKEN=None, HOST="0.0.0.0")
    (fault,) = caught.value.faults
    for part in ("HOST is 0.0.0.0", "AUTH_TOKEN", "ALLOW_ANONYMOUS=yes"):
        assert part in fault


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_wildcard_address_is_no_allowed_host(host: str, scene: Scene) -> None:
    if host == "::" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    proxy = await scene.start(AUTH_TOKEN=None, HOST=host, ALLOW_ANONYMOUS=1)
    client = await RawConnection.open(proxy.port, "::1" if host == "::" else "127.0.0.1")
    for name in (f"0.0.0.0:{proxy.port}", "[::]"):
        assert (await ask(client, "/v1/models", ("Host", name))).status == 403
    assert (await ask(client, "/v1/models", ("Host", "localhost"))).status == 200
    await client.close()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# -- web pages


@pytest.mark.parametrize("page", ["/v1/models", "/openai/v1/models"])
async def test_foreign_host_is_403_in_the_apis_format(
    page: str, open_proxy: Proxy, scene: Scene
) -> None:
    client = await scene.raw()
    for host in ("evil.example", "127.0.0.1.nip.io:8000", "192.168.1.7"):
        response = await ask(client, page, ("Host", host))
        assert response.status == 403
        document: dict[str, Any] = json.loads(response.body)
        assert document["error"]["type"] == "permission_error"
        assert ("code" in document["error"]) == page.startswith("/openai/")
        for remedy in ("localhost", "ALLOWED_HOSTS", "AUTH_TOKEN"):
            assert remedy in document["error"]["message"]
    record = await scene.records.finished(3)
    assert (record.status, record.outcome) == (403, "denied")
    assert scene.upstream.connections == 0
    for host in ("LOCALHOST:8000", "127.8.8.8", "[::1]:8000"):
        assert (await ask(client, page, ("Host", host))).status == 200


@pytest.mark.parametrize("host", ["localhost@evil.example", "localhost,evil", "local host"])
async def test_malformed_host_is_400(host: str, open_proxy: Proxy, scene: Scene) -> None:
    response = await ask(await scene.raw(), "/v1/models", ("Host", host))
    assert response.status == 400
    assert json.loads(response.body)["error"]["type"] == "invalid_request_error"


async def test_allowed_hosts_are_accepted_with_any_port_and_case(scene: Scene) -> None:
    await scene.start(AUTH_TOKEN=None, ALLOWED_HOSTS="Proxy.Internal, 10.1.2.3 2001:db8::7")
    client = await scene.raw()
    for host in ("PROXY.internal:8000", "proxy.internal.", "10.1.2.3:80", "[2001:db8::7]:8000"):
        assert (await ask(client, "/v1/models", ("Host", host))).status == 200, host
    for host in ("internal", "x.proxy.internal", "proxy.internal.evil", "10.1.2.30"):
        assert (await ask(client, "/v1/models", ("Host", host))).status == 403, host


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "PROPFIND"])
async def test_foreign_origin_is_403_for_every_method(
    method: str, open_proxy: Proxy, scene: Scene
) -> None:
    lines = ("Host", "localhost:8000"), FOREIGN
    length = ("Content-Length", "1000000")  # of a body that is not read
    more = (length,) if method == "POST" else ()
    response = await ask(await scene.raw(), "/v1/messages", *lines, *more, method=method)
    assert response.status == 403
    assert "asks for no credential" in json.loads(response.body)["error"]["message"]
    assert scene.upstream.connections == 0


async def test_own_origin_is_accepted(open_proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    own = f"localhost:{open_proxy.port}"
    for host in (own, own.upper()):
        lines = ("Host", host), ("Origin", f"http://{own}"), ("Sec-Fetch-Site", "same-origin")
        assert (await ask(client, "/v1/models", *lines)).status == 200
    cross_site = ("Host", own), ("Sec-Fetch-Site", "cross-site")
    assert (await ask(client, "/v1/models", *cross_site)).status == 403


# -- no response allows other origins: `ask` checks each

PREFLIGHT = [
    ("Host", "localhost"),
    FOREIGN,
    ("Access-Control-Request-Method", "POST"),
    ("Access-Control-Request-Headers", "content-type, x-api-key"),
    ("Access-Control-Request-Private-Network", "true"),
]


async def test_preflight_is_refused(open_proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    for path in ("/v1/messages", "/openai/v1/chat/completions", "/nothing"):
        assert (await ask(client, path, *PREFLIGHT, method="OPTIONS")).status == 403
    for path in ("/", "/health", "/ready", "/api/hello"):
        assert (await ask(client, path, *PREFLIGHT, method="OPTIONS")).status == 405


async def test_no_response_allows_other_origins(open_proxy: Proxy, scene: Scene) -> None:
    scene.upstream.script(
        bytes_response(b"fine"),
        sse_response(message_events(message_document("Hi"))),
        bytes_response(b"", status=204),
        bytes_response(b"broken", status=500),
    )
    client = await scene.raw()
    own = ("Host", "localhost"), ("Origin", "http://localhost")
    expected = [
        *[("GET", "/v1/models", 200), ("POST", "/v1/messages", 200)],
        *[("OPTIONS", "/v1/messages", 204), ("GET", "/v1/models", 500)],
        *[("GET", "/health", 200), ("GET", "/ready", 200), ("GET", "/", 200)],
        *[("GET", "/nothing", 404), ("GET", "/openai/x", 404)],
        *[("GET", "/v1//x", 400), ("FROB", "/v1/x", 405)],
    ]
    for method, path, status in expected:
        assert (await ask(client, path, *own, method=method)).status == status


# -- a client with a credential is no web page


async def test_request_with_token_may_have_any_host_and_origin(proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    assert (await ask(client, "/v1/models", *PREFLIGHT, method="OPTIONS")).status == 401
    for line in (("Host", "evil.example"), FOREIGN, ("Sec-Fetch-Site", "cross-site")):
        assert (await ask(client, "/v1/models", line, TOKEN)).status == 200, line
    assert (await ask(client, "/nothing", FOREIGN, TOKEN)).status == 404


async def test_anonymous_identity_of_any_plugin_is_protected(scene: Scene) -> None:
    class Guests:
        @hookimpl
        def authenticate(self) -> Identity:
            return Identity("guest", anonymous=True)

    await scene.start(plugins=[Guests()])
    client = await scene.raw()
    assert (await ask(client, "/v1/models", ("Host", "evil.example"))).status == 403
    assert (await ask(client, "/v1/models", FOREIGN)).status == 403
    assert scene.upstream.connections == 0
    assert (await ask(client, "/v1/models")).status == 200


async def test_reload_that_removes_token_protects_from_web_pages(
    proxy: Proxy, scene: Scene
) -> None:
    client = await scene.raw()
    foreign = ("Host", "evil.example")
    assert (await ask(client, "/v1/models", foreign)).status == 401
    proxy.reload(AUTH_TOKEN=None, ALLOW_ANONYMOUS="yes")
    assert (await ask(client, "/v1/models", foreign)).status == 403
    assert (await ask(client, "/v1/models")).status == 200
