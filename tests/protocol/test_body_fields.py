"""The fields of a body: what is read, which bytes stay, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tornadoproxy import InvalidRequest, read_fields, write_fields
from tornadoproxy.protocol.body_fields import MAX_OTHER_FIELDS, with_model

BODY = b' { "n" : 1.50e0,\n"mod\\u0065l" : "a", "deep":{ "model" :"\\u0062" }, "s":"\xc3\xa9" } '


def test_fields_are_read_and_written_as_they_are() -> None:
    fields = read_fields(BODY)
    assert [*fields] == ["n", "model", "deep", "s"]
    assert fields.pop("model") == b'"a"'
    fields["added"] = b"[]"
    assert write_fields(fields) == (
        b'{"n":1.50e0,"deep":{ "model" :"\\u0062" },"s":"\xc3\xa9","added":[]}'
    )


def test_model_alone_is_replaced() -> None:
    assert with_model(BODY, "é") == BODY.replace(b'"a"', '"é"'.encode())


@pytest.mark.parametrize("read", [read_fields, lambda body: with_model(body, "b")])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":1,"model":2}', "twice"),
        (b'{"model":1,"mod\\u0065l":2}', "twice"),
        (b'{"model":1} {', "JSON"),
        (b"[]", "object"),
        (b"", "JSON"),
        (b'{"model":"\\ud800"}', "JSON"),
        (b"[" * 100_000, "object"),
        (b'{"model":"a", "x": "%b"}' % (b"x" * MAX_OTHER_FIELDS), "larger than"),
    ],
)
def test_ambiguous_invalid_or_complex_body_is_refused(
    read: Callable[[bytes], object], body: bytes, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read(body)
