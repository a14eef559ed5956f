"""pytest fixtures that run the real proxy in front of a scripted upstream, on real sockets.

For this project's tests and for those of plugins. Opt in, in the topmost ``conftest.py``::

    pytest_plugins = ["tornadoproxy.testing"]

Then every ``async def`` test runs in an event loop of its own, and takes what it needs::

    async def test_hello(anthropic_client, upstream, records):
        message = await anthropic_client.messages.create(
            model="claude-sonnet-5-5", max_tokens=100, messages=[{"role": "user", "content": "Hi"}]
        )
        assert message.content[0].text.endswith("Hi")
        assert upstream.requests[0].header("x-api-key") == TEST_UPSTREAM_KEY
        assert (await records.finished()).outcome == "completed"

It needs what ``pip install tornadoproxy[test]`` installs; the two SDKs only for their clients.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import pytest
from tornado.ioloop import IOLoop

from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.fakes.anthropic_api import (
    Document,
    Headers,
    ProtocolError,
    ReceivedRequest,
    Response,
    ScriptedServer,
    ScriptedUpstream,
    UpstreamExchange,
    bytes_response,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    raw_response,
    response_head,
    silent_response,
    sse_response,
)
from tornadoproxy.fakes.raw_client import RawConnection, RawResponse, Truncated, request_bytes
from tornadoproxy.plugin.hookspecs import PROJECT, hookimpl
from tornadoproxy.plugin.manager import Plugins
from tornadoproxy.plugin.request import Outcome, RequestRecord
from tornadoproxy.protocol.usage import Usage
from tornadoproxy.server.configuration import Configuration, configure
from tornadoproxy.server.server import Server

if TYPE_CHECKING:
    from ssl import SSLContext

    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

    from tornadoproxy.config.settings import Settings


__all__ = [
    "TEST_TOKEN",
    "TEST_UPSTREAM_KEY",
    "Ask",
    "Document",
    "OpenRaw",
    "ProtocolError",
    "Proxy",
    "RawConnection",
    "RawResponse",
    "ReceivedRequest",
    "Records",
    "Response",
    "ScriptedServer",
    "ScriptedUpstream",
    "StartProxy",
    "Truncated",
    "UpstreamExchange",
    "bytes_response",
    "clean_environment",
    "error_response",
    "event",
    "json_response",
    "message_document",
    "message_events",
    "raw_response",
    "request_bytes",
    "request_record",
    "response_head",
    "silent_response",
    "sse_response",
]

TEST_TOKEN = "test-token-that-clients-present"  # noqa: S105 - opens nothing but a test's proxy
TEST_UPSTREAM_KEY = "test-key-that-the-upstream-gets"
TIDY_TIMEOUT = 20.0  # seconds for each step of taking a test's fixtures down

# the earlier names, until 0.2
Answer = Response
bytes_answer = bytes_response
error_answer = error_response
json_answer = json_response
raw_answer = raw_response
silent_answer = silent_response
sse_answer = sse_response

ExtraPlugins: TypeAlias = Iterable[object] | Mapping[str, object]
T = TypeVar("T")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have pytest-tornado run every coroutine test."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.add_marker(pytest.mark.gen_test)


class Records:
    """The record of every request that a test's proxies have finished."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []
        self._changed = asyncio.Event()

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        """Take a record in, as a plugin."""
        self.all.append(record)
        self._changed.set()
        self._changed = asyncio.Event()

    async def finished(self, count: int = 1) -> RequestRecord:
        """Wait until `count` requests have ended since the test began; return that one's."""
        while len(self.all) < count:
            await self._changed.wait()
        return self.all[count - 1]


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    :ivar server: the real server.
    :ivar settings: what it was started with.
    :ivar plugins: its plugins.
    :ivar lines: what its plugins answered to ``configure``: name and line.
    """

    server: Server
    settings: Settings
    plugins: Plugins
    lines: tuple[tuple[str, str], ...]
    _variables: Mapping[str, object] = field(repr=False)

    @property
    def url(self) -> str:
        """Its origin, without a path."""
        return self.server.url

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.server.port

    def reload(self, **variables: object) -> None:
        """Have it read its settings anew, as SIGHUP does, with these ones changed.

        :raises ConfigurationError: they are wrong.
        """
        _refuse_unknown(variables, self.plugins)
        given = {**self._variables, **variables}
        self.server.reload(_configuration(given).settings(self.plugins))


class StartProxy(Protocol):
    """Starts a proxy in front of ``upstream``; see `start_proxy`."""

    async def __call__(self, *, plugins: ExtraPlugins = (), **variables: object) -> Proxy:
        """Start one more."""


class Ask(Protocol):
    """Sends a request on a connection of its own; see `ask`."""

    async def __call__(
        self,
        target: str | bytes,
        document: object = None,
        *,
        method: str | None = None,
        headers: Headers = (),
        body: bytes = b"",
        token: str | None = TEST_TOKEN,
        to: Proxy | None = None,
    ) -> RawResponse:
        """Send one more, and return the response."""


class OpenRaw(Protocol):
    """Opens a raw connection; see `raw`."""

    async def __call__(
        self,
        to: Proxy | ScriptedServer | None = None,
        *,
        ssl: SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> RawConnection:
        """Open one more."""


@pytest.fixture
def asyncio_loop() -> asyncio.AbstractEventLoop:
    """The event loop below `io_loop`, which closes it. Override it to test with another kind."""
    return asyncio.new_event_loop()


@pytest.fixture
def io_loop(asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[IOLoop]:
    """A loop for one test, in place of pytest-tornado's.

    The test fails if something in the loop failed that nobody awaited.
    """
    faults: list[dict[str, Any]] = []  # asyncio's exception contexts hold anything
    asyncio_loop.set_exception_handler(lambda _, context: faults.append(context))
    io_loop = IOLoop(make_current=False, asyncio_loop=asyncio_loop)
    asyncio.set_event_loop(asyncio_loop)
    try:
        yield io_loop
        io_loop.run_sync(_tidy, timeout=TIDY_TIMEOUT)
    finally:
        asyncio.set_event_loop(None)
        io_loop.close()
    for fault in faults:
        raise AssertionError(f"in the event loop: {fault}") from fault.get("exception")


async def _tidy() -> None:
    """Leave nothing to the loop's closing."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


