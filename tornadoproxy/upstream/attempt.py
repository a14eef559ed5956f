"""One attempt to have a request served: in one upstream's form, and its response in the API's.

A refused credential is renewed once, and the request sent again, if its body is still in memory.
What comes of the response meanwhile waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec import Struct

from tornadoproxy.errors import ProxyError, UpstreamError, UpstreamProtocolError
from tornadoproxy.protocol.wire import ANTHROPIC, OutgoingRequest, ResponseHead
from tornadoproxy.upstream.call import Call, Receiver, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy.protocol.wire import ResponseDecoder
    from tornadoproxy.upstream.target import Target

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Prepared(Struct, frozen=True):
    """A request in the form of one upstream.

    :param request: as it is sent.
    :param outgoing: what `Wire.prepare` returned.
    """

    request: UpstreamRequest
    outgoing: OutgoingRequest


class AttemptReceiver(Receiver, Protocol):
    """The receiver of a response in the API's form."""

    def on_sent(self) -> None:
        """Take note that the request is about to be sent, perhaps again."""

    def on_refusal(self, error: ProxyError) -> None:
        """Handle a request that is not sent, for a reason that is not the upstream's."""


class Attempt:
    """One attempt at one upstream. Its target counts it from `start` to `cancel`.

    :param prepare: returns the request for the target.
    :ivar outgoing: the request, once it is sent.
    """

    def __init__(
        self,
        target: Target,
        prepare: Callable[[Target], Prepared | Awaitable[Prepared]],
        receiver: AttemptReceiver,
    ) -> None:
        self.target = target
        self.outgoing: OutgoingRequest | None = None
        self._prepare = prepare
        self._receiver = receiver
        self._probe: object | None = None
        self._renewed = False
        self._is_streamed = False
        self._is_over = False
        self._sent_at = 0.0
        self._call: Call | None = None
        self._task: asyncio.Task[None] | None = None
        self._decoder: ResponseDecoder | None = None
        self._deferred: list[Callable[[], None]] | None = None

    # -- what a call does

    def start(self) -> None:
        """Prepare the request, and send it."""
        self._probe = self.target.begin()
        self._sent_at = time.monotonic()
        try:
            prepared = self._prepare(self.target)
        except Exception as error:
            self._not_prepared(error)
            return
        if isinstance(prepared, Awaitable):
            self._task = asyncio.get_running_loop().create_task(self._send_when(prepared))
        else:
            self._send(prepared)

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """Send a part of a streamed body; see `Call.write`."""
        return None if self._call is None else self._call.write(chunk)

    async def end_body(self) -> None:
        """End a streamed body."""
        if self._call is not None:
            await self._call.end_body()

    def pause(self) -> None:
        """Stop reading; see `Call.pause`."""
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """Continue to read."""
        if self._call is not None:
            self._call.resume()

    def hand_over(self, receiver: Receiver) -> None:
        """Let `receiver` be called from now on, without a way round, if nothing is decoded.

        The request cannot be sent again after that.
        """
        del self._prepare  # it holds the request's body
        if self._decoder is None and self._call is not None:
            self._call.hand_over(receiver)

    def cancel(self) -> None:
        """End it at once, without another call of the receiver; harmless the second time."""
        if not self._is_over:
            self._is_over = True
            self._leave()

    def _leave(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = self._deferred = self._decoder = None
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self.target.end(self._probe)

    # -- the request

    async def _send_when(self, preparing: Awaitable[Prepared]) -> None:
        try:
            prepared = await preparing
        except Exception as error:
            self._task = None
            self._not_prepared(error)
        else:
            self._task = None
            self._send(prepared)

    def _not_prepared(self, error: Exception) -> None:
        if isinstance(error, UpstreamError):
            self._receiver.on_failure(error)
        else:
            self._receiver.on_refusal(refusal_of(error))

    def _send(self, prepared: Prepared) -> None:
        self._is_streamed = prepared.request.body is None
        self.outgoing = prepared.outgoing
        self._call = self.target.client.send(prepared.request, self)
        self._receiver.on_sent()

    # -- the response

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        """See `Receiver`."""
        self.target.responded(head.status, time.monotonic() - self._sent_at)
        is_refused = head.status in (401, 403) and self.target.upstream.wire is not ANTHROPIC
        if is_refused and not self._renewed:
            self.pause()
            self._deferred = []
            self._task = asyncio.get_running_loop().create_task(self._renew(head, first))
        else:
            self._take_head(head, first)

    async def _renew(self, head: ResponseHead, first: bytes) -> None:
        """Send the request again if there is another credential, else take its response."""
        self._renewed = True
        try:
            renewed = await self.target.upstream.wire.renew_credential()
        except Exception as error:
            name = self.target.name
            logger.warning(
                "upstream %s: its credential cannot be renewed: %s", name, type(error).__name__
            )
            renewed = False
        self._task = None
        deferred, self._deferred = self._deferred or (), None
        if renewed and not self._is_streamed:
            self._leave()
            self.start()
            return
        self._take_head(head, first)
        for each in deferred:
            if not self._is_over:
                each()
        self.resume()

    def _take_head(self, head: ResponseHead, first: bytes) -> None:
        assert self.outgoing is not None
        try:
            head, self._decoder = _of_wire(self.target.upstream.wire.read, self.outgoing, head)
            if self._decoder is not None and first:
                first = _of_wire(self._decoder.feed, first)
        except UpstreamError as error:
            self._broken(error)
        else:
            self._receiver.on_head(head, first)

    def on_data(self, chunk: bytes) -> None:
        """See `Receiver`."""
        if self._deferred is not None:
            self._deferred.append(partial(self.on_data, chunk))
            return
        if self._decoder is not None:
            try:
                chunk = _of_wire(self._decoder.feed, chunk)
            except UpstreamError as error:
                self._broken(error)
                return
        if chunk:
            self._receiver.on_data(chunk)

    def on_end(self) -> None:
        """See `Receiver`."""
        if self._deferred is not None:
            self._deferred.append(self.on_end)
            return
        if self._decoder is not None:
            try:
                rest = _of_wire(self._decoder.end)
            except UpstreamError as error:
                self._broken(error)
                return
            if rest:
                self._receiver.on_data(rest)
        if not self._is_over:
            self._receiver.on_end()

    def on_failure(self, error: UpstreamError) -> None:
        """See `Receiver`."""
        if self._deferred is not None:
            self._deferred.append(partial(self.on_failure, error))
        else:
            self._receiver.on_failure(error)

    def _broken(self, error: UpstreamError) -> None:
        """Fail, since what the upstream sent cannot be decoded."""
        if self._call is not None:
            self._call.cancel()
        self._receiver.on_failure(error)


def refusal_of(error: Exception) -> ProxyError:
    """Return the error of a request that is not sent because of `error`."""
    if isinstance(error, ProxyError):
        return error
    logger.error("a request could not be prepared", exc_info=error)
    return ProxyError("The proxy failed to handle this request.")


def _of_wire(function: Callable[..., T], *arguments: object) -> T:
    """Return what a function of a wire returns.

    :raises UpstreamError: it fails, in whichever way.
    """
    try:
        return function(*arguments)
    except UpstreamError:
        raise
    except Exception as error:
        # not its text, which may quote the response
        logger.error("a response cannot be decoded: %s", type(error).__name__)  # noqa: TRY400
        raise UpstreamProtocolError("The upstream's response cannot be decoded.") from None
