"""Fields of a JSON object that change while the others stay as they are written."""

from __future__ import annotations

import pytest

from tornadoproxy import InvalidRequest, read_fields, write_fields


def test_fields_that_do_not_change_stay_as_they_are_written() -> None:
    fields = read_fields(b' {"model" : "a", "n": 1.50e0,\n"deep": { "model" :"\\u0062" } } ')
    assert fields == {"model": b'"a"', "n": b"1.50e0", "deep": b'{ "model" :"\\u0062" }'}
    del fields["model"]
    fields["added"] = b"[]"
    assert write_fields(fields) == b'{"n":1.50e0,"deep":{ "model" :"\\u0062" },"added":[]}'


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"a":', b'{"a":1}x', b"\xff", b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}"],
)
def test_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read_fields(body)
