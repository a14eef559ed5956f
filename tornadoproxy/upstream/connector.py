"""New connections to an upstream: addresses, egress proxy, TLS.

Every error of a library is raised as an `UpstreamError`.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import socket
import ssl
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

import aiohappyeyeballs
from msgspec import Struct

from tornadoproxy.config.core_settings import (
    HTTPS_PROXY,
    NO_PROXY,
    UPSTREAM_BASE_URL,
    UPSTREAM_CA_FILE,
    UPSTREAM_CONNECT_TIMEOUT,
)
from tornadoproxy.errors import UpstreamTimeout, UpstreamUnreachable
from tornadoproxy.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.urls import EgressProxy

logger = logging.getLogger(__name__)

_HAPPY_EYEBALLS_DELAY = 0.25  # seconds; RFC 8305 §8
_MAX_PROXY_RESPONSE = 16 * 1024  # bytes of its head


class Origin(Struct, frozen=True):
    """The destination of a connection. Connections to equal origins are interchangeable."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Connector:
    """The settings of new connections: trusted authorities, egress proxy, timeout."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings[UPSTREAM_CONNECT_TIMEOUT]
        self._proxy = settings[HTTPS_PROXY]
        self._no_proxy = settings[NO_PROXY]
        self._ca_file = settings[UPSTREAM_CA_FILE]
        if settings[UPSTREAM_BASE_URL].scheme == "https":
            # loads the authorities before the first request; `connect` reports a failure
            with suppress(OSError):
                _ = self._tls

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """Return a new connection to `origin`.

        :raises UpstreamUnreachable: the upstream refused or reset the connection, its name has no
            address, its certificate is not trusted, or the egress proxy refused.
        :raises UpstreamTimeout: not connected within ``UPSTREAM_CONNECT_TIMEOUT`` seconds.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._connect(origin)
        except TimeoutError:
            raise UpstreamTimeout("The upstream did not accept a connection in time.") from None
        except ssl.SSLCertVerificationError as error:
            logger.warning(
                "the TLS certificate of %s is not trusted: %s; for a private authority set "
                "UPSTREAM_CA_FILE",
                origin.authority,
                error.verify_message,
            )
            raise UpstreamUnreachable(
                "The upstream's TLS certificate is not trusted; the proxy's log says why. If its "
                "authority is private, set UPSTREAM_CA_FILE to its certificate."
            ) from None
        except ssl.SSLError as error:
            logger.warning("TLS with %s failed: %s", origin.authority, error.reason or error)
            raise UpstreamUnreachable(
                "The TLS handshake with the upstream failed. Check that UPSTREAM_BASE_URL names a "
                "port that speaks TLS."
            ) from None
        except OSError as error:
            logger.warning("cannot connect to %s: %s", origin.authority, error)
            raise UpstreamUnreachable("The upstream cannot be reached.") from None

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        proxy = self._proxy_for(origin)
        if proxy is None:
            sock = await _open_socket(origin.host, origin.port)
        else:
            sock = await _open_socket(proxy.host, proxy.port)
        try:
            if proxy is not None:
                await _open_tunnel(sock, proxy, origin)
            secure = origin.scheme == "https"
            _, connection = await asyncio.get_running_loop().create_connection(
                UpstreamConnection,
                sock=sock,
                ssl=self._tls if secure else None,
                server_hostname=origin.host if secure else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    def keep_session(self, origin: Origin, connection: UpstreamConnection) -> None:
        """Remember the TLS session of `connection`, to shorten the next handshake."""
        if origin.scheme == "https":
            self._tls.keep(origin.host, connection.tls_session())

    @cached_property
    def _tls(self) -> _SessionReusingContext:
        # loading the system's authorities takes tens of milliseconds: only for an https upstream
        try:
            return _SessionReusingContext.trusting(self._ca_file)
        except OSError as error:
            reason = error.strerror or "it is no PEM file"
            raise OSError(f"the CA file {self._ca_file} cannot be loaded: {reason}") from None

    def _proxy_for(self, origin: Origin) -> EgressProxy | None:
        if origin.scheme != "https" or any(_matches(word, origin) for word in self._no_proxy):
            return None
        return self._proxy


def _matches(word: str, origin: Origin) -> bool:
    """Return whether a word of ``NO_PROXY`` includes `origin`.

    A word is ``*``, or a name, domain, address or network, each with or without a port. A domain
    may begin with ``.`` or ``*.``.
    """
    if word == "*":
        return True
    host = origin.host
    for name in (word.lower(), word.lower().removesuffix(f":{origin.port}")):
        name = name.strip("[]").removeprefix("*.").lstrip(".")
        if host == name or host.endswith(f".{name}") or _is_within(host, name):
            return True
    return False


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:  # one of the two is a name
        return False


async def _open_socket(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sock = await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY, interleave=1
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


async def _open_tunnel(sock: socket.socket, proxy: EgressProxy, origin: Origin) -> None:
    """Open a tunnel through an egress proxy (RFC 9110 §9.3.6, ``CONNECT``)."""
    loop = asyncio.get_running_loop()
    lines = [f"CONNECT {origin.authority} HTTP/1.1", f"Host: {origin.authority}"]
    if proxy.credentials is not None:
        basic = base64.b64encode(proxy.credentials.reveal()).decode("ascii")
        lines.append(f"Proxy-Authorization: Basic {basic}")
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode("latin-1"))
    response = b""
    while b"\r\n\r\n" not in response:
        piece = await loop.sock_recv(sock, _MAX_PROXY_RESPONSE)
        response += piece
        if not piece or len(response) > _MAX_PROXY_RESPONSE:
            logger.warning("the egress proxy did not respond with HTTP; check HTTPS_PROXY")
            raise UpstreamUnreachable("The egress proxy did not respond with HTTP.")
    version, _, rest = response.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest.startswith(b"2"):
        status = rest[:3].decode("latin-1")
        logger.warning(
            "the egress proxy refused to connect to %s: status %r; check HTTPS_PROXY",
            origin.authority,
            status,
        )
        raise UpstreamUnreachable("The egress proxy refused the connection to the upstream.")


class _SessionReusingContext(ssl.SSLContext):
    """A client context that resumes the last session with each host (RFC 8446 §2.2).

    asyncio has no parameter for a session, but it calls `wrap_bio` for each connection.
    """

    _sessions: dict[str, ssl.SSLSession]

    @classmethod
    def trusting(cls, ca_file: object) -> _SessionReusingContext:
        """Return a context that trusts the authorities in the file `ca_file`, or the system's."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context._sessions = {}
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=str(ca_file))
        context.set_alpn_protocols(["http/1.1"])
        return context

    def keep(self, host: str, session: ssl.SSLSession | None) -> None:
        if session is not None:
            self._sessions[host] = session

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        if session is None and isinstance(server_hostname, str):
            session = self._sessions.get(server_hostname)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