@pytest.fixture
def upstream(io_loop: IOLoop) -> Iterator[ScriptedUpstream]:
    """A scripted upstream. The test fails if something reached it that is not HTTP/1.1."""
    upstream = ScriptedUpstream()
    _run(io_loop, upstream.start)
    yield upstream
    _run(io_loop, upstream.stop)
    if upstream.failures:
        raise ExceptionGroup("at the scripted upstream", upstream.failures)


@pytest.fixture
def records() -> Records:
    """The records of all requests to this test's proxies."""
    return Records()


@pytest.fixture
def _proxies(io_loop: IOLoop) -> Iterator[list[Proxy]]:
    """The proxies of this test, the last one last."""
    proxies: list[Proxy] = []
    yield proxies
    for proxy in reversed(proxies):
        _run(io_loop, proxy.server.drain)


@pytest.fixture(scope="session")
def _installed() -> importlib.metadata.EntryPoints:
    """The installed plugins' entry points, which take a while to find."""
    return importlib.metadata.entry_points(group=PROJECT)


@pytest.fixture
def start_proxy(
    _proxies: list[Proxy],
    _installed: importlib.metadata.EntryPoints,
    upstream: ScriptedUpstream,
    records: Records,
) -> StartProxy:
    """Starts real proxies in front of `upstream`: ``await start_proxy(UPSTREAM_IDLE_TIMEOUT=1)``.

    Keyword arguments are variables as the environment has them; `None` leaves one of the test's
    own out, as ``AUTH_TOKEN=None`` does. Without the test's own ``CHAT_DEFAULT_MAX_TOKENS`` the
    proxy asks the upstream for its models before a chat completion that names no limit. `plugins`
    are plugin objects beside the installed ones; a mapping names them. Each is drained at the end
    of the test.

    Raises `ConfigurationError` as the program would.
    """

    async def start(*, plugins: ExtraPlugins = (), **variables: object) -> Proxy:
        given = {
            "HOST": "127.0.0.1",
            "PORT": 0,
            "AUTH_TOKEN": TEST_TOKEN,
            "UPSTREAM_BASE_URL": upstream.url,
            "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
            "DRAIN_TIMEOUT": 1,
            "CHAT_DEFAULT_MAX_TOKENS": 32_000,
            **variables,
        }
        extra = _entry_points({"records": records, **_named(plugins)})
        loaded = Plugins.load(_configuration(given).disabled(), [*_installed, *extra])
        _refuse_unknown(variables, loaded)
        settings = _configuration(given).settings(loaded)
        lines = configure(loaded, settings)
        server = Server(settings, loaded)
        await server.start()
        proxy = Proxy(server, settings, loaded, lines, given)
        _proxies.append(proxy)
        return proxy

    return start


@pytest.fixture
def proxy(io_loop: IOLoop, start_proxy: StartProxy) -> Proxy:
    """A proxy that lets `TEST_TOKEN` in, and gives `TEST_UPSTREAM_KEY` to `upstream`."""
    return _run(io_loop, start_proxy)


