"""What a cloud does not take: left out and named, or refused."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.upstream.unsupported import Unsupported

CLOUD = Unsupported("The cloud", betas=("known-*", "[x]"), fields=("speed", "tier"))


def test_named_fields_and_other_betas_are_left_out() -> None:
    fields = {"tier": b"null", "model": b'"m"', "speed": b'"fast"'}
    taken, ignored = CLOUD.leave_out(fields, ["known-1", "x", "known-1", "[x]"])
    assert (taken, ignored) == (["known-1", "[x]"], ["speed", "tier", "x"])
    assert fields == {"model": b'"m"'}


@pytest.mark.parametrize(
    ("written", "left"),
    [
        (
            b'{"cache_control": {"type":"ephemeral","scope":"a"}}',
            b'{"cache_control":{"type":"ephemeral"}}',
        ),
        (
            b'[{"cache_control":{"scope":1,"ttl":"1h","type":"ephemeral"},"scope":2}]',
            b'[{"cache_control":{"ttl":"1h","type":"ephemeral"},"scope":2}]',
        ),
    ],
)
def test_scope_of_a_cache_is_left_out(written: bytes, left: bytes) -> None:
    fields = {"system": written, "other": written}
    assert CLOUD.leave_out(fields, []) == ([], ["cache_control.scope"])
    assert fields == {"system": left, "other": written}


@pytest.mark.parametrize(
    "written",
    [
        b'"\\"cache_control\\":{\\"type\\":\\"ephemeral\\",\\"scope\\":1}"',
        b'[{"cache_control":{"type":"ephemeral"},"scope":1}]',
        b'{"cache_control":{"type":"of our own","scope":1}}',
        b'{"cache_control":{"type":"ephemeral","scope":"}"}}',
        b'{"cache_control":null,"scope":1}',
        b'"cache_control","scope"',
    ],
)
def test_other_scopes_stay(written: bytes) -> None:
    fields = {"messages": written}
    assert CLOUD.leave_out(fields, []) == ([], [])
    assert fields == {"messages": written}


def test_request_is_refused_if_the_entry_says_so() -> None:
    refusing = replace(CLOUD, refuses=True)
    assert refusing.leave_out({"model": b'"m"'}, ["known-1"]) == (["known-1"], [])
    with pytest.raises(InvalidRequest, match=r"^The cloud does not support speed, other: "):
        refusing.leave_out({"speed": b"1"}, ["other"])
