"""Fixtures that run real proxies in front of a scripted upstream."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pytest

from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.fakes.anthropic_api import ScriptedUpstream
from tornadoproxy.plugin.hookspecs import PROJECT, hookimpl
from tornadoproxy.plugin.manager import Plugins
from tornadoproxy.secret import SecretURL
from tornadoproxy.server.configuration import Configuration, configure
from tornadoproxy.server.server import Server
from tornadoproxy.testing.loop import run

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.request import RequestRecord

TEST_TOKEN = "test-token-that-clients-present"  # noqa: S105 - opens nothing but a test's proxy
TEST_UPSTREAM_KEY = "test-key-that-the-upstream-gets"

ExtraPlugins: TypeAlias = Iterable[object] | Mapping[str, object]


class Records:
    """The records of the requests that a test's proxies have finished."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []
        self._changed = asyncio.Event()

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        """Add a record; the hook that makes this a plugin."""
        self.all.append(record)
        self._changed.set()
        self._changed = asyncio.Event()

    async def finished(self, count: int = 1) -> RequestRecord:
        """Wait until `count` requests have finished in all; return the last one's record."""
        while len(self.all) < count:
            await self._changed.wait()
        return self.all[count - 1]


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    :ivar server: the server itself.
    :ivar settings: the settings that it was started with.
    :ivar plugins: its plugins.
    :ivar lines: the results of the hook ``configure``: name and line of each plugin.
    """

    server: Server
    settings: Settings
    plugins: Plugins
    lines: tuple[tuple[str, str], ...]
    _variables: Mapping[str, object] = field(repr=False)

    @property
    def url(self) -> str:
        """The proxy's origin, without a path."""
        return self.server.url

    @property
    def port(self) -> int:
        """The port that the proxy listens on."""
        return self.server.port

    def reload(self, **variables: object) -> None:
        """Reload the settings, as SIGHUP does, with `variables` changed.

        :raises ConfigurationError: a setting is invalid.
        """
        _refuse_unknown(variables, self.plugins)
        given = {**self._variables, **variables}
        self.server.reload(_configuration(given).settings(self.plugins))


class StartProxy(Protocol):
    """The function that `start_proxy` returns."""

    async def __call__(self, *, plugins: ExtraPlugins = (), **variables: object) -> Proxy:
        """Start one more proxy."""


@pytest.fixture
def upstream(io_loop: IOLoop) -> Iterator[ScriptedUpstream]:
    """A scripted upstream. The test fails if it receives anything that is not HTTP/1.1."""
    upstream = ScriptedUpstream()
    run(io_loop, upstream.start)
    yield upstream
    run(io_loop, upstream.stop)
    if upstream.failures:
        raise ExceptionGroup("at the scripted upstream", upstream.failures)


@pytest.fixture
def records() -> Records:
    """The records of all requests to the proxies of this test."""
    return Records()


@pytest.fixture
def _proxies(io_loop: IOLoop) -> Iterator[list[Proxy]]:
    """The proxies of this test, in the order of their start."""
    proxies: list[Proxy] = []
    yield proxies
    for proxy in reversed(proxies):
        run(io_loop, proxy.server.drain)


@pytest.fixture(scope="session")
def _installed() -> importlib.metadata.EntryPoints:
    """The entry points of the installed plugins, searched for once because that is slow."""
    return importlib.metadata.entry_points(group=PROJECT)


@pytest.fixture
def start_proxy(
    _proxies: list[Proxy],
    _installed: importlib.metadata.EntryPoints,
    upstream: ScriptedUpstream,
    records: Records,
) -> StartProxy:
    """A function that starts a proxy: ``await start_proxy(UPSTREAM_IDLE_TIMEOUT=1)``.

    The proxy is a real one, in front of `upstream`, and is drained at the end of the test. Keyword
    arguments are environment variables; `None` removes a default of this fixture, such as
    ``AUTH_TOKEN=None``. ``DATABASE_TIMEOUT`` is 5 seconds, since the machine may be busy. With
    ``CHAT_DEFAULT_MAX_TOKENS=None`` the proxy requests the upstream's models before a chat
    completion without a limit. With ``UPSTREAMS_FILE`` the upstreams are those of the file.
    `plugins` are plugin objects in addition to the installed ones; a mapping names them.

    The function raises `ConfigurationError` as the program would.
    """

    default_upstream = {
        "UPSTREAM_BASE_URL": upstream.url,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
    }

    async def start(*, plugins: ExtraPlugins = (), **variables: object) -> Proxy:
        given = {
            "HOST": "127.0.0.1",
            "PORT": 0,
            "AUTH_TOKEN": TEST_TOKEN,
            **({} if "UPSTREAMS_FILE" in variables else default_upstream),
            "DRAIN_TIMEOUT": 1,
            "DATABASE_TIMEOUT": 5,
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
    """A proxy that accepts `TEST_TOKEN`, and sends `TEST_UPSTREAM_KEY` to `upstream`."""
    return run(io_loop, start_proxy)


@pytest.fixture
def http_server(proxy: Proxy) -> Server:
    """The server of `proxy`, which pytest-tornado's ``http_client`` depends on."""
    return proxy.server


@pytest.fixture
def http_port(proxy: Proxy) -> int:
    """The port of `proxy`."""
    return proxy.port


@pytest.fixture
def base_url(proxy: Proxy) -> str:
    """The origin of `proxy`, in place of pytest-tornado's."""
    return proxy.url


def _configuration(variables: Mapping[str, object]) -> Configuration:
    environment = {
        name: value.reveal() if isinstance(value, SecretURL) else str(value)
        for name, value in variables.items()
        if value is not None
    }
    # no .env file in the working directory may change a test
    return Configuration(("--env-file", os.devnull), environment)


def _refuse_unknown(variables: Mapping[str, object], plugins: Plugins) -> None:
    """Raise for a misspelled setting, which the program would ignore in its environment."""
    declared = (*CORE_SETTINGS, *plugins.declared_settings())
    known = {name for setting in declared for name in (setting.name, *setting.fallbacks)}
    given = {name for name, value in variables.items() if value is not None}
    if unknown := sorted(given - known):
        raise ConfigurationError(*(f"{name}: not a setting; correct its name" for name in unknown))


def _named(plugins: ExtraPlugins) -> dict[str, object]:
    if isinstance(plugins, Mapping):
        return dict(plugins)
    return {getattr(plugin, "__name__", type(plugin).__name__): plugin for plugin in plugins}


def _entry_points(plugins: Mapping[str, object]) -> list[importlib.metadata.EntryPoint]:
    return [_ObjectEntryPoint(name, plugin) for name, plugin in plugins.items()]


class _ObjectEntryPoint(importlib.metadata.EntryPoint):
    """An entry point that loads the given object."""

    def __init__(self, name: str, plugin: object) -> None:
        super().__init__(name=name, value=f"{__name__}:plugin", group=PROJECT)
        vars(self)["_plugin"] = plugin  # the class forbids assigning attributes

    def load(self) -> object:
        return vars(self)["_plugin"]
