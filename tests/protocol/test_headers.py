"""Headers: the head that goes upstream, and the headers that go to the client."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import Secret
from tornadoproxy.protocol.headers import (
    credential_header,
    credential_name,
    forwarded,
    has_been_here,
    is_encoded,
    is_event_stream,
    is_json,
    request_head,
    request_headers,
    response_headers,
)

INSTANCE = "5e1f00d5e1f00d00"
VIA = f"1.1 tornadoproxy-{INSTANCE}"
UPSTREAM_KEY = "sk-upstream"
VERSION = "2023-06-01"

# RFC 9110 §7.6.1, §11.7; Http2-Settings of RFC 7540 §3.2.1
HOP_BY_HOP = [
    *("HTTP2-Settings", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Trailer", "TE"),
    *("Proxy-Authentication-Info", "Proxy-Connection", "Upgrade"),
]
CREDENTIALS = ["Authorization", "Cookie", "X-Api-Key", "Proxy-Authorization"]

Lines = list[tuple[str, str]]


def headers_of(lines: Lines) -> HTTPHeaders:
    headers = HTTPHeaders()
    for name, value in lines:
        headers.add(name, value)
    return headers


def head(
    headers: HTTPHeaders, credential: tuple[str, str] | None, drop: frozenset[str] = frozenset()
) -> bytes:
    return request_head(
        "POST",
        "/v1/x/%C3%a9%20?x=%E9&&",
        forwarded(headers, default_version=VERSION, drop=drop),
        authority="api.example:8443",
        instance=INSTANCE,
        credential=credential,
    )


def sent(
    lines: Lines,
    credential: tuple[str, str] | None = ("X-Api-Key", UPSTREAM_KEY),
    drop: frozenset[str] = frozenset(),
) -> Lines:
    """The header lines that go upstream for a client's, with names in lower case."""
    written = head(headers_of(lines), credential, drop)
    assert written.endswith(b"\r\n\r\n")
    request_line, *fields = written.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
    assert request_line == "POST /v1/x/%C3%a9%20?x=%E9&& HTTP/1.1"
    pairs = [field.split(": ", 1) for field in fields]
    return [(name.lower(), value) for name, value in pairs]


def values(lines: Lines, name: str) -> list[str]:
    return [value for each, value in lines if each.lower() == name.lower()]


def returned(lines: Lines, status: int = 200) -> Lines:
    """The header lines that go to the client for the upstream's, with names in lower case."""
    return [(name.lower(), value) for name, value in response_headers(status, lines).get_all()]


def test_bare_request_gets_host_version_credential_and_via() -> None:
    assert head(HTTPHeaders({"Accept": "*/*"}), ("X-Api-Key", UPSTREAM_KEY)) == (
        b"POST /v1/x/%C3%a9%20?x=%E9&& HTTP/1.1\r\nHost: api.example:8443\r\nAccept: */*\r\n"
        b"Anthropic-Version: 2023-06-01\r\nX-Api-Key: sk-upstream\r\n"
        b"Via: 1.1 tornadoproxy-5e1f00d5e1f00d00\r\n\r\n"
    )


LINES = [
    *(("x-a", "2"), ("anthropic-beta", "b"), ("X-A", 'a,  b;c="d"\te'), ("x-empty", "")),
    *(("content-type", "text/event"), ("content-encoding", "gzip"), ("x-sec-fetch-site", "x")),
    *(("x-a", bytes(range(0x80, 0x100)).decode("latin-1")), ("content-length", "12345678901")),
]


def test_other_lines_cross_unchanged_and_in_order() -> None:
    kept = sorted((name.lower(), value) for name, value in LINES)
    for found in (sent(LINES, None)[1:-2], returned(LINES)):
        assert sorted(found) == kept
        assert values(found, "x-a") == values(LINES, "x-a")
    client = ("anthropic-version", "of the client")
    assert sent([client, client], None)[1:-1] == [client, client]


BROWSER = ["Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Of-Tomorrow"]


@pytest.mark.parametrize("name", [*HOP_BY_HOP, *BROWSER, "Cookie", "Expect"])
def test_request_header_of_this_hop_ends_here(name: str) -> None:
    for spelled in (name, name.upper()):
        assert sent([(spelled, "x"), ("x-kept", "1")], None)[1:-2] == [("x-kept", "1")]


@pytest.mark.parametrize("connection", [["close,x-private,"], [",\tX-Private\t ,a", "close"]])
def test_headers_that_connection_names_end_here(connection: list[str]) -> None:
    lines = [("x-private", "1"), ("X-Private", "2"), ("x-private-not", "3")]
    lines += [("connection", line) for line in connection]
    assert sent(lines, None)[1:-2] == returned(lines) == [("x-private-not", "3")]


