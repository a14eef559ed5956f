"""A scripted HTTP/1.1 server: it sends what a test scripts, and records exactly what it received.

Requests are parsed strictly (`tornadoproxy.fakes.http_message`), and the record holds the bytes of
the wire. An ambiguous request, and a response that raises, is added to `ScriptedServer.failures`.

A response is an async function of an `UpstreamExchange`. It starts when the head of the request has
arrived, so it can respond before the body has arrived, or never::

    async def half_a_response(exchange: UpstreamExchange) -> None:
        await exchange.body()
        await exchange.head(200, [("Content-Length", "10")])
        await exchange.send(b"hello")
        exchange.reset()

    server.script(half_a_response)

Requests on one connection are served one after the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

from tornadoproxy.fakes.exchange import (
    KEEP_BODY,
    NumberedStream,
    ReceivedRequest,
    UpstreamExchange,
)
from tornadoproxy.fakes.responses import bytes_response

if TYPE_CHECKING:
    from ssl import SSLContext

    from tornadoproxy.fakes.responses import Response

# connections that may be waiting to be accepted: the kernel retries one more only after a second
_BACKLOG = 4096

# turns of the event loop between accepting a connection and `connection_made`
_TURNS_TO_BE_MADE = 2


class ScriptedServer:
    """A server that listens at one address at a time; its record remains after `stop`.

    :param ssl: the server speaks TLS with this context.
    :param delay: seconds between the events of a streamed response.
    :param keep_body: bytes of each request's body that are recorded; of a longer body the record
        has only digest and length.
    :ivar requests: the requests in the order in which their heads arrived.
    :ivar connections: how many connections have been accepted.
    :ivar failures: unexpected errors: a `ProtocolError` for everything that is not HTTP, and each
        exception of a response, except that its peer disconnected.
    """

    def __init__(
        self, *, ssl: SSLContext | None = None, delay: float = 0.0, keep_body: int = KEEP_BODY
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self.failures: list[Exception] = []
        self.host = ""
        self.port = 0
        self._ssl = ssl
        self._delay = delay
        self._keep_body = keep_body
        self._script: deque[Response] = deque()
        self._live: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """The server's origin, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many accepted connections are still open."""
        return len(self._live)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. With port 0 the system chooses a free one.

        :raises OSError: the address cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Connection(self), host, port, ssl=self._ssl, backlog=_BACKLOG
        )
        self.host = host
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, close every connection, and wait until all are closed."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        # asyncio leaks a connection that is accepted but not made when the listener closes
        for sock in listener.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(_TURNS_TO_BE_MADE):
            await asyncio.sleep(0)
        listener.close()
        for connection in self._live:
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.all_closed()

    async def __aenter__(self) -> Self:
        """Listen on a free port of the loopback interface until the block's end."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def script(self, *responses: Response) -> None:
        """Respond to the next requests with `responses`, in the order in which their heads arrive.

        Further requests get `default_response`.
        """
        self._script.extend(responses)

    async def default_response(self, exchange: UpstreamExchange) -> None:
        """Respond to a request that nothing was scripted for: 404."""
        await bytes_response(b"", status=404)(exchange)

    async def received(self, count: int = 1) -> ReceivedRequest:
        """Wait until `count` request heads have arrived in all; return the last of these."""
        while len(self.requests) < count:
            await self._change()
        return self.requests[count - 1]

    async def all_closed(self) -> None:
        """Wait until no connection is open."""
        while self._live:
            await self._change()

    async def _change(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _opened(self, connection: _Connection) -> None:
        self.connections += 1
        connection.number = self.connections
        self._live.add(connection)
        task = asyncio.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _closed(self, connection: _Connection) -> None:
        self._live.discard(connection)
        self._notify()

    async def _serve(self, connection: _Connection) -> None:
        try:
            while await self._respond_next(connection):
                pass
            # unread bytes would turn the FIN into an RST
            await connection.discard()
        except ConnectionError:
            pass  # peers may disconnect
        except Exception as error:
            self.failures.append(error)
            connection.reset()
        finally:
            connection.close()

    async def _respond_next(self, connection: _Connection) -> bool:
        """Respond to the next request of a connection; return whether another one may follow."""
        raw_head = await connection.until(b"\r\n\r\n")
        request = ReceivedRequest(raw_head, connection, self._keep_body)
        exchange = UpstreamExchange(request, connection, self._delay)
        self.requests.append(request)
        self._notify()
        response = self._script.popleft() if self._script else self.default_response
        try:
            await response(exchange)
            if not exchange.keep_alive and not exchange._ended:
                exchange.close()
            if exchange._ended:
                return False
            exchange.expects_continue = False
            await exchange.read_all()
        finally:
            request._settle(whole=False)
        return True


class _Connection(NumberedStream):
    """One accepted connection, which its server keeps track of."""

    def __init__(self, server: ScriptedServer) -> None:
        super().__init__()
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server._closed(self)
