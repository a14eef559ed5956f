"""Streamed responses: the events that come in, and the chunks that go out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk
from upstream_events import (
    END,
    MESSAGE,
    PING,
    START,
    STOP,
    Json,
    closed,
    delta,
    error_event,
    fragment,
    opened,
    stopped,
    text,
    tool,
    wire,
)

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.openai.chat_completions import StreamTranslator

DONE = "[DONE]"
ROLE: Json = {"role": "assistant", "content": ""}


def called(index: int, call_id: str) -> Json:
    function = {"name": "weather", "arguments": ""}
    call = {"index": index, "id": call_id, "type": "function", "function": function}
    return {"tool_calls": [call]}


def arguments(index: int, content: str) -> Json:
    return {"tool_calls": [{"index": index, "function": {"arguments": content}}]}


def documents(chunks: bytes) -> list[Any]:  # Any: JSON, or [DONE]
    """The documents of the chunks, and the end if there is one."""
    assert chunks == b"" or chunks.endswith(b"\n\n")
    events = [event for event in chunks.split(b"\n\n")[:-1] if event != b": ping"]
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [DONE if event[6:] == b"[DONE]" else json.loads(event[6:]) for event in events]


def seen(*events: Json, usage: bool = False) -> list[Any]:  # Any: JSON
    """The documents that the client reads of a stream of `events`."""
    translator = StreamTranslator(include_usage=usage, created=1_700_000_000)
    found = documents(translator.feed(wire(*events)))
    for each in found:
        if each != DONE:
            ChatCompletionChunk.model_validate(each, strict=True)
    return found


def deltas(*events: Json) -> list[Any]:  # Any: JSON
    """The deltas between the role and the end, and the finish reason."""
    first, *rest, last, done = seen(START, *events)
    assert first["choices"][0]["delta"] == ROLE
    assert (done, last["choices"][0]["delta"]) == (DONE, {})
    choices = [each["choices"][0] for each in rest]
    assert all(choice["finish_reason"] is None for choice in choices)
    return [choice["delta"] for choice in choices] + [last["choices"][0]["finish_reason"]]


# -- transcripts


def test_text_becomes_chunks_with_usage_if_wanted() -> None:
    shared = {
        "id": "chatcmpl-01AbC",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "claude-test",
    }
    events = (START, opened(0), PING, text(0, "Hello"), text(0, " ä😀\n"), closed(0), *END)
    said = [(ROLE, None), ({"content": "Hello"}, None), ({"content": " ä😀\n"}, None), ({}, "stop")]
    choices = [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        for delta, reason in said
    ]
    assert seen(*events) == [*({**shared, "choices": [each]} for each in choices), DONE]
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    }
    assert seen(*events, usage=True) == [
        *({**shared, "choices": [each], "usage": None} for each in choices),
        {**shared, "choices": [], "usage": usage},
        DONE,
    ]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([opened(0, text="Hi"), closed(0)], [{"content": "Hi"}]),
        ([text(0, "a\ud83d")], [{"content": "a\ud83d"}]),  # without the beginning of its block
        (
            [
                *(tool(0, "a"), tool(1, "b"), opened(2), fragment(1, "{"), text(2, "x")),
                *(fragment(0, "{}"), fragment(1, "}"), closed(1), closed(2), closed(0)),
            ],
            [
                *(called(0, "a"), called(1, "b"), arguments(1, "{"), {"content": "x"}),
                *(arguments(0, "{}"), arguments(1, "}")),
            ],
        ),
        (
            [tool(0, "toolu_1", city="Bern"), closed(0)],
            [called(0, "toolu_1"), arguments(0, '{"city":"Bern"}')],
        ),
        ([tool(0, "toolu_1")], [called(0, "toolu_1"), arguments(0, "{}")]),  # without its end
        (
            [START, tool(0, "a"), fragment(0, "{}"), closed(0), closed(0), stopped("end_turn")],
            [called(0, "a"), arguments(0, "{}")],
        ),
    ],
)
def test_block_is_translated_once_and_whole(events: list[Json], expected: list[Json]) -> None:
    assert deltas(*events, *END) == [*expected, "stop"]


def test_thinking_becomes_blocks_with_their_place() -> None:
    def block(text: str, **fields: object) -> Json:
        return {"thinking_blocks": [{**fields, "thinking": text}], "reasoning_content": text}

    assert deltas(
        opened(0, "thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Hm"),
        delta(0, "signature_delta", signature="c2ln"),
        closed(0),
        *(opened(1, "redacted_thinking", data="ZGF0YQ=="), closed(1)),
        *(opened(2), text(2, "ä😀."), closed(2), tool(3, "toolu_1"), closed(3)),
        *(opened(4, "thinking", thinking="So", signature=""), closed(4), *END),
    ) == [
        block("", index=0, type="thinking", signature=""),
        block("Hm", index=0),
        {"thinking_blocks": [{"index": 0, "signature": "c2ln"}]},
        {"thinking_blocks": [{"index": 1, "type": "redacted_thinking", "data": "ZGF0YQ=="}]},
        *({"content": "ä😀."}, called(0, "toolu_1"), arguments(0, "{}")),
        block("So", index=2, type="thinking", signature="", text_before=3, calls_before=1),
        "stop",
    ]


def test_legacy_function_is_called_once() -> None:
    translator = StreamTranslator(legacy_functions=True)
    calls = [tool(0, "a"), fragment(0, '{"a":1}'), closed(0), tool(1, "b"), fragment(1, "{}")]
    found = documents(translator.feed(wire(START, *calls, closed(1), stopped("tool_use"), STOP)))
    assert [each["choices"][0]["delta"] for each in found[1:-1]] == [
        {"function_call": {"name": "weather", "arguments": ""}},
        {"function_call": {"arguments": '{"a":1}'}},
        {},
    ]
    assert found[-2]["choices"][0]["finish_reason"] == "function_call"


REFUSED: Json = {
    "type": "message_delta",
    "delta": {"stop_reason": "refusal", "stop_details": {"explanation": "Not this."}},
}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([stopped(None)], ["stop"]),
        ([stopped("tool_use")], ["tool_calls"]),
        ([stopped("max_tokens"), stopped(None)], ["length"]),
        ([REFUSED], [{"refusal": "Not this."}, "content_filter"]),
    ],
)
def test_last_stop_reason_is_translated(events: list[Json], expected: list[object]) -> None:
    assert deltas(*events, STOP) == expected


def test_chunks_after_a_fallback_name_the_next_model() -> None:
    found = seen(
        *(START, opened(0), text(0, "I"), closed(0)),
        opened(1, "fallback", **{"from": {"model": "claude-test"}}, to={"model": "claude-next"}),
        *(closed(1), opened(2), text(2, "We"), closed(2), *END),
        usage=True,
    )
    models = ["claude-test"] * 2 + ["claude-next"] * 3
    assert [each["model"] for each in found[:-1]] == models
    assert len({(each["id"], each["created"]) for each in found[:-1]}) == 1


# -- unknown and invalid events


def test_unknown_events_blocks_and_deltas_are_skipped() -> None:
    assert deltas(
        {"type": "of the future", "index": 0},
        *(opened(0, "of the future", text="x"), text(0, "y"), closed(0)),
        opened(1, "server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        *(fragment(1, '{"query":"x"}'), closed(1)),
        *(opened(3), delta(3, "citations_delta", citation={"type": "char_location"})),
        *(delta(3, "of the future", text="z"), text(3, "a"), fragment(3, "{}")),
        {"type": "content_block_delta", "index": 3},
        {"type": "content_block_delta", "index": 3, "delta": "x"},
        *(closed(3), closed(9), fragment(9, "{}"), *END),
    ) == [{"content": "a"}, "stop"]


REOPENED = [opened(0, "of the future"), closed(0), opened(0)]
OTHER_START = {**START, "message": {**MESSAGE, "id": "msg_02"}}


@pytest.mark.parametrize(
    "stream",
    [
        *(wire(*events) for events in ([STOP], [opened(0)], [text(0, "a")], [PING, *END])),
        *(wire(START, *events) for events in ([OTHER_START], [*[tool(0, "a")] * 2], REOPENED)),
        *(
            wire(START) + b"data: %b\n\n" % data
            for data in (b"{", b"\xff", b"[" * 100_000, b"[DONE]")
        ),
    ],
    ids=lambda stream: repr(stream[-20:]),
)
def test_broken_stream_is_the_upstreams_error(stream: bytes) -> None:
    translator = StreamTranslator()
    with pytest.raises(UpstreamProtocolError):
        translator.feed(stream + wire(*END))
    assert not translator.ended


def test_json_that_is_no_event_is_skipped() -> None:
    for data in (b"[]", b"null", b'{"type": ["ping"]}', b"{}"):
        assert StreamTranslator().feed(b"data: " + data + b"\n\n") == b""


def test_fields_of_other_types_become_empty() -> None:
    found = seen(
        {"type": "message_start", "message": {"id": 7, "model": None, "usage": "x"}},
        *(opened(0, text=7), delta(0, "text_delta", text=None)),
        *(opened(1, "tool_use", id=None, name=7, input="x"), delta(1, "input_json_delta")),
        *(opened(2, "thinking", thinking=None), delta(2, "thinking_delta", thinking=7)),
        *(delta(2, "signature_delta"), opened(3, ["text"])),
        *({"type": "message_delta", "delta": [], "usage": 7}, STOP),
        usage=True,
    )
    assert found[-1] == DONE


def test_line_separators_beyond_ascii_are_escaped() -> None:
    content = "éX\x85…\u2028😀\u2029"
    events = (START, opened(0), text(0, content), tool(1, "toolu_1"))
    chunks = StreamTranslator().feed(wire(*events, fragment(1, json.dumps(content))))
    assert chunks.decode().splitlines() == chunks.decode().split("\n")[:-1]
    assert documents(chunks)[1]["choices"][0]["delta"]["content"] == content
    assert "éX".encode() in chunks  # other characters stay unescaped


# -- pings, errors, ends


@pytest.mark.parametrize(
    ("kind", "error_type", "code"),
    [
        ("overloaded_error", "server_error", None),
        ("rate_limit_error", "rate_limit_error", "rate_limit_exceeded"),
        ("invalid_request_error", "invalid_request_error", None),
        ("of the future", "server_error", None),
    ],
)
def test_error_in_the_middle_is_the_last_chunk(
    kind: str, error_type: str, code: str | None
) -> None:
    translator = StreamTranslator(include_usage=True)
    begun = wire(START, opened(0), text(0, "Hel"))
    rest = wire(error_event(kind), text(0, "lo"), *END)
    *chunks, error = documents(translator.feed(begun + rest))
    assert [each["choices"][0]["delta"] for each in chunks] == [ROLE, {"content": "Hel"}]
    fields = {"message": "It says why.", "type": error_type, "param": None, "code": code}
    assert error == {"error": fields}
    assert (translator.ended, translator.failed) == (True, True)
    assert translator.feed(wire(STOP)) == b""


@pytest.mark.parametrize(
    "event", [{"type": "error"}, {"type": "error", "error": "down"}, error_event("api_error")]
)
def test_error_without_message_or_start_is_an_error(event: Json) -> None:
    (error,) = documents(StreamTranslator().feed(wire(event)))
    assert error["error"]["message"]
    assert error["error"]["type"] == "server_error"


def test_stream_ends_with_message_stop_alone() -> None:
    translator = StreamTranslator()
    assert translator.feed(wire(PING)) == b": ping\n\n"
    for piece in (wire(START, opened(0), stopped("end_turn")), wire(STOP)[:-1]):
        assert DONE.encode() not in translator.feed(piece)
        assert not translator.ended
    found = documents(translator.feed(b"\n" + wire(text(0, "a"), STOP)))
    assert (len(found), found[-1]) == (2, DONE)
    assert (translator.ended, translator.failed) == (True, False)
    assert translator.feed(wire(START, PING, error_event("api_error"))) == b""
