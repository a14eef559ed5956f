"""Secret: never shown by accident, compared by its bytes."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import pprint
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tornadoproxy import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "sk-canary-8f3b1d"


@dataclass(frozen=True)
class Holder:
    secret: Secret


def format_with_width(secret: Secret) -> str:
    """A width makes ``format`` ask for ``__format__``, which may refuse but not show."""
    try:
        return f"{secret:>40}"
    except TypeError as error:
        return str(error)


def log(secret: Secret) -> str:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s %r", (secret, secret), None)
    return record.getMessage()


def traceback_with_locals(secret: Secret) -> str:
    try:
        secret.no_such_attribute  # type: ignore[attr-defined]  # noqa: B018  # raises on purpose
    except AttributeError as error:
        captured = traceback.TracebackException.from_exception(error, capture_locals=True)
        return "".join(captured.format())
    raise AssertionError("an unknown attribute must raise")


def copied(duplicate: Callable[[object], object], secret: Secret) -> str:
    try:
        return repr(duplicate(secret))
    except TypeError as error:
        return str(error)


class TestNeverShows:
    @pytest.mark.parametrize(
        "show",
        [
            repr,
            str,
            ascii,
            format,
            format_with_width,
            log,
            traceback_with_locals,
            pprint.pformat,
            lambda secret: f"{secret}",
            lambda secret: f"{secret!r}",
            lambda secret: f"{secret=}",
            lambda secret: "%s %r %a" % (secret, secret, secret),  # noqa: UP031  # what is tested
            lambda secret: "{} {!s} {!r}".format(secret, secret, secret),  # noqa: UP032  # tested
            lambda secret: repr([secret, {secret: secret}]),
            lambda secret: repr(Holder(secret)),
            lambda secret: str(ValueError("a wrong token", secret)),
            lambda secret: json.dumps({"token": secret}, default=str),
            lambda secret: copied(copy.copy, secret),
            lambda secret: copied(copy.deepcopy, Holder(secret).secret),
        ],
    )
    def test_where_a_value_is_turned_into_text(self, show: Callable[[Secret], str]) -> None:
        shown = show(Secret(CANARY))
        assert shown
        assert CANARY not in shown
        assert "canary" not in shown

    def test_nor_its_digest_or_length(self) -> None:
        assert repr(Secret("a")) == repr(Secret("b" * 100)) == str(Secret(""))

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_is_not_pickled(self, protocol: int) -> None:
        with pytest.raises(TypeError) as raised:
            pickle.dumps(Holder(Secret(CANARY)), protocol)
        assert CANARY not in "".join(traceback.format_exception(raised.value))

    def test_is_not_serialised(self) -> None:
        with pytest.raises(TypeError) as raised:
            json.dumps({"token": Secret(CANARY)})
        assert CANARY not in str(raised.value)

    def test_is_not_taken_for_bytes_or_text(self) -> None:
        # Any: what none of these takes
        takes: list[Callable[[Any], object]] = [bytes, iter, len, memoryview, "".join, b"".join]
        for take in takes:
            with pytest.raises(TypeError) as raised:
                take(Secret(CANARY))
            assert CANARY not in str(raised.value)

    def test_has_no_attribute_dictionary(self) -> None:
        assert not hasattr(Secret(CANARY), "__dict__")


class TestValue:
    @pytest.mark.parametrize(
        ("given", "value"),
        [
            ("abc", b"abc"),
            (b"abc", b"abc"),
            ("clé", b"cl\xc3\xa9"),
            ("🔑", b"\xf0\x9f\x94\x91"),
            (b"\xff\x00\xfe", b"\xff\x00\xfe"),
            (os.fsdecode(b"k\xff\xe9"), b"k\xff\xe9"),
            (" a ", b" a "),
            ("", b""),
        ],
    )
    def test_is_revealed_as_bytes(self, given: bytes | str, value: bytes) -> None:
        assert Secret(given).reveal() == value

    def test_is_true_unless_empty(self) -> None:
        assert Secret("0")
        assert not Secret("")


class TestMatches:
    @pytest.mark.parametrize("value", [b"", b"a", CANARY.encode(), b"\xff\xe9", b"x" * 100_000])
    def test_itself(self, value: bytes) -> None:
        assert Secret(value).matches(Secret(bytes(bytearray(value))))
        assert Secret(value) == Secret(value)
        assert hash(Secret(value)) == hash(Secret(value))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("token", "Token"),
            ("token", "toke"),
            ("token", "token "),
            ("token", "tokens"),
            ("token", ""),
            ("token", "token\0"),
            ("token", "x" * 100_000),
            ("é", "e"),
            ("é", "e\u0301"),
            ("é", b"\xe9"),
            (b"\xff", "\ufffd"),
            (b"\xff", "ÿ"),
        ],
    )
    def test_nothing_else(self, one: bytes | str, other: bytes | str) -> None:
        assert not Secret(one).matches(Secret(other))
        assert not Secret(other).matches(Secret(one))
        assert Secret(one) != Secret(other)

    def test_no_plain_value(self) -> None:
        assert Secret(CANARY) != CANARY
        assert Secret(CANARY) != CANARY.encode()

    def test_text_and_its_bytes_are_the_same(self) -> None:
        assert Secret("clé 🔑").matches(Secret("clé 🔑".encode()))
        assert Secret(os.fsdecode(b"k\xff")).matches(Secret(b"k\xff"))

    def test_compares_digests_of_equal_length(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compared: list[tuple[bytes, bytes]] = []

        def compare_digest(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return one == other

        monkeypatch.setattr("hmac.compare_digest", compare_digest)
        assert not Secret("short").matches(Secret("long" * 1000))
        ((one, other),) = compared
        assert len(one) == len(other)
        assert b"short" not in one
