"""Request targets: which go upstream, and which could ask a model."""

from __future__ import annotations

import pytest

from tornadoproxy import InvalidRequest
from tornadoproxy.protocol.request_target import asks_a_model, check_target

PLAIN = "/ /v1 /v1/ /v1/messages /v1/messages?beta=true /v1/models? /v1/models/claude-sonnet-5-5"
DOTS = (
    "/v1/files/a..b /v1/files/..b /v1/files/a.. /v1/.well /v1/.well-known/x /v1/... /v1/files/a.b.c"
    " /v1/files/a%2eb /v1/files/%2ewell"
)
ESCAPES = (
    "/v1/files/a%20b /v1/files/%C3%A9 /v1/%252e%252e/admin /v1/..%252fadmin /v1/%255cadmin"
    " /v1/100% /v1/files/\xe9 /v1/files/a;x=1 /v1/files/;.. /v1/files/a:b@c!$&'()*+,=~_-"
)
QUERIES = (
    "/v1/models?x=../.. /v1/models?x=%2e%2e%2f /v1/models?x=a//b /v1/models?x=a\\b%5c"
    " /v1/models?x=http://example.com/ /v1/models?/../ /v1/models??"
)


@pytest.mark.parametrize("targets", [PLAIN, DOTS, ESCAPES, QUERIES])
def test_target_below_its_prefix_goes_upstream(targets: str) -> None:
    for target in targets.split(" "):
        check_target(target)


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        (
            "/v1/../admin /v1/.. /v1/../ /v1/./messages /v1/. /.. /. /../v1/messages"
            " /v1/messages/../../admin?x=1 /v1/..?x=1",
            "segment",
        ),
        (
            "/v1/%2e%2e/admin /v1/%2E%2E/admin /v1/%2e./admin /v1/.%2E/admin /v1/%2e%2e"
            " /v1/%2e/messages /%2e%2e/v1",
            "segment",
        ),
        (
            "/v1/..;x/admin /v1/..;/admin /v1/..; /v1/.;x/messages /v1/%2e%2e;x=1/admin"
            " /v1/.%2e;/admin /v1/messages;x/../../admin /v1/..%3bx/admin",
            "segment",
        ),
        (
            "/v1/..%2fadmin /v1/..%2Fadmin /v1/files/a%2fb /v1%2fmessages /v1/%2f /v1/..%5cadmin"
            " /v1/..%5Cadmin /v1/files/a%5cb",
            "encoded",
        ),
        ("/v1/..\\admin /v1\\messages /v1/messages#x /v1/messages?x=1#y", "backslash or a '#'"),
        ("//evil.example/v1/messages /v1//messages // /v1/messages// /v1/messages//?x=1", "double"),
        (
            "http://evil.example/v1/messages HTTPS://evil.example/v1/messages http:/v1/messages"
            " evil.example:443 * v1/messages ?x=1 # \\v1\\messages ",
            "the path alone",
        ),
    ],
)
def test_ambiguous_target_is_refused_with_its_fault(targets: str, fault: str) -> None:
    for target in targets.split(" "):
        with pytest.raises(InvalidRequest, match=fault) as raised:
            check_target(target)
        assert raised.value.status == 400


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/messages", "/v1/messages/", "/V1/Messages", "/v1/%6dessages"),
        # to servers that remove a segment's parameters
        *("/v1/messages;x=1", "/v1/messages;", "/v1;x/messages/", "/v1/;x/messages/;y"),
        "/v1/messages%3Bx",
        # to servers whose routes are regular expressions, or that strip blanks
        *("/v1/messages%0a", "/v1/messages%20/", "/v1/messages%00", "/v1/messages/%0D%0A"),
    ],
)
def test_path_that_a_server_could_route_to_messages_asks_a_model(path: str) -> None:
    check_target(path)
    assert asks_a_model("POST", path)
    assert not asks_a_model("GET", path)


@pytest.mark.parametrize(
    "path", ["messages/count_tokens", "messages/batches", "messages;/batches", "message", "files"]
)
def test_other_path_asks_no_model(path: str) -> None:
    assert not asks_a_model("POST", f"/v1/{path}")
