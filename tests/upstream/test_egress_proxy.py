"""Connections to the upstream through an egress proxy."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from upstream.conftest import MakeClient

from tornadoproxy import Secret, Settings, parsers
from tornadoproxy.config.core_settings import (
    HTTPS_PROXY,
    NO_PROXY,
    UPSTREAM_CA_FILE,
    UPSTREAM_CONNECT_TIMEOUT,
)
from tornadoproxy.config.urls import EgressProxy
from tornadoproxy.errors import UpstreamTimeout, UpstreamUnreachable
from tornadoproxy.upstream import connector
from tornadoproxy.upstream.connector import Connector, Origin

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
