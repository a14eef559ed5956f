"""The fields of a request that authorization sees: those that the upstream reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from typing_extensions import get_type_hints, is_typeddict

from tornadoproxy import UNKNOWN_MODEL, ModelRequest, Usage
from tornadoproxy.errors import InvalidRequest
from tornadoproxy.protocol.body_fields import MAX_OTHER_FIELDS
from tornadoproxy.protocol.request_fields import MAX_MODELS, NAMED_INPUT, read_request

ASKED = {"model": "claude-opus-4-5", "max_tokens": 100, "stream": True, "messages": []}


def escaped(document: object) -> str:
    """JSON with each letter escaped; `document` has strings only."""
    return re.sub("[a-z_]", lambda letter: f"\\u{ord(letter[0]):04x}", json.dumps(document))


def models(**fields: object) -> tuple[str, ...]:
    return read_request(json.dumps({"model": "a", **fields}).encode()).models


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (json.dumps(ASKED, indent=2), ("claude-opus-4-5", 100, True)),
        (" {\n} ", (None, None, None)),
        ('{"model": null, "max_tokens": null, "stream": null}', (None, None, None)),
        ('{"model": "a", "messages": [{"model": 1, "model": 2}]}', ("a", None, None)),
        ('{"content": "\\"model\\": \\"b\\"", "x": "model", "model": "a"}', ("a", None, None)),
        ('{"model": "a", "content": "\\ud800 or \\uDFFF"}', ("a", None, None)),
        ('\n{"é\\"\\\\" :\t{"a": [1]}\n, "b":2 ,"" :""}\n', (None, None, None)),
        ('{"m\\u006fdel": "a", "max\\u005ftokens": 5, "max_tokens_to": 6}', ("a", 5, None)),
    ],
)
def test_fields_of_the_top_level_are_read(body: str, fields: tuple[object, ...]) -> None:
    read = read_request(body.encode())
    assert (read.model, read.max_tokens, read.stream) == fields


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_body_in_utf_16_or_with_a_byte_order_mark_is_read(encoding: str) -> None:
    assert read_request(json.dumps(ASKED).encode(encoding)).model == ASKED["model"]


@pytest.mark.parametrize(
    "body",
    [
        '{"m\\u006Fdel": "cheap", "mode\\u006c": "dear"}',
        '{"max_tokens": 11, "max_tokens": 1}',
        '{"stream": true, "stream": true}',
        '{"x": 1 , "é" :{}, "x":1}',
        '{"tools": [{"model": "dear"}], "tools": []}',
        '{"model": "cheap", "Model": "dear"}',
        '{"MODEL": "dear"}',
        '{"Fallbacks": [{"model": "dear"}]}',
        # the kelvin sign and the long s fold to k and s
        '{"max_tokens": 1, "max_to\u212aens": 100000}',
        '{"stream": false, "\\u017Ftream": true}',
    ],
)
def test_field_twice_or_in_another_case_is_refused(body: str) -> None:
    with pytest.raises(InvalidRequest, match=r"twice.*case"):
        read_request(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b'{"model": "a"', b'{"model": "a"} {"model": "b"}', b'["model"]', b'{"model": 5}'),
        *(b'{"max_tokens": "100"}', b'{"max_tokens": 1e400}', b'{"stream": "true"}'),
        *(b'{"tools": {"model": "a"}}', b'{"tools": ["a"]}', b'{"model": "\xff"}'),
        b'{"fallbacks": [{"model": "a", "max_tokens": 1e9}]}',
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "a", "x": "' + b"x" * MAX_OTHER_FIELDS + b'"}',
        b'{"messages": [' + b"1," * 3_000_000 + b"1]}",
        b'{"messages": "' + b"\\ud800 " * 1_000_000 + b'"}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_unreadable_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="request body") as caught:
        read_request(body)
    assert caught.value.status == 400


def places(kind: Any, path: tuple[str, ...] = (), above: tuple[Any, ...] = ()) -> Iterator[str]:
    """The paths below a request type of the fields that are named after models."""
    if not is_typeddict(kind):
        for each in get_args(kind):
            yield from places(each, path, above)
    elif kind not in above:
        for name, hint in get_type_hints(kind).items():
            if "model" in name or "fallback" in name:
                yield ".".join((*path, name))
            yield from places(hint, (*path, name), (*above, kind))


@pytest.mark.parametrize("module", [message_create_params, beta_message_create_params])
def test_sdk_has_no_other_field_for_a_model(module: Any) -> None:
    read = {
        "model",
        "fallbacks",
        "fallbacks.model",
        "tools.model",
        "messages.content.tool.definition.model",
        "messages.content.tool_changes.tool.definition.model",
    }
    spend_nothing = {
        "fallback_credit_token",
        # in responses that come back, and neither run nor validated
        "messages.content.from.model",
        "messages.content.to.model",
    }
    found = set(places(module.MessageCreateParams))
    assert found - spend_nothing <= read
    assert "beta" not in module.__name__ or found == read | spend_nothing


ADVISOR = {"type": "advisor_20260301", "name": "advisor", "model": "dear"}
ADDED = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": ADVISOR}}


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({"fallbacks": None, "tools": None, "thread": None}, ()),
        ({"fallbacks": []}, ()),
        ({"fallbacks": [{"model": "b"}, {"model": "c"}, {"model": "a"}]}, ("b", "c")),
        ({"fallbacks": "default"}, (UNKNOWN_MODEL,)),
        ({"fallbacks": [{"model": 1, "max_tokens": None}]}, (UNKNOWN_MODEL,)),
        ({"fallbacks": [{"Model": "b"}]}, ("b",)),
        ({"tools": [{"name": "t"}, {"name": "t", "MODEL": "dear"}]}, ("dear",)),
        ({"tools": [{"input_schema": {"properties": {"model": {"type": "string"}}}}]}, ()),
        ({"messages": [{"role": "system", "content": [ADDED]}]}, ("dear",)),
        ({"messages": [{"content": [{"type": "compaction", "tool_changes": [ADDED]}]}]}, ("dear",)),
        ({"messages": [{"content": [{"type": "tool_use", "input": ADDED}]}]}, ()),
        ({"messages": [{"content": [{"type": "fallback", "to": {"model": "b"}}]}]}, ()),
        ({"thread": {"type": "create"}}, ()),
        ({"thread": {"type": "continue", "previous_message_id": "msg_1"}}, (UNKNOWN_MODEL,)),
        ({"model": None}, ()),
    ],
)
def test_models_of_every_place_are_listed(
    fields: dict[str, object], others: tuple[str, ...]
) -> None:
    first = UNKNOWN_MODEL if "model" in fields else "a"
    assert models(**fields) == (first, *others)


@pytest.mark.parametrize(
    "body",
    [
        escaped({"model": "a", "fallbacks": [{"model": "dear"}]}),
        escaped({"model": "a", "messages": [{"content": [ADDED]}]}),
        '{"model": "a", "tools": [{"model": "dear", "model": "a"}]}',
        '{"model": "a", "tools": [{"model": "a", "model": "dear"}]}',
    ],
)
def test_escaped_or_repeated_model_is_listed(body: str) -> None:
    assert set(read_request(body.encode()).models) == {"a", "dear"}


@pytest.mark.parametrize(
    "fields",
    [{"tools": [{"model": "b"}] * 100_000}, {"messages": [{"content": [ADDED]}] * 100_000}],
)
def test_too_many_nested_values_are_an_unknown_model(fields: dict[str, object]) -> None:
    assert models(**fields) == ("a", UNKNOWN_MODEL)
    too_large = b'{"model": "a", "fallbacks": [{"x": %b}]}' % (b"9" * 5000)
    assert read_request(too_large).models == ("a", UNKNOWN_MODEL)


def test_models_beyond_the_limit_are_one_unknown_model() -> None:
    most = [str(each) for each in range(MAX_MODELS - 1)]
    assert models(fallbacks=[{"model": each} for each in most]) == ("a", *most)
    more = [{"model": each} for each in [*most, "x", "y"]]
    assert models(fallbacks=more) == ("a", *most, UNKNOWN_MODEL)


def test_max_tokens_is_the_highest_of_all_attempts() -> None:
    body = {**ASKED, "fallbacks": [{"model": "b", "max_tokens": 300}, {"model": "c"}]}
    assert read_request(json.dumps(body).encode()).max_tokens == 300


def test_estimated_cost_is_that_of_the_dearest_model() -> None:
    prices = {"a": 3, "b": 7, UNKNOWN_MODEL: 5}

    def price(model: str | None, usage: Usage) -> int | None:
        tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        return prices[model] * tokens if model in prices else None

    def asked(*names: str) -> ModelRequest:
        return ModelRequest("a", names, 10, False, 0, input_tokens=1, price=price)

    assert (asked("a", "b", UNKNOWN_MODEL).input_cost, asked("a", "b").max_cost) == (7, 77)
    assert asked("a", "c").max_cost is None
    assert ModelRequest("a", ("a",), 10, False, 0).max_cost is None, "nothing has a price"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ('{"x": "' + "x" * 391 + '"}', 100),
        ('{"source": {"type" : "url", "url": "https://example.com/a.pdf"}}', NAMED_INPUT),
        (escaped({"file_id": "file"}), NAMED_INPUT),
        ('{"fil\\u0065\\u005Fid": "file_1"}', NAMED_INPUT),
        ('{"type": "ur\\u006C", "x": 1}', NAMED_INPUT),
        ('{"thread": {"type": "continue", "previous_message_id": "msg_1"}}', NAMED_INPUT),
        ('{"properties": {"url": {"type": "string"}}}', 10),
        ('{"content": "\\"file_id\\""}', 6),
        ('{"messages": "' + " " * 4_000_000 + '", "file_id": "f"}', 1_000_008),
    ],
    ids=lambda body: str(body)[:30],
)
def test_input_that_is_named_is_estimated_as_large(body: str, tokens: int) -> None:
    assert read_request(body.encode()).input_tokens == tokens


@pytest.mark.parametrize(("limit", "output"), [(None, 32_000), (-1, 0), (10**12, 128_000)])
def test_estimated_output_is_bounded(limit: int | None, output: int) -> None:
    assert ModelRequest("a", ("a",), limit, False, 0).output_tokens == output
    assert ModelRequest("a", ("a",), limit, False, 0, max_output=9).output_tokens == min(output, 9)
