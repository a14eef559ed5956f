"""Connecting: TLS on both sides, authorities, egress proxy, addresses, deadlines."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import ssl
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import anthropic
import openai
import pytest
import trustme

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    ScriptedUpstream,
    Truncated,
    bytes_response,
    raw_response,
    request_bytes,
)
from tornadoproxy.upstream import connector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import OpenRaw, RawResponse, Response, StartProxy, UpstreamExchange

OK: Response = bytes_response(b"ok")
GET = request_bytes("GET", "/v1/x", token=TEST_TOKEN)


class StartUpstream(Protocol):
    """Starts one more upstream."""

    async def __call__(
        self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> ScriptedUpstream: ...


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """What a server at 127.0.0.1, ::1 and localhost speaks TLS with."""
    return server_context(authority.issue_cert("127.0.0.1", "::1", "localhost"))


@pytest.fixture
def start_upstream(io_loop: IOLoop) -> Iterator[StartUpstream]:
    """Starts one more upstream: ``await start_upstream(tls, host="::1")``."""
    stack = AsyncExitStack()

    async def start(
        context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> ScriptedUpstream:
        upstream = ScriptedUpstream(ssl=context)
        await upstream.start(host)
        stack.push_async_callback(upstream.stop)
        return upstream

    yield start
    io_loop.run_sync(stack.aclose)


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    certificate.configure_cert(context)
    return context


async def ask(raw: OpenRaw, data: bytes = GET) -> RawResponse:
    connection = await raw()
    await connection.send(data)
    return await connection.response()


def complaint(response: RawResponse, status: int = 502) -> str:
    """The message of an error of ours with this status."""
    assert response.status == status
    error = json.loads(response.body)["error"]
    assert error["type"] == {502: "api_error", 504: "timeout_error"}[status]
    message: str = error["message"]
    return message


# -- TLS to the upstream


async def test_a_private_authority_is_trusted_by_upstream_ca_file(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    tls: ssl.SSLContext,
    ca_file: Path,
) -> None:
    upstream = await start_upstream(tls)
    protocols = []

    async def note(exchange: UpstreamExchange) -> None:
        tunnel = exchange._connection.transport.get_extra_info("ssl_object")
        protocols.append((tunnel.selected_alpn_protocol(), tunnel.version()))
        await OK(exchange)

    upstream.script(note, OK)
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=ca_file)
    connection = await raw()
    for _ in range(2):
        await connection.send(GET)
        assert (await connection.response()).body == b"ok"
    assert upstream.connections == 1
    assert upstream.requests[0].all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert protocols == [("http/1.1", "TLSv1.3")]


@pytest.mark.parametrize(
    ("identity", "lived", "reason"),
    [
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("other.example", True, "IP address mismatch"),
        ("127.0.0.1", True, "certificate has expired"),
    ],
    ids=["not trusted", "another host's", "expired"],
)
async def test_a_certificate_that_is_not_accepted_is_502_with_the_mend(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    authority: trustme.CA,
    ca_file: Path,
    caplog: pytest.LogCaptureFixture,
    identity: str,
    lived: bool,
    reason: str,
) -> None:
    expired = datetime.now(UTC) - timedelta(days=1) if "expired" in reason else None
    issuer = authority if lived else trustme.CA()
    begin = expired and expired - timedelta(days=1)
    certificate = issuer.issue_cert(identity, not_before=begin, not_after=expired)
    upstream = await start_upstream(server_context(certificate))
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=ca_file)
    with caplog.at_level(logging.WARNING, "tornadoproxy"):
        message = complaint(await ask(raw))
    assert "certificate" in message
    assert "UPSTREAM_CA_FILE" in message
    (line,) = caplog.messages
    assert reason in line
    assert f"127.0.0.1:{upstream.port}" in line
    assert upstream.requests == []


async def test_upstream_ca_file_is_trusted_instead_of_the_systems_authorities(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    tls: ssl.SSLContext,
    ca_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))  # the system's, for OpenSSL
    upstream = await start_upstream(tls)
    upstream.script(OK)
    await start_proxy(UPSTREAM_BASE_URL=upstream.url)
    assert (await ask(raw)).body == b"ok"
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=other)
    complaint(await ask(raw))
    assert len(upstream.requests) == 1


async def test_an_upstream_that_does_not_speak_tls_is_502(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await start_proxy(UPSTREAM_BASE_URL=f"https://127.0.0.1:{port}")
        with caplog.at_level(logging.WARNING, "tornadoproxy"):
            assert "UPSTREAM_BASE_URL" in complaint(await ask(raw))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_next_handshake_resumes_the_session(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    tls: ssl.SSLContext,
    ca_file: Path,
    version: ssl.TLSVersion,
) -> None:
    tls.minimum_version = tls.maximum_version = version
    upstream = await start_upstream(tls)
    resumed = []

    async def note(exchange: UpstreamExchange) -> None:
        tunnel = exchange._connection.transport.get_extra_info("ssl_object")
        resumed.append(tunnel.session_reused)
        await OK(exchange)

    upstream.script(note, note, note)
    await start_proxy(
        UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=ca_file, UPSTREAM_KEEPALIVE_TIMEOUT=0
    )
    for _ in range(3):
        assert (await ask(raw)).body == b"ok"
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
async def test_tls_that_is_cut_off_is_never_a_clean_end(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    tls: ssl.SSLContext,
    ca_file: Path,
    head: bytes,
) -> None:
    """Without close_notify anybody on the way may have ended it (RFC 8446, section 6.1)."""
    upstream = await start_upstream(tls)

    async def cut(exchange: UpstreamExchange) -> None:
        await exchange.send(head + b"x" * 500)
        below = exchange._connection.transport.get_extra_info("socket")
        below.shutdown(socket.SHUT_WR)
        await exchange.disconnected()

    upstream.script(cut)
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=ca_file)
    with pytest.raises(Truncated):
        await ask(raw)


async def test_tls_that_is_closed_ends_a_body_that_has_no_other_end(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    tls: ssl.SSLContext,
    ca_file: Path,
) -> None:
    upstream = await start_upstream(tls)
    upstream.script(raw_response(b"HTTP/1.1 200 OK\r\n\r\nwhole", end="close"))
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=ca_file)
    assert (await ask(raw)).body == b"whole"


async def test_a_kept_tls_connection_that_was_closed_is_not_used(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    tls: ssl.SSLContext,
    ca_file: Path,
) -> None:
    upstream = await start_upstream(tls)
    upstream.script(raw_response(b"HTTP/1.1 204 No Content\r\n\r\n", end="close"), OK)
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=ca_file)
    assert (await ask(raw)).status == 204
    await upstream.all_closed()
    assert (await ask(raw)).body == b"ok"
    assert len(upstream.requests) == 2


# -- addresses


@pytest.mark.parametrize("secure", [False, True])
async def test_an_ipv6_upstream(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    tls: ssl.SSLContext,
    ca_file: Path,
    secure: bool,
) -> None:
    upstream = await start_upstream(tls if secure else None, host="::1")
    upstream.script(OK)
    await start_proxy(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_CA_FILE=ca_file)
    assert (await ask(raw)).body == b"ok"
    assert upstream.requests[0].header("Host") == f"[::1]:{upstream.port}"


async def test_a_proxy_listens_on_ipv6(
    start_proxy: StartProxy,
    start_upstream: StartUpstream,
    anthropic_client: anthropic.AsyncAnthropic,
) -> None:
    proxy = await start_proxy(HOST="::1")
    assert proxy.url == f"http://[::1]:{proxy.port}"
    models = await anthropic_client.with_options(base_url=proxy.url).models.list()
    assert models.data


async def test_a_name_is_tried_at_each_of_its_addresses(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that refuses does not keep the others from being asked."""
    upstream = await start_upstream()
    upstream.script(OK)
    responses = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", upstream.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", upstream.port)),
    ]
    proxy = await start_proxy(
        UPSTREAM_BASE_URL=f"http://both.example:{upstream.port}", UPSTREAM_ALLOW_CLEARTEXT="yes"
    )
    connection = await raw(proxy)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: responses)
    await connection.send(GET)
    assert (await connection.response()).body == b"ok"


