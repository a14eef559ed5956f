"""New connections: TLS on both sides, addresses, timeouts."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import anthropic
import openai
import pytest
import trustme

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    ScriptedUpstream,
    Truncated,
    bytes_response,
    raw_response,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import (
        Ask,
        OpenRaw,
        RawResponse,
        Response,
        StartProxy,
        UpstreamExchange,
    )

OK: Response = bytes_response(b"ok")
GET = request_bytes("GET", "/v1/x", token=TEST_TOKEN)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    certificate.configure_cert(context)
    return context


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server at 127.0.0.1, ::1 and localhost."""
    return server_context(authority.issue_cert("127.0.0.1", "::1", "localhost"))


class Serve(Protocol):
    async def __call__(
        self,
        *responses: Response,
        context: ssl.SSLContext | None = ...,
        host: str = ...,
        **variables: object,
    ) -> ScriptedUpstream: ...


@pytest.fixture
def serve(
    io_loop: IOLoop, start_proxy: StartProxy, tls: ssl.SSLContext, ca_file: Path
) -> Iterator[Serve]:
    """A function that starts an upstream, with TLS by default, and a proxy in front of it."""
    stack = AsyncExitStack()

    async def start(
        *responses: Response,
        context: ssl.SSLContext | None = tls,
        host: str = "127.0.0.1",
        **variables: object,
    ) -> ScriptedUpstream:
        upstream = ScriptedUpstream(ssl=context)
        await upstream.start(host)
        stack.push_async_callback(upstream.stop)
        upstream.script(*responses)
        defaults = {"UPSTREAM_BASE_URL": upstream.url, "UPSTREAM_CA_FILE": ca_file}
        given: dict[str, Any] = {**defaults, **variables}
        await start_proxy(**given)
        return upstream

    yield start
    io_loop.run_sync(stack.aclose)


