"""Answers that are whole: given this message, the client sees this completion."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.openai import chat_completions

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

USAGE: Json = {"input_tokens": 10, "output_tokens": 5}


def completion(
    *content: object, stop_reason: object = "end_turn", legacy: bool = False, **more: object
) -> Json:
    message = {
        "id": "msg_01AbC",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": list(content),
        "stop_reason": stop_reason,
        "usage": USAGE,
        **more,
    }
    body = chat_completions.translate_response(
        json.dumps(message).encode(), legacy_functions=legacy, created=1_700_000_000
    )
    document: Json = json.loads(body)
    ChatCompletion.model_validate(document, strict=True)
    return document


def response(*content: object, legacy: bool = False, stop_reason: object = "end_turn") -> Json:
    (choice,) = completion(*content, stop_reason=stop_reason, legacy=legacy)["choices"]
    found: Json = choice["message"]
    return found


def text(content: object) -> Json:
    return {"type": "text", "text": content, "citations": None}


def tool_use(call_id: str, **tool_input: object) -> Json:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": tool_input}


def test_a_message_of_text() -> None:
    assert completion(text("Hello")) == {
        "id": "chatcmpl-01AbC",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "claude-test",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        },
    }


def test_texts_are_joined_as_they_are() -> None:
    cited = {**text(" of ä"), "citations": [{"type": "char_location", "cited_text": "ä"}]}
    assert response(text("A cup"), cited, text(" 😀"))["content"] == "A cup of ä 😀"


@pytest.mark.parametrize("content", [(), (text(""),)])
def test_no_text_is_null(content: tuple[Json, ...]) -> None:
    assert response(*content)["content"] is None


def test_calls() -> None:
    told = response(
        text("Let me see."),
        tool_use("toolu_1", city="Zürich", days=2, exact=1.0),
        tool_use("toolu_2"),
        stop_reason="tool_use",
    )
    assert told["content"] == "Let me see."
    assert told["tool_calls"] == [
        {
            "id": "toolu_1",
            "type": "function",
            "function": {
                "name": "weather",
                "arguments": '{"city":"Zürich","days":2,"exact":1.0}',
            },
        },
        {
            "id": "toolu_2",
            "type": "function",
            "function": {"name": "weather", "arguments": "{}"},
        },
    ]
    assert "function_call" not in told


def test_a_call_alone_has_no_content() -> None:
    assert response(tool_use("toolu_1"), stop_reason="tool_use")["content"] is None


def test_the_call_of_a_legacy_function() -> None:
    document = completion(
        tool_use("toolu_1", a=1), tool_use("toolu_2"), stop_reason="tool_use", legacy=True
    )
    (choice,) = document["choices"]
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"a":1}'}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    (choice,) = completion(text("a"), legacy=True)["choices"]
    assert "function_call" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_thinking_comes_with_what_it_takes_to_send_it_back() -> None:
    told = response(
        {"type": "thinking", "thinking": "Hm. ", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "ZGF0YQ=="},
        text("Let me see."),
        {"type": "thinking", "thinking": "So.", "signature": "Z28="},
        tool_use("toolu_1"),
        {"type": "thinking", "thinking": "", "signature": "b24="},
        tool_use("toolu_2"),
        stop_reason="tool_use",
    )
    assert told["reasoning_content"] == "Hm. So."
    assert told["thinking_blocks"] == [
        {"type": "thinking", "thinking": "Hm. ", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "ZGF0YQ=="},
        {"type": "thinking", "thinking": "So.", "signature": "Z28=", "text_before": 11},
        {
            "type": "thinking",
            "thinking": "",
            "signature": "b24=",
            "text_before": 11,
            "calls_before": 1,
        },
    ]


def test_an_answer_that_is_sent_back_is_the_turn_that_it_was() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm. ", "signature": "c2ln"},
        {"type": "text", "text": "Let me see."},
        {"type": "thinking", "thinking": "So.", "signature": "Z28="},
        tool_use("toolu_1", city="Bern"),
        {"type": "redacted_thinking", "data": "ZGF0YQ=="},
        tool_use("toolu_2"),
    ]
    told = response(*content, stop_reason="tool_use")
    translation = chat_completions.translate_request(
        {
            "model": "claude-test",
            "messages": [
                {"role": "user", "content": "Hi"},
                told,
                {"role": "tool", "tool_call_id": "toolu_1", "content": "x"},
                {"role": "tool", "tool_call_id": "toolu_2", "content": "y"},
            ],
        }
    )
    assert json.loads(translation.body)["messages"][1]["content"] == content


def test_blocks_that_have_no_place_are_passed_over() -> None:
    told = response(
        text("a"),
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "container_upload", "file_id": "file_1"},
        {"type": "of the future", "text": "x"},
        {"type": ["text"]},
        {},
        "text",
        None,
        text("b"),
    )
    assert told == {"role": "assistant", "content": "ab", "refusal": None}


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("of the future", "stop"),
        (None, "stop"),
        (["end_turn"], "stop"),
    ],
)
def test_finish_reasons(stop_reason: object, finish_reason: str) -> None:
    (choice,) = completion(text("a"), stop_reason=stop_reason)["choices"]
    assert choice["finish_reason"] == finish_reason


@pytest.mark.parametrize(
    ("details", "refusal"),
    [
        ({"type": "refusal", "explanation": "Not this."}, "Not this."),
        ({"type": "refusal", "explanation": None}, "The model declined to answer."),
        (None, "The model declined to answer."),
    ],
)
def test_refusals(details: object, refusal: str) -> None:
    document = completion(stop_reason="refusal", stop_details=details)
    assert document["choices"][0]["message"]["refusal"] == refusal
    plain = completion(text("a"), stop_details=None)
    assert plain["choices"][0]["message"]["refusal"] is None


@pytest.mark.parametrize(
    ("told", "prompt", "completed", "cached", "written"),
    [
        ({"input_tokens": 3, "output_tokens": 4}, 3, 4, 0, 0),
        (
            {
                "input_tokens": 3,
                "output_tokens": 4,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 20,
            },
            123,
            4,
            100,
            20,
        ),
        (
            {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": None},
            3,
            4,
            0,
            0,
        ),
        (
            {
                "input_tokens": 3,
                "output_tokens": 4,
                "iterations": [
                    {"type": "message", "input_tokens": 3, "output_tokens": 4},
                    {"type": "compaction", "input_tokens": 50, "output_tokens": 7},
                    {
                        "type": "advisor_message",
                        "model": "claude-opus-5-5",
                        "input_tokens": 200,
                        "output_tokens": 30,
                        "cache_read_input_tokens": 6,
                        "cache_creation_input_tokens": 1,
                    },
                ],
            },
            260,
            41,
            6,
            1,
        ),
        ({}, 0, 0, 0, 0),
        (None, 0, 0, 0, 0),
        ({"input_tokens": "3"}, 0, 0, 0, 0),
    ],
)
def test_usage(told: object, prompt: int, completed: int, cached: int, written: int) -> None:
    assert completion(text("a"), usage=told)["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completed,
        "total_tokens": prompt + completed,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    }


def test_reasoning_tokens_where_they_are_told() -> None:
    usage = {**USAGE, "output_tokens_details": {"thinking_tokens": 4}}
    told = completion(text("a"), usage=usage)["usage"]
    assert told["completion_tokens_details"] == {"reasoning_tokens": 4}


def test_half_a_character_passes_as_an_escape() -> None:
    message = b'{"id": "msg_1", "model": "m", "content": [{"type": "text", "text": "a\\ud83d"}]}'
    body = chat_completions.translate_response(message)
    assert json.loads(body)["choices"][0]["message"]["content"] == "a\ud83d"
    assert body.isascii()


def test_fields_of_other_types_do_no_harm() -> None:
    told = completion(
        text(None),
        {"type": "thinking", "thinking": 7},
        {"type": "tool_use", "input": None},
        id=7,
        model=None,
        stop_details="x",
    )
    assert told["model"] == ""
    (call,) = told["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "", "arguments": "{}"}


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"content": "a"}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        chat_completions.translate_response(body)


def test_created_is_now() -> None:
    body = chat_completions.translate_response(b'{"content": []}')
    assert json.loads(body)["created"] > 1_700_000_000