def test_connection_cannot_remove_the_framing() -> None:
    lines = [("connection", "close, CONTENT-LENGTH"), ("content-length", "5")]
    assert values(sent(lines), "content-length") == ["5"]
    assert returned(lines) == [("content-length", "5")]
    chunked = [("connection", "transfer-encoding, host, via"), ("transfer-encoding", "chunked")]
    names = ["host", "transfer-encoding", "anthropic-version", "via"]
    assert [name for name, _ in sent(chunked, None)] == names
    dropped = sent(chunked[1:], None, drop=frozenset({"Transfer-Encoding"}))
    assert [name for name, _ in dropped] == ["host", "anthropic-version", "via"]
    version = [("connection", "anthropic-version"), ("anthropic-version", "2026-10-21")]
    assert values(sent(version), "anthropic-version") == [VERSION]


@pytest.mark.parametrize(
    ("scheme", "credential"),
    [
        ("x-api-key", ("x-api-key", UPSTREAM_KEY)),
        ("bearer", ("authorization", f"Bearer {UPSTREAM_KEY}")),
    ],
)
def test_upstream_gets_exactly_one_credential(scheme: str, credential: tuple[str, str]) -> None:
    client = [(name, "sk-client") for name in [*CREDENTIALS, *CREDENTIALS, "X-API-KEY"]]
    upstream = sent(client, credential_header(Secret(UPSTREAM_KEY), scheme))
    assert upstream[2:-1] == [credential]
    assert [name for name, _ in sent(client, None)] == ["host", "anthropic-version", "via"]


def test_key_is_sent_as_its_bytes() -> None:
    credential = credential_header(Secret("clé"), "x-api-key")
    assert values(sent([], credential), "x-api-key") == ["cl\xc3\xa9"]


def test_request_headers_are_read_only_and_hidden() -> None:
    headers = request_headers([("X-A", " 1\t"), ("x-a", "2"), ("Authorization", "hush")])
    assert headers["x-a"] == headers.get("X-A") == "1,2"
    assert headers.get_list("X-A") == ["1", "2"]
    assert (headers.get("x-b"), headers.get("x-b", 7), headers.get_list("x-b")) == (None, 7, [])
    assert "X-a" in headers
    assert not headers.__contains__(5)
    assert "hush" not in str(headers)
    with pytest.raises(TypeError):
        headers.add("a", "b")
    with pytest.raises(TypeError):
        headers["a"] = "b"
    with pytest.raises(TypeError):
        del headers["X-A"]


@pytest.mark.parametrize("name", ["content-type", "Via", "x-claude-code-session-id", "a b", "", 7])
def test_credential_name_that_cannot_be_one_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"^is "):
        credential_name(name)
    assert credential_name("x-team-KEY") == "X-Team-Key"


@pytest.mark.parametrize(
    ("via", "is_loop"),
    [
        ([f"1.0 fred,{VIA},1.1 nginx"], True),
        (["1.0 fred", f"{VIA} (a comment)"], True),
        ([], False),
        (["1.1 tornadoproxy-00d5e1f00d5e1f00"], False),
        (["1.1 tornadoproxy", "1.1 tornadoproxy-", f"1.1 {INSTANCE}"], False),
    ],
)
def test_loop_is_found_by_the_proxys_own_entry(via: list[str], is_loop: bool) -> None:
    lines = [("via", line) for line in via]
    assert has_been_here(headers_of([*lines, ("X-Via", VIA)]), INSTANCE) is is_loop
    assert values(sent(lines), "via") == [*via, VIA]


@pytest.mark.parametrize(
    "name", [*HOP_BY_HOP, "Connection", "Transfer-Encoding", "SET-COOKIE", "Access-Control-X"]
)
def test_response_header_of_this_hop_ends_here(name: str) -> None:
    assert returned([(name, "x"), (name.lower(), "x"), ("x-kept", "1")]) == [("x-kept", "1")]


def test_length_and_blanks_of_a_response() -> None:
    lines = [("content-length", "0"), ("x-kept", "1")]
    assert (returned(lines, 304), returned(lines, 204)) == (lines, lines[1:])
    assert returned([("x-unknown", "\t XaX \t")]) == [("x-unknown", "XaX")]  # RFC 9112 §5


@pytest.mark.parametrize("own", [[], [("cache-control", "x"), ("x-accel-buffering", "yes")]])
def test_event_stream_is_marked_as_unbuffered_by_default(own: Lines) -> None:
    lines = [("content-type", "Text/Event-Stream; charset=utf-8"), *own]
    defaults = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    assert dict(returned(lines)) == {**defaults, **dict(lines)}


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("TEXT/EVENT-STREAM;charset=utf-8", is_event_stream),
        ("Application/JSON; charset=utf-8", is_json),
        ("text/plain; x=text/event-stream; y=application/json", None),
    ],
)
def test_kind_of_body_follows_from_its_type(content_type: str, kind: object) -> None:
    for each in (is_event_stream, is_json):
        assert each(HTTPHeaders({"content-type": content_type})) is (each is kind)
        assert not each(HTTPHeaders())


def test_body_is_encoded_unless_identity() -> None:
    for encoding in ("gzip", "Identity"):
        headers = HTTPHeaders({"content-encoding": encoding})
        assert is_encoded(headers) is (encoding == "gzip")
    assert not is_encoded(HTTPHeaders())
