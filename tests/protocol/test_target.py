"""Request targets: what may go upstream as it came, and what is refused before anything does."""

from __future__ import annotations

import pytest

from tornadoproxy import InvalidRequest
from tornadoproxy.protocol.request_target import asks_a_model, check_target


@pytest.mark.parametrize(
    "target",
    [
        "/v1/messages",
        "/v1/messages?beta=true",
        "/v1/models?",
        "/v1/models/claude-sonnet-5-5",
        "/v1/",
        "/v1",
        "/",
        # dots that are no dot segment
        "/v1/files/a..b",
        "/v1/files/..b",
        "/v1/files/a..",
        "/v1/.well",
        "/v1/.well-known/x",
        "/v1/...",
        "/v1/files/a.b.c",
        "/v1/files/a%2eb",
        "/v1/files/%2ewell",
        # escapes that hide nothing; an escaped percent sign stays one
        "/v1/files/a%20b",
        "/v1/files/%C3%A9",
        "/v1/%252e%252e/admin",
        "/v1/..%252fadmin",
        "/v1/%255cadmin",
        "/v1/100%",
        "/v1/files/\xe9",
        "/v1/files/a;x=1",
        "/v1/files/;..",
        "/v1/files/a:b@c!$&'()*+,=~_-",
        # a query is no path
        "/v1/models?x=../..",
        "/v1/models?x=%2e%2e%2f",
        "/v1/models?x=a//b",
        "/v1/models?x=a\\b%5c",
        "/v1/models?x=http://example.com/",
        "/v1/models?/../",
        "/v1/models??",
    ],
)
def test_goes_upstream(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    "target",
    [
        # dot segments
        "/v1/../admin",
        "/v1/..",
        "/v1/../",
        "/v1/./messages",
        "/v1/.",
        "/..",
        "/.",
        "/../v1/messages",
        "/v1/messages/../../admin?x=1",
        "/v1/..?x=1",
        # encoded dot segments
        "/v1/%2e%2e/admin",
        "/v1/%2E%2E/admin",
        "/v1/%2e./admin",
        "/v1/.%2E/admin",
        "/v1/%2e%2e",
        "/v1/%2e/messages",
        "/%2e%2e/v1",
        # what is a dot segment once its parameters are cut off
        "/v1/..;x/admin",
        "/v1/..;/admin",
        "/v1/..;",
        "/v1/.;x/messages",
        "/v1/%2e%2e;x=1/admin",
        "/v1/.%2e;/admin",
        "/v1/messages;x/../../admin",
        # encoded slashes and backslashes
        "/v1/..%2fadmin",
        "/v1/..%2Fadmin",
        "/v1/files/a%2fb",
        "/v1%2fmessages",
        "/v1/%2f",
        "/v1/..%5cadmin",
        "/v1/..%5Cadmin",
        "/v1/files/a%5cb",
        # backslashes
        "/v1/..\\admin",
        "/v1\\messages",
        "\\v1\\messages",
        # double slashes
        "//evil.example/v1/messages",
        "/v1//messages",
        "//",
        "/v1/messages//",
        "/v1/messages//?x=1",
        # not in origin-form
        "http://evil.example/v1/messages",
        "HTTPS://evil.example/v1/messages",
        "http:/v1/messages",
        "evil.example:443",
        "*",
        "v1/messages",
        "?x=1",
        "",
        # a fragment is never sent
        "/v1/messages#x",
        "/v1/messages?x=1#y",
        "#",
    ],
)
def test_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_target(target)
    assert raised.value.status == 400
    assert raised.value.message.endswith(".")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages",
        "/v1/messages/",
        "/V1/Messages",
        "/v1/%6dessages",
        # to servers that cut a segment's parameters off
        "/v1/messages;x=1",
        "/v1/messages;",
        "/v1;x/messages/",
        "/v1/;x/messages/;y",
        "/v1/messages%3Bx",
        # to those whose routes are regular expressions, or that trim
        "/v1/messages%0a",
        "/v1/messages%20/",
        "/v1/messages%00",
        "/v1/messages/%0D%0A",
    ],
)
def test_a_path_that_a_server_could_take_for_messages_asks_a_model(path: str) -> None:
    check_target(path)
    assert asks_a_model("POST", path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/messages;/batches"),
        ("POST", "/v1/message"),
        ("POST", "/v1/messages-x"),
        ("POST", "/v1/files"),
    ],
)
def test_nothing_else_asks_a_model(method: str, path: str) -> None:
    assert not asks_a_model(method, path)
