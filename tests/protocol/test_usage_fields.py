"""Usage in messages of every shape, whole and streamed, split anywhere."""

from __future__ import annotations

import json

import pytest
from usage_streams import (
    MODEL,
    Document,
    dump,
    event,
    message_delta,
    message_start,
    read,
    read_stream,
)

from tornadoproxy.protocol.usage import ModelUsage, Usage
from tornadoproxy.protocol.usage_fields import read_message
from tornadoproxy.protocol.usage_reader import UsageReader
from tornadoproxy.testing import message_document, message_events

TEXT = {"type": "text", "text": "Grüße, 世界 😀"}
DECLINED, ADVISOR = "claude-fable-5-1", "claude-opus-5-5"
FALLBACK = {"type": "fallback", "from": {"model": DECLINED}, "to": {"model": MODEL}}
LIFETIMES = {"ephemeral_5m_input_tokens": 3000, "ephemeral_1h_input_tokens": 2000}


def tokens(*counts: int, **more: object) -> Document:
    """A ``usage`` with input, output, read and written tokens."""
    cached = ("cache_read_input_tokens", "cache_creation_input_tokens")
    return {**dict(zip(("input_tokens", "output_tokens", *cached), counts, strict=False)), **more}


def call(kind: str, model: str | None, *counts: int, **more: object) -> Document:
    return {"type": kind, "model": model, **tokens(*counts, **more)}


def calls(*iterations: Document, **more: object) -> Document:
    return tokens(10, 1, iterations=[*iterations], **more)


