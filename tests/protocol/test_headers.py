"""Which headers cross the proxy: heads as they go upstream, and the answer's headers."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import Secret
from tornadoproxy.protocol.headers import (
    credential_header,
    has_been_here,
    is_encoded,
    is_event_stream,
    request_head,
    response_headers,
)

INSTANCE = "5e1f00d5e1f00d00"
VIA = f"1.1 tornadoproxy-{INSTANCE}"
UPSTREAM_KEY = "sk-upstream"
VERSION = "2023-06-01"

# RFC 9110 §7.6.1, §11.7; Http2-Settings of RFC 7540 §3.2.1
HOP_BY_HOP = [
    ("Connection", "keep-alive"),
    ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authenticate", "Basic"),
    ("Proxy-Authentication-Info", "x"),
    ("Proxy-Authorization", "Basic VDpU"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "X-Checksum"),
    ("Transfer-Encoding", "chunked"),
    ("Upgrade", "websocket"),
]
CREDENTIALS = [
    ("Authorization", "Bearer sk-client"),
    ("Cookie", "session=sk-client"),
    ("X-Api-Key", "sk-client"),
    ("Proxy-Authorization", "Bearer sk-client"),
]

Lines = list[tuple[str, str]]


def headers_of(lines: Lines) -> HTTPHeaders:
    headers = HTTPHeaders()
    for name, value in lines:
        headers.add(name, value)
    return headers


def sent(
    lines: Lines, *, credential: tuple[str, str] | None = ("X-Api-Key", UPSTREAM_KEY)
) -> Lines:
    """The header lines that go upstream for a client's, names in lower case."""
    head = request_head(
        "POST",
        "/v1/messages?beta=true",
        headers_of(lines),
        authority="api.example:8443",
        instance=INSTANCE,
        credential=credential,
        default_version=VERSION,
    )
    assert head.endswith(b"\r\n\r\n")
    request_line, *fields = head.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
    assert request_line == "POST /v1/messages?beta=true HTTP/1.1"
    pairs = [field.split(": ", 1) for field in fields]
    return [(name.lower(), value) for name, value in pairs]


def values(lines: Lines, name: str) -> list[str]:
    return [value for each, value in lines if each.lower() == name.lower()]


def answered(lines: Lines, status: int = 200) -> Lines:
    """The header lines that go to the client for the upstream's, names in lower case."""
    headers = response_headers(status, lines)
    return [(name.lower(), value) for name, value in headers.get_all()]


