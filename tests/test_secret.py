"""Secret and SecretURL: never shown by accident, compared by their bytes."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import pprint
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tornadoproxy import Secret, SecretURL

CANARY = "sk-canary-8f3b1d"


@dataclass(frozen=True)
class Holder:
    secret: Secret


def log(secret: Secret) -> str:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s %r", (secret, secret), None)
    return record.getMessage()


def locals_of_traceback(secret: Secret) -> str:
    try:
        secret.no_such_attribute  # type: ignore[attr-defined]  # noqa: B018  # raises on purpose
    except AttributeError as error:
        captured = traceback.TracebackException.from_exception(error, capture_locals=True)
        return "".join(captured.format())
    raise AssertionError("an unknown attribute must raise")


@pytest.mark.parametrize(
    "show",
    [
        *(repr, str, ascii, format, log, locals_of_traceback, pprint.pformat),
        lambda secret: "%s %r %a" % (secret, secret, secret),  # noqa: UP031  # what is tested
        lambda secret: "{} {!s} {!r}".format(secret, secret, secret),  # noqa: UP032  # tested
        lambda secret: repr([secret, {secret: Holder(secret)}]),
        lambda secret: str(ValueError("a wrong token", secret)),
        lambda secret: json.dumps({"token": secret}, default=str),
    ],
)
def test_secret_as_text_shows_nothing(show: Callable[[Secret], str]) -> None:
    shown = show(Secret(CANARY))
    assert shown
    assert "canary" not in shown
    assert repr(Secret("a")) == repr(Secret("b" * 100)) == str(Secret("")), "nor its length"


@pytest.mark.parametrize(
    "take",
    [
        *(lambda secret, each=each: pickle.dumps(Holder(secret), each) for each in range(6)),
        *(bytes, iter, len, memoryview, vars, "".join, b"".join, json.dumps),
        *(copy.copy, lambda secret: copy.deepcopy(Holder(secret)), lambda secret: f"{secret:>40}"),
    ],
)
def test_secret_as_anything_else_is_a_type_error(take: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as raised:
        take(Secret(CANARY))
    assert "canary" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("abc", b"abc"),
        ("clé", b"cl\xc3\xa9"),
        (b"\xff\x00\xfe", b"\xff\x00\xfe"),
        (os.fsdecode(b"k\xff\xe9"), b"k\xff\xe9"),
        (" a ", b" a "),
        ("", b""),
    ],
)
def test_secret_is_its_bytes(given: bytes | str, value: bytes) -> None:
    secret, same = Secret(given), Secret(value)
    assert secret.reveal() == value
    assert bool(secret) is bool(value)
    assert secret.matches(same)
    assert secret == same
    assert hash(secret) == hash(same)
    assert secret != given


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("token", each) for each in ("Token", "toke", "tokens", "", "token\0", "x" * 100_000)),
        *(("é", "e\u0301"), ("é", b"\xe9"), (b"\xff", "\ufffd")),
    ],
)
def test_secret_matches_no_other(one: bytes | str, other: bytes | str) -> None:
    assert not Secret(one).matches(Secret(other))
    assert not Secret(other).matches(Secret(one))
    assert Secret(one) != Secret(other)


def test_secrets_are_compared_by_digests_of_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare_digest)
    assert not Secret("short").matches(Secret("long" * 1000))
    ((one, other),) = compared
    assert len(one) == len(other)
    assert b"short" not in one


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:canary@db:5432/claude?x=canary", "postgresql://ada:***@db:5432/claude"),
        ("postgresql://ada:can/ary?@db/claude#canary", "postgresql://ada:***@db/claude"),
        ("postgresql://ada@db/claude", "postgresql://ada@db/claude"),
        ("postgresql://db/claude", "postgresql://db/claude"),
    ],
)
def test_secret_url_shows_neither_password_nor_query(url: str, shown: str) -> None:
    secret = SecretURL(url)
    assert (str(secret), repr(secret)) == (shown, f"SecretURL('{shown}')")
    assert secret.reveal() == url
    assert {secret} == {SecretURL(url)}
    assert secret != SecretURL(url + "x")
    assert secret != url
