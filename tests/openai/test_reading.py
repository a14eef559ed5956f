"""JSON from clients: what is refused, and within which bounds of memory."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.reading import MAX_BACKSLASHES, MAX_DEPTH, MAX_VALUES, parse


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *((body, "read as JSON") for body in (b"", b"{", b'{"a": 1,}', b"{'a': 1}")),
        *((body, "must be a JSON object") for body in (b"[]", b"null")),
        *((body, "UTF-8") for body in (b'{"model": "\xff"}', '{"a": 1}'.encode("utf-16"))),
        (b"\xef\xbb\xbf{}", "line 1"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "JSON"),
        (b'{"a": "\x01"}', "line 1, column"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "levels deep"),
        (b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "values"),
        # more than the counting steps can divide
        (b'{"a":"' + b"\\" * 3_000_000 + b"," * MAX_VALUES + b'"}', "values"),
    ],
    ids=lambda value: repr(value[:16]),
)
def test_body_that_is_no_json_object_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse(body)


def test_json_up_to_the_bounds_is_read() -> None:
    assert parse(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH)
    wide = b'{"a":[' + b"1," * (MAX_VALUES - 10) + b"1]}"
    assert len(parse(wide)["a"]) == MAX_VALUES - 9
    assert parse(b'{"a": 1, "a": 2}') == {"a": 2}


def test_signs_within_strings_are_not_counted_as_values() -> None:
    text = '[{,"\\' * MAX_VALUES
    assert parse(json.dumps({"a": text}).encode()) == {"a": text}


def test_json_of_too_many_escapes_is_refused() -> None:
    most = b'{"a":"' + b'\\"' * MAX_BACKSLASHES + b'"}'
    assert parse(most) == {"a": '"' * MAX_BACKSLASHES}
    with pytest.raises(InvalidRequest, match="backslashes"):
        parse(most[:-2] + b'\\t"}')


@pytest.mark.parametrize("value", [b"[]", b'"\\""', b"{}", b"1.5"])
def test_wide_json_is_refused_without_the_memory_of_its_values(value: bytes) -> None:
    body = b'{"a":[' + (value + b",") * 5_000_000 + b"1]}"
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="values"):
        parse(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * len(body)


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    document = parse(
        b'{"model": "m", "messages": [{"role": "user", "content": "a\\ud83d \\ud83d\\ude00"},'
        b'{"role": "assistant", "tool_calls": [{"id": "\\udc00", "function":'
        b'{"name": "f", "arguments": "{\\"\\\\ud800\\": 1}"}}]},'
        b'{"role": "tool", "tool_call_id": "\\udc00", "content": "\\udfff"}]}'
    )
    body = json.loads(chat_completions.translate_request(document).body)
    first, asked, answered = body["messages"]
    assert first["content"] == "a\ufffd 😀"
    assert asked["content"][0]["input"] == {"\ufffd": 1}
    assert answered["content"][0]["content"] == "\ufffd"
