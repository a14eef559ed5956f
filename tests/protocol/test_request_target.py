"""Request targets: which go upstream, and which could ask a model."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import strategies as st
from properties import holds_of

from tornadoproxy import InvalidRequest
from tornadoproxy.protocol.request_target import asks_a_model, check_target, is_served


@pytest.mark.parametrize(
    "targets",
    [
        "/ /v1 /v1/messages /v1/messages?beta=true /v1/models/claude-sonnet-5-5",
        "/v1/files/a..b /v1/files/a.. /v1/.well-known/x /v1/... /v1/files/a%2eb /v1/files/%2ewell",
        "/v1/files/a%20b /v1/%252e%252e/admin /v1/%255cadmin /v1/100% /v1/files/;.. /v1/files/\xe9",
        "/v1/models?x=../.. /v1/models?x=%2e%2e%2f /v1/models?x=a//b\\%5c /v1/models??/../",
    ],
)
def test_target_below_its_prefix_goes_upstream(targets: str) -> None:
    for target in targets.split(" "):
        check_target(target)


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        ("/v1/../admin /v1/.. /v1/./messages /v1/. /.. /. /v1/..?x=1", "segment"),
        ("/v1/%2e%2E/admin /v1/%2e./admin /v1/.%2E /v1/%2e/messages /%2e%2e/v1", "segment"),
        ("/v1/..;x/admin /v1/..; /v1/.;x/messages /v1/%2e%2e;x=1/a /v1/..%3bx/admin", "segment"),
        ("/v1/..%2fadmin /v1/files/a%2Fb /v1%2fmessages /v1/files/a%5cb /v1/%5C", "encoded"),
        ("/v1/..\\admin /v1\\messages /v1/messages#x /v1/messages?x=1#y", "backslash or a '#'"),
        ("//evil.example/v1/messages /v1//messages // /v1/messages//?x=1", "double"),
        (
            "http://evil.example/v1/messages http:/v1 evil.example:443 * v1 ?x=1 # \\v1 ",
            "the path alone",
        ),
    ],
)
def test_ambiguous_target_is_refused_with_its_fault(targets: str, fault: str) -> None:
    for target in targets.split(" "):
        with pytest.raises(InvalidRequest, match=fault) as raised:
            check_target(target)
        assert raised.value.status == 400


def test_paths_of_openai_are_served_with_v1_up_to_twice() -> None:
    for prefix in ("/openai", "/openai/v1", "/openai/v1/v1"):
        for path in (
            *("/chat/completions", "/models", "/models/x", "/models/x/y", "/responses"),
            *("/responses/x", "/responses/x/cancel", "/responses/x/input_items"),
        ):
            assert is_served(prefix + path), prefix + path
        for path in (
            *("", "/", "/chat/completions/", "/models/", "/modelsx", "/embeddings"),
            *("/responses/", "/responsesx", "/responses/x/", "/responses//x", "/responses/x/y"),
            *("/responses/x/cancel/y", "/conversations"),
        ):
            assert not is_served(prefix + path), prefix + path
    for path in ("/openai/v1/v1/v1/models", "/models", "/x/openai/models", "/v1x"):
        assert not is_served(path), path


PATHS = st.lists(
    st.sampled_from(
        [
            *("/", "/", "/", ".", "..", "...", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", ";", "%3b"),
            *("a", "v1", "%", "%%", "%2", "%25", "%252e", "%c0%ae", "\xe9", "?", "#", "%00", "*"),
            *("http:", "@", "%2e%2e", "..;", "/../", "/./", "//"),
        ]
    ),
    max_size=12,
).map("".join)


def segments(path: str, *, parameters_first: bool) -> list[bytes]:
    """The segments of a path as a lenient server decodes them."""

    def without_parameters(path: bytes) -> bytes:
        return b"/".join(segment.partition(b";")[0] for segment in path.split(b"/"))

    plain = path.encode("latin-1")
    if parameters_first:
        plain = without_parameters(plain)
    plain = unquote_to_bytes(plain).replace(b"\\", b"/")
    return without_parameters(plain).split(b"/")


@holds_of(PATHS, examples=60)
def test_target_that_goes_upstream_leads_nowhere_else(rest: str) -> None:
    """To a server that decodes it once, it has no dot segment and no further segment."""
    for target in (rest, f"/v1/{rest}", f"/v1{rest}"):
        try:
            check_target(target)
        except InvalidRequest:
            continue
        path = target.partition("?")[0]
        assert path.startswith("/")
        assert "#" not in target
        assert "//" not in path
        for parameters_first in (True, False):
            found = segments(path, parameters_first=parameters_first)
            assert not {b".", b".."} & set(found)
            assert len(found) == path.count("/") + 1


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/messages", "/v1/messages/", "/V1/Messages", "/v1/%6dessages"),
        # to servers that remove a segment's parameters
        *("/v1/messages;x=1", "/v1/messages;", "/v1/;x/messages/;y", "/v1/messages%3Bx"),
        # to servers whose routes are regular expressions, or that strip blanks
        *("/v1/messages%0a", "/v1/messages%20/", "/v1/messages%00", "/v1/messages%7f"),
    ],
)
def test_path_that_a_server_could_route_to_messages_asks_a_model(path: str) -> None:
    assert asks_a_model("POST", path)
    assert not asks_a_model("GET", path)


@pytest.mark.parametrize(
    "path", ["messages/count_tokens", "messages;/batches", "message", "messages%21", "files"]
)
def test_other_path_asks_no_model(path: str) -> None:
    assert not asks_a_model("POST", f"/v1/{path}")
