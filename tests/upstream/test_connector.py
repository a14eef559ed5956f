"""New connections to the upstream: TLS, addresses, timeouts, an egress proxy."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from tornado.ioloop import IOLoop
from upstream.conftest import MakeClient

from tornadoproxy import Secret, Settings, parsers
from tornadoproxy.config.core_settings import (
    HTTPS_PROXY,
    NO_PROXY,
    UPSTREAM_CA_FILE,
    UPSTREAM_CONNECT_TIMEOUT,
    UPSTREAM_KEEPALIVE_TIMEOUT,
)
from tornadoproxy.config.urls import EgressProxy
from tornadoproxy.errors import UpstreamClosed, UpstreamTimeout, UpstreamUnreachable
from tornadoproxy.testing import (
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    bytes_response,
    raw_response,
)
from tornadoproxy.upstream import connector
from tornadoproxy.upstream.client import UpstreamClient
from tornadoproxy.upstream.connector import Connector, Origin

OK: Response = bytes_response(b"ok")
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.fixture
def trusting(io_loop: IOLoop, make_client: MakeClient, ca_file: Path) -> UpstreamClient:
    """A client that trusts the authority."""

    async def make() -> UpstreamClient:
        return make_client({UPSTREAM_CA_FILE: ca_file})

    trusting: UpstreamClient = io_loop.run_sync(make)
    return trusting


def context_with(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    certificate.configure_cert(context)
    return context


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server at 127.0.0.1 and ::1."""
    return context_with(authority.issue_cert("127.0.0.1", "::1"))


@pytest.fixture
def secure(io_loop: IOLoop, tls: ssl.SSLContext) -> Iterator[ScriptedUpstream]:
    """An upstream with TLS."""
    secure = ScriptedUpstream(ssl=tls)
    io_loop.run_sync(secure.start)
    yield secure
    io_loop.run_sync(secure.stop)


# -- TLS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_next_handshake_resumes_the_session(
    make_client: MakeClient,
    ca_file: Path,
    tls: ssl.SSLContext,
    secure: ScriptedUpstream,
    version: ssl.TLSVersion,
) -> None:
    tls.minimum_version = tls.maximum_version = version
    handshakes = []

    async def note(exchange: UpstreamExchange) -> None:
        tunnel = exchange._connection.transport.get_extra_info("ssl_object")
        handshakes.append((tunnel.selected_alpn_protocol(), tunnel.session_reused))
        await OK(exchange)

    secure.script(note, note, note)
    client = make_client({UPSTREAM_CA_FILE: ca_file, UPSTREAM_KEEPALIVE_TIMEOUT: 0})
    for _ in range(3):
        assert (await client.fetch(secure.url)).body == b"ok"
    assert handshakes == [("http/1.1", False), ("http/1.1", True), ("http/1.1", True)]


@pytest.mark.parametrize(
    ("identity", "trusted", "reason"),
    [
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("other.example", True, "IP address mismatch"),
    ],
)
async def test_untrusted_certificate_is_an_error_naming_the_setting(
    trusting: UpstreamClient,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
    identity: str,
    trusted: bool,
    reason: str,
) -> None:
    certificate = (authority if trusted else trustme.CA()).issue_cert(identity)
    async with ScriptedUpstream(ssl=context_with(certificate)) as upstream:
        with pytest.raises(UpstreamUnreachable, match=r"certificate .* set UPSTREAM_CA_FILE to"):
            await trusting.fetch(upstream.url)
    (line,) = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert f"127.0.0.1:{upstream.port} is not trusted: {reason}" in line


async def test_systems_authorities_are_trusted_without_a_file(
    make_client: MakeClient,
    secure: ScriptedUpstream,
    ca_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))  # the system's, for OpenSSL
    secure.script(OK)
    assert (await make_client().fetch(secure.url)).body == b"ok"
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with pytest.raises(UpstreamUnreachable):
        await make_client({UPSTREAM_CA_FILE: other}).fetch(secure.url)


async def test_upstream_without_tls_is_an_error(
    client: UpstreamClient, caplog: pytest.LogCaptureFixture
) -> None:
    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamUnreachable, match="UPSTREAM_BASE_URL"):
            await client.fetch(f"https://127.0.0.1:{port}")
    assert f"TLS with 127.0.0.1:{port} failed: " in caplog.text


async def test_tls_without_close_notify_never_ends_a_body(
    secure: ScriptedUpstream, trusting: UpstreamClient
) -> None:
    """Anybody on the way can cut the connection (RFC 8446 §6.1)."""

    async def cut(exchange: UpstreamExchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 500)
        exchange._connection.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await exchange.disconnected()

    secure.script(cut)
    with pytest.raises(UpstreamClosed):
        await trusting.fetch(secure.url)


async def test_tls_close_notify_ends_body_and_connection(
    secure: ScriptedUpstream, trusting: UpstreamClient
) -> None:
    whole = raw_response(b"HTTP/1.1 200 OK\r\n\r\nwhole", end="close")
    secure.script(whole, raw_response(NO_CONTENT, end="close"), OK)
    assert (await trusting.fetch(secure.url)).body == b"whole"
    assert (await trusting.fetch(secure.url)).code == 204
    await secure.all_closed()
    assert (await trusting.fetch(secure.url)).body == b"ok"
    assert len(secure.requests) == 3


# -- addresses and timeouts


