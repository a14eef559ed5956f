"""Admits requests up to a limit; those beyond it wait in a short fair queue.

A place is taken by `Admission.enter`, or handed by `Admission.leave` from a request that is over to
the one whose turn it is. So nobody waits while a place is free, and to enter is one comparison.

Whose turn it is: principals take turns, whatever the number of their requests; within one, first
come is first served. In a full queue the newest request of the principal with the most of them
gives way to one with fewer, since whoever fills the queue would otherwise keep all others out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from tornadoproxy.errors import Overloaded


class Turn:
    """A request in the queue, until it is decided whether it gets a place.

    :param principal: who asks.
    :ivar has_place: it was handed a place, and has not given it back.
    :ivar refused: there is no place for it.
    :ivar timer: ends its patience.
    """

    __slots__ = ("decided", "has_place", "principal", "refused", "timer")

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.has_place = False
        self.refused = False
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Return once it has a place, or is withdrawn.

        :raises Overloaded: it is refused.
        """
        await self.decided
        if self.refused:
            raise _overloaded()


class Admission:
    """The places of the requests in flight, and the queue for them.

    :param limit: requests in flight at once.
    :param max_waiting: requests that may wait at once, of all principals together.
    :param patience: how long one may wait, in seconds; 0 turns the queue off.
    """

    def __init__(self, limit: int, *, max_waiting: int, patience: float) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._patience = patience
        self._in_flight = 0
        self._waiting = 0
        # by principal, in the order of their turns
        self._queues: OrderedDict[str, OrderedDict[Turn, None]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return self._waiting

    def enter(self) -> bool:
        """Take a place, if one is free; `leave` gives it back."""
        if self._in_flight >= self._limit:
            return False
        self._in_flight += 1
        return True

    def leave(self) -> None:
        """Give a place back: to the one whose turn it is, if anybody waits."""
        if not self._waiting:
            self._in_flight -= 1
            return
        principal, queue = next(iter(self._queues.items()))
        turn = next(iter(queue))
        turn.has_place = True
        self._queues.move_to_end(principal)
        self._take_out(turn)

    def queue(self, principal: str) -> Turn:
        """Wait for a place, since none is free; `withdraw` ends it, however it went.

        :raises Overloaded: there is no queue, or no room in it.
        """
        if not self._patience:
            raise _overloaded()
        if self._waiting >= self._max_waiting:
            self._make_room(principal)
        turn = Turn(principal)
        turn.timer = asyncio.get_running_loop().call_later(self._patience, self._refuse, turn)
        self._queues.setdefault(principal, OrderedDict())[turn] = None
        self._waiting += 1
        return turn

    def withdraw(self, turn: Turn) -> None:
        """Give back the place or the turn of a request that is over, whichever it has."""
        if turn.has_place:
            turn.has_place = False
            self.leave()
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
        if not turn.decided.done():  # it is if the task that waits was cancelled
            turn.decided.set_result(None)


def _overloaded() -> Overloaded:
    return Overloaded("Too many requests are in flight. Try again shortly.", retry_after=1)
