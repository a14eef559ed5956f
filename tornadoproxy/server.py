"""One running proxy: its sockets, its readiness, and its end.

::

    server = Server(settings, plugins)      # plugins are loaded and configured
    await server.start()
    ...
    await server.drain()
"""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
import ssl
from typing import TYPE_CHECKING

from tornado.httpserver import HTTPServer, _HTTPRequestContext
from tornado.netutil import bind_sockets

from tornadoproxy.app import make_app
from tornadoproxy.client_connection import MAX_REQUEST_HEAD, ClientConnectionLoop
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.exchange import Outcome
from tornadoproxy.hangup import HangupWatch
from tornadoproxy.settings import (
    CLIENT_IDLE_TIMEOUT,
    DRAIN_TIMEOUT,
    HOST,
    PORT,
    REUSE_PORT,
    TLS_CERT,
    TLS_KEY,
)
from tornadoproxy.state import Gateway
from tornadoproxy.upstream import UpstreamClient

if TYPE_CHECKING:
    from tornado.iostream import IOStream

    from tornadoproxy.pluginmanager import Plugins
    from tornadoproxy.settings import Settings

logger = logging.getLogger(__name__)

_NO_LIMIT = 2**62  # of a request body, for Tornado: the handlers hold MAX_BODY_SIZE themselves
_BACKLOG = 1024
_LAST_WORDS = 1.0  # seconds for error events to go out when the drain's time is over


class Server:
    """A proxy that listens, serves, and stops in good order."""

    def __init__(self, settings: Settings, plugins: Plugins) -> None:
        self._settings = settings
        self._plugins = plugins
        self._gateway: Gateway | None = None
        self._http: _Listener | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:8000``."""
        scheme = "https" if self._settings[TLS_CERT] else "http"
        host = self._settings[HOST]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Start the plugins, then listen.

        :raises ConfigurationError: the address cannot be listened on, or a plugin does not start.
        """
        _raise_descriptor_limit()
        tls = _tls_context(self._settings)
        await self._plugins.startup()
        try:
            sockets = bind_sockets(
                self._settings[PORT],
                self._settings[HOST],
                backlog=_BACKLOG,
                reuse_port=self._settings[REUSE_PORT],
            )
        except OSError as error:
            await self._plugins.shutdown()
            raise ConfigurationError(_bind_fault(self._settings, error)) from None
        self._gateway = Gateway(
            settings=self._settings,
            plugins=self._plugins,
            upstream=UpstreamClient(force_instance=True, settings=self._settings),
            instance=secrets.token_hex(8),
        )
        self._http = _Listener(
            make_app(self._gateway),
            ssl_options=tls,
            idle_connection_timeout=self._settings[CLIENT_IDLE_TIMEOUT],
            max_header_size=2 * MAX_REQUEST_HEAD,  # beyond which there is not even a 431
            max_body_size=_NO_LIMIT,
        )
        self._http.attend(self._gateway)
        self._http.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]

    def reload(self, settings: Settings) -> None:
        """Go on with tokens and keys read anew; requests in flight are not touched.

        :raises ConfigurationError: a plugin refuses them; all is as it was.
        """
        assert self._gateway is not None
        self._gateway.reload(settings)

    async def drain(self) -> None:
        """Stop in good order: take no new connections, close idle ones, let the rest finish.

        What is not over after ``DRAIN_TIMEOUT`` seconds is cut. Then the plugins are shut down.
        """
        assert self._gateway is not None
        assert self._http is not None
        self._gateway.draining = True
        self._http.stop()
        self._http.close_idle()
        try:
            async with asyncio.timeout(self._settings[DRAIN_TIMEOUT]):
                await self._http.all_answered()
        except TimeoutError:
            logger.warning("cutting %d requests: DRAIN_TIMEOUT", len(self._gateway.in_flight))
            self.abort()
            await self._say_last_words()
        await self._http.close_all_connections()
        self._http.close()
        self._gateway.models.close()
        self._gateway.upstream.close()
        await self._plugins.shutdown()

    def abort(self) -> None:
        """Cut every request in flight, now."""
        if self._gateway is not None:
            for handler in list(self._gateway.in_flight):
                handler.cut(Outcome.DRAINED)

    async def _say_last_words(self) -> None:
        assert self._http is not None
        try:
            async with asyncio.timeout(_LAST_WORDS):
                await self._http.all_answered()
        except TimeoutError:
            pass


class _Listener(HTTPServer):
    """Tornado's server, with connections of ours."""

    def attend(self, gateway: Gateway) -> None:
        """Serve for `gateway`."""
        self._gateway = gateway
        self._hangups = HangupWatch()
        self._answered = asyncio.Event()

    def handle_stream(self, stream: IOStream, address: tuple[object, ...]) -> None:
        context = _HTTPRequestContext(stream, address, self.protocol)
        loop = ClientConnectionLoop(
            stream, self.conn_params, context, lambda: self._gateway.draining
        )
        self._connections.add(loop)
        self._hangups.add(loop.fd, loop.peer_left)
        loop.start_serving(self)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        if isinstance(server_conn, ClientConnectionLoop):
            self._hangups.remove(server_conn.fd, server_conn.peer_left)
        self._answered.set()

    def close_idle(self) -> None:
        """Close the connections that wait for a request."""
        for connection in self._loops():
            if connection.is_idle:
                connection.stream.close()

    async def all_answered(self) -> None:
        """Wait until no request is being served."""
        while any(connection.is_busy for connection in self._loops()):
            self._answered.clear()
            await self._answered.wait()

    def close(self) -> None:
        """Let go of what watches the connections."""
        self._hangups.close()

    def _loops(self) -> list[ClientConnectionLoop]:
        return [each for each in self._connections if isinstance(each, ClientConnectionLoop)]


def _raise_descriptor_limit() -> None:
    """Allow as many open connections as the system lets us: two descriptors a request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            logger.debug("the limit of open files stays at %d: %s", soft, error)


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    cert, key = settings[TLS_CERT], settings[TLS_KEY]
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _bind_fault(settings: Settings, error: OSError) -> str:
    where = f"HOST {settings[HOST]}, PORT {settings[PORT]}"
    return f"cannot listen on {where}: {error.strerror or error}; choose another PORT or HOST"