class TestRequest:
    def test_a_bare_one(self) -> None:
        assert sent([]) == [
            ("host", "api.example:8443"),
            ("anthropic-version", VERSION),
            ("x-api-key", UPSTREAM_KEY),
            ("via", VIA),
        ]

    def test_is_one_head_and_nothing_more(self) -> None:
        head = request_head(
            "GET",
            "/v1/models",
            HTTPHeaders({"Accept": "*/*"}),
            authority="api.example",
            instance="i",
            credential=None,
            default_version=VERSION,
        )
        assert head == (
            b"GET /v1/models HTTP/1.1\r\n"
            b"Host: api.example\r\n"
            b"Accept: */*\r\n"
            b"Anthropic-Version: 2023-06-01\r\n"
            b"Via: 1.1 tornadoproxy-i\r\n"
            b"\r\n"
        )

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("anthropic-version", "2026-10-21"),
            ("anthropic-version", "not-a-date"),
            ("anthropic-beta", "a-2025-01-01,b-2025-02-02"),
            ("anthropic-dangerous-direct-browser-access", "true"),
            ("anthropic-something-of-tomorrow", "x"),
            ("x-claude-code-session-id", "4f5c"),
            ("x-claude-code-agent-id", "a"),
            ("x-claude-code-of-tomorrow", "x"),
            ("x-stainless-lang", "python"),
            ("x-stainless-retry-count", "0"),
            ("x-stainless-of-tomorrow", "x"),
            ("idempotency-key", "stainless-python-retry-1"),
            ("accept", "application/json"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("accept-language", "*"),
            ("user-agent", "Anthropic/Python 2.12.0"),
            ("content-type", "application/json; charset=utf-8"),
            ("content-encoding", "gzip"),
            ("content-length", "12345678901"),
            ("content-md5", "x"),
            ("if-none-match", '"etag"'),
            ("range", "bytes=0-1"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-request-id", "abc"),
            ("x-unknown", 'a,  b;c="d"\te'),
            ("x-empty", ""),
        ],
    )
    def test_open_lists_cross_unchanged(self, name: str, value: str) -> None:
        assert values(sent([(name, value)]), name) == [value]

    def test_repeated_lines_stay_repeated_and_in_order(self) -> None:
        lines = [
            ("anthropic-beta", "b"),
            ("x-unknown", "2"),
            ("Anthropic-Beta", "a, c"),
            ("x-unknown", "1"),
            ("ANTHROPIC-BETA", "b"),
        ]
        upstream = sent(lines)
        assert values(upstream, "anthropic-beta") == ["b", "a, c", "b"]
        assert values(upstream, "x-unknown") == ["2", "1"]

    @pytest.mark.parametrize(("name", "value"), HOP_BY_HOP)
    def test_hop_by_hop_fields_end_here(self, name: str, value: str) -> None:
        for spelled in (name, name.lower(), name.upper()):
            upstream = sent([(spelled, value), ("x-kept", "1")])
            # the framing is ours to declare anew; see the tests of Transfer-Encoding
            expected = ["chunked"] if name == "Transfer-Encoding" else []
            assert values(upstream, name) == expected
            assert values(upstream, "x-kept") == ["1"]

    @pytest.mark.parametrize(
        "connection",
        [
            ["X-Private"],
            ["x-private"],
            ["X-PRIVATE"],
            ["close, x-private"],
            ["close,x-private,"],
            [",, \tX-Private\t ,keep-alive"],
            ["close", "x-private"],
            ["x-private", "close"],
        ],
    )
    def test_fields_that_connection_names_end_here(self, connection: list[str]) -> None:
        lines = [("x-private", "1"), ("x-private", "2"), ("x-private-not", "3")]
        upstream = sent([*(("connection", line) for line in connection), *lines])
        assert values(upstream, "x-private") == []
        assert values(upstream, "x-private-not") == ["3"]

    def test_several_fields_that_connection_names_end_here(self) -> None:
        upstream = sent([("a", "1"), ("connection", "a, B"), ("b", "2"), ("c", "3")])
        assert [name for name, _ in upstream if name in {"a", "b", "c"}] == ["c"]

    @pytest.mark.parametrize(
        "spelled", ["content-length", "Content-Length", "close, CONTENT-LENGTH"]
    )
    def test_connection_cannot_take_the_framing_away(self, spelled: str) -> None:
        assert values(
            sent([("connection", spelled), ("content-length", "5")]), "content-length"
        ) == ["5"]
        chunked = sent([("connection", "transfer-encoding"), ("transfer-encoding", "chunked")])
        assert values(chunked, "transfer-encoding") == ["chunked"]

    @pytest.mark.parametrize("spelled", ["host", "via", "x-api-key"])
    def test_connection_cannot_take_away_what_the_proxy_adds(self, spelled: str) -> None:
        added = {"host": "api.example:8443", "via": VIA, "x-api-key": UPSTREAM_KEY}
        upstream = sent([("connection", spelled), (spelled, "client's")])
        assert values(upstream, spelled) == [added[spelled]]

    def test_a_body_in_chunks_goes_on_in_chunks(self) -> None:
        upstream = sent([("transfer-encoding", "chunked")])
        assert values(upstream, "transfer-encoding") == ["chunked"]
        assert values(upstream, "content-length") == []

    def test_host_is_the_upstreams(self) -> None:
        assert values(sent([("host", "proxy.example"), ("Host", "x")]), "host") == [
            "api.example:8443"
        ]

    @pytest.mark.parametrize(
        "name",
        [
            "expect",
            "origin",
            "referer",
            "sec-fetch-site",
            "sec-fetch-mode",
            "sec-fetch-dest",
            "sec-fetch-user",
            "sec-fetch-of-tomorrow",
        ],
    )
    def test_request_field_of_this_hop_or_a_browser_ends_here(self, name: str) -> None:
        for spelled in (name, name.title(), name.upper()):
            assert values(sent([(spelled, "x")]), name) == []
        assert values(sent([(f"x-{name}", "x")]), f"x-{name}") == ["x"]

    @pytest.mark.parametrize(
        ("scheme", "credential"),
        [
            ("x-api-key", ("x-api-key", UPSTREAM_KEY)),
            ("bearer", ("authorization", f"Bearer {UPSTREAM_KEY}")),
        ],
    )
    def test_upstream_gets_exactly_one_credential(
        self, scheme: str, credential: tuple[str, str]
    ) -> None:
        client = [*CREDENTIALS, *CREDENTIALS, ("X-API-KEY", "sk-client-2")]
        upstream = sent(client, credential=credential_header(Secret(UPSTREAM_KEY), scheme))
        assert "sk-client" not in repr(upstream)
        names = {"authorization", "x-api-key", "cookie", "proxy-authorization"}
        assert [line for line in upstream if line[0] in names] == [credential]

    def test_without_a_key_upstream_gets_none(self) -> None:
        assert sent(CREDENTIALS, credential=None) == [
            ("host", "api.example:8443"),
            ("anthropic-version", VERSION),
            ("via", VIA),
        ]

    def test_a_key_is_its_bytes(self) -> None:
        credential = credential_header(Secret("clé"), "x-api-key")
        assert values(sent([], credential=credential), "x-api-key") == ["cl\xc3\xa9"]

    @pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", "2099-01-01", "x"])
    def test_a_version_is_never_pinned_or_validated(self, version: str) -> None:
        assert values(sent([("Anthropic-Version", version)]), "anthropic-version") == [version]

    def test_a_version_that_ends_here_is_replaced_by_the_default(self) -> None:
        lines = [("Connection", "anthropic-version"), ("Anthropic-Version", "2026-10-21")]
        assert values(sent(lines), "anthropic-version") == [VERSION]

    def test_several_versions_are_the_upstreams_to_refuse(self) -> None:
        lines = [("anthropic-version", "2023-06-01"), ("anthropic-version", "2026-10-21")]
        assert sent(lines)[1:3] == lines

    def test_bytes_beyond_ascii_survive(self) -> None:
        raw = bytes(range(0x80, 0x100)) + "clé 🔑".encode()
        (value,) = values(sent([("x-unknown", raw.decode("latin-1"))]), "x-unknown")
        assert value.encode("latin-1") == raw

    def test_the_path_goes_on_as_it_came(self) -> None:
        target = "/v1/files/%C3%a9%20?x=%E9&%C3%A9&&"
        head = request_head(
            "GET",
            target,
            HTTPHeaders(),
            authority="api.example",
            instance="i",
            credential=None,
            default_version=VERSION,
        )
        assert head.startswith(f"GET {target} HTTP/1.1\r\n".encode())

    def test_the_clients_headers_are_left_as_they_are(self) -> None:
        lines = [*CREDENTIALS, *HOP_BY_HOP, ("Connection", "x-private"), ("X-Private", "1")]
        headers = headers_of(lines)
        before = list(headers.get_all())
        request_head(
            "GET",
            "/",
            headers,
            authority="api.example",
            instance="i",
            credential=None,
            default_version=VERSION,
        )
        assert list(headers.get_all()) == before


