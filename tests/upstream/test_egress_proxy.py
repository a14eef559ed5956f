"""Connections to the upstream through an egress proxy."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trustme

from tornadoproxy import parsers
from tornadoproxy.config.core_settings import (
    HTTPS_PROXY,
    NO_PROXY,
    UPSTREAM_CA_FILE,
    UPSTREAM_CONNECT_TIMEOUT,
)
from tornadoproxy.errors import UpstreamTimeout, UpstreamUnreachable
from tornadoproxy.testing import ScriptedUpstream, bytes_response
from tornadoproxy.upstream import connector
from tornadoproxy.upstream.client import UpstreamClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornado.ioloop import IOLoop
    from upstream.conftest import MakeClient

    from tornadoproxy.testing import Response

Behind: TypeAlias = Callable[..., UpstreamClient]

OK: Response = bytes_response(b"ok")


class Egress:
    """An HTTP proxy that opens the requested tunnel, or sends another response."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.passed = b""
        self.response = [b"HTTP/1.1 200 Connection established\r\n\r\n"]
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
            for piece in self.response:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if self.tunnels:
                await self._tunnel(head.split()[1].decode(), reader, writer)
            elif not self.response:
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


@pytest.fixture(params=["127.0.0.1"])
def secure(
    io_loop: IOLoop, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[ScriptedUpstream]:
    """An upstream with TLS, whose authority is in the file ``ca.pem``."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "::1").configure_cert(context)
    upstream = ScriptedUpstream(ssl=context)
    io_loop.run_sync(lambda: upstream.start(request.param))
    yield upstream
    io_loop.run_sync(upstream.stop)


@pytest.fixture
def behind(make_client: MakeClient, egress: Egress, tmp_path: Path) -> Behind:
    """A function that makes a client behind `egress`."""

    def make(credentials: str = "", no_proxy: str = "") -> UpstreamClient:
        proxy = f"http://{credentials}127.0.0.1:{egress.port}"
        ca_file = tmp_path / "ca.pem"
        return make_client(
            {
                HTTPS_PROXY: parsers.egress_proxy(proxy),
                NO_PROXY: parsers.words(no_proxy),
                UPSTREAM_CA_FILE: ca_file if ca_file.exists() else None,
                UPSTREAM_CONNECT_TIMEOUT: 0.2,
            }
        )

    return make


@pytest.mark.parametrize("secure", ["127.0.0.1", "::1"], indirect=True)
async def test_https_upstream_is_reached_through_the_tunnel(
    behind: Behind, secure: ScriptedUpstream, egress: Egress
) -> None:
    secure.script(OK, OK)
    client = behind("us%40er:p%3a%20ss@", no_proxy="other.example")
    for _ in range(2):
        assert (await client.fetch(secure.url)).body == b"ok"
    target = secure.url.removeprefix("https://")
    credentials = base64.b64encode(b"us@er:p: ss").decode()
    assert egress.heads == [
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        f"Proxy-Authorization: Basic {credentials}\r\n\r\n".encode()
    ]
    assert b"GET" not in egress.passed
    assert secure.requests[0].header("Proxy-Authorization") is None


async def test_egress_proxy_without_credentials_responds_in_pieces(
    behind: Behind, secure: ScriptedUpstream, egress: Egress
) -> None:
    egress.response = [b"HTTP/1.0 20", b"0 OK\r\nVia: x\r\n", b"\r", b"\n"]
    secure.script(OK)
    assert (await behind().fetch(secure.url)).body == b"ok"
    assert b"Proxy-Authorization" not in egress.heads[0]


async def test_upstream_is_reached_directly_by_no_proxy_or_http(
    behind: Behind, secure: ScriptedUpstream, upstream: ScriptedUpstream, egress: Egress
) -> None:
    secure.script(OK)
    assert (await behind(no_proxy="127.0.0.0/8").fetch(secure.url)).body == b"ok"
    upstream.script(OK)
    assert (await behind().fetch(upstream.url)).body == b"ok"
    assert egress.heads == []


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
        ("corp.example", "*.corp.example", "api.corp.example"),
        ("notcorp.example", "example", "*.corp.example corp.example"),
    ],
)
def test_no_proxy_word_matches_names_domains_and_networks(
    host: str, words: str, others: str
) -> None:
    origin = connector.Origin("https", host, 8443)
    for word in words.split():
        assert connector._matches(word, origin), word
    for word in others.split():
        assert not connector._matches(word, origin), word


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"garbage 200\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"x" * 16_385,
    ],
    ids=["407", "garbage", "empty", "cut short", "too long"],
)
async def test_refusal_of_the_egress_proxy_is_an_error(
    behind: Behind, egress: Egress, caplog: pytest.LogCaptureFixture, response: bytes
) -> None:
    egress.response = [response]
    egress.tunnels = False
    with caplog.at_level(logging.DEBUG), pytest.raises(UpstreamUnreachable) as caught:
        await behind("user:hush-hush@").fetch("https://api.example")
    secret = base64.b64encode(b"user:hush-hush").decode()
    for text in (caught.value.message, caplog.text):
        assert "egress proxy" in text
        assert "hush-hush" not in text
        assert secret not in text


async def test_silent_or_absent_egress_proxy_is_an_error(behind: Behind, egress: Egress) -> None:
    egress.response = []
    egress.tunnels = False
    with pytest.raises(UpstreamTimeout):
        await behind().fetch("https://api.example")
    assert egress.heads[0].startswith(b"CONNECT api.example:443 HTTP/1.1\r\n")
    await egress.stop()
    with pytest.raises(UpstreamUnreachable):
        await behind().fetch("https://api.example")
