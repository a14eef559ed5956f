"""The fields of a body: what is read, which bytes stay, and what is refused."""

from __future__ import annotations

import json

import pytest

from tornadoproxy import BodyFields, InvalidRequest

BODY = (
    b'{ "max_tokens" : 10,\n  "mod\\u0065l":"a",'
    b'"metadata":{"model":"not this"}, "system":"\xc3\xa9 \\"model\\":\\"a\\"" }'
)


@pytest.mark.parametrize(
    ("fields", "without", "expected"),
    [
        ({}, (), BODY),
        ({"model": "b"}, (), BODY.replace(b':"a"', b':"b"', 1)),
        ({}, ("model",), BODY.replace(b',\n  "mod\\u0065l":"a"', b"")),
        ({}, ("max_tokens", "absent"), BODY.replace(b' "max_tokens" : 10,', b"")),
        ({}, ("system",), BODY[: BODY.index(b', "system"')] + b" }"),
        ({"n": [1]}, (), BODY[:-2] + b',"n":[1] }'),
        ({"n": 1}, ("max_tokens", "model", "metadata", "system"), b'{"n":1 }'),
        ({}, ("max_tokens", "model", "metadata", "system"), b"{ }"),
    ],
)
def test_only_the_named_fields_change(
    fields: dict[str, object], without: tuple[str, ...], expected: bytes
) -> None:
    assert BodyFields(BODY).replaced(fields, without) == expected
    json.loads(expected)


def test_fields_are_read_at_the_top_level_only() -> None:
    fields = BodyFields(BODY)
    assert (fields.get("model"), fields.get("max_tokens"), fields.get("user_id")) == ("a", 10, None)
    assert "model" in fields
    assert "user_id" not in fields
    assert BodyFields(b" {} ").replaced({"a": None}) == b'{"a":null} '


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":1,"\\u0061":2}', "twice"),
        (b'{"a":1} {', "JSON"),
        (b"[]", "object"),
        (b"", "JSON"),
        (b'{"a":"\\ud800"}', "JSON"),
        (b"[" * 100_000, "object"),
    ],
)
def test_ambiguous_or_invalid_body_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        BodyFields(body)


def test_invalid_value_is_refused_with_its_name() -> None:
    fields = BodyFields(b'{"stream":"\xff"}')
    with pytest.raises(InvalidRequest, match="stream"):
        fields.get("stream")
