"""A request as plugins see it: its credentials, its identity and its record."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import AuthenticationFailed, Dialect, Identity, IncomingRequest
from tornadoproxy.testing import request_record


def incoming(head: bytes) -> IncomingRequest:
    """Return the request with these header lines, parsed as the server parses them."""
    headers = HTTPHeaders.parse(head.decode("latin-1"))
    return IncomingRequest("POST", "/v1/messages", headers, "192.0.2.7", Dialect.ANTHROPIC)


def candidates(*lines: bytes) -> list[bytes]:
    head = b"".join(line + b"\r\n" for line in lines)
    return [secret.reveal() for secret in incoming(head).candidates()]


BEARER = b"Authorization: Bearer "
OTHER_LINES = [
    *(b"Cookie: token=T", b"Proxy-Authorization: Bearer T", b"x-api-key: \t "),
    *(b"Authorization: T", b"Authorization: Basic VDpU", b"Authorization: BearerT"),
    *(b"Authorization: Bearer", b"Authorization:"),
]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        *(([line], [b"T"]) for line in (b"X-API-KEY:T", b"x-api-key: \t T \t ")),
        *(([line], [b"T"]) for line in (b"authorization:bEaReR T", BEARER + b" \t T \t ")),
        *(([line], []) for line in OTHER_LINES),
        *(([line, b"x-api-key: T"], [b"T"]) for line in OTHER_LINES),
        # an API key takes precedence over authorization, unless it is empty
        ([BEARER + b"right", b"x-api-key: wrong"], [b"wrong"]),
        ([b"x-api-key: wrong", BEARER + b"right"], [b"wrong"]),
        ([BEARER + b"A", BEARER + b"B", b"x-api-key: T"], [b"T"]),
        ([b"x-api-key:", BEARER + b"T"], [b"T"]),
        ([b"x-api-key: \t ", b"x-api-key: U", BEARER + b"T"], [b"U"]),
        # the first eight
        ([b"x-api-key: %d" % number for number in range(9)], [b"%d" % each for each in range(8)]),
    ],
)
def test_candidates_are_the_credentials_of_a_request(
    lines: list[bytes], found: list[bytes]
) -> None:
    assert candidates(*lines) == found


@pytest.mark.parametrize(
    "token",
    [
        b"a b\tc",
        b"a, b,c",
        b"a,",
        # these end in bytes that Latin-1 takes for whitespace: 85 and A0
        "voilà".encode(),
        "…".encode(),
        b"\xff\xfe",
        b"\xa0T\xa0",
    ],
)
def test_credential_is_its_bytes(token: bytes) -> None:
    assert candidates(b"x-api-key: " + token) == [token]
    assert candidates(BEARER + token) == [token]
    assert candidates(b"x-api-key: " + token, b"x-api-key: ,b") == [token, b",b"]


@pytest.mark.parametrize("other", [b"Bearer B", b"Basic QTpC", b""])
def test_different_authorization_lines_are_refused(other: bytes) -> None:
    one, other = BEARER + b"A", b"Authorization: " + other
    for lines in ([one, other], [other, one], [one, one, other]):
        with pytest.raises(AuthenticationFailed, match="several Authorization headers") as caught:
            candidates(*lines)
        assert caught.value.status == 401
    assert candidates(one, one, one) == [b"A"]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "No credential was sent: send a key of yours, as the API key or as "),
        (b"x-api-key:\r\n", "No credential was sent"),
        (b"x-api-key: sk-canary\r\n", "The credential sent is not known here: send a key of you"),
        (b"Authorization: sk-canary\r\n", "The Authorization header holds no Bearer token"),
        (BEARER + b"sk-canary\r\n" + BEARER + b"b\r\n", "There are several Authorization headers"),
    ],
)
def test_authentication_failed_says_what_was_sent(head: bytes, said: str) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        raise incoming(head).authentication_failed("a key of yours")
    message = caught.value.message
    assert message.startswith(said)
    assert "sk-canary" not in message
    assert "x-api-key" not in message.lower(), "Claude Code would hide the message"


def test_repr_of_request_shows_no_header() -> None:
    request = incoming(b"x-api-key: sk-canary\r\nCookie: sk-canary\r\n")
    for shown in (repr(request), repr([*request.__rich_repr__()])):
        assert "sk-canary" not in shown
        assert "/v1/messages" in shown


@pytest.mark.parametrize(
    ("struct", "name"),
    [(incoming(b""), "path"), (Identity("alice"), "principal"), (request_record(), "status")],
)
def test_request_identity_and_record_are_frozen(struct: Any, name: str) -> None:
    with pytest.raises(AttributeError, match="immutable"):
        setattr(struct, name, "other")