async def test_a_name_that_nobody_knows_is_502_at_once(
    start_proxy: StartProxy, raw: OpenRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    proxy = await start_proxy(
        UPSTREAM_BASE_URL="http://nothing.invalid", UPSTREAM_ALLOW_CLEARTEXT="yes"
    )
    connection = await raw(proxy)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with asyncio.timeout(1):
        await connection.send(GET)
        assert "reached" in complaint(await connection.response())


async def test_a_refused_connection_is_502_with_a_line_in_the_log(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = await start_upstream()
    await upstream.stop()
    await start_proxy(UPSTREAM_BASE_URL=upstream.url)
    with caplog.at_level(logging.WARNING, "tornadoproxy"):
        complaint(await ask(raw))
    (line,) = caplog.messages
    assert f"127.0.0.1:{upstream.port}" in line


# -- deadlines


async def test_a_connection_that_is_not_accepted_in_time_is_504(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]  # more than its backlog holds
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        await start_proxy(
            UPSTREAM_BASE_URL=f"http://127.0.0.1:{full.getsockname()[1]}",
            UPSTREAM_CONNECT_TIMEOUT=0.2,
        )
        complaint(await ask(raw), 504)
        for each in waiting:
            each.close()


async def test_a_handshake_that_stalls_is_504(start_proxy: StartProxy, raw: OpenRaw) -> None:
    async with silence() as port:
        await start_proxy(
            UPSTREAM_BASE_URL=f"https://127.0.0.1:{port}", UPSTREAM_CONNECT_TIMEOUT=0.2
        )
        complaint(await ask(raw), 504)


async def test_a_client_that_leaves_ends_the_handshake(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        began.set()
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(stall, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await start_proxy(UPSTREAM_BASE_URL=f"https://127.0.0.1:{port}")
        connection = await raw()
        await connection.send(GET)
        await began.wait()
        await connection.close()
        async with asyncio.timeout(1):
            await ended.wait()


class silence:  # noqa: N801  # used like a function
    """A port that accepts connections and says nothing."""

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._stall, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _stall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()


# -- the egress proxy


class Egress:
    """An HTTP proxy that tunnels what it is asked to, or gives another reply."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.passed = b""
        self.replies = [b"HTTP/1.1 200 Connection established\r\n\r\n"]
        self.tunnels = True
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            for piece in self.replies:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if self.tunnels:
                await self._tunnel(head.split()[1].decode(), reader, writer)
            elif self.replies:
                writer.close()
            else:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _tunnel(
        self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        host, _, port = target.rpartition(":")
        onward = await asyncio.open_connection(host.strip("[]"), int(port))
        self._writers.append(onward[1])
        await asyncio.gather(self._copy(reader, onward[1]), self._copy(onward[0], writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            self.passed += piece
            writer.write(piece)
        writer.close()


@pytest.fixture
def egress(io_loop: IOLoop) -> Iterator[Egress]:
    egress = Egress()
    io_loop.run_sync(egress.start)
    yield egress
    io_loop.run_sync(egress.stop)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_https_upstream_is_reached_through_the_egress_proxy(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    egress: Egress,
    tls: ssl.SSLContext,
    ca_file: Path,
    host: str,
) -> None:
    upstream = await start_upstream(tls, host)
    upstream.script(OK, OK)
    await start_proxy(
        UPSTREAM_BASE_URL=upstream.url,
        UPSTREAM_CA_FILE=ca_file,
        HTTPS_PROXY=f"http://us%40er:p%3a%20ss@127.0.0.1:{egress.port}",
        NO_PROXY="other.example",
    )
    connection = await raw()
    for _ in range(2):
        await connection.send(GET)
        assert (await connection.response()).body == b"ok"
    target = upstream.url.removeprefix("https://")
    credentials = base64.b64encode(b"us@er:p: ss").decode()
    assert egress.heads == [
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        f"Proxy-Authorization: Basic {credentials}\r\n\r\n".encode()
    ]
    assert TEST_UPSTREAM_KEY.encode() not in egress.passed
    assert upstream.requests[0].header("Proxy-Authorization") is None


async def test_an_egress_proxy_may_need_no_credentials_and_answer_in_pieces(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    egress: Egress,
    tls: ssl.SSLContext,
    ca_file: Path,
) -> None:
    egress.replies = [b"HTTP/1.0 20", b"0 OK\r\nVia: x\r\n", b"\r", b"\n"]
    upstream = await start_upstream(tls)
    upstream.script(OK)
    await start_proxy(
        UPSTREAM_BASE_URL=upstream.url,
        UPSTREAM_CA_FILE=ca_file,
        HTTPS_PROXY=f"http://127.0.0.1:{egress.port}",
    )
    assert (await ask(raw)).body == b"ok"
    assert b"Proxy-Authorization" not in egress.heads[0]


@pytest.mark.parametrize(
    ("no_proxy", "url_host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("example.com, 127.0.0.0/8", "127.0.0.1"),
        ("*", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        (".localhost", "localhost"),
        ("*.LOCALHOST", "localhost"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("::/64", "[::1]"),
    ],
)
async def test_no_proxy_goes_around_the_egress_proxy(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    egress: Egress,
    tls: ssl.SSLContext,
    ca_file: Path,
    no_proxy: str,
    url_host: str,
) -> None:
    upstream = await start_upstream(tls, "::1" if url_host == "[::1]" else "127.0.0.1")
    upstream.script(OK, OK, OK)
    settings: dict[str, Any] = {  # as start_proxy takes them
        "UPSTREAM_BASE_URL": f"https://{url_host}:{upstream.port}",
        "UPSTREAM_CA_FILE": ca_file,
        "HTTPS_PROXY": f"http://127.0.0.1:{egress.port}",
    }
    await start_proxy(**settings, NO_PROXY=no_proxy)
    assert (await ask(raw)).body == b"ok"
    if no_proxy not in {"*", "::1"} and "/" not in no_proxy:
        await start_proxy(**settings, NO_PROXY=f"{no_proxy}:{upstream.port}")
        assert (await ask(raw)).body == b"ok"
    assert egress.heads == []
    await start_proxy(
        **settings, NO_PROXY=f"local, *.local, 128.0.0.1, ::2, 10.0.0.0/8, {url_host}:1"
    )
    assert (await ask(raw)).body == b"ok"
    assert len(egress.heads) == 1


@pytest.mark.parametrize(
    ("word", "host", "matches"),
    [
        ("*.corp.example", "api.corp.example", True),
        ("*.corp.example:8443", "a.b.corp.example", True),
        ("*.corp.example", "corp.example", True),
        ("*.corp.example:1", "api.corp.example", False),
        ("*.corp.example", "notcorp.example", False),
        ("*corp.example", "api.corp.example", False),
    ],
)
def test_no_proxy_domain_with_wildcard(word: str, host: str, matches: bool) -> None:
    assert connector._matches(word, connector.Origin("https", host, 8443)) is matches


async def test_an_http_upstream_is_never_tunnelled(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, egress: Egress
) -> None:
    upstream.script(OK)
    await start_proxy(HTTPS_PROXY=f"http://127.0.0.1:{egress.port}")
    assert (await ask(raw)).body == b"ok"
    assert egress.heads == []


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"x" * 100_000,
        b"\r\n\r\n",
    ],
)
async def test_an_egress_proxy_that_refuses_is_502(
    start_proxy: StartProxy,
    raw: OpenRaw,
    start_upstream: StartUpstream,
    egress: Egress,
    tls: ssl.SSLContext,
    ca_file: Path,
    caplog: pytest.LogCaptureFixture,
    reply: bytes,
) -> None:
    egress.replies = [reply]
    egress.tunnels = False
    upstream = await start_upstream(tls)
    await start_proxy(
        UPSTREAM_BASE_URL=upstream.url,
        UPSTREAM_CA_FILE=ca_file,
        HTTPS_PROXY=f"http://user:hush-hush@127.0.0.1:{egress.port}",
    )
    with caplog.at_level(logging.DEBUG):
        message = complaint(await ask(raw))
    assert "egress proxy" in message
    secret = base64.b64encode(b"user:hush-hush").decode()
    for text in (message, *caplog.messages):
        assert "hush-hush" not in text
        assert secret not in text
    assert "egress proxy" in "\n".join(caplog.messages)
    assert upstream.connections == 0


async def test_an_egress_proxy_that_is_silent_is_504(
    start_proxy: StartProxy, raw: OpenRaw, egress: Egress
) -> None:
    egress.replies = []
    egress.tunnels = False
    await start_proxy(
        UPSTREAM_BASE_URL="https://api.example",
        HTTPS_PROXY=f"http://127.0.0.1:{egress.port}",
        UPSTREAM_CONNECT_TIMEOUT=0.2,
    )
    complaint(await ask(raw), 504)
    assert egress.heads[0].startswith(b"CONNECT api.example:443 HTTP/1.1\r\n")


async def test_an_egress_proxy_that_is_not_there_is_502(
    start_proxy: StartProxy, raw: OpenRaw, egress: Egress
) -> None:
    await egress.stop()
    await start_proxy(
        UPSTREAM_BASE_URL="https://api.example", HTTPS_PROXY=f"http://127.0.0.1:{egress.port}"
    )
    complaint(await ask(raw))


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


async def test_the_sdks_speak_tls_with_the_proxy(
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


async def test_a_client_that_does_not_trust_the_proxy_or_speaks_no_tls_harms_nobody(
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
    await connection.send(GET)
    assert (await connection.response()).body == b"ok"
    assert len(upstream.requests) == 1
