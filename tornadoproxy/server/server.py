"""One running proxy: its start, its status, and its shutdown.

::

    server = Server(settings, plugins)      # plugins are loaded and configured
    await server.start()
    ...
    await server.drain()
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import resource
import ssl
from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import (
    DRAIN_TIMEOUT,
    HOST,
    MAX_CONNECTIONS,
    PORT,
    REUSE_PORT,
    SHUTDOWN_DELAY,
    TLS_CERT,
    TLS_KEY,
)
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.handlers.gateway import Gateway
from tornadoproxy.plugin.status import Status
from tornadoproxy.server.app import GatewayApplication
from tornadoproxy.server.listener import Listener
from tornadoproxy.server.listening import UNIX, SocketFile, open_sockets

if TYPE_CHECKING:
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.manager import Plugins

logger = logging.getLogger(__name__)

_MOST_CONNECTIONS = 20_000  # by default: each may take 64 kB, authenticated or not
_OTHER_DESCRIPTORS = 64  # listening sockets, logs, plugins' files
_FLUSH_TIMEOUT = 1.0  # seconds for clients to take error events after DRAIN_TIMEOUT


class Server:
    """A proxy that listens, serves requests, and shuts down gracefully."""

    def __init__(self, settings: Settings, plugins: Plugins) -> None:
        self._settings = settings
        self._plugins = plugins
        self._gateway: Gateway | None = None
        self._app: GatewayApplication | None = None
        self._listener: Listener | None = None
        self._socket_file: SocketFile | None = None
        self.port = 0
        """The port that the proxy listens on; 0 with a Unix socket."""

    @property
    def url(self) -> str:
        """The address of the proxy: ``http://127.0.0.1:8000``, or ``unix:/path``."""
        host = self._settings[HOST]
        if host.startswith(UNIX):
            return host
        scheme = "https" if self._settings[TLS_CERT] else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Start the plugins, then listen.

        :raises ConfigurationError: the proxy cannot listen on its address, or a plugin fails.
        """
        max_connections = _raise_descriptor_limit()
        tls = _tls_context(self._settings)
        # before the plugins start, since they may ask for the status
        self._gateway = Gateway(
            settings=self._settings,
            plugins=self._plugins,
            instance=os.urandom(8).hex(),
        )
        self._plugins.in_flight = self._gateway.in_flight.snapshots
        await self._plugins.startup(self.status)
        host = self._settings[HOST]
        try:
            await self._gateway.start()
            sockets = open_sockets(
                host, self._settings[PORT], reuse_port=self._settings[REUSE_PORT]
            )
        except (ConfigurationError, OSError) as error:
            await self._gateway.close()
            await self._plugins.shutdown()
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(_bind_fault(self._settings, error)) from None
        if host.startswith(UNIX):
            self._socket_file = SocketFile(host.removeprefix(UNIX))
        else:
            self.port = sockets[0].getsockname()[1]
        self._app = GatewayApplication(self._gateway)
        self._listener = Listener(
            self._gateway,
            self._app,
            sockets,
            tls=tls,
            max_connections=self._settings[MAX_CONNECTIONS] or max_connections,
        )

    def load(self) -> None:
        """Load what serves requests other than probes, unless one has come already."""
        assert self._gateway is not None
        assert self._app is not None
        _ = self._app.routes, self._gateway.admission, self._gateway.upstreams.clients
        for name in ("chat", "models", "responses_routes"):
            importlib.import_module(f"tornadoproxy.handlers.openai.{name}")

    def reload(self, settings: Settings) -> None:
        """Use reloaded tokens and keys; requests in flight are not affected.

        :raises ConfigurationError: a plugin refuses them; nothing has changed.
        """
        assert self._gateway is not None
        self._gateway.reload(settings)

    def status(self) -> Status:
        """Return the present figures; available once `start` starts the plugins."""
        gateway = self._gateway
        assert gateway is not None
        clients = gateway.upstreams.clients
        names = [info.name for info in self._plugins.describe() if info.state == "active"]
        return Status(
            in_flight=len(gateway.in_flight),
            waiting=gateway.admission.waiting,
            held_bytes=gateway.body_budget.used,
            client_connections=0 if self._listener is None else self._listener.connections,
            upstream_connections=sum(each.busy_connections for each in clients),
            idle_upstream_connections=sum(each.idle_connections for each in clients),
            plugin_failures={name: self._plugins.failures[name] for name in names},
            plugin_refusals={name: self._plugins.refusals[name] for name in names},
            draining=gateway.draining,
            databases=gateway.database_status(),
            upstreams=gateway.upstreams.status(),
        )

    async def drain(self) -> None:
        """Shut down gracefully: accept no connections, close idle ones, let requests finish.

        Before that, requests are served for ``SHUTDOWN_DELAY`` seconds more, with a readiness of
        503, and each connection is closed after its response.

        Requests that have not ended after ``DRAIN_TIMEOUT`` seconds are aborted. Then the plugins
        are shut down.
        """
        assert self._gateway is not None
        assert self._listener is not None
        self._gateway.draining = True
        delay = self._settings[SHUTDOWN_DELAY]
        if delay:
            logger.info("stopping in %g seconds (SHUTDOWN_DELAY): /ready responds with 503", delay)
            await asyncio.sleep(delay)
        logger.info("stopping: no new connections, requests in flight may finish")
        if self._socket_file is not None:
            self._socket_file.remove()
        await self._listener.stop()
        try:
            async with asyncio.timeout(self._settings[DRAIN_TIMEOUT]):
                await self._listener.all_idle()
        except TimeoutError:
            logger.warning(
                "aborting %d requests: DRAIN_TIMEOUT is over", len(self._gateway.in_flight)
            )
            self.abort()
            await self._flush_error_events()
        await self._listener.close()
        await self._gateway.close()
        await self._plugins.shutdown()

    def abort(self) -> None:
        """Abort all requests in flight."""
        if self._gateway is not None:
            self._gateway.in_flight.end_all()

    async def _flush_error_events(self) -> None:
        assert self._listener is not None
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._listener.all_idle()
        except TimeoutError:
            pass


def _raise_descriptor_limit() -> int:
    """Raise the process's limit of open descriptors to the highest that the system allows.

    :return: the number of client connections for which that suffices: each may need a second
        descriptor, for the upstream.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            logger.debug("the limit of open files stays at %d: %s", soft, error)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(_MOST_CONNECTIONS, max(1, (soft - _OTHER_DESCRIPTORS) // 2))


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    cert, key = settings[TLS_CERT], settings[TLS_KEY]
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _bind_fault(settings: Settings, error: OSError) -> str:
    reason = error.strerror or error
    if settings[HOST].startswith(UNIX):
        return f"cannot listen on HOST {settings[HOST]}: {reason}; choose another path"
    where = f"HOST {settings[HOST]}, PORT {settings[PORT]}"
    return f"cannot listen on {where}: {reason}; choose another PORT or HOST"
