"""One exchange with the upstream, from the request's first byte to the answer's last.

Head and data are handed on as they arrive, and nothing more is read while the receiver is paused.
There is a deadline for the first byte and one for the silence between bytes, none for the whole.
Cancelling closes the connection at once. There is one more try, on a new connection, only when a
kept one turns out to have been closed before the upstream took in a byte, and the request's body is
at hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from tornadoproxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable

if TYPE_CHECKING:
    from tornadoproxy.upstream.connection import ResponseHead, UpstreamConnection
    from tornadoproxy.upstream.connector import Origin

logger = logging.getLogger(__name__)


class UpstreamRequest(Struct):
    """A request as it goes onto the wire.

    :param head: request line and headers, the final blank line included.
    :param body: the whole body; ``None`` if it is to be streamed with `Call.write`.
    :param chunked: a streamed body has the chunked transfer coding put around it.
    """

    origin: Origin
    method: str
    head: bytes
    body: bytes | None = b""
    chunked: bool = False

    __repr__ = object.__repr__  # a field may hold a credential


class Receiver(Protocol):
    """Who is told of an answer, synchronously: a head, data, then an end; or a failure.

    Exactly one of `on_end` and `on_failure` comes, and it comes last, unless the call is
    cancelled: then nothing comes any more.
    """

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        """The answer began: its head, and what of its body came with it; that may be empty."""

    def on_data(self, chunk: bytes) -> None:
        """More of the body, as it was on the wire but for its transfer coding."""

    def on_end(self) -> None:
        """The answer is whole."""

    def on_failure(self, error: UpstreamError) -> None:
        """There is no answer, or it broke off."""


class Connections(Protocol):
    """Where a call has its connections and its deadlines from: the client."""

    first_byte_timeout: float
    idle_timeout: float

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """An idle connection to `origin`, if there is one."""

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """A new connection to `origin`.

        :raises UpstreamError: there is none to be had.
        """

    def give_back(self, origin: Origin, connection: UpstreamConnection) -> None:
        """Keep a connection whose exchange is over."""


class Call:
    """One exchange with the upstream, for the one who waits for its answer."""

    __slots__ = (
        "_began",
        "_chunked",
        "_client",
        "_connecting",
        "_connection",
        "_loop",
        "_method",
        "_origin",
        "_patience",
        "_paused",
        "_payload",
        "_receiver",
        "_sent",
        "_writable",
        "_written",
    )

    def __init__(self, client: Connections, request: UpstreamRequest, receiver: Receiver) -> None:
        self._client = client
        self._origin = request.origin
        self._method = request.method
        self._chunked = request.chunked
        # kept for another try, until the answer begins
        self._payload = request.head + request.body if request.body else request.head
        self._receiver: Receiver | None = receiver
        self._loop = asyncio.get_running_loop()
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._sent = request.body is not None  # nothing more will come from our side
        self._written = False  # a part of a streamed body has gone out, and cannot be had again
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._began = False
        self._patience = client.first_byte_timeout

    # -- for the one who waits

    def start(self) -> None:
        """Send the request, on a kept connection if there is one."""
        connection = self._client.take(self._origin)
        if connection is None:
            self._connecting = self._loop.create_task(self._connect())
        else:
            self._begin(connection)

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """Send a part of a streamed body.

        :returns: something to await before the next part, if the upstream takes no more now.
        """
        if self._receiver is None or not chunk:
            return None
        if self._connection is None:
            return self._write_when_connected(chunk)
        self._written = True
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        self._connection.send(chunk)
        self._extend_deadline()
        return self._wait_until_writable() if self._connection.writing_paused else None

    async def end_body(self) -> None:
        """Say that a streamed body is whole."""
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        if self._receiver is None or self._connection is None:
            return
        self._sent = True
        if self._chunked:
            self._connection.send(b"0\r\n\r\n")
        self._extend_deadline()

    def pause(self) -> None:
        """Stop reading from the upstream. The idle deadline stands still meanwhile."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._receiver is not None and self._connection is not None:
            self._extend_deadline()
            self._connection.resume()

    def cancel(self) -> None:
        """End the exchange at once; the receiver is told nothing more."""
        if self._receiver is None:
            return
        connection = self._connection
        self._finish()
        if connection is not None:
            connection.abort()

    # -- told by the connection

    def response_began(self, head: ResponseHead, first: bytes) -> None:
        self._began = True
        self._payload = b""
        self._patience = self._client.idle_timeout
        self._extend_deadline()
        if self._receiver is not None:
            self._receiver.on_head(head, first)

    def response_continued(self, chunk: bytes) -> None:
        self._extend_deadline()
        if self._receiver is not None:
            self._receiver.on_data(chunk)

    def response_ended(self, *, reusable: bool) -> None:
        receiver, connection = self._receiver, self._connection
        assert receiver is not None
        assert connection is not None
        if self._paused:
            connection.resume()
        if reusable and self._sent and not connection.writing_paused:
            self._client.give_back(self._origin, connection)
        else:
            connection.abort()
        self._finish()
        receiver.on_end()

    def response_failed(self, error: UpstreamError, *, unheard: bool) -> None:
        if unheard and not self._written:
            self._connection = None
            self._connecting = self._loop.create_task(self._connect())
            return
        self._fail(error)

    def writing_resumed(self) -> None:
        self._extend_deadline()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # -- within

    async def _connect(self) -> None:
        try:
            connection = await self._client.connect(self._origin)
        except UpstreamError as error:
            self._fail(error)
        except Exception:
            logger.exception("connecting to %s failed", self._origin.authority)
            self._fail(UpstreamUnreachable("The upstream cannot be reached."))
        else:
            self._connecting = None
            self._begin(connection)

    def _begin(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        connection.begin(self, head_only=self._method == "HEAD")
        connection.send(self._payload)
        if self._paused:
            connection.pause()
        self._extend_deadline()

    async def _write_when_connected(self, chunk: bytes) -> None:
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        more = self.write(chunk)
        if more is not None:
            await more

    def _wait_until_writable(self) -> Awaitable[None]:
        if self._writable is None:
            self._writable = self._loop.create_future()
        return self._writable

    def _extend_deadline(self) -> None:
        if self._connection is not None:
            self._connection.set_deadline(self._patience)

    def deadline_passed(self) -> None:
        # while we are paused, or wait for the client's body, the silence is not the upstream's
        if self._paused or not (self._sent or self._writable is not None):
            self._extend_deadline()
        else:
            self._fail(self._too_slow())

    def _too_slow(self) -> UpstreamTimeout:
        if self._began:
            return UpstreamTimeout("The upstream fell silent in the middle of its answer.")
        return UpstreamTimeout("The upstream did not begin to answer in time.")

    def _fail(self, error: UpstreamError) -> None:
        receiver, connection = self._receiver, self._connection
        if receiver is None:
            return
        self._finish()
        if connection is not None:
            connection.abort()
        receiver.on_failure(error)

    def _finish(self) -> None:
        self._receiver = None
        self._connection = None
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()
        self._connecting = None
        self.writing_resumed()
