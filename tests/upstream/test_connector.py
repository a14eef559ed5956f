"""New connections to the upstream: TLS, addresses, timeouts."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from tornado.ioloop import IOLoop
from upstream.conftest import MakeClient

from tornadoproxy.config.core_settings import (
    UPSTREAM_CA_FILE,
    UPSTREAM_CONNECT_TIMEOUT,
    UPSTREAM_KEEPALIVE_TIMEOUT,
)
from tornadoproxy.errors import UpstreamClosed, UpstreamTimeout, UpstreamUnreachable
from tornadoproxy.testing import (
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    bytes_response,
    raw_response,
)
from tornadoproxy.upstream.client import UpstreamClient

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