async def test_upstream_at_an_ipv6_address(tls: ssl.SSLContext, trusting: UpstreamClient) -> None:
    upstream = ScriptedUpstream(ssl=tls)
    await upstream.start("::1")
    upstream.script(OK)
    assert (await trusting.fetch(upstream.url)).body == b"ok"
    assert upstream.requests[0].header("Host") == f"[::1]:{upstream.port}"
    await upstream.stop()


async def test_name_with_two_addresses_uses_the_one_that_accepts(
    client: UpstreamClient, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.script(OK)
    addresses = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", upstream.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", upstream.port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    assert (await client.fetch(f"http://both.example:{upstream.port}")).body == b"ok"


async def test_refused_connection_is_logged(
    client: UpstreamClient, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    await upstream.stop()
    with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
        await client.fetch(upstream.url)
    assert f"cannot connect to 127.0.0.1:{upstream.port}: " in caplog.text


async def test_connection_that_is_not_accepted_is_a_timeout(make_client: MakeClient) -> None:
    client = make_client({UPSTREAM_CONNECT_TIMEOUT: 0.05})
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]  # more than its backlog holds
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        with pytest.raises(UpstreamTimeout, match="did not accept a connection in time"):
            await client.fetch(f"http://127.0.0.1:{full.getsockname()[1]}")
        for each in waiting:
            each.close()


# -- an egress proxy

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def test_https_upstream_is_reached_through_the_tunnel(
    make_client: MakeClient, authority: trustme.CA, ca_file: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.example").configure_cert(context)
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ESTABLISHED)
        await writer.start_tls(context)  # the tunnel ends here, at the upstream
        for _ in range(2):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        proxy = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        url = f"http://us%40er:p%3a%20ss@{proxy}"
        client = make_client({HTTPS_PROXY: parsers.egress_proxy(url), UPSTREAM_CA_FILE: ca_file})
        for _ in range(2):
            assert (await client.fetch("https://api.example/v1/x")).body == b"ok"
    credentials = base64.b64encode(b"us@er:p: ss").decode()
    connect = (
        "CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n"
        f"Proxy-Authorization: Basic {credentials}\r\n\r\n"
    )
    assert heads[0] == connect.encode()
    assert heads[1:] == [b"GET /v1/x HTTP/1.1\r\nHost: api.example:443\r\n\r\n"] * 2


async def open_tunnel(*response: bytes, credentials: Secret | None = None) -> bytes:
    """Return the request for a tunnel to an IPv6 address, which gets this response and an end."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    proxy, origin = EgressProxy("proxy.example", 3128, credentials), Origin("https", "::1", 443)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        opening = asyncio.create_task(connector._open_tunnel(ours, proxy, origin))
        request = await loop.sock_recv(theirs, 65_536)
        for piece in response:
            await loop.sock_sendall(theirs, piece)
            await asyncio.sleep(0)
        theirs.close()
        await opening
    return request


async def test_egress_proxy_without_credentials_responds_in_pieces() -> None:
    request = await open_tunnel(b"HTTP/1.0 20", b"0 OK\r\nVia: x\r\n", b"\r", b"\n")
    assert request == b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"garbage 200\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 16_384 + b"\r\n\r\n",
    ],
    ids=["407", "garbage", "empty", "cut short", "too long"],
)
async def test_refusal_of_the_egress_proxy_is_an_error(
    caplog: pytest.LogCaptureFixture, response: bytes
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(UpstreamUnreachable) as caught:
        await open_tunnel(response, credentials=Secret("user:hush-hush"))
    secret = base64.b64encode(b"user:hush-hush").decode()
    for text in (caught.value.message, caplog.text):
        assert "egress proxy" in text
        assert "hush-hush" not in text
        assert secret not in text


async def test_silent_or_absent_egress_proxy_is_an_error(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = EgressProxy("127.0.0.1", silent.getsockname()[1])
        client = make_client({HTTPS_PROXY: proxy, UPSTREAM_CONNECT_TIMEOUT: 0.1})
        with pytest.raises(UpstreamTimeout):
            await client.fetch("https://api.example")
    with pytest.raises(UpstreamUnreachable):
        await client.fetch("https://api.example")


async def test_http_upstream_and_no_proxy_are_reached_directly() -> None:
    proxy = EgressProxy("proxy.example", 3128)
    values: dict[Any, object] = {HTTPS_PROXY: proxy, NO_PROXY: ("internal.example", "::1")}
    behind = Connector(Settings.defaults().replace(values))
    assert behind._proxy_for(Origin("https", "api.example", 443)) is proxy
    assert behind._proxy_for(Origin("https", "a.internal.example", 443)) is None
    assert behind._proxy_for(Origin("http", "api.example", 80)) is None


@pytest.mark.parametrize(
    ("host", "words", "others"),
    [
        ("127.0.0.1", "* 127.0.0.1 127.0.0.1:8443 127.0.0.0/8", "127.0.0.2 127.0.0.1:1 10.0.0.0/8"),
        ("::1", "::1 [::1] [::1]:8443 ::/64", "::2 [::1]:1 2001::/64"),
        ("localhost", "LOCALHOST .localhost *.LOCALHOST localhost:8443", "local *.local ::1"),
        (
            "api.corp.example",
            "corp.example .corp.example *.corp.example *.example:8443",
            "*.corp.example:1 *corp.example orp.example",
        ),
        ("notcorp.example", "example", "*.corp.example corp.example"),
    ],
)
def test_no_proxy_word_matches_names_domains_and_networks(
    host: str, words: str, others: str
) -> None:
    origin = Origin("https", host, 8443)
    for word in words.split():
        assert connector._matches(word, origin), word
    for word in others.split():
        assert not connector._matches(word, origin), word
