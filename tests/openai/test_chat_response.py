"""Complete responses: the message or error that comes in, and what goes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.openai import chat_completions
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.testing import message_document

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

USAGE: Json = {"input_tokens": 10, "output_tokens": 5}


def completion(*content: object, legacy: bool = False, **fields: object) -> Json:
    given: Json = {
        "id": "msg_01AbC",
        "model": "claude-test",
        "content": list(content),
        "usage": USAGE,
    }
    message = message_document(**{**given, **fields})
    body = chat_completions.translate_response(
        json.dumps(message).encode(), legacy_functions=legacy, created=1_700_000_000
    )
    document: Json = json.loads(body)
    ChatCompletion.model_validate(document, strict=True)
    return document


def response(*content: object, **more: Any) -> Json:  # Any: what `completion` takes
    found: Json = completion(*content, **more)["choices"][0]["message"]
    return found


def text(content: object) -> Json:
    return {"type": "text", "text": content, "citations": None}


def thinking(content: str, signature: str, **more: int) -> Json:
    return {"type": "thinking", "thinking": content, "signature": signature, **more}


def tool_use(call_id: str, **tool_input: object) -> Json:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": tool_input}


def called(call_id: str, arguments: str) -> Json:
    function = {"name": "weather", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def test_message_becomes_a_completion() -> None:
    message = {"role": "assistant", "content": "Hello", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert completion(text("Hello")) == {
        "id": "chatcmpl-01AbC",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "claude-test",
        "choices": [choice],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        },
    }
    body = chat_completions.translate_response(b'{"content": []}')
    assert json.loads(body)["created"] > 1_700_000_000


@pytest.mark.parametrize(
    ("blocks", "content"),
    [
        ([], None),
        ([text("")], None),
        ([text("a\ud83d"), {**text("b"), "citations": [{}]}], "a\ud83db"),
        ([{"type": "of the future", "text": "x"}, {}, "text", text("b")], "b"),
    ],
)
def test_texts_are_joined_and_other_blocks_skipped(blocks: list[object], content: object) -> None:
    assert response(*blocks)["content"] == content


def test_legacy_function_is_called_once() -> None:
    calls = (tool_use("toolu_1", a=1), tool_use("toolu_2"))
    (choice,) = completion(*calls, stop_reason="tool_use", legacy=True)["choices"]
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"a":1}'}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    (choice,) = completion(text("a"), legacy=True)["choices"]
    assert "function_call" not in choice["message"]
    assert choice["finish_reason"] == "stop"


CONTENT = [
    thinking("Hm. ", "c2ln"),
    {"type": "redacted_thinking", "data": "ZGF0YQ=="},
    {"type": "text", "text": "Let me see."},
    thinking("So.", "Z28="),
    tool_use("toolu_1", city="Zürich", days=2, exact=1.0),
    thinking("", "b24="),
    tool_use("toolu_2"),
]


def test_calls_and_thinking_are_sent_back_as_the_same_turn() -> None:
    said = response(*CONTENT, stop_reason="tool_use")
    assert said == {
        "role": "assistant",
        "content": "Let me see.",
        "refusal": None,
        "reasoning_content": "Hm. So.",
        "thinking_blocks": [
            *CONTENT[:2],
            thinking("So.", "Z28=", text_before=11),
            thinking("", "b24=", text_before=11, calls_before=1),
        ],
        "tool_calls": [
            called("toolu_1", '{"city":"Zürich","days":2,"exact":1.0}'),
            called("toolu_2", "{}"),
        ],
    }
    results = [
        {"role": "tool", "tool_call_id": each, "content": "x"} for each in ("toolu_1", "toolu_2")
    ]
    messages = [{"role": "user", "content": "Hi"}, said, *results]
    body = chat_completions.translate_request({"model": "m", "messages": messages}).body
    assert json.loads(body)["messages"][1]["content"] == CONTENT


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        *((each, "stop") for each in ("end_turn", "stop_sequence", "pause_turn", "new", None)),
        (["end_turn"], "stop"),
        *(("max_tokens", "length"), ("model_context_window_exceeded", "length")),
        *(("tool_use", "tool_calls"), ("refusal", "content_filter")),
    ],
)
def test_stop_reason_becomes_finish_reason(stop_reason: object, finish_reason: str) -> None:
    (choice,) = completion(text("a"), stop_reason=stop_reason)["choices"]
    assert choice["finish_reason"] == finish_reason


def test_refusal_has_an_explanation() -> None:
    declined = "The model declined to answer."
    for details, refusal in (
        ({"type": "refusal", "explanation": "Not this."}, "Not this."),
        *(({"explanation": None}, declined), (None, declined)),
    ):
        assert response(stop_reason="refusal", stop_details=details)["refusal"] == refusal
        assert response(stop_reason="end_turn", stop_details=details)["refusal"] is None


CACHE = {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
ADVICE = {"input_tokens": 200, "output_tokens": 30, **CACHE}
ITERATIONS = [
    {"type": "message", **USAGE},
    {"type": "compaction", "input_tokens": 50, "output_tokens": 7},
    {"type": "advisor_message", "model": "claude-opus-5-5", **ADVICE},
]


@pytest.mark.parametrize(
    ("reported", "prompt", "completed", "cached", "written"),
    [
        ({**USAGE, **CACHE}, 130, 5, 100, 20),
        ({**USAGE, "cache_read_input_tokens": None}, 10, 5, 0, 0),
        ({**USAGE, "iterations": ITERATIONS}, 380, 42, 100, 20),
        ({"input_tokens": "3"}, 0, 0, 0, 0),
        (None, 0, 0, 0, 0),
    ],
)
def test_usage_is_the_sum_of_all_models(
    reported: object, prompt: int, completed: int, cached: int, written: int
) -> None:
    assert completion(text("a"), usage=reported)["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completed,
        "total_tokens": prompt + completed,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    }


def test_usage_has_the_reported_reasoning_tokens() -> None:
    for thoughts, expected in ((4, 4), ("4", 0)):
        usage = {**USAGE, "output_tokens_details": {"thinking_tokens": thoughts}}
        details = completion(text("a"), usage=usage)["usage"]["completion_tokens_details"]
        assert details == {"reasoning_tokens": expected}


def test_fields_of_other_types_become_empty() -> None:
    blocks = (text(None), {"type": "thinking", "thinking": 7}, {"type": "tool_use", "input": None})
    found = completion(*blocks, id=7, model=None, stop_details="x")
    assert found["model"] == ""
    (call,) = found["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "", "arguments": "{}"}


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"content": "a"}', b"\xff", b"[" * 100_000])
def test_body_that_is_no_message_is_the_upstreams_error(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        chat_completions.translate_response(body)


TOO_LONG = "context_length_exceeded"


def shown(status: int, body: bytes) -> tuple[int, Json]:
    """The status and error that the client gets for the upstream's."""
    error = chat_completions.translate_error(status, body)
    document = json.loads(Dialect.OPENAI.error_body(error, "req_1"))
    return Dialect.OPENAI.error_status(error), document["error"]


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected", "code"),
    [
        (400, "invalid_request_error", "No.", "invalid_request_error", None),
        (401, "authentication_error", "No.", "invalid_request_error", "invalid_api_key"),
        (402, "billing_error", "No.", "insufficient_quota", "insufficient_quota"),
        (403, "permission_error", "No.", "permission_error", None),
        (404, "not_found_error", "No.", "invalid_request_error", None),
        (404, "not_found_error", "model: x", "invalid_request_error", "model_not_found"),
        (429, "rate_limit_error", "No.", "rate_limit_error", "rate_limit_exceeded"),
        (529, "overloaded_error", "No.", "server_error", None),
        (418, "of the future", "No.", "invalid_request_error", None),
        # agents shorten their context when they see this code
        *(
            (400, "invalid_request_error", message, "invalid_request_error", TOO_LONG)
            for message in (
                "prompt is too long: 213462 tokens > 200000 maximum",
                "input length and `max_tokens` exceed context limit: 199000 + 32000 > 200000",
            )
        ),
    ],
)
def test_error_has_openais_type_and_code(
    status: int, kind: str, message: str, expected: str, code: str | None
) -> None:
    error = {"type": kind, "message": message}
    found = shown(status, json.dumps({"type": "error", "error": error}).encode())
    assert found == (status, {"message": message, "type": expected, "param": None, "code": code})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b" \n", "The upstream's response has status 502 and an empty body."),
        (b"x" * 501, "x" * 500),
        (b"\xff\xfe", "\ufffd\ufffd"),
        *((body, body.decode()) for body in (b"[1]", b'{"error": "down"}', b'{"error": []}')),
        (b'{"error": {"type": 7, "message": ["a"]}}', '{"error": {"type": 7, "message": ["a"]}}'),
        (b"[" * 100_000, "[" * 500),
        (b'{"error": {"message": "a\\ud83d"}}', "a?"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_body_that_is_no_error_of_anthropics_is_quoted(body: bytes, message: str) -> None:
    status, error = shown(502, body)
    assert (status, error["message"], error["type"]) == (502, message, "server_error")