@pytest.fixture
def raw(io_loop: IOLoop, _proxies: list[Proxy]) -> Iterator[OpenRaw]:
    """Opens raw connections, to the proxy started last unless told: ``await raw()``."""
    connections: list[RawConnection] = []

    async def open_raw(
        to: Proxy | ScriptedServer | None = None,
        *,
        ssl: SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> RawConnection:
        port = (to or _proxies[-1]).port
        connection = await RawConnection.open(port, ssl=ssl, receive_buffer=receive_buffer)
        connections.append(connection)
        return connection

    yield open_raw
    for connection in connections:
        _run(io_loop, connection.close)


@pytest.fixture
def ask(raw: OpenRaw) -> Ask:
    """Sends one request on a connection of its own, and returns the whole response.

    ``await ask("/v1/models")`` sends a GET with `TEST_TOKEN`;
    ``await ask("/v1/messages", {"model": ...})`` a POST of that JSON document. `body` is sent as it
    is, and `bytes` in place of the target are the whole request. `token` becomes
    ``Authorization: Bearer``; `None` sends none. The proxy started last is asked, unless `to` names
    another.

    Raises `Truncated` if the response is not whole.
    """

    async def send(
        target: str | bytes,
        document: object = None,
        *,
        method: str | None = None,
        headers: Headers = (),
        body: bytes = b"",
        token: str | None = TEST_TOKEN,
        to: Proxy | None = None,
    ) -> RawResponse:
        if document is not None:
            body = json.dumps(document).encode()
        if isinstance(target, str):
            method = method or ("POST" if body else "GET")
            target = request_bytes(method, target, headers, body, token=token)
        connection = await raw(to)
        try:
            return await connection.ask(target, to_head=target.startswith(b"HEAD "))
        finally:
            await connection.close()

    return send


def request_record(**changes: Any) -> RequestRecord:  # any field of a record
    """Return the record of a completed ``POST /v1/messages``, with these fields changed."""
    fields: dict[str, Any] = {
        "time": 1_796_000_000.0,
        "request_id": "req_1",
        "principal": "ada",
        "method": "POST",
        "route": "/v1/messages",
        "dialect": "anthropic",
        "remote_ip": "127.0.0.1",
        "status": 200,
        "outcome": Outcome.COMPLETED,
        "error": None,
        "model": "claude-sonnet-5-5",
        "usage": Usage(10, 5),
        "bytes_in": 100,
        "bytes_out": 200,
        "duration": 0.5,
        "time_to_first_byte": 0.1,
        "upstream_time": 0.4,
        "session_id": None,
        "agent_id": None,
        "parent_agent_id": None,
    }
    return RequestRecord(**{**fields, **changes})


@pytest.fixture
def anthropic_client(
    io_loop: IOLoop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AsyncAnthropic]:
    """The Anthropic SDK's client of `proxy`, without retries."""
    from anthropic import AsyncAnthropic  # a plugin's tests may do without it

    clean_environment(monkeypatch)
    client = AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0)
    yield client
    _run(io_loop, client.close)


@pytest.fixture
def openai_client(
    io_loop: IOLoop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AsyncOpenAI]:
    """The OpenAI SDK's client of `proxy`, without retries."""
    from openai import AsyncOpenAI  # a plugin's tests may do without it

    clean_environment(monkeypatch)
    client = AsyncOpenAI(base_url=f"{proxy.url}/openai/v1", api_key=TEST_TOKEN, max_retries=0)
    yield client
    _run(io_loop, client.close)


@pytest.fixture
def http_server(proxy: Proxy) -> Server:
    """What pytest-tornado's ``http_client`` waits for."""
    return proxy.server


@pytest.fixture
def http_port(proxy: Proxy) -> int:
    """The port of `proxy`."""
    return proxy.port


@pytest.fixture
def base_url(proxy: Proxy) -> str:
    """The origin of `proxy`, in place of pytest-tornado's."""
    return proxy.url


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away, for one test, what of the environment steers the SDKs elsewhere."""
    for name in list(os.environ):
        if name.upper().startswith(("ANTHROPIC_", "OPENAI_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


def _run(io_loop: IOLoop, function: Callable[[], Awaitable[T]]) -> T:
    result: T = io_loop.run_sync(function, timeout=TIDY_TIMEOUT)
    return result


def _configuration(variables: Mapping[str, object]) -> Configuration:
    environment = {name: str(value) for name, value in variables.items() if value is not None}
    # no .env file that happens to lie about has a say in a test
    return Configuration(("--env-file", os.devnull), environment)


def _refuse_unknown(variables: Mapping[str, object], plugins: Plugins) -> None:
    """The environment may hold anything; a test that misspells a setting shall know."""
    declared = (*CORE_SETTINGS, *plugins.declared_settings())
    known = {name for setting in declared for name in (setting.name, *setting.fallbacks)}
    given = {name for name, value in variables.items() if value is not None}
    if unknown := sorted(given - known):
        raise ConfigurationError(*(f"{name} is not a setting" for name in unknown))


def _named(plugins: ExtraPlugins) -> dict[str, object]:
    if isinstance(plugins, Mapping):
        return dict(plugins)
    return {getattr(plugin, "__name__", type(plugin).__name__): plugin for plugin in plugins}


def _entry_points(plugins: Mapping[str, object]) -> list[importlib.metadata.EntryPoint]:
    return [_ObjectEntryPoint(name, plugin) for name, plugin in plugins.items()]


class _ObjectEntryPoint(importlib.metadata.EntryPoint):
    """An entry point that leads to an object at hand."""

    def __init__(self, name: str, plugin: object) -> None:
        super().__init__(name=name, value=f"{__name__}:plugin", group=PROJECT)
        vars(self)["_plugin"] = plugin  # the class forbids assignment

    def load(self) -> object:
        return vars(self)["_plugin"]
