"""Connections to the upstream through an egress proxy."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tornadoproxy.testing import TEST_UPSTREAM_KEY, ScriptedUpstream, bytes_response
from tornadoproxy.upstream import connector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import Ask, Response, StartProxy

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
) -> Iterator[tuple[ScriptedUpstream, Path]]:
    """An upstream with TLS, and the file of its authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "::1").configure_cert(context)
    upstream = ScriptedUpstream(ssl=context)
    io_loop.run_sync(lambda: upstream.start(request.param))
    yield upstream, tmp_path / "ca.pem"
    io_loop.run_sync(upstream.stop)


@pytest.fixture
def settings(secure: tuple[ScriptedUpstream, Path], egress: Egress) -> dict[str, Any]:
    """The settings of a proxy in front of both, as start_proxy takes them."""
    return {
        "UPSTREAM_BASE_URL": secure[0].url,
        "UPSTREAM_CA_FILE": secure[1],
        "HTTPS_PROXY": f"http://127.0.0.1:{egress.port}",
    }


@pytest.mark.parametrize("secure", ["127.0.0.1", "::1"], indirect=True)
async def test_https_upstream_is_reached_through_the_tunnel(
    start_proxy: StartProxy,
    ask: Ask,
    secure: tuple[ScriptedUpstream, Path],
    egress: Egress,
    settings: dict[str, Any],
) -> None:
    upstream, _ = secure
    upstream.script(OK, OK)
    settings["HTTPS_PROXY"] = f"http://us%40er:p%3a%20ss@127.0.0.1:{egress.port}"
    await start_proxy(**settings, NO_PROXY="other.example")
    for _ in range(2):
        assert (await ask("/v1/x")).body == b"ok"
    target = upstream.url.removeprefix("https://")
    credentials = base64.b64encode(b"us@er:p: ss").decode()
    assert egress.heads == [
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        f"Proxy-Authorization: Basic {credentials}\r\n\r\n".encode()
    ]
    assert TEST_UPSTREAM_KEY.encode() not in egress.passed
    assert upstream.requests[0].header("Proxy-Authorization") is None


async def test_egress_proxy_without_credentials_responds_in_pieces(
    start_proxy: StartProxy,
    ask: Ask,
    secure: tuple[ScriptedUpstream, Path],
    egress: Egress,
    settings: dict[str, Any],
) -> None:
    egress.response = [b"HTTP/1.0 20", b"0 OK\r\nVia: x\r\n", b"\r", b"\n"]
    secure[0].script(OK)
    await start_proxy(**settings)
    assert (await ask("/v1/x")).body == b"ok"
    assert b"Proxy-Authorization" not in egress.heads[0]


async def test_no_proxy_bypasses_the_egress_proxy(
    start_proxy: StartProxy,
    ask: Ask,
    secure: tuple[ScriptedUpstream, Path],
    egress: Egress,
    settings: dict[str, Any],
) -> None:
    secure[0].script(OK, OK)
    await start_proxy(**settings, NO_PROXY="example.com, 127.0.0.0/8")
    assert (await ask("/v1/x")).body == b"ok"
    assert egress.heads == []
    await start_proxy(**settings, NO_PROXY="local, 128.0.0.1, ::2, 10.0.0.0/8, 127.0.0.1:1")
    assert (await ask("/v1/x")).body == b"ok"
    assert len(egress.heads) == 1


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


async def test_http_upstream_is_never_tunnelled(
    start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, egress: Egress
) -> None:
    upstream.script(OK)
    await start_proxy(HTTPS_PROXY=f"http://127.0.0.1:{egress.port}")
    assert (await ask("/v1/x")).body == b"ok"
    assert egress.heads == []


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n",
        b"garbage\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"x" * 100_000,
    ],
    ids=["407", "302", "garbage", "empty", "cut short", "too long"],
)
async def test_refusal_of_the_egress_proxy_is_502(
    start_proxy: StartProxy,
    ask: Ask,
    secure: tuple[ScriptedUpstream, Path],
    egress: Egress,
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    response: bytes,
) -> None:
    egress.response = [response]
    egress.tunnels = False
    settings["HTTPS_PROXY"] = f"http://user:hush-hush@127.0.0.1:{egress.port}"
    await start_proxy(**settings)
    with caplog.at_level(logging.DEBUG):
        refused = await ask("/v1/x")
    error = json.loads(refused.body)["error"]
    assert (refused.status, error["type"]) == (502, "api_error")
    assert "egress proxy" in error["message"]
    secret = base64.b64encode(b"user:hush-hush").decode()
    for text in (error["message"], *caplog.messages):
        assert "hush-hush" not in text
        assert secret not in text
    assert "egress proxy" in "\n".join(caplog.messages)
    assert secure[0].connections == 0


async def test_silent_egress_proxy_is_504(
    start_proxy: StartProxy, ask: Ask, egress: Egress
) -> None:
    egress.response = []
    egress.tunnels = False
    await start_proxy(
        UPSTREAM_BASE_URL="https://api.example",
        HTTPS_PROXY=f"http://127.0.0.1:{egress.port}",
        UPSTREAM_CONNECT_TIMEOUT=0.05,
    )
    assert (await ask("/v1/x")).status == 504
    assert egress.heads[0].startswith(b"CONNECT api.example:443 HTTP/1.1\r\n")


async def test_absent_egress_proxy_is_502(
    start_proxy: StartProxy, ask: Ask, egress: Egress
) -> None:
    await egress.stop()
    await start_proxy(
        UPSTREAM_BASE_URL="https://api.example", HTTPS_PROXY=f"http://127.0.0.1:{egress.port}"
    )
    assert (await ask("/v1/x")).status == 502
