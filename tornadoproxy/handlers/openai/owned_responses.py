"""The responses of one principal in memory, with equal parts stored once."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy.handlers.openai.stored_parts import Part, Parts
from tornadoproxy.openai.responses import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable

# bytes that Python's objects take besides those of JSON, measured with tracemalloc
OWNER_OVERHEAD = 1200
RESPONSE_OVERHEAD = 600
PART_OVERHEAD = 220
ID_OVERHEAD = 4  # for each character
LINK_OVERHEAD = 8


class Owned(Struct, eq=False, gc=False):
    """A response of an owner.

    :ivar parts: the response, of parts that its owner holds once.
    :ivar size: the bytes that it takes, without the parts that others may have too.
    :ivar expires: the time from which it no longer exists.
    """

    owner: Owner
    parts: Parts
    size: int
    expires: float


class _Held(Struct, gc=False):
    """A part, and how often the responses of its owner have it."""

    part: Part
    uses: int = 0


class Owner:
    """A principal with its responses.

    :ivar responses: by their ids, in the order in which they were put.
    :ivar size: the bytes that it takes with them.
    :ivar entered: its size in the heap of `MemoryStore`.
    """

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.responses: OrderedDict[str, Owned] = OrderedDict()
        self.size = OWNER_OVERHEAD
        self.entered = 0
        self._parts: dict[Part, _Held] = {}
        self._by_id: dict[str, tuple[Part, ...]] = {}  # the one put last comes last

    @property
    def oldest(self) -> Owned:
        """The response that was put first."""
        return next(iter(self.responses.values()))

    def add(self, parts: Parts, expires: float) -> Owned:
        """Add a response, whose id is new, and return it."""
        shared, items = self._take(parts.shared), tuple(map(self._take, parts.items))
        held = Parts(parts.id, parts.previous, parts.own, shared, items, parts.inputs)
        size = RESPONSE_OVERHEAD + len(parts.own) + LINK_OVERHEAD * len(items)
        self.size += size
        added = self.responses[parts.id] = Owned(self, held, size, expires)
        return added

    def remove(self, owned: Owned) -> None:
        """Remove a response, and the parts that no other response has."""
        parts = owned.parts
        del self.responses[parts.id]
        self.size -= owned.size
        self._release(parts.shared)
        for each in parts.items:
            self._release(each)

    def items(self, ids: Iterable[str]) -> dict[str, Part]:
        """Return the items of these ids; of two with one id, the one put last."""
        found = {}
        for each in ids:
            same = self._by_id.get(each)
            item = self._unnamed(each) if same is None else same[-1]
            if item is not None:
                found[each] = item
        return found

    def _unnamed(self, item_id: str) -> Part | None:
        """Return the input item that has no id, and was given this one."""
        response_id, index = place_of(item_id) or ("", 0)
        owned = self.responses.get(response_id)
        if owned is None or index >= owned.parts.inputs:
            return None
        item = owned.parts.items[index]
        return Part(item_id, item.body) if item.id is None else None

    def _take(self, part: Part) -> Part:
        held = self._parts.get(part)
        if held is None:
            held = self._parts[part] = _Held(part)
            self.size += _size(part)
        held.uses += 1
        part = held.part
        if part.id is not None:
            same = self._by_id.get(part.id, ())
            if not same or same[-1] is not part:
                self._by_id[part.id] = (*_without(part, same), part)
        return part

    def _release(self, part: Part) -> None:
        held = self._parts[part]
        held.uses -= 1
        if held.uses:
            return
        del self._parts[part]
        self.size -= _size(part)
        if part.id is not None:
            same = _without(part, self._by_id[part.id])
            if same:
                self._by_id[part.id] = same
            else:
                del self._by_id[part.id]


def _size(part: Part) -> int:
    return PART_OVERHEAD + ID_OVERHEAD * len(part.id or "") + len(part.body)


def _without(part: Part, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple([each for each in parts if each is not part])
