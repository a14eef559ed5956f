"""What every store of responses does: in memory, in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
from stored import (
    LIFETIME,
    UNLIMITED,
    Clock,
    database_store,
    memory_store,
    message,
    put,
    response,
)

from tornadoproxy import InvalidRequest
from tornadoproxy.handlers.openai import memory_store as in_memory
from tornadoproxy.handlers.openai import stored_rows
from tornadoproxy.handlers.openai.response_store import ResponseStore, Stored
from tornadoproxy.openai.responses import made_id

Opened: TypeAlias = Callable[[Clock], AbstractAsyncContextManager[ResponseStore]]

POSTGRES = pytest.param("postgresql", marks=pytest.mark.postgres)


@pytest.fixture(params=["memory", "sqlite", POSTGRES])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens an empty store."""
    if request.param == "memory":
        return partial(memory_store, UNLIMITED)
    if request.param == "sqlite":
        return partial(database_store, tmp_path / "responses.db")
    return partial(database_store, request.getfixturevalue("postgres"))


async def test_response_comes_back_as_it_was_put(opened: Opened) -> None:
    document = {
        **response(
            "resp_1", message("msg_2", "Grüße, 世界\u2028 und 😀"), instructions="Be\0brief."
        ),
        "created_at": 1_764_000_000,
        "usage": {"input_tokens": 2**70, "share": 0.1},
        "metadata": {"é": ""},
        "previous_response_id": "resp_0",
    }
    given = [message("msg_1"), {"type": "reasoning", "id": "rs_1", "summary": []}, {}, {"id": None}]
    async with opened(Clock()) as store:
        await put(store, "ada", document, given, "resp_0")
        assert await store.get("ada", "resp_1") == Stored(document, tuple(given), "resp_0")
        assert await store.items("ada", ["rs_1", "msg_2", "rs_1", "absent"]) == {
            "rs_1": given[1],
            "msg_2": document["output"][0],
        }


async def test_history_is_all_items_oldest_first(opened: Opened) -> None:
    async with opened(Clock()) as store:
        await put(store, "ada", response("resp_1", message("b")), [message("a")], None)
        await put(store, "ada", response("resp_2", message("d")), [message("c")], "resp_1")
        await put(store, "ada", response("resp_3"), [message("e")], "resp_2")
        await put(store, "ada", response("resp_4"), [message("f")], "resp_2")
        await put(store, "ada", response("resp_5"), [], "resp_4")
        for response_id, ids in {"resp_3": "abcde", "resp_5": "abcdf", "resp_1": "ab"}.items():
            history = await store.history("ada", response_id)
            assert history is not None
            assert "".join(item["id"] for item in history) == ids


async def test_history_without_a_link_is_none(opened: Opened) -> None:
    clock = Clock()
    async with opened(clock) as store:
        await put(store, "ada", response("resp_1"), [message("a")], None)
        clock.now += LIFETIME / 2
        await put(store, "ada", response("resp_2"), [message("b")], "resp_1")
        await put(store, "ada", response("resp_3"), [message("c")], "resp_2")
        assert await store.history("ada", "resp_3") is not None
        clock.now += LIFETIME / 2
        assert await store.history("ada", "resp_3") is None
        assert await store.get("ada", "resp_3") is not None
        await put(store, "ada", response("resp_1"), [message("a")], None)
        assert await store.history("ada", "resp_3") is not None
        assert await store.delete("ada", "resp_2")
        assert await store.history("ada", "resp_3") is None


async def test_other_principals_find_nothing(opened: Opened) -> None:
    async with opened(Clock()) as store:
        await put(store, "ada", response("resp_1", message("msg_2")), [message("msg_1")], None)
        await put(store, "bob", response("resp_2"), [], "resp_1")
        for other in ("bob", "ad", "ada ", "a", "", "ada\0"):
            assert await store.get(other, "resp_1") is None
            assert await store.history(other, "resp_1") is None
            assert await store.items(other, ["msg_1", "msg_2"]) == {}
            assert not await store.delete(other, "resp_1")
        assert await store.history("bob", "resp_2") is None
        await put(store, "bob", response("resp_1", message("msg_2", "Bob's")), [], None)
        assert await store.history("ada", "resp_1") == [message("msg_1"), message("msg_2")]
        assert await store.delete("bob", "resp_1")
        assert await store.items("ada", ["msg_2"]) == {"msg_2": message("msg_2")}


async def test_last_response_of_an_id_wins(opened: Opened) -> None:
    async with opened(Clock()) as store:
        for text in ("first", "last"):
            given = [message("msg_1", text), message(f"msg_of_{text}")]
            await put(store, "ada", response("resp_1"), given, None)
        assert await store.history("ada", "resp_1") == given
        assert await store.items("ada", ["msg_1", "msg_of_first"]) == {"msg_1": given[0]}


