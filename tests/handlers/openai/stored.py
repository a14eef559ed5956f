"""Stores of responses for tests: what is put into them, and a model of what they do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tornadoproxy import DatabaseLocation
from tornadoproxy.handlers.admission import FairThread
from tornadoproxy.handlers.openai.database_store import DatabaseStore
from tornadoproxy.handlers.openai.memory_store import MemoryStore
from tornadoproxy.handlers.openai.owned_responses import (
    ID_OVERHEAD,
    LINK_OVERHEAD,
    OWNER_OVERHEAD,
    PART_OVERHEAD,
    RESPONSE_OVERHEAD,
)
from tornadoproxy.handlers.openai.response_store import ResponseStore, Stored
from tornadoproxy.handlers.openai.stored_parts import Parts, parts_of
from tornadoproxy.openai.reading import Json

PRINCIPALS = ("ada", "bob", "cy")
RESPONSES = ("resp_1", "resp_2", "resp_3")
ITEMS = ("msg_1", "msg_2", "msg_3")
LIFETIME = 10.0
UNLIMITED = 1 << 40


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def message(item_id: str, text: str = "Hi") -> Json:
    return {"type": "message", "id": item_id, "role": "user", "content": text}


def response(response_id: str, *output: Json, instructions: str | None = None) -> Json:
    return {
        "id": response_id,
        "object": "response",
        "status": "completed",
        "instructions": instructions,
        "output": list(output),
    }


async def put(
    store: ResponseStore,
    principal: str,
    document: Json,
    given: Sequence[Json],
    previous: str | None,
    size: int = 0,
) -> None:
    """Put a response into a store, and wait until it is kept."""
    waiting = store.put(principal, document, given, previous, size)
    if waiting is not None:
        await waiting


@asynccontextmanager
async def memory_store(limit: int, clock: Clock) -> AsyncIterator[MemoryStore]:
    thread = FairThread()
    yield MemoryStore(limit, LIFETIME, thread, clock=clock)
    thread.close()


@asynccontextmanager
async def database_store(where: DatabaseLocation, clock: Clock) -> AsyncIterator[DatabaseStore]:
    store = DatabaseStore(where, LIFETIME, clock=clock)
    await store.start(10.0)
    yield store
    await store.close()


@dataclass
class Put:
    """A response that a model keeps."""

    principal: str
    document: Json
    own_input: list[Json]
    previous: str | None
    expires: float
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self.parts = parts_of(self.document, self.own_input, self.previous)

    @property
    def items(self) -> list[Json]:
        return [*self.own_input, *self.document["output"]]


class Model:
    """What a store does, by its description: everything is looked for, and counted, anew."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._kept: list[Put] = []

    def _of(self, principal: str) -> list[Put]:
        self._kept = [each for each in self._kept if each.expires > self._clock.now]
        return [each for each in self._kept if each.principal == principal]

    def _find(self, principal: str, response_id: str) -> Put | None:
        own = self._of(principal)
        return next((each for each in own if each.parts.id == response_id), None)

    def _size(self, principal: str) -> int:
        own = [each.parts for each in self._of(principal)]
        different = {part for parts in own for part in (parts.shared, *parts.items)}
        return (
            bool(own) * OWNER_OVERHEAD
            + len(own) * RESPONSE_OVERHEAD
            + sum(len(parts.own) + len(parts.items) * LINK_OVERHEAD for parts in own)
            + len(different) * PART_OVERHEAD
            + sum(len(part.id or "") * ID_OVERHEAD + len(part.body) for part in different)
        )

    def put(
        self, principal: str, document: Json, own_input: list[Json], previous: str | None
    ) -> None:
        self.delete(principal, document["id"])
        expires = self._clock.now + LIFETIME
        self._kept.append(Put(principal, document, own_input, previous, expires))
        while sum(map(self._size, PRINCIPALS)) > self._limit:
            oldest = self._of(max(PRINCIPALS, key=self._size))[0]  # of several, the first
            self._kept.remove(oldest)

    def delete(self, principal: str, response_id: str) -> bool:
        found = self._find(principal, response_id)
        self._kept = [each for each in self._kept if each is not found]
        return found is not None

    def get(self, principal: str, response_id: str) -> Stored | None:
        found = self._find(principal, response_id)
        if found is None:
            return None
        return Stored(found.document, tuple(found.own_input), found.previous)

    def history(self, principal: str, response_id: str) -> list[Json] | None:
        links: list[Put] = []
        following: str | None = response_id
        while following is not None:
            link = self._find(principal, following)
            if link is None:
                return None
            links.insert(0, link)
            following = link.previous
        return [item for link in links for item in link.items]

    def items(self, principal: str, item_id: str) -> list[Json | None]:
        """Every item of this id, of which a store returns one; ``[None]`` without any."""
        kept = [item for each in self._of(principal) for item in each.items]
        return [item for item in kept if item["id"] == item_id] or [None]


_texts = st.sampled_from(["a", "b" * 400, "c" * 2_000])
_items = st.lists(st.builds(message, st.sampled_from(ITEMS), _texts), max_size=3)
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.sampled_from(PRINCIPALS),
            st.sampled_from(range(len(RESPONSES))),
            *(_items, _items, _texts),
            st.booleans(),
        ),
        st.tuples(st.just("delete"), st.sampled_from(PRINCIPALS), st.sampled_from(RESPONSES)),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 6.0])),
    ),
    max_size=30,
)
"""What is done to a store: names and arguments."""


async def compare_with_model(
    done: list[Any],  # Any: see `operations`
    limit: int,
    opened: Callable[[Clock], AbstractAsyncContextManager[ResponseStore]],
) -> None:
    """Do `operations` to a store, and check after each that it has what its model has."""
    clock = Clock()
    model = Model(limit, clock)
    async with opened(clock) as store:
        for what, *arguments in done:
            if what == "wait":
                clock.now += arguments[0]
            elif what == "delete":
                assert await store.delete(*arguments) == model.delete(*arguments)
            else:
                principal, place, given, made, instructions, continues = arguments
                document = response(RESPONSES[place], *made, instructions=instructions)
                previous = RESPONSES[place - 1] if continues and place else None
                await put(store, principal, document, given, previous)
                model.put(principal, document, given, previous)
            for who in PRINCIPALS:
                for each in RESPONSES:
                    assert await store.get(who, each) == model.get(who, each)
                    assert await store.history(who, each) == model.history(who, each)
                found = await store.items(who, ITEMS)
                assert all(found.get(each) in model.items(who, each) for each in ITEMS)
