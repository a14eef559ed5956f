"""The memory for bytes that clients have sent and that cannot be used yet.

The theory. Bytes are charged when they arrive, never when they are announced: a slow body takes as
much room as it has sent. A principal may hold as much as it leaves free. So one principal alone
gets half of the room, the next one half of the rest, and there is always room for one that holds
nothing (the dynamic threshold of A. Choudhury and E. Hahne, https://doi.org/10.1109/90.664262).

Clients that are not authenticated have a sixteenth of the room, all together. There the oldest
holding gives way to the newest, since a client in good faith needs its room for moments only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.errors import BodyTooLarge, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

UNCHARGED_BODY = 16 * 1024
"""The largest body that is held without a charge if it arrives in one piece, in bytes.

Such a body is whole, so that there are no more of them than requests in flight or queued.
"""

_UNKNOWN_PART = 16


class BodyBudget:
    """The room for held bytes in one process.

    :param capacity: of the room, in bytes.
    :ivar used: bytes that are charged at present.
    """

    def __init__(self, capacity: int) -> None:
        self.used = 0
        self._capacity = capacity
        self._by_principal: dict[str, int] = {}
        self._unknown_used = 0
        self._unknown: dict[Holding, None] = {}  # the oldest first

    def charge(self, principal: str, more: int) -> None:
        """Charge `more` bytes to `principal`; a negative number releases them.

        :raises Overloaded: the principal may not hold so much.
        """
        own = self._by_principal.get(principal, 0) + more
        if more > 0 and own > self._capacity - self.used - more:
            raise Overloaded("Too many large requests are in flight. Try again.", retry_after=1)
        self.used += more
        if own:
            self._by_principal[principal] = own
        else:
            self._by_principal.pop(principal, None)

    def check_may_fit(self, size: int) -> None:
        """Refuse a body that a principal could not hold even if no other principal held any.

        :raises BodyTooLarge: `size` is more than half of the room.
        """
        most = self._capacity // 2
        if size > most:
            raise BodyTooLarge(
                f"The request body is larger than {most} bytes, which is half of MAX_HELD_BODIES."
            ) from None

    def charge_unknown(self, holding: Holding, more: int) -> None:
        """Charge `more` bytes of `holding`; the oldest holdings give way to them."""
        self.used += more
        self._unknown_used += more
        if holding.size:
            self._unknown[holding] = None
        else:
            self._unknown.pop(holding, None)
        while self._unknown_used > self._capacity // _UNKNOWN_PART:
            next(iter(self._unknown)).give_way()


class Holding:
    """The bytes held for one client.

    :param principal: of the client; ``None`` if it is not authenticated.
    :param on_give_way: called when the holding gives way, as only unauthenticated clients' do.
    :ivar size: in bytes.
    """

    __slots__ = ("_budget", "_on_give_way", "_principal", "size")

    def __init__(
        self,
        budget: BodyBudget,
        principal: str | None,
        on_give_way: Callable[[], None] | None = None,
    ) -> None:
        self.size = 0
        self._budget = budget
        self._principal = principal
        self._on_give_way = on_give_way

    def resize(self, size: int) -> None:
        """Hold `size` bytes from now on.

        :raises Overloaded: there is no room for so many; the size is unchanged.
        """
        more = size - self.size
        if self._principal is not None:
            self._budget.charge(self._principal, more)
            self.size = size
        elif more:
            self.size = size
            self._budget.charge_unknown(self, more)

    def give_way(self) -> None:
        """Hold nothing any more, since another holding needs the room."""
        self.resize(0)
        if self._on_give_way is not None:
            self._on_give_way()


class HeldBody(Holding):
    """A request's body, held until it is whole, and as long as it may be sent again."""

    __slots__ = ("_body",)

    def __init__(
        self,
        budget: BodyBudget,
        principal: str | None,
        on_give_way: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(budget, principal, on_give_way)
        self._body: bytes | bytearray = b""

    def add(self, piece: bytes, *, is_last: bool = False) -> None:
        """Hold `piece`, too.

        :param is_last: `piece` completes the body, so that a small body is not charged.
        :raises Overloaded: there is no room for it at present.
        :raises BodyTooLarge: there can never be room for it.
        """
        if is_last and not self.size and len(piece) <= UNCHARGED_BODY:
            self._body = piece
            return
        size = self.size + len(piece)
        try:
            self.resize(size)
        except Overloaded:
            self._budget.check_may_fit(size)
            raise
        if isinstance(self._body, bytes):
            self._body = bytearray()  # a list of small pieces would take 30 times what is charged
        self._body += piece

    def take(self) -> bytes:
        """Return the body, which stays charged until `release`."""
        body, self._body = bytes(self._body), b""
        return body

    def release(self) -> None:
        """Release the room; harmless the second time."""
        if self.size:
            self._body = b""
            self.resize(0)