async def test_last_item_of_an_id_wins(opened: Opened) -> None:
    async with opened(Clock()) as store:
        for number, text in enumerate("aba"):
            await put(store, "ada", response(f"resp_{number}"), [message("msg_1", text)], None)
            assert await store.items("ada", ["msg_1"]) == {"msg_1": message("msg_1", text)}
        for number in (2, 0):
            assert await store.delete("ada", f"resp_{number}")
        assert await store.items("ada", ["msg_1"]) == {"msg_1": message("msg_1", "b")}
        assert await store.delete("ada", "resp_1")
        assert await store.items("ada", ["msg_1"]) == {}


async def test_input_item_without_id_is_found_by_its_place(opened: Opened) -> None:
    bare = [{"role": "user", "content": text} for text in "aba"]
    async with opened(Clock()) as store:
        await put(store, "ada", response("resp_1", {"type": "x"}), [*bare, message("c")], None)
        ids = [made_id("resp_1", index) for index in range(6)]
        found = await store.items("ada", [*ids, made_id("resp_2", 0), "item_"])
        assert found == {made: {"id": made, **item} for made, item in zip(ids, bare, strict=False)}
        assert await store.items("bob", ids) == {}


async def test_deleted_response_leaves_what_others_have(opened: Opened) -> None:
    async with opened(Clock()) as store:
        await put(store, "ada", response("resp_1", message("b")), [message("a")], None)
        await put(store, "ada", response("resp_2"), [message("b"), message("c", "C")], None)
        assert await store.delete("ada", "resp_1")
        assert not await store.delete("ada", "resp_1")
        assert await store.get("ada", "resp_1") is None
        found = await store.items("ada", ["a", "b", "c"])
        assert found == {"b": message("b"), "c": message("c", "C")}


async def test_responses_expire(opened: Opened) -> None:
    clock = Clock()
    async with opened(clock) as store:
        await put(store, "ada", response("resp_1", message("msg_1")), [], None)
        clock.now += LIFETIME - 1
        assert await store.get("ada", "resp_1") is not None
        clock.now += 1
        assert await store.get("ada", "resp_1") is None
        assert await store.history("ada", "resp_1") is None
        assert await store.items("ada", ["msg_1"]) == {}
        assert not await store.delete("ada", "resp_1")


@pytest.mark.parametrize("odd", ["x" * 100_000, "a\0b", "half \ud800", "'; --", "%s", "", "é"])
async def test_ids_and_principals_may_be_any_text(opened: Opened, odd: str) -> None:
    async with opened(Clock()) as store:
        await put(store, odd, response(odd, message(odd)), [], odd + "0")
        assert odd in await store.items(odd, [odd])
        kept = await store.get(odd, odd)
        assert kept is not None
        assert kept.previous == odd + "0"
        assert await store.history(odd, odd) is None
        assert await store.delete(odd, odd)


async def test_items_by_the_thousand_are_found(opened: Opened) -> None:
    ids = [f"msg_{number}" for number in range(1_200)]
    async with opened(Clock()) as store:
        given = [message(each, each) for each in ids]
        for number in range(2):
            await put(store, "ada", response(f"resp_{number}"), given, None)
        assert list(await store.items("ada", ids)) == ids
        assert await store.history("ada", "resp_1") == given
        assert await store.delete("ada", "resp_1")
        assert len(await store.items("ada", ids)) == 1_200
        assert await store.delete("ada", "resp_0")
        assert await store.items("ada", ids) == {}


@pytest.mark.parametrize("large", [["x" * (12 << 20)], [{"type": "y"}] * 40_000])
async def test_more_items_than_a_request_holds_are_refused(
    opened: Opened, large: list[object]
) -> None:
    ids = ["msg_1", "msg_2", "msg_3"]
    previous = None
    async with opened(Clock()) as store:
        for number, item_id in enumerate(ids):
            given = [{"id": item_id, "number": number, "content": large}]
            await put(store, "ada", response(item_id), given, previous)
            previous = item_id
        assert len(await store.history("ada", ids[1]) or ()) == 2
        with pytest.raises(InvalidRequest, match=r"^The stored items .* \(32 MB, ") as refused:
            await store.history("ada", ids[2])
        assert refused.value.param == "previous_response_id"
        assert len(await store.items("ada", ids[:2])) == 2
        with pytest.raises(InvalidRequest) as refused:
            await store.items("ada", ids)
        assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")


async def test_history_length_is_limited(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (in_memory, stored_rows):
        monkeypatch.setattr(module, "MAX_LINKS", 3)
    async with opened(Clock()) as store:
        for number in range(1, 5):
            await put(store, "ada", response(f"resp_{number}"), [], f"resp_{number - 1}")
        with pytest.raises(InvalidRequest, match="previous_response_id"):
            await store.history("ada", "resp_4")
        assert await store.history("ada", "resp_3") is None  # there is no resp_0
        await put(store, "ada", response("resp_1"), [], "resp_3")
        with pytest.raises(InvalidRequest):
            await store.history("ada", "resp_3")
