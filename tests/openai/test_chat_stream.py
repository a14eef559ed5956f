"""Answers that are streamed: given these events, the client sees these chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.openai.chat_completions import StreamTranslator
from tornadoproxy.protocol import sse
from tornadoproxy.protocol.sse import EventReader

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

START: Json = {
    "type": "message_start",
    "message": {
        "id": "msg_01AbC",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 10, "output_tokens": 1},
    },
}
STOP: Json = {"type": "message_stop"}
PING: Json = {"type": "ping"}
DONE = "[DONE]"
ROLE: Json = {"role": "assistant", "content": ""}


def wire(*events: Json) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )


def opened(index: object, **block: object) -> Json:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: object, kind: str, **told: object) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **told}}


def closed(index: object) -> Json:
    return {"type": "content_block_stop", "index": index}


def stopped(reason: object, **usage: object) -> Json:
    usage = usage or {"output_tokens": 5}
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


def text(index: int, content: str) -> Json:
    return delta(index, "text_delta", text=content)


def tool(index: int, call_id: str, name: str = "weather", **tool_input: object) -> Json:
    return opened(index, type="tool_use", id=call_id, name=name, input=tool_input)


def fragment(index: int, content: str) -> Json:
    return delta(index, "input_json_delta", partial_json=content)


def documents(chunks: bytes) -> list[Any]:  # Any: JSON, or [DONE]
    """What the client reads: each chunk's document, and the end if there is one."""
    assert chunks == b"" or chunks.endswith(b"\n\n")
    found = []
    for event in chunks.split(b"\n\n")[:-1]:
        if event == b": ping":
            continue  # clients pass over it
        assert event.startswith(b"data: ")
        assert b"\n" not in event
        data = event[6:]
        found.append(DONE if data == DONE.encode() else json.loads(data))
    return found


def seen(*events: Json, usage: bool = False, legacy: bool = False) -> list[Any]:  # Any: JSON
    """What the client reads of a stream of `events`."""
    translator = StreamTranslator(
        include_usage=usage, legacy_functions=legacy, created=1_700_000_000
    )
    told = documents(translator.feed(wire(*events)))
    for each in told:
        if each != DONE and "error" not in each:
            ChatCompletionChunk.model_validate(each, strict=True)
    return told


def deltas(*events: Json, legacy: bool = False) -> list[Any]:  # Any: JSON
    """The deltas, and finish reasons, that the client reads; without the role and the end."""
    first, *told, last, done = seen(START, *events, legacy=legacy)
    assert first["choices"][0]["delta"] == ROLE
    assert done == DONE
    assert last["choices"][0]["delta"] == {}
    for each in told:
        assert each["choices"][0]["finish_reason"] is None
    return [each["choices"][0]["delta"] for each in told] + [last["choices"][0]["finish_reason"]]


# Transcripts


def test_a_stream_of_text() -> None:
    shared = {
        "id": "chatcmpl-01AbC",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "claude-test",
    }

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**shared, "choices": [choice]}

    events = (
        START,
        opened(0, type="text", text=""),
        PING,
        text(0, "Hello"),
        text(0, " ä😀\n"),
        closed(0),
        stopped("end_turn"),
        STOP,
    )
    plain = [
        chunk(ROLE),
        chunk({"content": "Hello"}),
        chunk({"content": " ä😀\n"}),
        chunk({}, "stop"),
    ]
    assert seen(*events) == [*plain, DONE]
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    }
    assert seen(*events, usage=True) == [
        *({**each, "usage": None} for each in plain),
        {**shared, "choices": [], "usage": usage},
        DONE,
    ]


