"""One exchange with the upstream, from the first byte of the request to the last of the response.

The receiver gets head and data as they arrive; while it is paused, nothing more is read. One
deadline applies to the first byte and one to the silence between bytes, none to the whole exchange.
Cancelling closes the connection at once. A request is sent once more, on a new connection, only if
an idle connection turns out to have been closed before the upstream received a byte of the request,
and the whole request is still in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from tornadoproxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable

if TYPE_CHECKING:
    from tornadoproxy.protocol.wire import ResponseHead
    from tornadoproxy.upstream.connection import UpstreamConnection
    from tornadoproxy.upstream.connector import Origin

logger = logging.getLogger(__name__)


class UpstreamRequest(Struct):
    """A request as it is sent.

    :param head: request line and headers, the final blank line included.
    :param body: the whole body; ``None`` if it is streamed with `Call.write`.
    :param chunked: a streamed body is sent with the chunked transfer coding.
    """

    origin: Origin
    method: str
    head: bytes
    body: bytes | None = b""
    chunked: bool = False

    __repr__ = object.__repr__  # a field may hold a credential


class Receiver(Protocol):
    """Callbacks for one response: its head, data, then its end; or a failure.

    Exactly one of `on_end` and `on_failure` is called, and it is the last call. After a call is
    cancelled, nothing is called.
    """

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        """Handle the head, and the part of the body that arrived with it, which may be empty."""

    def on_data(self, chunk: bytes) -> None:
        """Handle more of the body, as it was on the wire except for its transfer coding."""

    def on_end(self) -> None:
        """Handle the end of the response."""

    def on_failure(self, error: UpstreamError) -> None:
        """Handle a response that is missing or cut short."""


class Connections(Protocol):
    """The source of a call's connections and timeouts: the client."""

    first_byte_timeout: float
    idle_timeout: float

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """Return an idle connection to `origin`, if there is one."""

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """Return a new connection to `origin`.

        :raises UpstreamError: no connection could be opened.
        """

    def give_back(self, origin: Origin, connection: UpstreamConnection) -> None:
        """Keep a connection whose exchange has ended."""


class Call:
    """One exchange with the upstream; see the module's docstring."""

    __slots__ = (
        "_began",
        "_chunked",
        "_client",
        "_connecting",
        "_connection",
        "_loop",
        "_method",
        "_origin",
        "_paused",
        "_payload",
        "_receiver",
        "_sent",
        "_timeout",
        "_writable",
        "_written",
    )

    def __init__(self, client: Connections, request: UpstreamRequest, receiver: Receiver) -> None:
        self._client = client
        self._origin = request.origin
        self._method = request.method
        self._chunked = request.chunked
        # kept until the response begins, in case it is sent once more
        self._payload = request.head + request.body if request.body else request.head
        self._receiver: Receiver | None = receiver
        self._loop = asyncio.get_running_loop()
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._sent = request.body is not None  # the whole request
        self._written = False  # part of a streamed body, which is no longer in memory
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._began = False
        self._timeout = client.first_byte_timeout

    # -- for the user

    def start(self) -> None:
        """Send the request, on an idle connection if there is one."""
        connection = self._client.take(self._origin)
        if connection is None:
            self._connecting = self._loop.create_task(self._connect())
        else:
            self._begin(connection)

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """Send a part of a streamed body.

        :returns: what to await before the next part, if the upstream cannot receive more yet.
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
        """End a streamed body."""
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        if self._receiver is None or self._connection is None:
            return
        self._sent = True
        if self._chunked:
            self._connection.send(b"0\r\n\r\n")
        self._extend_deadline()

    def pause(self) -> None:
        """Stop reading from the upstream, and suspend the idle deadline."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Continue to read."""
        self._paused = False
        if self._receiver is not None and self._connection is not None:
            self._extend_deadline()
            self._connection.resume()

    def hand_over(self, receiver: Receiver) -> None:
        """Call `receiver` from now on, unless the exchange has ended."""
        if self._receiver is not None:
            self._receiver = receiver

    def cancel(self) -> None:
        """End the exchange at once, without another call of the receiver."""
        if self._receiver is None:
            return
        connection = self._connection
        self._finish()
        if connection is not None:
            connection.abort()

    # -- called by the connection

    def response_began(self, head: ResponseHead, first: bytes) -> None:
        self._began = True
        self._payload = b""
        self._timeout = self._client.idle_timeout
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

    def response_failed(self, error: UpstreamError, *, unreceived: bool) -> None:
        if unreceived and not self._written:
            self._connection = None
            self._connecting = self._loop.create_task(self._connect())
            return
        self._fail(error)

    def writing_resumed(self) -> None:
        self._extend_deadline()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # -- internal

    async def _connect(self) -> None:
        try:
            connection = await self._client.connect(self._origin)
        except UpstreamError as error:
            self._fail(error)
        except Exception:
            logger.exception("connecting to %s failed unexpectedly", self._origin.authority)
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
            self._connection.set_deadline(self._timeout)

    def deadline_passed(self) -> None:
        # no error of the upstream while the receiver is paused or the client's body incomplete
        if self._paused or not (self._sent or self._writable is not None):
            self._extend_deadline()
        else:
            self._fail(self._too_slow())

    def _too_slow(self) -> UpstreamTimeout:
        if self._began:
            return UpstreamTimeout("The upstream fell silent in the middle of its response.")
        return UpstreamTimeout("The upstream did not begin to respond in time.")

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
