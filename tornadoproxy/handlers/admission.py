"""Admission of requests up to a limit; further ones wait in a short fair queue.

A request takes a place by `Admission.enter`. A request that ends passes its place by
`Admission.leave` to the next one in the queue, so that no request waits while a place is free.

A request whose body is held takes its place when the body is whole, so that slow bodies take none.
A body that streams takes one at once, since the upstream is called at once; therefore one principal
may have as many such bodies as it leaves places free, but always one.

The next place goes to the principal with the fewest places; equals take turns, whatever the number
of their requests; requests of one principal are served in their order. In a full queue the newest
request of the principal with the most requests gives way to a principal with fewer: otherwise one
principal could fill the queue and keep all others out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from tornadoproxy.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

THREAD_TIMEOUT = 60.0
"""How long work may wait for its turn in a `FairThread`, in seconds."""


class Turn:
    """A request in the queue, until it gets a place or is refused.

    :param principal: of the request.
    :ivar has_place: whether it has a place, which it has not returned yet.
    :ivar refused: whether it does not get a place.
    :ivar timer: refuses it after the timeout.
    """

    __slots__ = ("decided", "has_place", "principal", "refused", "timer")

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.has_place = False
        self.refused = False
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Return once the request has a place, or is withdrawn.

        :raises Overloaded: the request is refused.
        """
        await self.decided
        if self.refused:
            raise _overloaded()


class Admission:
    """The places of the requests in flight, and the queue for them.

    :param limit: of requests in flight.
    :param max_waiting: limit of requests in the queue, of all principals together.
    :param timeout: how long a request may wait, in seconds; 0 disables queueing.
    """

    def __init__(self, limit: int, *, max_waiting: int, timeout: float) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._in_flight = 0
        self._waiting = 0
        # by principal
        self._places: dict[str, int] = {}
        self._uploads: dict[str, int] = {}
        # by principal, in the order of their turns
        self._queues: OrderedDict[str, OrderedDict[Turn, None]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a place."""
        return self._waiting

    def enter(self, principal: str) -> bool:
        """Take a place, if one is free; `leave` returns it.

        :returns: whether one was free.
        """
        if self._in_flight >= self._limit:
            return False
        self._in_flight += 1
        self._places[principal] = self._places.get(principal, 0) + 1
        return True

    def leave(self, principal: str) -> None:
        """Return a place of `principal`, and pass it to the next request that waits."""
        _change(self._places, principal, -1)
        self._in_flight -= 1
        if not self._waiting:
            return
        principal = min(self._queues, key=lambda each: self._places.get(each, 0))
        turn = next(iter(self._queues[principal]))
        turn.has_place = self.enter(principal)
        self._queues.move_to_end(principal)
        self._take_out(turn)

    def begin_upload(self, principal: str) -> None:
        """Count a body that is about to stream; `end_upload` discounts it.

        :raises Overloaded: `principal` has more such bodies than it leaves places free.
        """
        uploads = self._uploads.get(principal, 0) + 1
        if 1 < uploads > self._limit - self._in_flight - 1:
            raise Overloaded(
                "Too many of your uploads are in flight. Try again when one of them has ended.",
                retry_after=1,
            )
        self._uploads[principal] = uploads

    def end_upload(self, principal: str) -> None:
        """Discount a body that has streamed, or whose request has ended."""
        _change(self._uploads, principal, -1)

    def queue(self, principal: str) -> Turn:
        """Wait for a place, since none is free; `withdraw` must be called in the end.

        :raises Overloaded: queueing is disabled, or the queue is full.
        """
        if not self._timeout:
            raise _overloaded()
        if self._waiting >= self._max_waiting:
            self._make_room(principal)
        turn = Turn(principal)
        turn.timer = asyncio.get_running_loop().call_later(self._timeout, self._refuse, turn)
        self._queues.setdefault(principal, OrderedDict())[turn] = None
        self._waiting += 1
        return turn

    def withdraw(self, turn: Turn) -> None:
        """Return the place of a request that has ended, or take it out of the queue."""
        if turn.has_place:
            turn.has_place = False
            self.leave(turn.principal)
        elif turn in self._queues.get(turn.principal, ()):
            self._take_out(turn)

    def _make_room(self, principal: str) -> None:
        longest = max(self._queues.values(), key=len)
        if len(longest) <= len(self._queues.get(principal, ())) + 1:
            raise _overloaded()
        self._refuse(next(reversed(longest)))

    def _refuse(self, turn: Turn) -> None:
        turn.refused = True
        self._take_out(turn)

    def _take_out(self, turn: Turn) -> None:
        queue = self._queues[turn.principal]
        del queue[turn]
        if not queue:
            del self._queues[turn.principal]
        self._waiting -= 1
        if turn.timer is not None:
            turn.timer.cancel()
        if not turn.decided.done():  # it is done if the waiting task was cancelled
            turn.decided.set_result(None)


class FairThread:
    """A thread that does one piece of work at a time; principals take turns."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "bodies")
        self._turns = Admission(1, max_waiting=1_000_000, timeout=THREAD_TIMEOUT)

    async def run(self, principal: str, work: Callable[..., T], *arguments: object) -> T:
        """Return what `work` returns. Work that is cancelled before it begins is not done.

        :raises Overloaded: the turn of `work` did not come in time.
        """
        if not self._turns.enter(principal):
            turn = self._turns.queue(principal)
            try:
                await turn.wait()
            except asyncio.CancelledError:
                self._turns.withdraw(turn)
                raise
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, work, *arguments)
        finally:
            self._turns.leave(principal)

    def close(self) -> None:
        """Begin no further work."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _change(counts: dict[str, int], principal: str, by: int) -> None:
    """Change one count. Counts of 0 are deleted: one for each principal ever seen would pile up."""
    count = counts.get(principal, 0) + by
    if count:
        counts[principal] = count
    else:
        del counts[principal]


def _overloaded() -> Overloaded:
    return Overloaded("Too many requests are in flight. Try again shortly.", retry_after=1)
