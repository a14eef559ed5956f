"""The responses of one principal in memory, with equal parts stored once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec import Struct

from tornadoproxy.handlers.openai.stored_parts import Item, Parts

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

# bytes that Python's objects take besides those of JSON, measured with tracemalloc
OWNER_OVERHEAD = 1000
RESPONSE_OVERHEAD = 600
ITEM_OVERHEAD = 300
BODY_OVERHEAD = 200
LINK_OVERHEAD = 8


class Owned(Struct, eq=False, gc=False):
    """A response of an owner.

    :ivar parts: the response, of items and bodies that its owner holds once.
    :ivar expires: the time from which it no longer exists.
    """

    owner: Owner
    parts: Parts
    expires: float


class _Held(Struct, Generic[T], gc=False):
    """A part that several responses have, and their number."""

    value: T
    uses: int = 0


class Owner:
    """A principal with its responses.

    :ivar responses: by their ids, in the order in which they were put.
    :ivar size: the bytes that it takes with them.
    :ivar entered: its size in the heap of `MemoryStore`.
    """

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.responses: dict[str, Owned] = {}
        self.size = OWNER_OVERHEAD
        self.entered = 0
        self._bodies: dict[bytes, _Held[bytes]] = {}
        self._items: dict[Item, _Held[Item]] = {}
        self._by_id: dict[str, list[Item]] = {}

    @property
    def oldest(self) -> Owned:
        """The response that was put first."""
        return next(iter(self.responses.values()))

    def add(self, parts: Parts, expires: float) -> Owned:
        """Add a response, whose id is new, and return it."""
        held = Parts(
            parts.id,
            parts.previous,
            _fitted(parts.own),
            self._take_body(parts.shared),
            tuple(map(self._take, parts.input)),
            tuple(map(self._take, parts.output)),
        )
        added = self.responses[parts.id] = Owned(self, held, expires)
        self.size += _own_size(held)
        return added

    def remove(self, owned: Owned) -> None:
        """Remove a response, and the parts that no other response has."""
        parts = owned.parts
        del self.responses[parts.id]
        self.size -= _own_size(parts)
        self._release_body(parts.shared)
        for item in (*parts.input, *parts.output):
            self._release(item)

    def items(self, ids: Iterable[str]) -> dict[str, Item]:
        """Return the items of these ids; of two with one id, the one put last."""
        return {each: self._by_id[each][-1] for each in ids if each in self._by_id}

    def _take(self, item: Item) -> Item:
        held = self._items.get(item)
        if held is None:
            item = Item(item.id, self._take_body(item.body))
            held = self._items[item] = _Held(item)
            self.size += ITEM_OVERHEAD
        held.uses += 1
        if item.id is not None:
            same = self._by_id.get(item.id)
            if same is None:
                self._by_id[item.id] = [held.value]
            elif same[-1] is not held.value:
                if held.uses > 1:
                    same.remove(item)
                same.append(held.value)
        return held.value

    def _release(self, item: Item) -> None:
        held = self._items[item]
        held.uses -= 1
        if held.uses:
            return
        del self._items[item]
        self.size -= ITEM_OVERHEAD
        self._release_body(item.body)
        if item.id is not None:
            same = self._by_id[item.id]
            same.remove(item)
            if not same:
                del self._by_id[item.id]

    def _take_body(self, body: bytes) -> bytes:
        held = self._bodies.get(body)
        if held is None:
            body = _fitted(body)
            held = self._bodies[body] = _Held(body)
            self.size += len(body) + BODY_OVERHEAD
        held.uses += 1
        return held.value

    def _release_body(self, body: bytes) -> None:
        held = self._bodies[body]
        held.uses -= 1
        if not held.uses:
            del self._bodies[body]
            self.size -= len(body) + BODY_OVERHEAD


def _fitted(encoded: bytes) -> bytes:
    """Return a copy: what msgspec has encoded keeps its buffer, which may be half as long again."""
    return bytes(memoryview(encoded))


def _own_size(parts: Parts) -> int:
    """Return the bytes that a response takes, without the parts that others may have too."""
    links = len(parts.input) + len(parts.output)
    return RESPONSE_OVERHEAD + len(parts.own) + LINK_OVERHEAD * links
