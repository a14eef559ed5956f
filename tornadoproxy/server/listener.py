"""The listening sockets and the client connections accepted from them, up to a limit.

Each request takes two descriptors, the client's and the upstream's, so that the number of
connections is limited by what the process may open. At the limit, one connection is closed to make
room for the next: the one that has been without an authenticated request longest. So idle
connections make room, and so do those in a TLS handshake, within a request's head, within a body
that is not authenticated, and within the rest of a body after its response. If descriptors run out
all the same, nothing is accepted for `BACK_OFF` seconds; new connections wait in the system's queue
meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import (
    CLIENT_BODY_TIMEOUT,
    CLIENT_IDLE_TIMEOUT,
    MAX_HEADER_SIZE,
    MIN_BODY_RATE,
)
from tornadoproxy.server.client_connection import ClientConnection
from tornadoproxy.server.hangup import HangupWatch

if TYPE_CHECKING:
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.server.app import GatewayApplication
    from tornadoproxy.server.client_transport import ClientTransport
    from tornadoproxy.server.request_connection import Peer

logger = logging.getLogger(__name__)

BACK_OFF = 1.0
"""How long nothing is accepted after descriptors or socket memory ran out, in seconds."""

_GRACE = 0.1  # seconds before a new connection makes room: a request may be on its way
_WARNING_INTERVAL = 60.0  # seconds between two log lines about that
_TURNS_TO_BE_READ = 5  # of the event loop: to be accepted, made, watched, found readable, and read
_ACCEPTS_PER_TURN = 64  # of the event loop, which has others to serve
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Listener:
    """The listening sockets of a proxy and the connections that came through them."""

    def __init__(
        self,
        gateway: Gateway,
        app: GatewayApplication,
        sockets: list[socket.socket],
        *,
        tls: ssl.SSLContext | None,
        max_connections: int,
    ) -> None:
        self.app = app
        self.idle_timeout = gateway.settings[CLIENT_IDLE_TIMEOUT]
        self.body_timeout = gateway.settings[CLIENT_BODY_TIMEOUT]
        self.min_body_rate = gateway.settings[MIN_BODY_RATE]
        self.body_budget = gateway.body_budget
        self.request_ids = gateway.request_ids
        self.max_head = gateway.settings[MAX_HEADER_SIZE]
        # clients of a Unix socket are on this machine; other clients without an address have
        # disconnected already
        is_unix = sockets[0].family is socket.AF_UNIX
        self.unnamed_peer = "127.0.0.1" if is_unix else "0.0.0.0"  # noqa: S104  # not bound
        self.hangups = HangupWatch()
        self._gateway = gateway
        self._sockets = sockets
        self._tls = tls
        self._max_connections = max_connections
        self._loop = asyncio.get_running_loop()
        self._count = 0  # of accepted connections that are not closed
        self._open: set[ClientTransport] = set()
        # without an authenticated request: since when, the longest first
        self._closable: dict[ClientTransport, float] = {}
        self._opening: dict[ClientTransport, asyncio.Task[None]] = {}
        self._is_accepting = False
        self._resuming: asyncio.TimerHandle | None = None
        self._warned_at = -_WARNING_INTERVAL
        self._warned_of_tls = False
        self._became_idle = asyncio.Event()
        self._accept_again()

    # -- for the server

    @property
    def connections(self) -> int:
        """The number of connections, those in a TLS handshake included."""
        return self._count

    async def stop(self) -> None:
        """Accept no more connections, and close those that wait for a request.

        Requests that have arrived already are served, also on connections that are not accepted
        yet: closing the socket would reset those.
        """
        self._stop_accepting()
        if self._resuming is not None:
            self._resuming.cancel()
        for sock in self._sockets:
            self._accept(sock)
            sock.close()
        self._sockets.clear()
        for _ in range(_TURNS_TO_BE_READ):
            await asyncio.sleep(0)
        for connection in list(self._open):
            connection.close_if_unused()

    async def all_idle(self) -> None:
        """Wait until no request is being served."""
        while any(connection.is_busy for connection in self._open):
            self._became_idle.clear()
            await self._became_idle.wait()

    async def close(self) -> None:
        """Close all connections, and wait until they are closed."""
        for task in list(self._opening.values()):
            task.cancel()
        for connection in list(self._open):
            connection.abort()
        while self._open:
            self._became_idle.clear()
            await self._became_idle.wait()
        self.hangups.close()

    # -- for the connections

    @property
    def is_draining(self) -> bool:
        """See `Host`."""
        return self._gateway.draining

    def opened(self, connection: ClientTransport) -> None:
        """See `Host`."""
        del self._opening[connection]
        self._open.add(connection)
        self._may_close(connection)

    def became_busy(self, connection: ClientTransport) -> None:
        """See `Host`."""
        self._closable.pop(connection, None)
        self._closable[connection] = self._loop.time()

    def became_known(self, connection: ClientTransport) -> None:
        """See `Host`."""
        self._closable.pop(connection, None)

    def became_idle(self, connection: ClientTransport) -> None:
        """See `Host`."""
        self._may_close(connection)
        self._became_idle.set()

    def closed(self, connection: ClientTransport) -> None:
        """See `Host`."""
        self._open.discard(connection)
        self._became_idle.set()
        self._free_a_place(connection)

    def refused_tls(self, peer: Peer) -> None:
        """See `Host`. Logged once: such a client tries again and again."""
        if not self._warned_of_tls:
            self._warned_of_tls = True
            logger.warning(
                "a client at %s speaks TLS, but this port does not: give it an http:// URL, or set "
                "TLS_CERT and TLS_KEY (logged once)",
                peer.remote_ip,
            )

    # -- within

    def _may_close(self, connection: ClientTransport) -> None:
        """Note that `connection` has no authenticated request, so that it may make room."""
        self._closable.pop(connection, None)
        self._closable[connection] = self._loop.time()
        self._accept_in(_GRACE)

    def _free_a_place(self, connection: ClientTransport) -> None:
        self._closable.pop(connection, None)
        self._count -= 1
        self._accept_again()

    def _accept_in(self, seconds: float) -> None:
        """Accept connections again in `seconds`, unless that happens earlier anyway."""
        if not self._is_accepting and self._resuming is None:
            self._resuming = self._loop.call_later(seconds, self._accept_again)

    def _accept_again(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        if not self._is_accepting:
            self._is_accepting = True
            for sock in self._sockets:
                self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            for sock in self._sockets:
                self._loop.remove_reader(sock.fileno())

    def _accept(self, listening: socket.socket) -> None:
        """Accept pending connections."""
        if self._count >= self._max_connections:
            if not self._make_room():
                self._stop_accepting()  # until one closes, or may make room
                if self._closable:
                    self._accept_in(_GRACE)
            return
        for _ in range(min(_ACCEPTS_PER_TURN, self._max_connections - self._count)):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._back_off(error)
                return
            sock.setblocking(False)
            self._count += 1
            connection = ClientConnection(self)
            self._may_close(connection)
            self._opening[connection] = self._loop.create_task(
                self._open_connection(connection, sock)
            )

    async def _open_connection(self, connection: ClientTransport, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=self.idle_timeout if self._tls else None,
            )
        except (OSError, asyncio.CancelledError) as error:  # TLS's errors are OSErrors
            logger.debug("a connection was lost while it was opened: %s", error)
            # a connection that opened before its task was cancelled is lost like any other
            if self._opening.pop(connection, None) is not None:
                sock.close()
                self._free_a_place(connection)

    def _make_room(self) -> bool:
        """Close the connection that has been without an authenticated request longest.

        :returns: whether there is one.
        """
        for connection, since in self._closable.items():
            if self._loop.time() - since < _GRACE:
                return False
            del self._closable[connection]
            opening = self._opening.get(connection)
            if opening is None:
                connection.abort()
            else:
                opening.cancel()
            return True
        return False

    def _back_off(self, error: OSError) -> None:
        self._stop_accepting()
        self._make_room()
        self._accept_in(BACK_OFF)
        now = self._loop.time()
        if now - self._warned_at >= _WARNING_INTERVAL:
            self._warned_at = now
            logger.warning(
                "no more connections for now: %s, with %d open; raise the limit of open files "
                "(ulimit -n), or lower MAX_CONNECTIONS",
                error.strerror,
                len(self._open),
            )
