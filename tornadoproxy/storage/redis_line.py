"""One connection to a Redis or Valkey server, shared by all requests of a process.

No command waits for the response to the one before. redis-py opens the connection, with TLS and
credentials; its own commands take 56 µs of CPU each, and these take a quarter.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis
from redis import exceptions
from redis.asyncio.connection import DefaultParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from tornadoproxy.storage.script import Script

NoScriptError = exceptions.NoScriptError
ClusterDownError = exceptions.ClusterDownError
AskError = exceptions.AskError
MovedError = exceptions.MovedError
TryAgainError = exceptions.TryAgainError
MOVES = (exceptions.AskError, exceptions.TryAgainError)
"""The errors of a cluster's node that does not have a key, or not all keys; MOVED is an ASK too."""

FAILURES = (exceptions.RedisError, OSError, TimeoutError)
"""The library's errors about the server, those of a wrong script included."""

_INCOMPLETE = object()

_UNREACHABLE = "it cannot be reached: start the server, or correct the URL"
_CERTIFICATE = "TLS fails, or its certificate is not accepted: see ssl_ca_certs"
_SLOW = "it did not respond in time"
_REJECTED = "the user or its password is rejected: correct the URL"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, _REJECTED),
    (exceptions.AuthorizationError, _REJECTED),
    (exceptions.NoPermissionError, "access is denied: permit the user to run scripts, and CLUSTER"),
    (exceptions.ReadOnlyError, "it is read-only: name the primary server"),
    (exceptions.BusyLoadingError, "the server starts"),
    (exceptions.OutOfMemoryError, "the server's memory is full: raise its maxmemory"),
    (exceptions.ClusterDownError, "the cluster is down: see the logs of its nodes"),
    (exceptions.AskError, "it is a node of a cluster: begin the URL with redis+cluster://"),
    (exceptions.TryAgainError, "the cluster is moving its data"),
    (exceptions.TimeoutError, _SLOW),
    (TimeoutError, _SLOW),
    (exceptions.ConnectionError, _UNREACHABLE),
    (OSError, _UNREACHABLE),
)


class NodeError(exceptions.RedisError):
    """A node of a cluster cannot be used.

    :param name: its host and port.
    :param error: one of `FAILURES`.
    """

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__()
        self.name = name
        self.error = error


def reason(error: Exception) -> str | None:
    """Return why the server cannot be used; ``None`` if only a script is wrong."""
    if isinstance(error, NodeError):
        return f"node {error.name}: {reason(error.error)}"
    cause = error.__cause__ or error.__context__
    if isinstance(error, exceptions.ConnectionError) and isinstance(cause, ssl.SSLError):
        return _CERTIFICATE
    return next((text for kind, text in _REASONS if isinstance(error, kind)), None)


class Line(asyncio.Protocol):
    """A connection on which commands wait for their responses in order.

    The library's own reading and writing takes twice as long as all else about a command. This
    class takes its open connection over.

    :param connection: an open connection.
    :param broken: called once, with the error, when the connection is lost.
    """

    def __init__(self, connection: AbstractConnection, broken: Callable[[Exception], None]) -> None:
        self._connection = connection
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._known: set[str] = set()  # the digests of scripts that the server has
        self._reader = hiredis.Reader(
            replyError=DefaultParser.parse_error, notEnoughData=_INCOMPLETE
        )
        writer = connection._writer  # the library offers no other access to it
        assert writer is not None, "it is open"
        self._transport: asyncio.WriteTransport = writer.transport
        self._transport.set_protocol(self)

    def named(self, script: Script) -> tuple[str, str]:
        """Return the beginning of a command that runs a script: its text, the first time."""
        if script.digest in self._known:
            return "EVALSHA", script.digest
        self._known.add(script.digest)
        return "EVAL", script.source

    def ask(self, *command: str | int) -> asyncio.Future[Any]:
        """Send a command; the future has its response or an error of `FAILURES`."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._unsent:
            # with all others of this turn of the loop
            self._loop.call_soon(self._send)
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub takes one item
        self._waiting.append(future)
        return future

    async def close(self) -> None:
        """Close the connection; commands without a response fail."""
        self._broken = _ignore
        for future in self._waiting:
            if not future.done():
                future.set_exception(exceptions.ConnectionError("closed"))
                future.exception()  # nobody may be waiting for it
        self._waiting.clear()
        with contextlib.suppress(*FAILURES):
            await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Take responses."""
        self._reader.feed(data)
        try:
            while (response := self._reader.gets()) is not _INCOMPLETE:
                # what the server says unasked is no response
                if not isinstance(response, hiredis.PushNotification):
                    self._end(response)
        except hiredis.ProtocolError as error:
            self.connection_lost(exceptions.ConnectionError(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        """Report that the connection is lost, once."""
        broken, self._broken = self._broken, _ignore
        broken(error or exceptions.ConnectionError("closed by the server"))

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._transport.write(b"".join(unsent))

    def _end(self, response: object) -> None:
        if not self._waiting:
            return  # it has been closed
        future = self._waiting.popleft()
        if future.done():  # its caller has been cancelled
            return
        if isinstance(response, Exception):
            future.set_exception(response)
        else:
            future.set_result(response)


def _ignore(_: Exception) -> None:
    """Do nothing: the loss of a connection is reported once."""
