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
from collections.abc import Awaitable
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from tornadoproxy.errors import ProxyError, UpstreamError
from tornadoproxy.protocol.dialects import error_of, read_error
from tornadoproxy.protocol.headers import headers_of, is_encoded, is_event_stream
from tornadoproxy.protocol.json_codec import loads
from tornadoproxy.protocol.sse import EventReader
from tornadoproxy.upstream.attempt import Attempt, refusal_of
from tornadoproxy.upstream.call import Receiver
from tornadoproxy.upstream.routing import Moves
from tornadoproxy.upstream.target import failure_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy.protocol.wire import OutgoingRequest, ResponseHead
    from tornadoproxy.upstream.attempt import Prepared
    from tornadoproxy.upstream.pool import UpstreamPool
    from tornadoproxy.upstream.target import Target

MAX_HELD = 256 * 1024
"""The most bytes of a response that are held before it is committed."""

ERROR_BODY_TIMEOUT = 2.0
"""How long the body of an error is waited for before another upstream is tried, in seconds."""

UNWELL = frozenset({401, 429, 500, 502, 503, 504, 529})
"""The statuses that say that an upstream cannot serve at present, whatever it is asked."""

# the errors in a stream that say the same; others are about the request
_UNWELL_EVENTS = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})

_BEFORE_CONTENT = frozenset({"message_start", "ping"})


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
        self._lacking: list[Target] = []  # those that refused the model
        self._attempt: Attempt | None = None
        self._called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
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
        if not self._called.done():
            return self._write_when_called(chunk)
        return None if self._attempt is None else self._attempt.write(chunk)

    async def end_body(self) -> None:
        """End a streamed body."""
        await self._called
        if self._attempt is not None:
            await self._attempt.end_body()

    def pause(self) -> None:
        """Stop reading; see `Call.pause`."""
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        """Continue to read."""
        if self._attempt is not None:
            self._attempt.resume()

    def cancel(self) -> None:
        """End the request at once, without another call of the receiver."""
        if self._state is _State.OVER:
            return
        self._state = _State.OVER
        self._leave()
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
            self.on_refusal(refusal_of(error))

    def _try_next(self) -> None:
        moves = not self._tried or self._moves is not Moves.NEVER
        target = self._pool.next(self._targets, self._tried, self._model) if moves else None
        if target is None:
            self._give_up()
            return
        self._tried.append(target)
        self._state = _State.WAITING
        self._attempt = Attempt(target, self._prepare, self)
        self._attempt.start()

    def on_sent(self) -> None:
        """See `AttemptReceiver`."""
        self._receiver.on_attempt(len(self._tried))
        if not self._called.done():
            self._called.set_result(None)

    async def _write_when_called(self, chunk: bytes) -> None:
        await self._called
        more = None if self._attempt is None else self._attempt.write(chunk)
        if more is not None:
            await more

    # -- the responses

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        """See `Receiver`."""
        attempt = self._attempt
        assert attempt is not None
        assert attempt.outgoing is not None
        target, status = attempt.target, head.status
        self._held = _Response(target, attempt.outgoing, head, [])
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
        if self._state is _State.COMMITTED:
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
        if self._state is _State.COMMITTED:
            self._receiver.on_end()
        elif self._state is _State.HOLDING_ERROR:
            self._error_is_whole()
        elif self._state is _State.HOLDING_EVENTS:
            self.on_failure(UpstreamError("The upstream ended its response before its content."))

    def on_failure(self, error: UpstreamError) -> None:
        """See `Receiver`."""
        if self._state is _State.COMMITTED:
            self._receiver.on_failure(error)
            return
        attempt = self._attempt
        assert attempt is not None
        if self._state is not _State.HOLDING_ERROR:
            attempt.target.failed(failure_name(error))
        self._last_error = error
        if self._moves is Moves.ON_FAILURE:
            self._move_on(error.message, keep=False)
        else:
            self._receiver.on_failed_attempt(f"{attempt.target.name}: {error.message}")
            self.on_refusal(error)

    def on_refusal(self, error: ProxyError) -> None:
        """See `AttemptReceiver`."""
        self._leave()
        self._state = _State.COMMITTED
        if not self._called.done():
            self._called.set_result(None)
        self._receiver.on_failure(error)  # type: ignore[arg-type]  # a refusal ends it as well

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
            self._lacking.append(held.target)
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
        assert self._attempt is not None
        self._receiver.on_failed_attempt(f"{self._attempt.target.name}: {reason}")
        if keep:
            self._last_response = self._held
        self._leave()
        self._try_next()

    def _give_up(self) -> None:
        """Pass on the last response, or the last failure if there was none."""
        if self._last_response is not None:
            self._held = self._last_response
            self._commit()
            self.on_end()
        else:
            assert self._last_error is not None
            self.on_refusal(self._last_error)

    # -- the end of an attempt, and of all

    def _commit(self, more: bytes = b"") -> None:
        """Pass on what has come, `more` included, and from now on all that comes."""
        held = self._held
        assert held is not None
        self._state = _State.COMMITTED
        self._stop_timer()
        self._held = self._last_response = None
        del self._prepare  # it holds the request's body
        # if all refuse, it is for what is asked, and they have the model
        for target in self._lacking if held.head.status < 400 else ():
            target.lacked(self._model)
        if self._attempt is not None:
            self._attempt.hand_over(self._receiver)
        self._receiver.on_upstream(held.target, held.outgoing)
        self._receiver.on_head(held.head, b"".join(held.pieces) + more)

    def _leave(self) -> None:
        """Stop what the present attempt does."""
        self._stop_timer()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _json(data: bytes) -> object:
    """Return the value of an event's data; ``None`` if it is not JSON."""
    try:
        return loads(data)
    except (ValueError, RecursionError):
        return None