SHAPES: dict[str, tuple[Usage, Document, list[Document]]] = {
    "cache": (
        Usage(3, 15, 20_000, 5000, 2000),
        tokens(3, 15, 20_000, 5000, cache_creation=LIFETIMES, service_tier="standard"),
        [TEXT],
    ),
    "no cache": (
        Usage(25, 15, 0, 0),
        tokens(25, 15, 0, 0, cache_creation=None, server_tool_use=None),
        [TEXT],
    ),
    "server tools": (
        Usage(700, 80, web_search_requests=3, web_fetch_requests=2),
        tokens(700, 80, server_tool_use={"web_search_requests": 3, "web_fetch_requests": 2}),
        [
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "content": [{"title": '"usage": message_stop'}]},
            {"type": "tool_use", "name": "f", "input": {"usage": tokens(1, 9), "model": "x"}},
        ],
    ),
    "advisor": (
        Usage(
            *(10, 1),
            others=(ModelUsage(ADVISOR, Usage(9, 8, 0, 0)), ModelUsage(ADVISOR, Usage(7, 8))),
        ),
        calls(
            call("message", None, 10, 1),
            call("advisor_message", ADVISOR, 9, 8, 0, 0),
            call("message", f"{MODEL}-20260901", 10, 1),
            call("advisor_message", ADVISOR, 7, 8),
        ),
        [{"type": "server_tool_use", "id": "srvtoolu_1", "name": "advisor", "input": {}}],
    ),
    "compaction": (
        Usage(10, 1, others=(ModelUsage(MODEL, Usage(150_000, 3000, 7)),)),
        calls(call("compaction", None, 150_000, 3000, 7), call("message", MODEL, 10, 1)),
        [{"type": "compaction", "content": "What was said."}],
    ),
    "fallback": (
        Usage(10, 1, others=(ModelUsage(DECLINED, Usage(408, 299, 560_186)),)),
        calls(
            call("message", DECLINED, 408, 299, 560_186),
            call("message", MODEL, 4, 1),
            call("fallback_message", MODEL, 6, 0),
        ),
        [TEXT, FALLBACK, TEXT],
    ),
    "fallback before any output": (
        Usage(10, 1),
        calls(call("message", DECLINED, 408, 0), call("fallback_message", MODEL, 10, 1)),
        [FALLBACK],
    ),
    "invalid iterations": (
        Usage(
            *(10, 1),
            others=(ModelUsage(ADVISOR, Usage()), ModelUsage(None, Usage(output_tokens=9))),
        ),
        calls(
            {"type": "advisor_message", "model": ADVISOR, "input_tokens": "many"},
            {"type": "of tomorrow", "output_tokens": 9},
        ),
        [TEXT],
    ),
    "lifetimes by iteration": (
        Usage(10, 1, None, 500, 300),
        calls(
            call("message", None, 5, 0, cache_creation={"ephemeral_1h_input_tokens": 300}),
            call("message", None, 5, 0, cache_creation={}),
            cache_creation_input_tokens=500,
        ),
        [TEXT],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_usage_of_every_shape_is_read_at_any_split(name: str) -> None:
    usage, reported, content = SHAPES[name]
    document = message_document(model=MODEL, content=content, usage=reported)
    assert read_message(document) == (MODEL, "end_turn", usage)
    stream = b"".join(message_events(document))
    for body, is_stream in ((stream, True), (dump(document), False)):
        for cut in range(len(body) + 1):
            reader = UsageReader(is_stream=is_stream)
            reader.feed(body[:cut])
            reader.feed(body[cut:])
            reader.finish()
            assert (reader.model, reader.stop_reason) == (MODEL, "end_turn")
            assert reader.usage == usage


def test_usage_of_a_stream_is_cumulative() -> None:
    start = message_start(
        input_tokens=10,
        cache_creation_input_tokens=9,
        cache_creation={"ephemeral_1h_input_tokens": 9},
        output_tokens=1,
    )
    tools = {"web_search_requests": 2, "web_fetch_requests": 1}
    usage = read_stream(
        start,
        message_delta(server_tool_use={"web_search_requests": 1}, output_tokens=70),
        message_delta(input_tokens=900, server_tool_use=tools, output_tokens=50),
        message_delta(input_tokens=None),
        message_delta(),
    )[1]
    assert usage == Usage(900, 50, None, 9, 9, 2, 1)


@pytest.mark.parametrize(
    ("one_hour", "later", "kept"), [(9, 900, 900), (4, 900, 4), (0, 900, 0), (9, None, 9)]
)
def test_growth_of_cache_writes_has_the_lifetime_of_the_first(
    one_hour: int, later: int | None, kept: int
) -> None:
    lifetimes = {"ephemeral_1h_input_tokens": one_hour, "ephemeral_5m_input_tokens": 9 - one_hour}
    start = message_start(cache_creation_input_tokens=9, cache_creation=lifetimes)
    growth = message_delta(cache_creation_input_tokens=later, output_tokens=5)
    assert read_stream(start, growth, growth)[1] == Usage(None, 5, None, later or 9, kept)


USED = {"usage": {"output_tokens": 9}, "model": "other"}


@pytest.mark.parametrize(
    "document",
    [
        {"index": 0, "content_block": {"type": "tool_use", "input": USED}},
        {"index": 0, "content_block": USED},
        {"index": 0, "delta": USED},
        {"index": 0, "delta": {"type": "text_delta", "text": '{"usage":{"output_tokens":9}}'}},
        {"error": USED},
    ],
)
def test_usage_elsewhere_in_an_event_is_not_read(document: Document) -> None:
    start = message_start(input_tokens=10)
    assert read_stream(start, event("x", document)) == (MODEL, Usage(input_tokens=10))


@pytest.mark.parametrize(
    ("value", "count"),
    [
        *((value, None) for value in (True, -1, 1.5, 7.0, "7", [7], 2**63, 10**400)),
        *((value, value) for value in (0, 2**63 - 1)),
    ],
)
def test_only_a_count_is_read(value: object, count: int | None) -> None:
    usage = {"input_tokens": value, "output_tokens": 5}
    expected = Usage(count, 5)
    assert read([dump({"usage": usage})])[1] == expected
    assert read_message({"usage": usage}).usage == expected
    assert read_stream(message_delta(**usage))[1] == expected


def test_half_of_a_surrogate_pair_hides_no_count() -> None:
    body = rb'{"model": "m\ud83d", "usage": {"output_tokens": 5, "cache\ud83d": {"a": "\udc00"}}}'
    assert read_message(json.loads(body)).usage == Usage(output_tokens=5)
    assert read([body])[1] == Usage(output_tokens=5)


@pytest.mark.parametrize("model", [None, 5, ["x"]])
def test_value_that_is_no_model_is_not_read(model: object) -> None:
    document = {"model": model, "usage": {"output_tokens": 5}}
    assert read([dump(document)]) == (None, Usage(output_tokens=5))
    assert read_message(document) == (None, None, Usage(output_tokens=5))
