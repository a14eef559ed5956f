"""Streamed responses: the upstream's events that come in, and OpenAI's that go out."""

from __future__ import annotations

from typing import get_args

from openai.types.responses import ResponseStreamEvent
from response_events import (
    CREATED,
    ECHO,
    output_of,
    read,
)
from upstream_events import (
    END,
    PING,
    START,
    STOP,
    Json,
    closed,
    delta,
    fragment,
    opened,
    stopped,
    text,
    tool,
)

from tornadoproxy.openai.responses import carrier
from tornadoproxy.openai.responses.output.events import EVENTS

REDACTED = {"type": "redacted_thinking", "data": "ZGF0YQ=="}


def carried(item: Json) -> list[Json] | None:
    return carrier.unpack(item["encrypted_content"], "input")


def between(events: list[Json]) -> list[Json]:
    """The events between the two of the beginning and the last, without their numbers."""
    return [{key: each[key] for key in each if key != "sequence_number"} for each in events[2:-1]]


# -- transcripts


def test_text_becomes_one_message_between_begin_and_end() -> None:
    events = read(START, opened(0), PING, text(0, "Hello"), text(0, " ä😀\n"), closed(0), *END)
    response = {
        "id": "resp_01AbC",
        "created_at": CREATED,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": "claude-test",
        "output": [],
        "usage": None,
        **ECHO,
    }
    begun = [
        {"type": f"response.{name}", "response": response} for name in ("created", "in_progress")
    ]
    assert [{**each, "sequence_number": number} for number, each in enumerate(begun)] == events[:2]
    place = {"item_id": "msg_01AbC0", "output_index": 0}
    item = {"id": "msg_01AbC0", "type": "message", "role": "assistant"}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    whole = {**empty, "text": "Hello ä😀\n"}
    done = {**item, "status": "completed", "content": [whole]}
    part = {**place, "content_index": 0}
    said = {"type": "response.output_text.delta", **part, "logprobs": []}
    assert between(events) == [
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **part, "part": empty},
        {**said, "delta": "Hello"},
        {**said, "delta": " ä😀\n"},
        {"type": "response.output_text.done", **part, "text": "Hello ä😀\n", "logprobs": []},
        {"type": "response.content_part.done", **part, "part": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
    ]
    last = events[-1]["response"]
    assert last["completed_at"] >= CREATED
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 15,
    }
    ended = {"status": "completed", "completed_at": last["completed_at"], "usage": usage}
    assert last == {**response, **ended, "output": [done]}


def test_calls_are_streamed_and_done_before_what_follows() -> None:
    events = read(
        *(START, tool(0, "a"), fragment(0, '{"city":'), fragment(0, '"Bern"}'), closed(0)),
        *(tool(1, "b", city="Biel"), closed(1), tool(2, "c"), stopped("tool_use"), STOP),
    )
    name = "response.function_call_arguments"
    told = [
        (each["type"], each["output_index"], each.get("delta", each.get("arguments")))
        for each in between(events)
        if "item" not in each
    ]
    assert told == [
        *((f"{name}.delta", 0, '{"city":'), (f"{name}.delta", 0, '"Bern"}')),
        *((f"{name}.done", 0, '{"city":"Bern"}'), (f"{name}.delta", 1, '{"city":"Biel"}')),
        *((f"{name}.done", 1, '{"city":"Biel"}'), (f"{name}.delta", 2, "{}")),
        (f"{name}.done", 2, "{}"),
    ]
    assert events[-1]["response"]["output"] == [
        {
            "type": "function_call",
            "id": f"fc_01AbC{number}",
            "call_id": call_id,
            "name": "weather",
            "status": "completed",
            "arguments": arguments,
        }
        for number, (call_id, arguments) in enumerate(
            [("a", '{"city":"Bern"}'), ("b", '{"city":"Biel"}'), ("c", "{}")]
        )
    ]


def test_thinking_is_shown_and_carried() -> None:
    events = read(
        *(START, opened(0, "thinking", thinking="", signature="")),
        *(delta(0, "thinking_delta", thinking="H"), delta(0, "thinking_delta", thinking="m")),
        *(delta(0, "signature_delta", signature="c2ln"), closed(0)),
        *(opened(1, "redacted_thinking", data="ZGF0YQ=="), closed(1)),
        opened(2, "thinking", thinking="", signature="b21pdHRlZA=="),
        *(closed(2), opened(3), text(3, "So."), closed(3), *END),
    )
    *thoughts, _ = events[-1]["response"]["output"]
    assert [each["summary"] for each in thoughts] == [
        [{"type": "summary_text", "text": "Hm"}],
        [],
        [],
    ]
    assert [carried(each) for each in thoughts] == [
        [{"type": "thinking", "thinking": "Hm", "signature": "c2ln"}],
        [REDACTED],
        [{"type": "thinking", "thinking": "", "signature": "b21pdHRlZA=="}],
    ]
    kinds = [each["type"].partition(".")[2] for each in between(events)]
    text_delta = "reasoning_summary_text.delta"
    assert kinds[:9] == [
        *("output_item.added", "reasoning_summary_part.added", text_delta, text_delta),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "output_item.done"),
    ]


def test_thinking_without_signature_is_not_carried() -> None:
    (thought,) = output_of(
        START, opened(0, "thinking", thinking="Hm"), closed(0), stopped("max_tokens"), STOP
    )
    assert thought == {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}


def test_every_event_of_the_package_has_a_treatment() -> None:
    (union, _) = get_args(ResponseStreamEvent)
    kinds = {get_args(each.model_fields["type"].annotation)[0] for each in get_args(union)}
    assert EVENTS.keys() == kinds
