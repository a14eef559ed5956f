"""One connection to a Redis or Valkey server, shared by all requests of a process.

No command waits for the response to the one before. redis-py opens the connection, with TLS and
credentials; its own commands take 56 µs of CPU each, and these take half.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

from redis import exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from tornadoproxy.storage.script import Script

NoScriptError = exceptions.NoScriptError
ClusterDownError = exceptions.ClusterDownError
AskError = exceptions.AskError
MovedError = exceptions.MovedError
MOVES = (exceptions.AskError, exceptions.TryAgainError)
"""The errors of a cluster's node that does not have a key, or not all keys; MOVED is an ASK too."""

FAILURES = (exceptions.RedisError, OSError, TimeoutError)
"""The library's errors about the server, those of a wrong script included."""

_UNREACHABLE = "it cannot be reached: start the server, or correct the URL"
_CERTIFICATE = "TLS fails, or its certificate is not accepted: see ssl_ca_certs"
_SLOW = "it did not respond in time"
_REJECTED = "the user or its password is rejected: correct the URL"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, _REJECTED),
    (exceptions.AuthorizationError, _REJECTED),
    (exceptions.NoPermissionError, "access is denied: permit the user to run scripts"),
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


class Line:
    """A connection on which commands wait for their responses in order.

    :param connection: an open connection.
    :param broken: called once, with the error, when the connection is lost.
    """

    def __init__(self, connection: AbstractConnection, broken: Callable[[Exception], None]) -> None:
        self._connection = connection
        self._broken = broken
        self._unsent: list[bytes] = []
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._has_unsent = asyncio.Event()
        self._known: set[str] = set()  # the digests of scripts that the server has
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def named(self, script: Script) -> tuple[str, str]:
        """Return the beginning of a command that runs a script: its text, the first time."""
        if script.digest in self._known:
            return "EVALSHA", script.digest
        self._known.add(script.digest)
        return "EVAL", script.source

    def ask(self, *command: str | int) -> asyncio.Future[Any]:
        """Send a command; the future has its response or an error of `FAILURES`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._unsent += self._connection.pack_command(*command)
        self._waiting.append(future)
        self._has_unsent.set()
        return future

    async def close(self) -> None:
        """Close the connection; commands without a response fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for future in self._waiting:
            if not future.done():
                future.set_exception(exceptions.ConnectionError("closed"))
                future.exception()  # nobody may be waiting for it
        self._waiting.clear()
        with contextlib.suppress(*FAILURES):
            await self._connection.disconnect(nowait=True)

    async def _write(self) -> None:
        try:
            while True:
                await self._has_unsent.wait()
                self._has_unsent.clear()
                unsent, self._unsent = self._unsent, []
                await self._connection.send_packed_command(unsent, check_health=False)
        except FAILURES as error:
            self._broken(error)

    async def _read(self) -> None:
        try:
            while True:
                try:
                    response = await self._connection.read_response(
                        disable_decoding=True, timeout=math.inf
                    )
                except exceptions.ResponseError as error:
                    self._end(error=error)
                else:
                    self._end(response)
        except FAILURES as error:
            self._broken(error)

    def _end(self, response: object = None, error: Exception | None = None) -> None:
        future = self._waiting.popleft()
        if future.done():  # its caller has been cancelled
            return
        if error is None:
            future.set_result(response)
        else:
            future.set_exception(error)
