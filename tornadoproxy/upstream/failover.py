"""One request, sent to one upstream after the other until one responds as it should.

::

    waiting ──head──▶ holding events ──content begins──▶ committed
       │                    └──error event──▶ the next upstream
       └──head of an error──▶ holding error ──its end──▶ the next upstream, or committed

Nothing of a response is passed on before it is committed, and then no other upstream is asked. A
stream is committed when its first content block begins: an upstream that is overloaded often
responds with 200, a ``message_start``, and then an ``error``. No two upstreams are asked at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec import Struct

from tornadoproxy.errors import ProxyError, UpstreamError, UpstreamProtocolError
from tornadoproxy.protocol.dialects import error_of, read_error
from tornadoproxy.protocol.headers import headers_of, is_encoded, is_event_stream
from tornadoproxy.protocol.json_codec import loads
from tornadoproxy.protocol.sse import EventReader
from tornadoproxy.protocol.wire import ANTHROPIC, OutgoingRequest, ResponseHead
from tornadoproxy.upstream.call import Call, Receiver, UpstreamRequest
from tornadoproxy.upstream.target import failure_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy.protocol.wire import ResponseDecoder
    from tornadoproxy.upstream.pool import UpstreamPool
    from tornadoproxy.upstream.target import Target

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_HELD = 256 * 1024
"""The most bytes of a response that are held before it is committed."""

ERROR_BODY_TIMEOUT = 2.0
"""How long the body of an error is waited for before another upstream is tried, in seconds."""

UNWELL = frozenset({401, 429, 500, 502, 503, 504, 529})
"""The statuses that say that an upstream cannot serve at present, whatever it is asked."""

# the errors in a stream that say the same; others are about the request
_UNWELL_EVENTS = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})

_BEFORE_CONTENT = frozenset({"message_start", "ping"})


class Moves(Enum):
    """When a request moves on to another upstream."""

    NEVER = auto()
    """What it names may be on this one alone, or its body is streamed."""
    TO_FIND = auto()
    """After 404: it names something that one of the upstreams has made."""
    ON_FAILURE = auto()
    """Whenever the upstream cannot serve it."""


class Prepared(Struct, frozen=True):
    """A request in the form of one upstream.

    :param request: as it is sent.
    :param outgoing: what `Wire.prepare` returned.
    """

    request: UpstreamRequest
    outgoing: OutgoingRequest


class FailoverReceiver(Receiver, Protocol):
    """The receiver of the one response that is passed on."""

    def on_attempt(self, number: int) -> None:
        """Take note that an upstream is asked: the first, the second, …"""

    def on_upstream(self, target: Target, outgoing: OutgoingRequest) -> None:
        """Take note of whose response it is; `on_head` follows."""

    def on_failed_attempt(self, reason: str) -> None:
        """Take note that an attempt failed: the upstream's name, and why."""


class _State(Enum):
    WAITING = auto()
    HOLDING_ERROR = auto()
    HOLDING_EVENTS = auto()
    COMMITTED = auto()
    OVER = auto()


class _Response(Struct):
    """What has come of a response that is not committed."""

    target: Target
    outgoing: OutgoingRequest
    head: ResponseHead
    pieces: list[bytes]
    size: int = 0


