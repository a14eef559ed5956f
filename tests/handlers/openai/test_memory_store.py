"""The store of responses in memory: its bound, and what each principal may hold of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from properties import holds_of
from stored import (
    LIFETIME,
    PRINCIPALS,
    UNLIMITED,
    Clock,
    compare_with_model,
    memory_store,
    message,
    operations,
    put,
    response,
)

from tornadoproxy.handlers import admission
from tornadoproxy.handlers.admission import FairThread
from tornadoproxy.handlers.openai.memory_store import MemoryStore
from tornadoproxy.openai.reading import Json


# Any: see `operations`
@holds_of(operations, st.sampled_from([6_000, 12_000, UNLIMITED]))
def test_memory_store_does_what_its_model_does(done: list[Any], limit: int) -> None:
    asyncio.run(compare_with_model(done, limit, partial(memory_store, limit)))


async def test_full_store_deletes_oldest_of_largest_principal() -> None:
    async with memory_store(100_000, Clock()) as store:
        for number in range(9):
            given = [message("msg", "a" * 1_000)]
            await put(store, "modest", response(f"resp_{number}"), given, None)
        for number in range(200):
            given = [message("msg", f"{number:04}" * 1_000)]
            await put(store, "greedy", response(f"resp_{number}"), given, None)
        kept = [number for number in range(200) if await store.get("greedy", f"resp_{number}")]
        assert kept == list(range(200 - len(kept), 200))
        assert len(kept) > 10
        assert all([await store.get("modest", f"resp_{number}") for number in range(9)])


async def test_principal_that_has_deleted_keeps_what_is_left() -> None:
    """The order of the principals by size follows what they delete."""

    async def fill(who: str, numbers: range) -> None:
        for number in numbers:
            given = [message(f"msg_{number}", f"{number:04}" * 250)]
            await put(store, who, response(f"resp_{number}"), given, None)

    async def kept(who: str) -> list[int]:
        return [number for number in range(50) if await store.get(who, f"resp_{number}")]

    async with memory_store(80_000, Clock()) as store:
        await fill("deletes", range(30))
        for number in range(3, 30):
            await store.delete("deletes", f"resp_{number}")
        await fill("largest", range(25))
        await fill("third", range(12))
        await fill("deletes", range(30, 34))
        assert await kept("deletes") == [0, 1, 2, 30, 31, 32, 33]
        assert await kept("third") == list(range(12))
        left = await kept("largest")
        assert left == list(range(25 - len(left), 25))
        assert 12 < len(left) < 25
        await fill("deletes", range(34, 50))
        assert (await kept("deletes"))[-1] == 49
        assert (await kept("third"))[-3:] == [9, 10, 11]


async def test_new_principal_displaces_oldest_if_all_hold_little() -> None:
    names = [f"{number:03}" for number in range(200)]
    async with memory_store(200_000, Clock()) as store:
        for number, name in enumerate(names):
            await put(store, name, response("resp_1"), [message("msg_1", "x" * number)], None)
        kept = [name for name in names if await store.get(name, "resp_1")]
        assert kept == names[-len(kept) :]
        assert 50 < len(kept) < 150
        await put(store, "large", response("resp_1"), [message("msg_1", "x" * 12_500)], None)
        assert await store.get("large", "resp_1") is None


async def test_response_larger_than_the_store_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with memory_store(100_000, Clock()) as store:
        await put(store, "ada", response("resp_1"), [message("msg_1")], None)
        for _ in range(3):
            await put(store, "bob", response("resp_1"), [message("msg_1", "x" * 100_000)], None)
        assert await store.get("bob", "resp_1") is None
        assert await store.get("ada", "resp_1") is not None
    logged = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert [each.partition(" ")[0] for each in logged] == ["1", "2"]
    assert "RESPONSES_STORE_SIZE" in logged[0]


async def test_responses_are_kept_as_if_each_were_read() -> None:
    async with memory_store(40_000, Clock()) as read, memory_store(40_000, Clock()) as unread:
        for number in range(100):
            given = [message(f"msg_{number % 7}", f"{number:03}" * 30), {"role": "user"}]
            who, document = PRINCIPALS[number % 3], response(f"resp_{number % 40}")
            for store in (read, unread):
                await put(store, who, document, given, None)
            await read.get(who, "")
        kept = 0
        for who in PRINCIPALS:
            for number in range(40):
                found = await unread.get(who, f"resp_{number}")
                assert found == await read.get(who, f"resp_{number}")
                kept += found is not None
            ids = [f"msg_{number}" for number in range(7)]
            assert await unread.items(who, ids) == await read.items(who, ids)
        assert 10 < kept < 100


async def test_lifetime_begins_with_the_put() -> None:
    clock = Clock()
    async with memory_store(UNLIMITED, clock) as store:
        await put(store, "ada", response("resp_1"), [], None)
        clock.now += LIFETIME
        await put(store, "ada", response("resp_2"), [], None)
        assert await store.get("ada", "resp_1") is None
        assert await store.get("ada", "resp_2") is not None


async def test_history_that_is_sent_with_each_turn_is_held_once() -> None:
    history: list[Json] = []
    async with memory_store(250_000, Clock()) as store:
        for turn in range(100):
            history.append({"role": "user", "content": f"{turn:03}" * 200})
            document = response(f"resp_{turn}", instructions="x" * 10_000)
            await put(store, "ada", document, history, None)
        assert await store.get("ada", "resp_0") is not None


async def test_large_response_is_kept_after_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    given = [message("msg_1", "x" * 400_000)]
    async with memory_store(UNLIMITED, Clock()) as store:
        waiting = store.put("ada", response("resp_1"), given, None, 400_000)
        assert waiting is not None
        assert await store.get("ada", "resp_1") is None
        await waiting
        assert await store.history("ada", "resp_1") == given
    assert caplog.records == []


async def test_large_response_without_a_turn_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "THREAD_TIMEOUT", 0.01)
    thread, may_end = FairThread(), threading.Event()
    store = MemoryStore(UNLIMITED, LIFETIME, thread)
    other = asyncio.ensure_future(thread.run("bob", may_end.wait))
    await asyncio.sleep(0)  # it begins
    await put(store, "ada", response("resp_1"), [], None, size=400_000)
    may_end.set()
    await other
    thread.close()
    assert await store.get("ada", "resp_1") is None
    assert [each.levelno for each in caplog.records] == [logging.ERROR]