def message_of(response: RawResponse, status: int = 502) -> str:
    """Return the message of the proxy's own error with this status."""
    assert response.status == status
    error = json.loads(response.body)["error"]
    assert error["type"] == {502: "api_error", 504: "timeout_error"}[status]
    message: str = error["message"]
    return message


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """Serve each connection with `serve`, and yield the port."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


# -- TLS to the upstream


async def test_private_authority_is_trusted_by_upstream_ca_file(serve: Serve, raw: OpenRaw) -> None:
    protocols = []

    async def note(exchange: UpstreamExchange) -> None:
        tunnel = exchange._connection.transport.get_extra_info("ssl_object")
        protocols.append((tunnel.selected_alpn_protocol(), tunnel.version()))
        await OK(exchange)

    upstream = await serve(note, OK)
    connection = await raw()
    for _ in range(2):
        assert (await connection.ask(GET)).body == b"ok"
    assert upstream.connections == 1
    assert upstream.requests[0].all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert protocols == [("http/1.1", "TLSv1.3")]


@pytest.mark.parametrize(
    ("identity", "trusted", "reason"),
    [
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("other.example", True, "IP address mismatch"),
        ("127.0.0.1", True, "certificate has expired"),
    ],
    ids=["not trusted", "of another host", "expired"],
)
async def test_untrusted_certificate_is_502_that_names_the_setting(
    serve: Serve,
    ask: Ask,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
    identity: str,
    trusted: bool,
    reason: str,
) -> None:
    expired = datetime.now(UTC) - timedelta(days=1) if "expired" in reason else None
    begin = expired and expired - timedelta(days=1)
    issuer = authority if trusted else trustme.CA()
    certificate = issuer.issue_cert(identity, not_before=begin, not_after=expired)
    upstream = await serve(context=server_context(certificate))
    with caplog.at_level(logging.WARNING, "tornadoproxy"):
        message = message_of(await ask("/v1/x"))
    assert "certificate" in message
    assert "UPSTREAM_CA_FILE" in message
    (line,) = caplog.messages
    assert reason in line
    assert f"127.0.0.1:{upstream.port}" in line
    assert upstream.requests == []


async def test_upstream_ca_file_replaces_the_systems_authorities(
    serve: Serve,
    ask: Ask,
    start_proxy: StartProxy,
    ca_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))  # the system's, for OpenSSL
    upstream = await serve(OK, UPSTREAM_CA_FILE=None)
    assert (await ask("/v1/x")).body == b"ok"
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=other)
    message_of(await ask("/v1/x"))
    assert len(upstream.requests) == 1


async def test_upstream_without_tls_is_502(
    start_proxy: StartProxy, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    async with listening(talk) as port:
        await start_proxy(UPSTREAM_BASE_URL=f"https://127.0.0.1:{port}")
        with caplog.at_level(logging.WARNING, "tornadoproxy"):
            assert "UPSTREAM_BASE_URL" in message_of(await ask("/v1/x"))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_next_handshake_resumes_the_session(
    serve: Serve, ask: Ask, tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    tls.minimum_version = tls.maximum_version = version
    resumed = []

    async def note(exchange: UpstreamExchange) -> None:
        tunnel = exchange._connection.transport.get_extra_info("ssl_object")
        resumed.append(tunnel.session_reused)
        await OK(exchange)

    upstream = await serve(note, note, note, UPSTREAM_KEEPALIVE_TIMEOUT=0)
    for _ in range(3):
        assert (await ask("/v1/x")).body == b"ok"
    assert resumed == [False, True, True]
    assert upstream.connections == 3


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n",
    ],
    ids=["until close", "length", "chunked"],
)
async def test_tls_without_close_notify_never_ends_a_body(
    serve: Serve, ask: Ask, head: bytes
) -> None:
    """Anybody on the way can cut the connection (RFC 8446 §6.1)."""

    async def cut(exchange: UpstreamExchange) -> None:
        await exchange.send(head + b"x" * 500)
        exchange._connection.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await exchange.disconnected()

    await serve(cut)
    with pytest.raises(Truncated):
        await ask("/v1/x")


async def test_tls_close_notify_ends_a_body_without_length(serve: Serve, ask: Ask) -> None:
    await serve(raw_response(b"HTTP/1.1 200 OK\r\n\r\nwhole", end="close"))
    assert (await ask("/v1/x")).body == b"whole"


async def test_idle_tls_connection_that_was_closed_is_not_used(serve: Serve, ask: Ask) -> None:
    upstream = await serve(raw_response(b"HTTP/1.1 204 No Content\r\n\r\n", end="close"), OK)
    assert (await ask("/v1/x")).status == 204
    await upstream.all_closed()
    assert (await ask("/v1/x")).body == b"ok"
    assert len(upstream.requests) == 2


# -- addresses


@pytest.mark.parametrize("secure", [False, True])
async def test_upstream_at_an_ipv6_address(
    serve: Serve, ask: Ask, tls: ssl.SSLContext, secure: bool
) -> None:
    upstream = await serve(OK, context=tls if secure else None, host="::1")
    assert (await ask("/v1/x")).body == b"ok"
    assert upstream.requests[0].header("Host") == f"[::1]:{upstream.port}"


async def test_proxy_listens_at_an_ipv6_address(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(HOST="::1")
    assert proxy.url == f"http://[::1]:{proxy.port}"
    connection = await RawConnection.open(proxy.port, "::1")
    assert (await connection.ask(GET.replace(b"/v1/x", b"/v1/models"))).status == 200
    await connection.close()


async def test_name_with_two_addresses_uses_the_one_that_accepts(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream.script(OK)
    addresses = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", upstream.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", upstream.port)),
    ]
    url = f"http://both.example:{upstream.port}"
    await start_proxy(UPSTREAM_BASE_URL=url, UPSTREAM_ALLOW_CLEARTEXT="yes")
    connection = await raw()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    assert (await connection.ask(GET)).body == b"ok"


async def test_refused_connection_is_502_with_a_log_line(
    serve: Serve, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = await serve(context=None)
    await upstream.stop()
    with caplog.at_level(logging.WARNING, "tornadoproxy"):
        message_of(await ask("/v1/x"))
    (line,) = caplog.messages
    assert f"127.0.0.1:{upstream.port}" in line


# -- timeouts


async def test_connection_that_is_not_accepted_is_504(start_proxy: StartProxy, ask: Ask) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]  # more than its backlog holds
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        await start_proxy(UPSTREAM_BASE_URL=url, UPSTREAM_CONNECT_TIMEOUT=0.05)
        message_of(await ask("/v1/x"), 504)
        for each in waiting:
            each.close()


async def test_client_that_disconnects_ends_the_handshake(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        began.set()
        await reader.read()
        ended.set()
        writer.close()

    async with listening(stall) as port:
        await start_proxy(UPSTREAM_BASE_URL=f"https://127.0.0.1:{port}")
        connection = await raw()
        await connection.send(GET)
        await began.wait()
        await connection.close()
        async with asyncio.timeout(1):
            await ended.wait()


# -- TLS to the clients


@pytest.fixture
def own_certificate(
    authority: trustme.CA, tmp_path: Path
) -> dict[str, Any]:  # as start_proxy takes it
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    return {"TLS_CERT": chain, "TLS_KEY": key}


async def test_sdks_use_tls_with_the_proxy(
    start_proxy: StartProxy,
    anthropic_client: anthropic.AsyncAnthropic,
    openai_client: openai.AsyncOpenAI,
    own_certificate: dict[str, Any],
    ca_file: Path,
) -> None:
    proxy = await start_proxy(**own_certificate)
    assert proxy.url == f"https://127.0.0.1:{proxy.port}"
    trusting = ssl.create_default_context(cafile=ca_file)
    async with anthropic.DefaultAsyncHttpxClient(verify=trusting) as http:
        client = anthropic_client.with_options(base_url=proxy.url, http_client=http)
        async with client.messages.stream(
            model="claude-sonnet-5-5",
            max_tokens=100,
            messages=[{"role": "user", "content": "Hello through TLS"}],
        ) as stream:
            text = "".join([part async for part in stream.text_stream])
    assert text.endswith("Hello through TLS")
    async with openai.DefaultAsyncHttpxClient(verify=trusting) as http:
        with pytest.raises(openai.AuthenticationError) as caught:
            await openai_client.with_options(
                base_url=f"{proxy.url}/openai/v1", http_client=http, api_key="wrong"
            ).models.list()
    assert caught.value.code == "invalid_api_key"


async def test_client_whose_tls_fails_does_not_affect_others(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    own_certificate: dict[str, Any],
    ca_file: Path,
) -> None:
    await start_proxy(**own_certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        await raw(ssl=ssl.create_default_context())
    plain = await raw()
    await plain.send(GET)
    await plain.disconnected()
    upstream.script(OK)
    connection = await raw(ssl=ssl.create_default_context(cafile=ca_file))
    assert (await connection.ask(GET)).body == b"ok"
    assert len(upstream.requests) == 1