class TestVia:
    def test_is_added_after_the_clients(self) -> None:
        upstream = sent([("via", "1.0 fred, 1.1 a.example (x)"), ("via", "2 b")])
        assert values(upstream, "via") == ["1.0 fred, 1.1 a.example (x)", "2 b", VIA]

    @pytest.mark.parametrize(
        "via",
        [
            [VIA],
            [f"1.0 fred, {VIA}"],
            [f"{VIA}, 1.1 nginx"],
            [f"1.0 fred,{VIA},1.1 nginx"],
            ["1.0 fred", VIA, "1.1 nginx"],
            [f"{VIA} (a comment)"],
        ],
    )
    def test_tells_of_a_loop(self, via: list[str]) -> None:
        headers = headers_of([("via", line) for line in via])
        assert has_been_here(headers, INSTANCE)

    def test_what_goes_out_is_known_when_it_comes_back(self) -> None:
        assert has_been_here(headers_of(sent([("via", "1.0 fred")])), INSTANCE)

    @pytest.mark.parametrize(
        "via",
        [
            [],
            ["1.1 tornadoproxy-00d5e1f00d5e1f00"],
            ["1.1 tornadoproxy"],
            ["1.1 tornadoproxy-"],
            [f"1.1 {INSTANCE}"],
            ["1.0 fred, 1.1 nginx"],
        ],
    )
    def test_of_other_proxies_is_no_loop(self, via: list[str]) -> None:
        headers = headers_of([("via", line) for line in via])
        assert not has_been_here(headers, INSTANCE)

    def test_a_loop_is_not_looked_for_elsewhere(self) -> None:
        assert not has_been_here(HTTPHeaders({"X-Via": VIA, "User-Agent": VIA}), INSTANCE)


