"""Properties of events, usage, headers and targets, for any input at any split."""

from __future__ import annotations

import random
from itertools import cycle
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import pytest
from damage import damaged
from hypothesis import strategies as st
from properties import holds_of
from strict_reading import Request, read
from tornado.httputil import HTTPHeaders

from tornadoproxy import InvalidRequest
from tornadoproxy.errors import UpstreamClosed, UpstreamProtocolError
from tornadoproxy.protocol import sse
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.headers import credential_header, request_head, response_headers
from tornadoproxy.protocol.request_target import check_target
from tornadoproxy.protocol.sse import EventBoundary, EventReader
from tornadoproxy.protocol.usage_reader import UsageReader
from tornadoproxy.secret import Secret
from tornadoproxy.testing import message_document, message_events

if TYPE_CHECKING:
    from collections.abc import Iterable

seeds = st.integers(0, 2**32 - 1)
piece_sizes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 20, 200]), min_size=1, max_size=8).filter(
    any
)


def pieces_of(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, over and over."""
    pieces: list[bytes] = []
    for size in cycle(sizes):
        if not data:
            break
        pieces.append(data[:size])
        data = data[size:]
    return pieces


# -- events

_line_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
_fields = st.sampled_from(
    [
        *(b"data: x", b"data:y", b"data:", b"data", b"data: {}", b"event: error", b"event:ping"),
        *(b"id: 1", b":", b": data: x", b" ", b" data: x", b"\xef\xbb\xbfdata: x"),
        *(b"data: \xe2\x82", b"data: \xf0", b"data: \xc3", b"data: \xed\x00"),
    ]
)
_events = st.tuples(
    st.lists(st.tuples(_fields, _line_ends).map(b"".join), max_size=3).map(b"".join), _line_ends
).map(b"".join)
_shreds = st.lists(
    st.binary(max_size=4)
    | st.sampled_from(
        [b"data:", b"data: x", b"event: x", b"\n", b"\r", b"\r\n", b":", b"\xe2\x82"]
    ),
    max_size=40,
).map(b"".join)
streams = st.tuples(st.lists(_events, max_size=8).map(b"".join), st.just(b"") | _shreds).map(
    b"".join
)


def events_of(stream: bytes) -> list[tuple[bytes, list[bytes]]]:
    """Each event's name and lines of data, as the standard reads them except for blanks.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    events = []
    name, lines = b"", []
    whole = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    for line in whole:
        field, colon, value = line.partition(b":")
        if field == b"data" and colon:
            lines.append(value.strip())
        elif field == b"event":
            name = value.strip()
        elif not line:
            if any(lines):
                events.append((name, [each for each in lines if each]))
            name, lines = b"", []
    return events


@holds_of(
    streams, piece_sizes, known=[(b"data: x\r\ndata: y\n\n", [8, 0, 1]), (b"data: x\r\r", [1])]
)
def test_events_are_the_same_at_any_split(stream: bytes, sizes: list[int]) -> None:
    whole = EventReader().feed(stream)
    reader = EventReader()
    assert [data for piece in pieces_of(stream, sizes) for data in reader.feed(piece)] == whole
    found = [[line for line in data.split(b"\n") if line] for data in whole]
    assert [lines for lines in found if lines] == [lines for _, lines in events_of(stream)]


@holds_of(streams, piece_sizes)
def test_only_an_event_that_is_too_long_is_refused(stream: bytes, sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "MAX_EVENT", 20)
        reader = EventReader()
        found: list[bytes] = []
        whole = EventReader().feed(stream[:20])
        try:
            for piece in pieces_of(stream, sizes):
                found += reader.feed(piece)
        except UpstreamProtocolError:
            plain = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            assert max(map(len, plain.split(b"\n\n"))) + len(b"\n") > 20
        else:
            assert found[: len(whole)] == whole


@holds_of(streams, piece_sizes)
def test_error_can_be_inserted_wherever_a_stream_is_cut(stream: bytes, sizes: list[int]) -> None:
    """All events before it stay unchanged; a cut event becomes a ping."""
    error = Dialect.ANTHROPIC.stream_error(UpstreamClosed("It left."), "req_1")
    boundary, split = EventBoundary(), EventBoundary()
    boundary.feed(stream)
    for piece in pieces_of(stream, sizes):
        split.feed(piece)
    repair = boundary.discard()
    assert (boundary.between_events, repair) == (split.between_events, split.discard())
    before = events_of(stream)
    *events, last = events_of(stream + repair + error)
    assert last == events_of(error)[0]
    assert events[: len(before)] == before
    assert [name for name, _ in events[len(before) :]] in ([], [b"ping"])
    boundary.feed(repair)
    assert boundary.between_events


COUNTS = {"input_tokens": 7, "output_tokens": 5}
ITERATIONS = [{"type": "advisor_message", "model": "c", **COUNTS}, {"type": "compaction"}]
CONTENT = [
    {"type": "text", "text": "Hi there"},
    {"type": "server_tool_use", "name": "advisor", "input": {}},
    {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
]
USED = message_document(content=CONTENT, usage={**COUNTS, "iterations": ITERATIONS})
STREAM = b"".join(message_events(USED))


@holds_of(seeds, piece_sizes, st.booleans())
def test_usage_is_the_same_at_any_split(seed: int, sizes: list[int], is_stream: bool) -> None:
    stream = damaged(STREAM, random.Random(seed), [STREAM])
    whole, split = (UsageReader(is_stream=is_stream) for _ in range(2))
    whole.feed(stream)
    for piece in pieces_of(stream, sizes):
        split.feed(piece)
    whole.finish()
    split.finish()
    assert (whole.model, whole.usage) == (split.model, split.usage)


# -- headers

HOP_BY_HOP = [
    *("http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization", "trailer", "te"),
    *("proxy-authentication-info", "proxy-connection", "upgrade"),
]
CREDENTIALS = ["authorization", "cookie", "x-api-key", "proxy-authorization"]
OTHERS = [
    *("host", "via", "anthropic-version", "expect"),
    *("anthropic-beta", "x-private", "accept", "content-type", "x", "a-b-c"),
]

names = st.sampled_from(HOP_BY_HOP + CREDENTIALS + OTHERS) | st.text(
    "!#$%&'*+-.^_`|~0123456789abcxyz", min_size=1, max_size=8
)
spelled = st.tuples(names, st.sampled_from([str.lower, str.upper, str.title])).map(
    lambda pair: pair[1](pair[0])
)
field_values = st.text(
    st.characters(max_codepoint=255, exclude_categories=["Cc"]) | st.just("\t"), max_size=12
).map(lambda value: value.strip(" \t"))


@st.composite
def lines_of(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Header lines that a parser accepts, without the framing."""
    lines = []
    for name in draw(st.lists(spelled, max_size=12)):
        secret = "sk-of-the-client" if name.lower() in CREDENTIALS else ""
        lines.append((name, (secret + draw(field_values)).strip()))
    options = st.sampled_from(
        [*(name for name, _ in lines), "close", "keep-alive", "", " ", "content-length", "host"]
    )
    for named in draw(st.lists(st.lists(options | options.map(str.upper), max_size=4), max_size=2)):
        spelling = draw(st.sampled_from(["connection", "Connection", "CONNECTION"]))
        lines.insert(draw(st.integers(0, len(lines))), (spelling, ", ".join(named).strip()))
    return lines


def by_name(lines: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in lines:
        found.setdefault(name.lower(), []).append(value)
    return found


def named_by_connection(lines: Iterable[tuple[str, str]]) -> set[str]:
    values = by_name(lines).get("connection", [])
    return {option.strip().lower() for value in values for option in value.split(",")}


FRAMES = [
    ([], b""),
    ([("Content-Length", "5")], b"hello"),
    ([("Transfer-Encoding", "chunked")], b"5\r\nhello\r\n0\r\n\r\n"),
]


@holds_of(lines_of(), st.sampled_from(FRAMES))
def test_head_that_goes_upstream_is_one_request(
    lines: list[tuple[str, str]], framed: tuple[list[tuple[str, str]], bytes]
) -> None:
    """With the body that was framed, and no lines but those that may cross."""
    frame, body = framed
    headers = HTTPHeaders()
    for name, value in [*lines, *frame]:
        headers.add(name, value)
    head = request_head(
        "POST",
        "/v1/x?y",
        headers,
        authority="api.example:8443",
        instance="5e1f00d5",
        credential=credential_header(Secret("sk-of-the-upstream"), "x-api-key"),
        default_version="2023-06-01",
    )
    (request,) = read(head + body + b"GET /next").whole
    assert request == Request("POST", "/v1/x?y", b"hello" if frame else b"")
    assert b"sk-of-the-client" not in head
    gone = {*HOP_BY_HOP, *CREDENTIALS, "connection", "host", "expect", *named_by_connection(lines)}
    kept = by_name((name, value) for name, value in lines if name.lower() not in gone)
    kept.setdefault("anthropic-version", ["2023-06-01"])
    kept.setdefault("via", []).append("1.1 tornadoproxy-5e1f00d5")
    kept |= {**by_name(frame), "host": ["api.example:8443"], "x-api-key": ["sk-of-the-upstream"]}
    text = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")[1:]
    fields = (line.partition(": ") for line in text)
    assert by_name((name, value) for name, _, value in fields) == kept


@holds_of(lines_of(), st.sampled_from([200, 204, 304, 529]), field_values)
def test_response_headers_cross_unless_they_end_here(
    lines: list[tuple[str, str]], status: int, cookie: str
) -> None:
    received = [*lines, ("Set-Cookie", cookie), ("Content-Length", "5")]
    gone = {*HOP_BY_HOP, "connection", "transfer-encoding", "set-cookie"}
    gone |= named_by_connection(lines) - {"content-length"}
    gone |= {"content-length"} if status == 204 else set()
    kept = by_name(line for line in received if line[0].lower() not in gone)
    assert by_name(response_headers(status, received).get_all()) == kept


# -- targets

paths = st.lists(
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


@holds_of(paths, examples=120)
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
