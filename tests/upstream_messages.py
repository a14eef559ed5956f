"""The upstream's messages and the pieces of its streams, for tests of properties."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tornadoproxy.testing import message_document

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

cuts = st.lists(st.integers(0, 10**6), max_size=8)
seeds = st.integers(0, 2**32 - 1)
KINDS = [f"content_block_{end}" for end in ("start", "delta", "stop")]
KINDS += ["message_start", "message_delta", "message_stop", "error"]
PARTS = ("index", "message", "content_block", "delta", "usage", "error")


def of(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({"type": st.just(kind), **fields})


def numbered(content: list[Json]) -> list[Json]:
    return [
        {**block, "id": f"toolu_{number}"} if block["type"] == "tool_use" else block
        for number, block in enumerate(content)
    ]


short = st.text(max_size=20)
counts = st.integers(0, 10**6)
inputs = st.dictionaries(short, short | st.lists(counts | st.none(), max_size=3), max_size=3)
OTHERS = [{"type": "redacted_thinking", "data": "ZGF0YQ=="}, {"type": "of the future", "text": "x"}]
blocks = (
    of("text", text=short)
    | of("thinking", thinking=short, signature=st.just("c2ln"))
    | of("tool_use", name=st.just("weather") | st.text(), input=inputs)
    | of("server_tool_use", id=st.just("x"), name=st.just("web_search"), input=inputs)
    | st.sampled_from(OTHERS)
)


def messages_of(content: st.SearchStrategy[list[Json]]) -> st.SearchStrategy[Json]:
    """Return messages of any content."""
    return st.builds(
        message_document,
        content=content.map(numbered),
        stop_reason=st.sampled_from(
            ("end_turn", "tool_use", "max_tokens", "refusal", "pause_turn")
        ),
        usage=st.fixed_dictionaries(
            {"input_tokens": counts, "output_tokens": counts},
            optional={"cache_read_input_tokens": counts | st.none()},
        ),
    )


messages = messages_of(st.lists(blocks, max_size=6))


def pieces_of(stream: bytes, at: list[int]) -> list[bytes]:
    ends = sorted(cut % (len(stream) + 1) for cut in at)
    return [stream[begin:end] for begin, end in zip([0, *ends], [*ends, len(stream)], strict=True)]
