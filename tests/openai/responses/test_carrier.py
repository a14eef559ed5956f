"""Carriers: blocks come back unchanged, and what a client makes up is bounded and refused."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.reading import MAX_VALUES
from tornadoproxy.openai.responses import carrier
from tornadoproxy.openai.responses.carrier import Room, pack, pack_summary, unpack, unpack_summary

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

THINKING: Json = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
SEARCH: list[Json] = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [{"type": "web_search_result", "url": "u", "encrypted_content": "e"}],
        "caller": {"type": "direct"},
    },
]

TEXTS = st.text(st.characters(), max_size=20)  # halves of surrogate pairs, too
BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXTS, "signature": TEXTS}),
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": TEXTS}),
    st.sampled_from(SEARCH),
)


def carried(content: Any, level: int = 9) -> str:  # Any: what a client makes up
    packed = zlib.compress(json.dumps(content).encode(), level)
    return carrier.PREFIX + base64.urlsafe_b64encode(packed).decode()


@given(st.lists(BLOCKS, max_size=3))
def test_carried_blocks_come_back_unchanged(blocks: list[Json]) -> None:
    assert unpack(pack(blocks), "p") == blocks


def test_carrier_leaves_out_what_the_upstream_does_not_take_back() -> None:
    assert unpack(pack([{**THINKING, "index": 1, "cache_control": {}}]), "p") == [THINKING]


def test_summary_comes_back_and_is_no_block_of_a_turn() -> None:
    assert unpack_summary(pack_summary("So far."), "p") == "So far."
    for read, written in ((unpack, pack_summary("x")), (unpack_summary, pack([THINKING]))):
        with pytest.raises(InvalidRequest, match="'p' is damaged"):
            read(written, "p")


@pytest.mark.parametrize("foreign", ["", "gAAAAABo", "tp2.eJwD"])
def test_carrier_of_another_origin_is_recognized(foreign: str) -> None:
    assert unpack(foreign, "p") is None
    assert unpack_summary(foreign, "p") is None


@pytest.mark.parametrize(
    "damaged",
    [
        pack([THINKING])[:-8],
        pack([THINKING])[:-9],
        pack([THINKING]) + "*",
        "tp1.",
        "tp1.AAAA",
        "tp1.\u00e9",
        carried({}),
        carried(["x"]),
        carried([{"type": "text", "text": "said by nobody"}]),
        carried([{**THINKING, "cache_control": {"type": "ephemeral"}}]),
        carried([{"type": "thinking", "thinking": "Hm."}]),
        carried([{"type": "thinking", "thinking": "Hm.", "signature": 1}]),
        carried([{**SEARCH[0], "caller": "me"}]),
        carried([{"type": ["thinking"]}]),
        carried([[[]] * 150_000]),
        carried("x" * 100_000),  # a small carrier of a large text
    ],
)
def test_damaged_carrier_is_refused_by_its_name(damaged: str) -> None:
    with pytest.raises(InvalidRequest, match="'p' is damaged") as caught:
        unpack(damaged, "p")
    assert caught.value.param == "p"


def test_carrier_is_bounded_each_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "MAX_ITEM", 100)
    monkeypatch.setattr(carrier, "MAX_REQUEST", 150)
    room = Room()
    assert unpack(pack([THINKING]), "first", room) == [THINKING]
    with pytest.raises(InvalidRequest, match="an item may carry 100 bytes"):
        unpack(pack([{**THINKING, "thinking": "abcdefgh" * 9}]), "p")
    assert unpack(pack([THINKING]), "second", room) == [THINKING]
    with pytest.raises(InvalidRequest, match="a request may carry 150 bytes") as caught:
        unpack(pack([THINKING]), "third", room)
    assert caught.value.param == "third"


def test_carriers_of_a_request_share_its_bound_of_values() -> None:
    room = Room()
    found = {**SEARCH[1], "content": [*range(MAX_VALUES // 2)]}
    text = {**THINKING, "thinking": "[{," * MAX_VALUES}
    for block in (found, text, THINKING):
        assert unpack(pack([block]), "p", room) == [block]
    with pytest.raises(InvalidRequest, match=f"a request may carry {MAX_VALUES} values") as caught:
        unpack(pack([found]), "third", room)
    assert caught.value.param == "third"


def test_repetitive_thinking_comes_back() -> None:
    block = {**THINKING, "thinking": "again " * 100_000}
    assert unpack(pack([block]), "p") == [block]
