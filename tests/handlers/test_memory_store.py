"""The store of responses in memory: its bound, and what each principal may hold of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from properties import holds_of
from stored import message, response

from tornadoproxy.handlers.admission import FairThread
from tornadoproxy.handlers.openai.memory_store import MemoryStore
from tornadoproxy.handlers.openai.owned_responses import (
    BODY_OVERHEAD,
    ITEM_OVERHEAD,
    LINK_OVERHEAD,
    OWNER_OVERHEAD,
    RESPONSE_OVERHEAD,
)
from tornadoproxy.handlers.openai.response_store import Stored
from tornadoproxy.handlers.openai.stored_parts import Item, Parts, item_of, parts_of
from tornadoproxy.openai.reading import Json

PRINCIPALS = ("ada", "bob", "cy")
RESPONSES = ("resp_1", "resp_2", "resp_3")
ITEMS = ("msg_1", "msg_2", "msg_3")
LIFETIME = 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


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
        given, made = (
            tuple(map(item_of, each)) for each in (self.own_input, self.document["output"])
        )
        self.parts = parts_of(self.document, given, made, self.previous)

    @property
    def items(self) -> list[Json]:
        return [*self.own_input, *self.document["output"]]


class Model:
    """What a store does, by its description: everything is looked for, and counted, anew."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[Put] = []
        self.put_so_far: list[tuple[str, Item]] = []

    def of(self, principal: str) -> list[Put]:
        return [each for each in self.kept if each.principal == principal]

    def find(self, principal: str, response_id: str | None) -> Put | None:
        own = self.of(principal)
        return next((each for each in own if each.parts.id == response_id), None)

    def size(self, principal: str) -> int:
        own = [each.parts for each in self.of(principal)]
        items = {item for parts in own for item in (*parts.input, *parts.output)}
        bodies = {item.body for item in items} | {parts.shared for parts in own}
        links = sum(len(parts.input) + len(parts.output) for parts in own)
        return (
            bool(own) * OWNER_OVERHEAD
            + len(own) * RESPONSE_OVERHEAD
            + sum(len(parts.own) for parts in own)
            + links * LINK_OVERHEAD
            + len(items) * ITEM_OVERHEAD
            + sum(len(body) + BODY_OVERHEAD for body in bodies)
        )

    def put(self, new: Put) -> None:
        self.kept = [
            each
            for each in self.kept
            if (each.principal, each.parts.id) != (new.principal, new.parts.id)
        ] + [new]
        self.put_so_far += [(new.principal, item_of(item)) for item in new.items]
        while sum(map(self.size, PRINCIPALS)) > self.limit:
            largest = max(PRINCIPALS, key=self.size)  # the first of several
            self.kept.remove(self.of(largest)[0])

    def history(self, principal: str, response_id: str) -> list[Json] | None:
        links: list[Put] = []
        following: str | None = response_id
        while following is not None:
            link = self.find(principal, following)
            if link is None:
                return None
            links.insert(0, link)
            following = link.previous
        return [item for link in links for item in link.items]

    def item(self, principal: str, item_id: str) -> Json | None:
        kept = {item_of(item): item for each in self.of(principal) for item in each.items}
        for owner, item in reversed(self.put_so_far):
            if owner == principal and item.id == item_id and item in kept:
                return kept[item]
        return None


texts = st.sampled_from(["a", "b" * 400, "c" * 2_000])
items = st.lists(st.builds(message, st.sampled_from(ITEMS), texts), max_size=3)
operations = st.one_of(
    st.tuples(
        st.just("put"),
        st.sampled_from(PRINCIPALS),
        st.sampled_from(range(len(RESPONSES))),
        *(items, items, texts),
        st.booleans(),
    ),
    st.tuples(st.just("delete"), st.sampled_from(PRINCIPALS), st.sampled_from(RESPONSES)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 6.0])),
)


# Any: an operation is a name and its arguments
@holds_of(st.lists(operations, max_size=30), st.sampled_from([6_000, 12_000, 1 << 30]))
def test_memory_store_does_what_its_model_does(done: list[Any], limit: int) -> None:
    asyncio.run(_compare(done, limit))


async def _compare(done: list[Any], limit: int) -> None:
    clock, model = Clock(), Model(limit)
    store = MemoryStore(limit, LIFETIME, FairThread(), clock=clock)
    for what, *arguments in done:
        if what == "wait":
            clock.now += arguments[0]
            model.kept = [each for each in model.kept if each.expires > clock.now]
        elif what == "delete":
            principal, response_id = arguments
            found = model.find(principal, response_id)
            assert await store.delete(principal, response_id) == (found is not None)
            model.kept = [each for each in model.kept if each is not found]
        else:
            principal, place, own_input, output, instructions, continues = arguments
            document = response(RESPONSES[place], *output, instructions=instructions)
            previous = RESPONSES[place - 1] if continues and place else None
            await store.put(principal, document, own_input, previous)
            expires = clock.now + LIFETIME
            model.put(Put(principal, document, own_input, previous, expires))
        for principal in PRINCIPALS:
            for response_id in RESPONSES:
                kept = model.find(principal, response_id)
                stored = kept and Stored(kept.document, tuple(kept.own_input), kept.previous)
                assert await store.get(principal, response_id) == stored
                history = model.history(principal, response_id)
                assert await store.history(principal, response_id) == history
            expected = {each: model.item(principal, each) for each in ITEMS}
            assert await store.items(principal, ITEMS) == {
                each: item for each, item in expected.items() if item is not None
            }


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    thread = FairThread()
    yield MemoryStore(100_000, LIFETIME, thread)
    thread.close()


async def test_greedy_principal_pushes_out_its_own_responses(store: MemoryStore) -> None:
    for number in range(9):
        await store.put("modest", response(f"resp_{number}"), [message("msg", "a" * 1_000)], None)
    for number in range(200):
        text = f"{number:04}" * 1_000
        await store.put("greedy", response(f"resp_{number}"), [message("msg", text)], None)
    kept = [number for number in range(200) if await store.get("greedy", f"resp_{number}")]
    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) > 10
    assert all([await store.get("modest", f"resp_{number}") for number in range(9)])


async def test_response_larger_than_the_store_is_logged(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("ada", response("resp_1"), [message("msg_1")], None)
    for _ in range(3):
        await store.put("bob", response("resp_1"), [message("msg_1", "x" * 100_000)], None)
    assert await store.get("bob", "resp_1") is None
    assert await store.get("ada", "resp_1") is not None
    logged = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert [each.partition(" ")[0] for each in logged] == ["1", "2"]
    assert "RESPONSES_STORE_SIZE" in logged[0]


async def test_equal_parts_are_held_once(store: MemoryStore) -> None:
    """A client that keeps no state sends its whole history with each turn."""
    history: list[Json] = []
    for number in range(100):
        history.append(message(f"msg_{number}", f"{number:03}" * 200))
        resent = [{**item, "id": f"{item['id']}_in_turn_{number}"} for item in history[-9:]]
        document = response(f"resp_{number}", instructions="x" * 10_000)
        await store.put("ada", document, resent, None)
    assert await store.get("ada", "resp_90") is not None
