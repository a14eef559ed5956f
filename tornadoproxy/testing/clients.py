"""Fixtures that send requests: raw connections, and the two SDKs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.fakes.http_message import request_bytes
from tornadoproxy.fakes.raw_client import RawConnection, RawResponse
from tornadoproxy.testing.loop import run
from tornadoproxy.testing.proxies import TEST_TOKEN, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ssl import SSLContext

    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI
    from tornado.ioloop import IOLoop

    from tornadoproxy.fakes.http_message import Headers
    from tornadoproxy.fakes.http_server import ScriptedServer


class OpenRaw:
    """Opens raw connections; see the fixture `raw`."""

    def __init__(self, proxies: list[Proxy]) -> None:
        self._proxies = proxies
        self.opened: list[RawConnection] = []

    async def __call__(
        self,
        to: Proxy | ScriptedServer | None = None,
        *,
        ssl: SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> RawConnection:
        """Open a connection to `to`, or to the proxy started last; see `RawConnection.open`."""
        port = (to or self._proxies[-1]).port
        connection = await RawConnection.open(port, ssl=ssl, receive_buffer=receive_buffer)
        self.opened.append(connection)
        return connection


class Ask:
    """Sends requests, each on a connection of its own; see the fixture `ask`."""

    def __init__(self, raw: OpenRaw) -> None:
        self._raw = raw

    async def __call__(
        self,
        target: str | bytes,
        document: object = None,
        *,
        method: str | None = None,
        headers: Headers = (),
        body: bytes = b"",
        token: str | None = TEST_TOKEN,
        to: Proxy | ScriptedServer | None = None,
    ) -> RawResponse:
        """Send one request, and return the whole response.

        :param target: the request target; `bytes` are the whole request.
        :param document: sent as JSON.
        :param method: by default POST with a body, otherwise GET.
        :param body: sent unchanged.
        :param token: sent as ``Authorization: Bearer``; ``None`` sends none.
        :param to: the server, by default the proxy started last.
        :raises Truncated: the response is cut short.
        """
        if document is not None:
            body = json.dumps(document).encode()
        if isinstance(target, str):
            method = method or ("POST" if body else "GET")
            target = request_bytes(method, target, headers, body, token=token)
        connection = await self._raw(to)
        try:
            return await connection.ask(target, to_head=target.startswith(b"HEAD "))
        finally:
            await connection.close()


@pytest.fixture
def raw(io_loop: IOLoop, _proxies: list[Proxy]) -> Iterator[OpenRaw]:
    """Opens connections: ``await raw()`` opens one to the proxy started last."""
    open_raw = OpenRaw(_proxies)
    yield open_raw
    for connection in open_raw.opened:
        run(io_loop, connection.close)


@pytest.fixture
def ask(raw: OpenRaw) -> Ask:
    """Sends one request on a connection of its own, and returns the response.

    ``await ask("/v1/models")`` sends a GET with `TEST_TOKEN`;
    ``await ask("/v1/messages", {"model": ...})`` a POST of that JSON document.
    """
    return Ask(raw)


@pytest.fixture
def anthropic_client(
    io_loop: IOLoop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AsyncAnthropic]:
    """The Anthropic SDK's client of `proxy`, without retries."""
    from anthropic import AsyncAnthropic  # a plugin's tests may do without it

    clean_environment(monkeypatch)
    client = AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0)
    yield client
    run(io_loop, client.close)


@pytest.fixture
def openai_client(
    io_loop: IOLoop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AsyncOpenAI]:
    """The OpenAI SDK's client of `proxy`, without retries."""
    from openai import AsyncOpenAI  # a plugin's tests may do without it

    clean_environment(monkeypatch)
    client = AsyncOpenAI(base_url=f"{proxy.url}/openai/v1", api_key=TEST_TOKEN, max_retries=0)
    yield client
    run(io_loop, client.close)


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove, for one test, the environment variables that change where the SDKs connect."""
    for name in list(os.environ):
        if name.upper().startswith(("ANTHROPIC_", "OPENAI_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