class Failover:
    """The attempts of one request. To its handler it is what a `Call` is.

    :param targets: the upstreams that may be asked, in the order of preference.
    :param prepare: returns the request for one of them.
    :param model: the model that the request names.
    :param moves: when it moves on to another upstream.
    """

    def __init__(
        self,
        pool: UpstreamPool,
        targets: Sequence[Target] | Awaitable[Sequence[Target]],
        prepare: Callable[[Target], Prepared | Awaitable[Prepared]],
        receiver: FailoverReceiver,
        *,
        model: str | None,
        moves: Moves,
    ) -> None:
        self._pool = pool
        self._choosing = targets
        self._targets: Sequence[Target] = ()
        self._prepare = prepare
        self._receiver = receiver
        self._model = model
        self._moves = moves
        self._state = _State.WAITING
        self._tried: list[Target] = []
        self._target: Target | None = None
        self._is_probe = False
        self._renewed = False
        self._deferred: list[Callable[[], None]] | None = None
        self._is_streamed = False
        self._sent_at = 0.0
        self._outgoing: OutgoingRequest | None = None
        self._call: Call | None = None
        self._called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._decoder: ResponseDecoder | None = None
        self._held: _Response | None = None
        self._events = EventReader()
        self._last_response: _Response | None = None
        self._last_error: ProxyError | None = None

    # -- what a call does

    def start(self) -> None:
        """Send the request to the first upstream.

        :raises Overloaded: each of them has as many requests as it may.
        """
        if isinstance(self._choosing, Awaitable):
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._start_when(self._choosing))
        else:
            self._targets = self._choosing
            self._try_next()

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """Send a part of a streamed body; see `Call.write`."""
        if self._state is _State.OVER:
            return None
        if self._call is None:
            return self._write_when_called(chunk)
        return self._call.write(chunk)

    async def end_body(self) -> None:
        """End a streamed body."""
        await self._called
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

    def cancel(self) -> None:
        """End the request at once, without another call of the receiver."""
        if self._state is _State.OVER:
            return
        self._state = _State.OVER
        self._leave_target()
        if not self._called.done():
            self._called.set_result(None)

    # -- the attempts

    async def _start_when(self, choosing: Awaitable[Sequence[Target]]) -> None:
        try:
            self._targets = await choosing
            self._task = None
            self._try_next()
        except Exception as error:
            self._task = None
            self._not_prepared(error)

    def _try_next(self) -> None:
        moves = not self._tried or self._moves is not Moves.NEVER
        target = self._pool.next(self._targets, self._tried, self._model) if moves else None
        if target is None:
            self._give_up()
            return
        self._tried.append(target)
        self._renewed = False
        self._attempt(target)

    def _attempt(self, target: Target) -> None:
        self._state = _State.WAITING
        self._target = target
        self._is_probe = target.begin()
        self._sent_at = time.monotonic()
        try:
            prepared = self._prepare(target)
        except Exception as error:
            self._not_prepared(error)
            return
        if isinstance(prepared, Awaitable):
            self._task = asyncio.get_running_loop().create_task(self._send_when(prepared))
        else:
            self._send(prepared)

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
            self.on_failure(error)
            return
        if not isinstance(error, ProxyError):
            logger.error("a request could not be prepared", exc_info=error)
            error = ProxyError("The proxy failed to handle this request.")
        self._fail_with(error)

    def _send(self, prepared: Prepared) -> None:
        assert self._target is not None
        self._receiver.on_attempt(len(self._tried))
        self._is_streamed = prepared.request.body is None
        self._outgoing = prepared.outgoing
        self._call = self._target.client.send(prepared.request, self)
        if not self._called.done():
            self._called.set_result(None)

    async def _write_when_called(self, chunk: bytes) -> None:
        await self._called
        more = None if self._call is None else self._call.write(chunk)
        if more is not None:
            await more

    # -- the responses

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        """See `Receiver`."""
        target, outgoing = self._target, self._outgoing
        assert target is not None
        assert outgoing is not None
        target.responded(head.status, time.monotonic() - self._sent_at)
        wire = target.upstream.wire
        if head.status in (401, 403) and wire is not ANTHROPIC and not self._renewed:
            self.pause()
            self._deferred = []
            self._task = asyncio.get_running_loop().create_task(self._renew(target, head, first))
            return
        self._take_head(target, outgoing, head, first)

    async def _renew(self, target: Target, head: ResponseHead, first: bytes) -> None:
        """Send the request again if there is another credential, else take its response.

        What else comes of the response waits meanwhile.
        """
        self._renewed = True
        call = self._call
        try:
            renewed = await target.upstream.wire.renew_credential()
        except Exception as error:
            logger.warning("upstream %s: its credential: %s", target.name, type(error).__name__)
            renewed = False
        self._task = None
        deferred, self._deferred = self._deferred or (), None
        if renewed and not self._is_streamed:
            self._leave_target()
            self._attempt(target)
            return
        assert self._outgoing is not None
        self._take_head(target, self._outgoing, head, first)
        for each in deferred:
            if self._call is call:
                each()
        if self._call is call:
            self.resume()

    def _take_head(
        self, target: Target, outgoing: OutgoingRequest, head: ResponseHead, first: bytes
    ) -> None:
        try:
            head, self._decoder = _of_wire(target.upstream.wire.read, outgoing, head)
        except UpstreamError as error:
            self._broken(error)
            return
        self._held = _Response(target, outgoing, head, [])
        status = head.status
        if status in UNWELL:
            target.check_key(status)
            target.failed(str(status), head)
        if self._moves_after(status) and self._has_another():
            self._state = _State.HOLDING_ERROR
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ERROR_BODY_TIMEOUT, self._error_is_late)
        elif self._holds_events(head) and self._has_another():
            self._state = _State.HOLDING_EVENTS
            self._events = EventReader()
        else:
            if status not in UNWELL:
                target.succeeded()
            self._commit(first)
            return
        if first:
            self.on_data(first)

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
        if self._state is _State.COMMITTED:
            if chunk:
                self._receiver.on_data(chunk)
            return
        held = self._held
        assert held is not None
        held.pieces.append(chunk)
        held.size += len(chunk)
        if self._state is _State.HOLDING_EVENTS:
            self._look_at_events(held, chunk)
        elif held.size > MAX_HELD:
            self._error_is_late()

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
            self._decoder = None
            if rest:
                self.on_data(rest)
        if self._state is _State.COMMITTED:
            self._receiver.on_end()
        elif self._state is _State.HOLDING_ERROR:
            self._error_is_whole()
        elif self._state is _State.HOLDING_EVENTS:
            self.on_failure(UpstreamError("The upstream ended its response before its content."))

    def on_failure(self, error: UpstreamError) -> None:
        """See `Receiver`."""
        if self._deferred is not None:
            self._deferred.append(partial(self.on_failure, error))
            return
        if self._state is _State.COMMITTED:
            self._receiver.on_failure(error)
            return
        target = self._target
        assert target is not None
        if self._state is not _State.HOLDING_ERROR:
            target.failed(failure_name(error))
        self._last_error = error
        if self._moves is Moves.ON_FAILURE:
            self._move_on(error.message, keep=False)
        else:
            self._receiver.on_failed_attempt(f"{target.name}: {error.message}")
            self._fail_with(error)

    # -- whether to move on

    def _moves_after(self, status: int) -> bool:
        if self._moves is Moves.TO_FIND:
            return status == 404
        if self._moves is Moves.NEVER:
            return False
        return status in UNWELL or (status in (403, 404) and self._model is not None)

    def _has_another(self) -> bool:
        return self._pool.next(self._targets, self._tried, self._model) is not None

    def _holds_events(self, head: ResponseHead) -> bool:
        if head.status != 200 or self._moves is not Moves.ON_FAILURE:
            return False
        headers = headers_of(head.fields)
        return is_event_stream(headers) and not is_encoded(headers)

    def _look_at_events(self, held: _Response, chunk: bytes) -> None:
        """Commit the stream once its content begins; move on after an error before that."""
        for data in self._events.feed(chunk):
            event = _json(data)
            kind = event.get("type") if isinstance(event, dict) else None
            if kind in _BEFORE_CONTENT:
                continue
            error, _ = error_of(event)
            if kind == "error" and error in _UNWELL_EVENTS:
                held.target.failed(f"{error} in a stream", held.head)
                self._move_on(f"{error} in its stream")
            else:
                held.target.succeeded()
                self._commit()
            return
        if held.size > MAX_HELD:
            self._commit()

    def _error_is_whole(self) -> None:
        held = self._held
        assert held is not None
        status = held.head.status
        kind, message = read_error(b"".join(held.pieces))
        about_model = status == 403 or "model" in (message or "").lower()
        if self._moves is Moves.ON_FAILURE and status in (403, 404):
            if not about_model:
                held.target.succeeded()
                self._commit()
                self.on_end()
                return
            held.target.lacked(self._model)
        self._move_on(f"{status} {kind or ''}".rstrip())

    def _error_is_late(self) -> None:
        """Move on without the body of the error, which is too long, or does not come."""
        assert self._held is not None
        status = self._held.head.status
        self._last_error = UpstreamError(f"The upstream failed with status {status}.")
        self._move_on(str(status), keep=False)

    def _move_on(self, reason: str, *, keep: bool = True) -> None:
        """Try another upstream; the response so far is the last one, if there is no other.

        :param keep: whether that response is whole.
        """
        assert self._target is not None
        self._receiver.on_failed_attempt(f"{self._target.name}: {reason}")
        if keep:
            self._last_response = self._held
        self._leave_target()
        self._try_next()

    def _give_up(self) -> None:
        """Pass on the last response, or the last failure if there was none."""
        if self._last_response is not None:
            self._held = self._last_response
            self._commit()
            self.on_end()
        else:
            assert self._last_error is not None
            self._fail_with(self._last_error)

    def _broken(self, error: UpstreamError) -> None:
        """Fail, since what the upstream sent cannot be decoded."""
        if self._call is not None:
            self._call.cancel()
        self.on_failure(error)

    # -- the end of an attempt, and of all

    def _commit(self, more: bytes = b"") -> None:
        """Pass on what has come, and from now on all that comes.

        :param more: has come as well, and is not decoded.
        """
        held = self._held
        assert held is not None
        self._state = _State.COMMITTED
        self._stop_timer()
        self._held = self._last_response = None
        if more and self._decoder is not None:
            try:
                more = _of_wire(self._decoder.feed, more)
            except UpstreamError as error:
                self._broken(error)
                return
        if self._decoder is None and self._call is not None:
            self._call.hand_over(self._receiver)
        self._receiver.on_upstream(held.target, held.outgoing)
        self._receiver.on_head(held.head, b"".join(held.pieces) + more)

    def _fail_with(self, error: ProxyError) -> None:
        self._leave_target()
        self._state = _State.COMMITTED
        if not self._called.done():
            self._called.set_result(None)
        self._receiver.on_failure(error)  # type: ignore[arg-type]  # a refusal ends it as well

    def _leave_target(self) -> None:
        """Stop what the present attempt does."""
        self._stop_timer()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = self._deferred = self._decoder = None
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        target, self._target = self._target, None
        if target is not None:
            target.end(probe=self._is_probe)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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


def _json(data: bytes) -> object:
    """Return the value of an event's data; ``None`` if it is not JSON."""
    try:
        return loads(data)
    except (ValueError, RecursionError):
        return None