def test_calls_have_dense_indexes_whatever_the_blocks_have() -> None:
    assert deltas(
        opened(0, type="thinking", thinking="", signature=""),
        closed(0),
        opened(1, type="text", text=""),
        text(1, "Let me see."),
        closed(1),
        tool(3, "toolu_1"),
        fragment(3, ""),
        fragment(3, '{"ci'),
        fragment(3, 'ty": "Zürich"}'),
        closed(3),
        tool(7, "toolu_2", "clock"),
        closed(7),
        stopped("tool_use"),
        STOP,
    )[1:] == [
        {"content": "Let me see."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "Zürich"}'}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "toolu_2",
                    "type": "function",
                    "function": {"name": "clock", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        "tool_calls",
    ]


def test_blocks_that_grow_in_turns_keep_apart() -> None:
    told = deltas(
        tool(0, "toolu_1"),
        tool(1, "toolu_2"),
        opened(2, type="text", text=""),
        fragment(1, '{"b"'),
        fragment(0, '{"a"'),
        text(2, "x"),
        fragment(1, ":2}"),
        fragment(0, ":1}"),
        closed(1),
        closed(2),
        closed(0),
        stopped("tool_use"),
        STOP,
    )
    arguments = {0: "", 1: ""}
    for each in told[:-1]:
        for call in each.get("tool_calls", []):
            arguments[call["index"]] += call["function"]["arguments"]
    assert arguments == {0: '{"a":1}', 1: '{"b":2}'}


def test_an_input_that_is_told_at_once() -> None:
    told = deltas(tool(0, "toolu_1", city="Bern"), closed(0), stopped("tool_use"), STOP)
    assert told[1] == {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"Bern"}'}}]}


def test_a_text_that_is_told_at_once() -> None:
    told = deltas(opened(0, type="text", text="Hi"), closed(0), stopped("end_turn"), STOP)
    assert told == [{"content": "Hi"}, "stop"]


def test_thinking() -> None:
    assert deltas(
        opened(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Hm"),
        delta(0, "thinking_delta", thinking="."),
        delta(0, "signature_delta", signature="c2ln"),
        closed(0),
        opened(1, type="redacted_thinking", data="ZGF0YQ=="),
        closed(1),
        opened(2, type="text", text=""),
        text(2, "ä😀."),
        closed(2),
        tool(3, "toolu_1"),
        closed(3),
        opened(4, type="thinking", thinking="So", signature=""),
        closed(4),
        stopped("end_turn"),
        STOP,
    ) == [
        {
            "thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "", "signature": ""}],
            "reasoning_content": "",
        },
        {"thinking_blocks": [{"index": 0, "thinking": "Hm"}], "reasoning_content": "Hm"},
        {"thinking_blocks": [{"index": 0, "thinking": "."}], "reasoning_content": "."},
        {"thinking_blocks": [{"index": 0, "signature": "c2ln"}]},
        {"thinking_blocks": [{"index": 1, "type": "redacted_thinking", "data": "ZGF0YQ=="}]},
        {"content": "ä😀."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {
            "thinking_blocks": [
                {
                    "index": 2,
                    "type": "thinking",
                    "thinking": "So",
                    "signature": "",
                    "text_before": 3,
                    "calls_before": 1,
                }
            ],
            "reasoning_content": "So",
        },
        "stop",
    ]


def test_the_call_of_a_legacy_function() -> None:
    assert deltas(
        tool(0, "toolu_1"),
        fragment(0, '{"a":1}'),
        closed(0),
        tool(1, "toolu_2"),  # there is room for one
        fragment(1, '{"b":1}'),
        closed(1),
        stopped("tool_use"),
        STOP,
        legacy=True,
    ) == [
        {"function_call": {"name": "weather", "arguments": ""}},
        {"function_call": {"arguments": '{"a":1}'}},
        "function_call",
    ]


def test_a_refusal() -> None:
    told = {
        "type": "message_delta",
        "delta": {
            "stop_reason": "refusal",
            "stop_details": {"type": "refusal", "explanation": "Not this."},
        },
        "usage": {"output_tokens": 1},
    }
    assert deltas(told, STOP) == [{"refusal": "Not this."}, "content_filter"]


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("of the future", "stop"),
        (None, "stop"),
        (7, "stop"),
    ],
)
def test_finish_reasons(stop_reason: object, finish_reason: str) -> None:
    assert deltas(stopped(stop_reason), STOP) == [finish_reason]


def test_chunks_after_a_fallback_name_the_model_that_answers() -> None:
    fallback = opened(
        1, type="fallback", **{"from": {"model": "claude-test"}}, to={"model": "claude-next"}
    )
    told = seen(
        START,
        *(opened(0, type="text", text=""), text(0, "I"), closed(0), fallback, closed(1)),
        *(opened(2, type="text", text=""), text(2, "We"), closed(2), stopped("end_turn"), STOP),
        usage=True,
    )
    models = ["claude-test", "claude-test", "claude-next", "claude-next", "claude-next"]
    assert [each["model"] for each in told[:-1]] == models
    assert len({(each["id"], each["created"]) for each in told[:-1]}) == 1


def test_usage_is_what_was_told_last() -> None:
    start = {
        **START,
        "message": {
            **START["message"],
            "usage": {
                "input_tokens": 10,
                "output_tokens": 1,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": None,
            },
        },
    }
    *_, told, done = seen(
        start,
        stopped(None, output_tokens=20),
        stopped(
            "end_turn",
            output_tokens=50,
            input_tokens=None,
            cache_creation_input_tokens=7,
            output_tokens_details={"thinking_tokens": 30},
        ),
        STOP,
        usage=True,
    )
    assert done == DONE
    assert told["usage"] == {
        "prompt_tokens": 117,
        "completion_tokens": 50,
        "total_tokens": 167,
        "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }


def test_a_reason_that_was_told_is_not_taken_back() -> None:
    assert deltas(stopped("max_tokens"), stopped(None), STOP) == ["length"]


# What is not in the grammar


def test_what_is_not_known_is_passed_over() -> None:
    assert deltas(
        {"type": "of the future", "index": 0},
        opened(0, type="of the future", text="x"),
        text(0, "y"),
        closed(0),
        opened(1, type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        fragment(1, '{"query":"x"}'),
        closed(1),
        opened(2, type="web_search_tool_result", tool_use_id="srvtoolu_1", content=[]),
        closed(2),
        opened(3, type="text", text=""),
        delta(3, "citations_delta", citation={"type": "char_location"}),
        delta(3, "of the future", text="z"),
        text(3, "a"),
        fragment(3, "{}"),
        {"type": "content_block_delta", "index": 3},
        {"type": "content_block_delta", "index": 3, "delta": "x"},
        closed(3),
        closed(9),
        fragment(9, "{}"),
        stopped("end_turn"),
        STOP,
    ) == [{"content": "a"}, "stop"]


def test_what_is_told_twice_counts_once() -> None:
    told = deltas(
        START,
        tool(0, "toolu_1"),
        fragment(0, "{}"),
        closed(0),
        closed(0),
        stopped("tool_use"),
        stopped("tool_use"),
        STOP,
        STOP,
    )
    assert len(told) == 3


OTHER_START = {**START, "message": {**START["message"], "id": "msg_02"}}


@pytest.mark.parametrize(
    "events",
    [
        [OTHER_START],
        [opened(0, type="text", text=""), text(0, "a"), OTHER_START],
        [tool(0, "toolu_1"), tool(0, "toolu_1")],
        [opened(0, type="text", text=""), closed(0), opened(0, type="text", text="")],
        [opened(0, type="of the future"), closed(0), tool(0, "toolu_1")],
    ],
)
def test_second_message_or_reopened_block_is_a_broken_stream(events: list[Json]) -> None:
    translator = StreamTranslator()
    translator.feed(wire(START, *events[:-1]))
    with pytest.raises(UpstreamProtocolError):
        translator.feed(wire(events[-1], stopped("end_turn"), STOP))
    assert not translator.ended


def test_ping_is_a_comment_at_once() -> None:
    translator = StreamTranslator()
    assert translator.feed(wire(PING)) == b": ping\n\n"
    translator.feed(wire(START))
    assert translator.feed(wire(PING)) == b": ping\n\n"
    translator.feed(wire(STOP))
    assert translator.feed(wire(PING)) == b""


def test_line_separators_beyond_ascii_are_escaped() -> None:
    content = "é\x85…\u2028😀\u2029"
    events = (START, opened(0, type="text", text=""), text(0, content), tool(1, "toolu_1"))
    chunks = StreamTranslator().feed(wire(*events, fragment(1, json.dumps(content))))
    assert chunks.decode().splitlines() == chunks.decode().split("\n")[:-1]
    deltas_told = [each["choices"][0]["delta"] for each in documents(chunks)]
    assert deltas_told[1]["content"] == content
    assert "é…😀".encode()[:2] in chunks  # other characters stay as they are


def test_text_of_a_block_whose_beginning_is_missing_is_not_lost() -> None:
    assert deltas(text(0, "a"), stopped("end_turn"), STOP) == [{"content": "a"}, "stop"]


def test_a_call_whose_end_is_missing_has_arguments() -> None:
    told = deltas(tool(0, "toolu_1"), stopped("tool_use"), STOP)
    assert told[1] == {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}


@pytest.mark.parametrize("index", [None, "0", [], {}, 1.5])
def test_indexes_that_are_none_do_no_harm(index: object) -> None:
    told = deltas(
        opened(index, type="text", text=""),
        delta(index, "text_delta", text="a"),
        closed(index),
        stopped("end_turn"),
        STOP,
    )
    assert told == [{"content": "a"}, "stop"]


@pytest.mark.parametrize(
    "events",
    [
        [STOP],
        [opened(0, type="text", text="")],
        [text(0, "a")],
        [PING, stopped("end_turn"), STOP],
    ],
)
def test_a_stream_without_its_beginning_is_none(events: list[Json]) -> None:
    with pytest.raises(UpstreamProtocolError):
        StreamTranslator().feed(wire(*events))


@pytest.mark.parametrize("data", [b"{", b"<html>", b"\xff", b"[" * 100_000, b"[DONE]"])
def test_data_that_is_no_json_is_none(data: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        StreamTranslator().feed(wire(START) + b"data: " + data + b"\n\n")


@pytest.mark.parametrize("data", [b"[]", b"7", b"null", b'"a"', b'{"type": ["ping"]}', b"{}"])
def test_data_that_is_no_event_is_passed_over(data: bytes) -> None:
    assert StreamTranslator().feed(b"data: " + data + b"\n\n") == b""


def test_fields_of_other_types_do_no_harm() -> None:
    start = {"type": "message_start", "message": {"id": 7, "model": None, "usage": "x"}}
    told = seen(
        start,
        opened(0, type="text", text=7),
        delta(0, "text_delta", text=None),
        opened(1, type="tool_use", id=None, name=7, input="x"),
        delta(1, "input_json_delta", partial_json=7),
        opened(2, type="thinking", thinking=None),
        delta(2, "thinking_delta", thinking=7),
        delta(2, "signature_delta"),
        opened(3, type=["text"]),
        {"type": "message_delta", "delta": [], "usage": 7},
        STOP,
        usage=True,
    )
    assert told[-1] == DONE


# How it ends


def error_event(kind: str, message: str = "It says why.") -> Json:
    return {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize(
    ("kind", "error_type", "code"),
    [
        ("overloaded_error", "server_error", None),
        ("api_error", "server_error", None),
        ("rate_limit_error", "rate_limit_error", "rate_limit_exceeded"),
        ("invalid_request_error", "invalid_request_error", None),
        ("billing_error", "insufficient_quota", "insufficient_quota"),
        ("of the future", "server_error", None),
    ],
)
def test_an_error_in_the_middle_is_the_last_thing(
    kind: str, error_type: str, code: str | None
) -> None:
    translator = StreamTranslator(include_usage=True)
    begun = wire(START, opened(0, type="text", text=""), text(0, "Hel"))
    rest = wire(error_event(kind), text(0, "lo"), stopped("end_turn"), STOP)
    *chunks, error = documents(translator.feed(begun + rest))
    assert [each["choices"][0]["delta"] for each in chunks] == [ROLE, {"content": "Hel"}]
    assert error == {
        "error": {"message": "It says why.", "type": error_type, "param": None, "code": code}
    }
    assert translator.ended
    assert translator.failed
    assert translator.feed(wire(STOP)) == b""


@pytest.mark.parametrize("event", [{"type": "error"}, {"type": "error", "error": "down"}])
def test_an_error_that_says_nothing_is_one(event: Json) -> None:
    *_, error = documents(StreamTranslator().feed(wire(START, event)))
    assert error["error"]["message"]


def test_an_error_before_the_beginning() -> None:
    (error,) = documents(StreamTranslator().feed(wire(error_event("overloaded_error"))))
    assert error["error"]["type"] == "server_error"


def test_a_stream_has_ended_with_its_message_alone() -> None:
    translator = StreamTranslator()
    ends = []
    told = b""
    for piece in (
        wire(START, opened(0, type="text", text=""), text(0, "a"), stopped("end_turn")),
        wire(STOP)[:-1],
        b"\n",
    ):
        assert DONE.encode() not in told
        told += translator.feed(piece)
        ends.append(translator.ended)
    assert ends == [False, False, True]
    assert documents(told)[-1] == DONE
    assert not translator.failed


def test_nothing_goes_out_after_the_end() -> None:
    translator = StreamTranslator()
    told = documents(translator.feed(wire(START, stopped("end_turn"), STOP, text(0, "a"), STOP)))
    assert told.count(DONE) == 1
    assert told[-1] == DONE
    assert translator.feed(wire(START, error_event("api_error"))) == b""


def test_each_event_goes_out_at_once() -> None:
    translator = StreamTranslator()
    translator.feed(wire(START, opened(0, type="text", text="")))
    for content in ("a", "b"):
        (chunk,) = documents(translator.feed(wire(text(0, content))))
        assert chunk["choices"][0]["delta"] == {"content": content}


def test_half_a_character_passes_as_an_escape() -> None:
    assert deltas(text(0, "a\ud83d"), stopped("end_turn"), STOP)[0] == {"content": "a\ud83d"}


# The reader below


EVENTS = wire(START, PING, opened(0, type="text", text=""), text(0, "ä😀"), STOP)
DATA = [line[6:] for line in EVENTS.split(b"\n") if line.startswith(b"data: ")]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
def test_events_are_read_at_any_split_with_any_newline(newline: bytes, size: int) -> None:
    stream = EVENTS.replace(b"\n", newline)
    reader = EventReader()
    found: list[bytes] = []
    for begin in range(0, len(stream), size):
        found += reader.feed(b"")
        found += reader.feed(stream[begin : begin + size])
    assert found == DATA


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"event: x\ndata: a\ndata: b\nid: 7\n\n", [b"a\nb"]),
        (b"event: x\ndata: a\nid: 7\n\n", [b"a"]),
        (b": a comment\n\ndata: a\n\n", [b"a"]),
        (b": data: b\ndata: a\n\n", [b"a"]),
        (b"event: x\n\n", []),
        (b"data\n\ndata:\n\n", []),
        (b"\n\n\n\ndata: a\n\n\n", [b"a"]),
        (b"data: a\n", []),
        (b"data: a\r\n\r\n", [b"a"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    ],
)
def test_what_an_event_can_look_like(stream: bytes, data: list[bytes]) -> None:
    assert EventReader().feed(stream) == data
    reader = EventReader()
    assert [each for byte in stream for each in reader.feed(bytes([byte]))] == data


def test_an_event_without_an_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    reader = EventReader()
    reader.feed(b"data: " + b"x" * 900)
    with pytest.raises(UpstreamProtocolError):
        reader.feed(b"x" * 200)
    reader = EventReader()
    for _ in range(100):  # it is each event that counts
        assert reader.feed(b"data: " + b"x" * 900 + b"\n\n")
