"""Responses in memory, bounded: the store of one process.

A response takes memory: its bytes as JSON, and the Python objects around them. At the limit, the
principal that holds most loses its oldest response, until the new one fits. So a principal can only
displace responses of principals that hold more. If that oldest response is the new one itself, the
only one of its principal, and small, the oldest of all is deleted instead: otherwise, where many
hold little, later principals could store nothing.

Each operation takes the same time however many responses there are. The owners are in a heap by
their sizes: an owner that has grown is entered anew, and one that has shrunk is corrected when it
comes first. The first entry of a plain `dict` is found by passing over all that were deleted before
it; `OrderedDict` has it at once.

A small response waits until several are added at once, or until anything is read. When each was
added alone, the memory that adding touches had left the processor's caches each time: storing took
39 µs of a request, and takes 21 µs now.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tornadoproxy.errors import Overloaded
from tornadoproxy.handlers.openai.owned_responses import Owner
from tornadoproxy.handlers.openai.response_store import Losses
from tornadoproxy.handlers.openai.stored_parts import (
    MAX_LINKS,
    Parts,
    items_of,
    parts_of,
    put_together,
    too_large,
)
from tornadoproxy.protocol.body_fields import IN_THREAD
from tornadoproxy.protocol.request_fields import MAX_MESSAGE_BODY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from tornadoproxy.handlers.admission import FairThread
    from tornadoproxy.handlers.openai.owned_responses import Owned
    from tornadoproxy.handlers.openai.response_store import Stored
    from tornadoproxy.openai.reading import Json

SMALL = 16
"""The part of the store that the only response of a principal may take at the cost of others."""

TOGETHER = 16
"""How many responses wait to be added at once."""

T = TypeVar("T")
P = TypeVar("P")


class _Waiting(NamedTuple):
    """A response that is not added yet; see `MemoryStore.put`."""

    principal: str
    response: Json
    own_input: Sequence[Json]
    previous: str | None
    expires: float


class MemoryStore:
    """See `ResponseStore`.

    :param limit: the most bytes that all responses may take together.
    :param lifetime: seconds for which they are kept.
    :param thread: encodes and decodes what would block the event loop.
    :param clock: returns the time in seconds.
    """

    def __init__(
        self,
        limit: int,
        lifetime: float,
        thread: FairThread,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limit = limit
        self._lifetime = lifetime
        self._thread = thread
        self._clock = clock
        self._losses = Losses()
        self._waiting: list[_Waiting] = []
        self._waiting_size = 0
        self._used = 0
        self._owners: dict[str, Owner] = {}
        self._oldest_first: OrderedDict[Owned, None] = OrderedDict()
        self._largest_first: list[tuple[int, str]] = []  # a heap: the sizes are negative

    def put(
        self,
        principal: str,
        response: Json,
        own_input: Sequence[Json],
        previous: str | None,
        size: int,
    ) -> Awaitable[None] | None:
        if size > IN_THREAD:
            return self._put_later(principal, partial(_hashed, response, own_input, previous))
        expires = self._clock() + self._lifetime
        self._waiting.append(_Waiting(principal, response, own_input, previous, expires))
        self._waiting_size += size
        if len(self._waiting) == TOGETHER or self._waiting_size > IN_THREAD:
            self._settle()
        return None

    async def _put_later(self, principal: str, encode: Callable[[], Parts]) -> None:
        try:
            parts = await self._thread.run(principal, encode)
        except Overloaded as error:
            self._losses.count(str(error))
        else:
            self._settle()
            self._add(principal, parts, self._clock() + self._lifetime)

    def _settle(self) -> None:
        """Add the responses that wait, and remove those that have expired."""
        if self._waiting:
            waiting, self._waiting, self._waiting_size = self._waiting, [], 0
            for principal, response, own_input, previous, expires in waiting:
                self._add(principal, parts_of(response, own_input, previous), expires)
        now = self._clock()
        while self._oldest_first:
            oldest = next(iter(self._oldest_first))
            if oldest.expires > now:
                return
            self._remove(oldest)

    def _add(self, principal: str, parts: Parts, expires: float) -> None:
        owner = self._owners.get(principal)
        if owner is None:
            owner = self._owners[principal] = Owner(principal)
            self._used += owner.size
        before = owner.size
        replaced = owner.responses.get(parts.id)
        if replaced is not None:
            owner.remove(replaced)
            del self._oldest_first[replaced]
        added = owner.add(parts, expires)
        self._used += owner.size - before
        self._oldest_first[added] = None
        if owner.size > owner.entered:
            self._enter(owner)
        while self._used > self._limit:
            oldest = self._largest().oldest
            if oldest is added and owner.size <= self._limit // SMALL:
                oldest = next(iter(self._oldest_first))
            self._remove(oldest)
        if added not in self._oldest_first:
            self._losses.count(
                "it takes more of RESPONSES_STORE_SIZE than the others leave free: raise it, or "
                "set RESPONSES_STORE to a database"
            )

    async def history(self, principal: str, response_id: str) -> list[Json] | None:
        chain = []
        size = 0
        following: str | None = response_id
        while following is not None:
            link = self._find(principal, following)
            if link is None:
                return None
            chain.append(link.parts)
            size += link.parts.size
            if size > MAX_MESSAGE_BODY or len(chain) > MAX_LINKS:
                raise too_large("previous_response_id")
            following = link.parts.previous
        items = [item for each in reversed(chain) for item in each.items]
        return await self._decoded(
            principal, size, partial(items_of, "previous_response_id"), items
        )

    async def items(self, principal: str, ids: Collection[str]) -> dict[str, Json]:
        self._settle()
        owner = self._owners.get(principal)
        found = {} if owner is None else owner.items(ids)
        size = sum(len(item.body) for item in found.values())
        if size > MAX_MESSAGE_BODY:
            raise too_large("input")
        decoded = await self._decoded(principal, size, partial(items_of, "input"), found.values())
        return dict(zip(found, decoded, strict=True))

    async def get(self, principal: str, response_id: str) -> Stored | None:
        found = self._find(principal, response_id)
        if found is None:
            return None
        return await self._decoded(principal, found.parts.size, put_together, found.parts)

    async def delete(self, principal: str, response_id: str) -> bool:
        found = self._find(principal, response_id)
        if found is not None:
            self._remove(found)
        return found is not None

    async def _decoded(self, principal: str, size: int, decode: Callable[[P], T], parts: P) -> T:
        if size <= IN_THREAD:
            return decode(parts)
        return await self._thread.run(principal, decode, parts)

    def _find(self, principal: str, response_id: str) -> Owned | None:
        self._settle()
        owner = self._owners.get(principal)
        return None if owner is None else owner.responses.get(response_id)

    def _remove(self, owned: Owned) -> None:
        owner = owned.owner
        self._used -= owner.size
        owner.remove(owned)
        del self._oldest_first[owned]
        if owner.responses:
            self._used += owner.size
        else:
            del self._owners[owner.principal]

    def _enter(self, owner: Owner) -> None:
        """Enter an owner that has grown into the heap."""
        owner.entered = owner.size
        heapq.heappush(self._largest_first, (-owner.size, owner.principal))
        if len(self._largest_first) > 2 * len(self._owners) + 100:
            # most entries are outdated
            for each in self._owners.values():
                each.entered = each.size
            self._largest_first = [(-each.size, name) for name, each in self._owners.items()]
            heapq.heapify(self._largest_first)

    def _largest(self) -> Owner:
        while True:
            size, principal = self._largest_first[0]
            owner = self._owners.get(principal)
            if owner is None or owner.entered != -size:
                heapq.heappop(self._largest_first)  # outdated
            elif owner.size < owner.entered:
                owner.entered = owner.size
                heapq.heapreplace(self._largest_first, (-owner.size, principal))
            else:
                return owner


def _hashed(response: Json, own_input: Sequence[Json], previous: str | None) -> Parts:
    """Return the parts of a large response."""
    parts = parts_of(response, own_input, previous)
    hash(parts)  # bytes keep their hash, so that the event loop need not read them
    return parts
