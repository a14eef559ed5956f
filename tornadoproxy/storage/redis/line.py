"""One connection to a Redis or Valkey server, shared by all requests of a process.

No command waits for the response to the one before. redis-py opens the connection, with TLS and
credentials; its own commands take 56 µs of CPU each, and these take a quarter.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

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
_UNASKED = hiredis.PushNotification
_TURNS = 3

# Any: what a script returns
Done: TypeAlias = "Callable[[Any, BaseException | None], None]"
"""What is called with the result of a command, or with the error instead."""
Refused: TypeAlias = "Callable[[Done, Line, Script, tuple[str, ...], bytes, Exception], None]"
"""What is called in place of a `Done` with the error of a script, and with the script."""
_Run: TypeAlias = "tuple[Refused, Script, tuple[str, ...], bytes]"
_Waiting: TypeAlias = "tuple[Done, _Run | None, float]"  # since when

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
    :param broken: called once, with the error, when the connection is lost, or the server has not
        responded in time.
    :param timeout: seconds that the server may take for a response.
    """

    def __init__(
        self, connection: AbstractConnection, broken: Callable[[Exception], None], timeout: float
    ) -> None:
        self._connection = connection
        self._broken = broken
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._unsent: list[bytes] = []
        self._queued_at = 0.0  # when the first of these was
        self._waiting: deque[_Waiting] = deque()
        self._watching = False
        self._known: set[str] = set()  # the digests of scripts that the server has
        self._reader = hiredis.Reader(
            replyError=DefaultParser.parse_error, notEnoughData=_INCOMPLETE
        )
        writer = connection._writer  # the library offers no other access to it
        assert writer is not None, "it is open"
        self._transport: asyncio.WriteTransport = writer.transport
        self._transport.set_protocol(self)

    def run(
        self,
        done: Done,
        refused: Refused,
        script: Script,
        keys: tuple[str, ...],
        arguments: bytes,
    ) -> None:
        """Run a script; its text is sent the first time. See `send`.

        :param refused: called in place of `done` with an error.
        """
        if script.digest in self._known:
            head = _head(script.digest, keys)
            packed = b"%b%d\r\n%b\r\n" % (head, len(arguments), arguments)
        else:
            self._known.add(script.digest)
            packed = _pack("EVAL", script.source, len(keys), *keys, arguments)
        self._queue(packed, done, (refused, script, keys, arguments))

    def forget(self, script: Script) -> None:
        """Note that the server does not have a script."""
        self._known.discard(script.digest)

    def ask(self, *command: str | int | bytes) -> asyncio.Future[Any]:
        """Send a command; the future has its response or an error of `FAILURES`."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(partial(_end, future), *command)
        return future

    def send(self, done: Done, *command: str | int | bytes) -> None:
        """Send a command.

        :param done: called once, with the response or an error of `FAILURES`; it must not raise.
        """
        self._queue(_pack(*command), done, None)

    def _queue(self, packed: bytes, done: Done, run: _Run | None) -> None:
        if not self._unsent:
            # with all others of this turn of the loop
            self._loop.call_soon(self._send)
            self._queued_at = self._loop.time()
        self._unsent.append(packed)
        self._waiting.append((done, run, self._queued_at))
        if not self._watching:
            self._watching = True
            self._loop.call_later(self._timeout, self._watch, _TURNS)

    async def close(self) -> None:
        """Close the connection; commands without a response fail."""
        self._broken = _ignore
        waiting, self._waiting = self._waiting, deque()
        for done, run, _ in waiting:
            self._fail(done, run, exceptions.ConnectionError("closed"))
        with contextlib.suppress(*FAILURES):
            await self._connection.disconnect(nowait=True)
        # the server may be dead, and has its part in the end of TLS
        await asyncio.wait([self._ended], timeout=self._timeout)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take responses."""
        read = self._reader.gets
        self._reader.feed(data)
        try:
            while (response := read()) is not _INCOMPLETE:
                # what the server says unasked is no response; without a caller, it has been closed
                if not isinstance(response, _UNASKED) and self._waiting:
                    done, run, _ = self._waiting.popleft()
                    if isinstance(response, Exception):
                        self._fail(done, run, response)
                    else:
                        done(response, None)
        except hiredis.ProtocolError as error:
            self.give_up(exceptions.ConnectionError(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        """Take note that the connection has ended."""
        self._ended.set_result(None)
        self.give_up(error or exceptions.ConnectionError("closed by the server"))

    def give_up(self, error: Exception) -> None:
        """Report that the connection cannot be used, once."""
        broken, self._broken = self._broken, _ignore
        broken(error)

    def _fail(self, done: Done, run: _Run | None, error: Exception) -> None:
        if run is None:
            done(None, error)
        else:
            refused, script, keys, arguments = run
            refused(done, self, script, keys, arguments, error)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._transport.write(b"".join(unsent))

    def _watch(self, turns: int) -> None:
        """Give up a server that does not respond in time.

        :param turns: turns of the loop after which a response is late, since perhaps it has arrived
            and this process is late to read it.
        """
        if not self._waiting:
            self._watching = False
            return
        _, _, since = self._waiting[0]
        due = since + self._timeout
        if due > self._loop.time():
            self._loop.call_at(due, self._watch, _TURNS)
        elif turns:
            self._loop.call_soon(self._watch, turns - 1)
        else:
            self.give_up(TimeoutError())


@lru_cache(4096)  # most requests are of keys that were used before
def _head(digest: str, keys: tuple[str, ...]) -> bytes:
    """Return a command that runs a script, up to the length of its last argument.

    See https://redis.io/docs/latest/develop/reference/protocol-spec/.
    """
    return _pack("EVALSHA", digest, len(keys), *keys, "").removesuffix(b"0\r\n\r\n")


def _pack(*command: str | int | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub takes one item
    return packed


def _end(future: asyncio.Future[Any], response: object, failed: BaseException | None) -> None:
    if future.done():
        return  # its caller has been cancelled
    if failed is None:
        future.set_result(response)
    else:
        future.set_exception(failed)
        future.exception()  # nobody may be waiting for it


def _ignore(_: Exception) -> None:
    """Do nothing: the loss of a connection is reported once."""