class TestResponse:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("request-id", "req_011C"),
            ("retry-after", "30"),
            ("retry-after-ms", "1500"),
            ("x-should-retry", "false"),
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-tokens-reset", "2026-01-01T00:00:00Z"),
            ("anthropic-ratelimit-of-tomorrow", "x"),
            ("anthropic-organization-id", "org"),
            ("content-type", "application/json"),
            ("content-encoding", "zstd"),
            ("content-length", "12345678901"),
            ("content-disposition", 'attachment; filename="a b"'),
            ("etag", '"x"'),
            ("location", "https://elsewhere.example/"),
            ("server", "cloudflare"),
            ("date", "Tue, 24 Nov 2026 10:28:36 GMT"),
            ("vary", "Accept-Encoding"),
            ("via", "1.1 google"),
            ("www-authenticate", "Bearer"),
            ("cf-ray", "8f0983d3"),
            ("x-unknown", "a,  b"),
            ("x-empty", ""),
        ],
    )
    def test_open_lists_cross_unchanged(self, name: str, value: str) -> None:
        assert answered([(name, value)]) == [(name, value)]

    def test_nothing_is_added(self) -> None:
        assert answered([]) == []

    def test_repeated_lines_stay_repeated_and_in_order(self) -> None:
        lines = [("x-a", "2"), ("x-a", "1, 3"), ("x-a", "2"), ("warning", "a"), ("warning", "b")]
        assert answered(lines) == lines

    @pytest.mark.parametrize(
        ("name", "value"), [*HOP_BY_HOP, ("Set-Cookie", "__cf_bm=x; path=/"), ("SET-COOKIE", "a=b")]
    )
    def test_ends_here(self, name: str, value: str) -> None:
        assert answered([(name, value), (name.lower(), value), ("x-kept", "1")]) == [
            ("x-kept", "1")
        ]

    @pytest.mark.parametrize(
        "connection",
        [["x-private"], ["close, X-PRIVATE"], ["close", "x-private"], ["a ,x-private"]],
    )
    def test_fields_that_connection_names_end_here(self, connection: list[str]) -> None:
        lines = [("connection", line) for line in connection]
        private = [("X-Private", "1"), ("x-private", "2")]
        assert answered([*private, *lines, ("x-kept", "3")]) == [("x-kept", "3")]

    def test_connection_cannot_take_the_length_away(self) -> None:
        lines = [("connection", "close, content-length"), ("content-length", "5")]
        assert answered(lines) == [("content-length", "5")]

    @pytest.mark.parametrize(("status", "crosses"), [(200, True), (304, True), (204, False)])
    def test_a_204_has_no_length(self, status: int, crosses: bool) -> None:
        lines = [("content-length", "0"), ("x-kept", "1")]
        expected = lines if crosses else lines[1:]
        assert answered(lines, status) == expected

    @pytest.mark.parametrize(
        "content_type",
        ["text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream"],
    )
    def test_an_event_stream_is_not_held_back_on_its_way(self, content_type: str) -> None:
        assert answered([("Content-Type", content_type)]) == [
            ("content-type", content_type),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
        ]

    def test_an_event_streams_own_word_stays(self) -> None:
        lines = [("content-type", "text/event-stream")]
        both = [*lines, ("cache-control", "no-store"), ("x-accel-buffering", "yes")]
        assert answered(both) == both
        one = [*lines, ("Cache-Control", "no-store")]
        assert values(answered(one), "cache-control") == ["no-store"]
        assert values(answered(one), "x-accel-buffering") == ["no"]

    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/event"])
    def test_other_answers_get_neither(self, content_type: str) -> None:
        assert answered([("content-type", content_type)]) == [("content-type", content_type)]

    def test_bytes_beyond_ascii_survive(self) -> None:
        value = bytes(range(0x80, 0x100)).decode("latin-1")
        assert answered([("x-unknown", value)]) == [("x-unknown", value)]

    @pytest.mark.parametrize("value", ["a ", "a\t", "a \t ", " a", "\t a \t"])
    def test_blanks_around_a_value_are_not_part_of_it(self, value: str) -> None:
        """RFC 9112 §5: they may stand in a field line, and parsers leave some of them."""
        assert answered([("x-unknown", value)]) == [("x-unknown", "a")]


class TestBodyKind:
    @pytest.mark.parametrize(
        ("content_type", "is_stream"),
        [
            ("text/event-stream", True),
            ("text/event-stream;charset=utf-8", True),
            ("TEXT/EVENT-STREAM", True),
            ("application/json", False),
            ("text/plain; x=text/event-stream", False),
        ],
    )
    def test_event_stream(self, content_type: str, is_stream: bool) -> None:
        assert is_event_stream(HTTPHeaders({"content-type": content_type})) is is_stream

    def test_no_type_is_no_event_stream(self) -> None:
        assert not is_event_stream(HTTPHeaders())

    @pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "x-of-tomorrow", "GZIP"])
    def test_encoded(self, encoding: str) -> None:
        assert is_encoded(HTTPHeaders({"content-encoding": encoding}))

    def test_not_encoded(self) -> None:
        assert not is_encoded(HTTPHeaders())
        assert not is_encoded(HTTPHeaders({"content-encoding": "Identity"}))
