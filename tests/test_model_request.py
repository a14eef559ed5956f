"""What is read from a body to judge it is what the upstream will read."""

from __future__ import annotations

import json

import pytest

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.model_request import Fields, estimated_tokens, read_fields

ASKED = {"model": "claude-opus-4-5", "max_tokens": 100, "stream": True, "messages": []}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (json.dumps(ASKED), Fields("claude-opus-4-5", 100, True)),
        ("{}", Fields()),
        ('{"model": null, "max_tokens": null, "stream": null}', Fields()),
        ('{"model": "a", "tools": [{"model": 1, "model": 2}]}', Fields(model="a")),
        ('{"model": "a", "content": "\\"model\\": \\"b\\""}', Fields(model="a")),
        ('{"content": "model", "x": "model", "model": "a"}', Fields(model="a")),
        ('{"model": "a", "content": "\\ud800 half of a pair"}', Fields(model="a")),
        ('{"m\\u006fdel": "a"}', Fields(model="a")),
        ('{"max_tokens": 5, "max_tokens_to_sample": 6}', Fields(max_tokens=5)),
        ('{"max\\u005ftokens": 5}', Fields(max_tokens=5)),
        ('{"model": "a", "content": "Model", "tools": [{"Model": "b"}]}', Fields(model="a")),
    ],
)
def test_what_it_asks_for_is_read(body: str, fields: Fields) -> None:
    assert read_fields(body.encode()) == fields


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_it_is_read_in_every_encoding_that_json_has_had(encoding: str) -> None:
    body = json.dumps(ASKED).encode(encoding)
    assert read_fields(body) == Fields("claude-opus-4-5", 100, True)


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "cheap", "model": "dear"}',
        '{"model": "cheap", "m\\u006fdel": "dear"}',
        '{"m\\u006Fdel": "cheap", "mode\\u006c": "dear"}',
        '{"max_tokens": 1, "messages": [], "max_tokens": 100000}',
        '{"stream": false, "stream": true}',
        '{"max\\u005ftokens": 1, "max_tokens": 100000}',
    ],
)
def test_a_name_that_stands_there_twice_is_refused(body: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_fields(body.encode())
    assert "twice" in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "cheap", "Model": "dear"}',
        '{"MODEL": "dear"}',
        '{"model": "cheap", "\\u004dodel": "dear"}',
        '{"max_tokens": 1, "Max\\u005FTokens": 100000}',
        # the sign of the kelvin, and the long s
        '{"max_tokens": 1, "max_to\u212aens": 100000}',
        '{"max_tokens": 1, "max_to\\u212aens": 100000}',
        '{"stream": false, "\u017ftream": true}',
        '{"stream": false, "\\u017Ftream": true}',
    ],
)
def test_a_name_in_another_case_is_refused_which_some_take_for_the_same(body: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_fields(body.encode())
    assert "case" in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"model=claude",
        b'{"model": "a"',
        b'{"model": "a"} {"model": "b"}',
        b'["model"]',
        b'"model"',
        b'{"model": 5}',
        b'{"model": ["a"]}',
        b'{"max_tokens": "100"}',
        b'{"max_tokens": 1e400}',
        b'{"stream": "true"}',
        b'{"model": "\xff"}',
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_cannot_be_judged_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_fields(body)
    assert caught.value.status == 400
    assert "request body" in caught.value.message


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"x" * 400, 100),
        (b'{"source": {"type": "file", "file_id": "file_1"}}', 200_000),
        (b'{"source": {"type" : "url", "url": "https://example.com/a.pdf"}}', 200_000),
        (b'{"properties": {"url": {"type": "string"}}}', 10),
        (b'{"content": "\\"file_id\\""}', 6),
        (b'{"file_id": "f"}' + b" " * 4_000_000, 1_000_004),
    ],
)
def test_what_is_only_named_is_estimated_to_be_large(body: bytes, tokens: int) -> None:
    assert estimated_tokens(body) == tokens
