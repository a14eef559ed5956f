"""Fuzzing of the parts that read what others write: anything at all goes in.

Each run makes up the same things. Some failures are rare: the long tests try more.
"""

from __future__ import annotations

import json
import random
from itertools import cycle
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import pytest
from damage import SIGNS, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from strict_reading import Request, read
from tornado.httputil import HTTPHeaders

from tornadoproxy import InvalidRequest
from tornadoproxy.errors import UpstreamClosed, UpstreamProtocolError
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options, StreamTranslator
from tornadoproxy.protocol import sse
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.headers import credential_header, request_head, response_headers
from tornadoproxy.protocol.request_target import check_target
from tornadoproxy.protocol.sse import EventBoundary, EventReader
from tornadoproxy.protocol.usage_reader import UsageReader
from tornadoproxy.secret import Secret
from tornadoproxy.testing import (
    TEST_TOKEN,
    json_response,
    message_document,
    message_events,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tornadoproxy.testing import OpenRaw, Proxy, ScriptedUpstream

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

both = pytest.mark.parametrize(
    "examples",
    [100, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(240)])],
)


def try_out(
    examples: int,
    check: Callable[..., None],
    *strategies: st.SearchStrategy[Any],
    known: Iterable[tuple[Any, ...]] = (),  # Any: whatever `check` takes
) -> None:
    """Have `check` look at so many examples, the same in each run.

    :param known: those that once failed, first.
    """
    for each in known:
        check(*each)
    same_each_time = settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
    )
    same_each_time(given(*strategies)(check))()


seeds = st.integers(0, 2**32 - 1)
piece_sizes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 20, 200]), min_size=1, max_size=8).filter(
    any
)


def pieces_of(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, over and over; some may be empty."""
    pieces: list[bytes] = []
    for size in cycle(sizes):
        if not data:
            return pieces
        pieces.append(data[:size])
        data = data[size:]
    raise AssertionError("a cycle has no end")


def soup(*fragments: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, among them these ones more often than chance has it."""
    piece = st.sampled_from(fragments) | st.sampled_from(fragments) | st.binary(max_size=4)
    return st.lists(piece, max_size=40).map(b"".join)


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
_shreds = soup(
    *(b"data:", b"data: x", b"event: x", b"\n", b"\r", b"\r\n", b"\n\n", b" ", b":", b"\xe2\x82")
)
streams = st.tuples(st.lists(_events, max_size=8).map(b"".join), st.just(b"") | _shreds).map(
    b"".join
)


def events_of(stream: bytes) -> list[tuple[bytes, list[bytes]]]:
    """Each event's name and lines of data, as the standard reads them but for blanks.

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


class TestEvents:
    @both
    def test_a_reader_hands_out_the_same_at_any_split(self, examples: int) -> None:
        def check(stream: bytes, sizes: list[int]) -> None:
            whole = EventReader().feed(stream)
            reader = EventReader()
            assert [
                data for piece in pieces_of(stream, sizes) for data in reader.feed(piece)
            ] == whole
            expected = [lines for _, lines in events_of(stream)]
            told = [[line for line in data.split(b"\n") if line] for data in whole]
            assert [lines for lines in told if lines] == expected

        known = [(b"data: x\r\ndata: y\n\n", [8, 0, 1]), (b"data: x\r\r", [1])]
        try_out(examples, check, streams, piece_sizes, known=known)

    @both
    def test_a_reader_gives_up_only_on_an_event_that_is_too_long(
        self, examples: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sse, "MAX_EVENT", 20)

        def check(stream: bytes, sizes: list[int]) -> None:
            reader = EventReader()
            told: list[bytes] = []
            whole = EventReader().feed(stream[:20])
            try:
                for piece in pieces_of(stream, sizes):
                    told += reader.feed(piece)
            except UpstreamProtocolError:
                plain = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                longest = max(map(len, plain.split(b"\n\n")))
                assert longest + len(b"\n") > 20
            else:
                assert told[: len(whole)] == whole

        try_out(examples, check, streams, piece_sizes)

    @both
    def test_a_boundary_is_the_same_at_any_split(self, examples: int) -> None:
        def check(stream: bytes, sizes: list[int]) -> None:
            whole, split = EventBoundary(), EventBoundary()
            whole.feed(stream)
            for piece in pieces_of(stream, sizes):
                split.feed(piece)
            assert whole.between_events == split.between_events
            assert whole.discard() == split.discard()

        try_out(examples, check, streams, piece_sizes)

    @both
    def test_an_error_can_be_put_in_wherever_a_stream_breaks_off(self, examples: int) -> None:
        """All events before it stay as they were; half of one is a ping's, which nobody reads."""
        error = Dialect.ANTHROPIC.stream_error(UpstreamClosed("It left."), "req_1")

        def check(stream: bytes) -> None:
            boundary = EventBoundary()
            boundary.feed(stream)
            mend = boundary.discard()
            before = events_of(stream)
            *events, last = events_of(stream + mend + error)
            assert last == events_of(error)[0]
            assert events[: len(before)] == before
            assert [name for name, _ in events[len(before) :]] in ([], [b"ping"])
            boundary.feed(mend)
            assert boundary.between_events

        try_out(examples, check, streams)

    @both
    def test_usage_is_the_same_at_any_split(self, examples: int) -> None:
        content = [
            {"type": "text", "text": "Hi there"},
            {"type": "server_tool_use", "name": "advisor", "input": {}},
            {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
        ]
        counts = {"input_tokens": 7, "output_tokens": 5}
        iterations = [{"type": "advisor_message", "model": "c", **counts}, {"type": "compaction"}]
        document = message_document(content=content, usage={**counts, "iterations": iterations})
        source = b"".join(message_events(document))

        def check(seed: int, sizes: list[int], is_stream: bool) -> None:
            stream = damaged(source, random.Random(seed), [source])
            whole, split = (UsageReader(is_stream=is_stream) for _ in range(2))
            whole.feed(stream)
            for piece in pieces_of(stream, sizes):
                split.feed(piece)
            whole.finish()
            split.finish()
            assert (whole.model, whole.usage) == (split.model, split.usage)

        try_out(examples, check, seeds, piece_sizes, st.booleans())


# -- headers

CONNECTION = ["connection", "Connection", "CONNECTION"]
HOP_BY_HOP = [
    *("connection", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization"),
    *("proxy-authentication-info", "proxy-connection", "te", "trailer", "upgrade"),
]
CREDENTIALS = ["authorization", "cookie", "x-api-key", "proxy-authorization"]
OF_THE_PROXY = ["host", "via", "anthropic-version", "expect"]
OTHERS = ["anthropic-beta", "x-private", "accept", "content-type", "x-stainless-lang", "x", "a-b-c"]
VERSION = "2023-06-01"
KEY = "sk-of-the-upstream"

tokens = st.text("!#$%&'*+-.^_`|~0123456789abcxyzABCXYZ", min_size=1, max_size=8)
names = st.sampled_from(HOP_BY_HOP[1:] + CREDENTIALS + OF_THE_PROXY + OTHERS) | tokens.map(
    str.lower
)
spelled = st.tuples(names, st.sampled_from([str.lower, str.upper, str.title])).map(
    lambda pair: pair[1](pair[0])
)
field_values = st.text(
    st.characters(max_codepoint=255, exclude_categories=["Cc"]) | st.just("\t"), max_size=12
).map(lambda value: value.strip(" \t"))


@st.composite
def lines_of(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Header lines that a parser lets through, without the framing."""
    lines = []
    for name in draw(st.lists(spelled, max_size=12)):
        secret = "sk-of-the-client" if name.lower() in CREDENTIALS else ""
        lines.append((name, (secret + draw(field_values)).strip()))
    options = st.sampled_from(
        [*(name for name, _ in lines), "close", "keep-alive", "", " ", "content-length", "host"]
    )
    for named in draw(st.lists(st.lists(options | options.map(str.upper), max_size=4), max_size=2)):
        place = draw(st.integers(0, len(lines)))
        lines.insert(place, (draw(st.sampled_from(CONNECTION)), ", ".join(named).strip()))
    return lines


def by_name(lines: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in lines:
        found.setdefault(name.lower(), []).append(value)
    return found


def named_by_connection(lines: Iterable[tuple[str, str]]) -> set[str]:
    values = by_name(lines).get("connection", [])
    return {option.strip().lower() for value in values for option in value.split(",")}


class TestHeaders:
    @both
    def test_a_head_that_goes_upstream(self, examples: int) -> None:
        """One request with the body that was framed, and no other line than may cross."""

        def check(lines: list[tuple[str, str]], framing: int) -> None:
            frame, body = [
                ([], b""),
                ([("Content-Length", "5")], b"hello"),
                ([("Transfer-Encoding", "chunked")], b"5\r\nhello\r\n0\r\n\r\n"),
            ][framing]
            headers = HTTPHeaders()
            for name, value in [*lines, *frame]:
                headers.add(name, value)
            head = request_head(
                "POST",
                "/v1/x?y",
                headers,
                authority="api.example:8443",
                instance="5e1f00d5",
                credential=credential_header(Secret(KEY), "x-api-key"),
                default_version=VERSION,
            )
            (request,) = read(head + body + b"GET /next").whole
            assert request == Request("POST", "/v1/x?y", b"hello" if framing else b"")
            assert b"sk-of-the-client" not in head

            gone = {*HOP_BY_HOP, *CREDENTIALS, "host", "expect"}
            gone |= named_by_connection(lines)
            kept = by_name((name, value) for name, value in lines if name.lower() not in gone)
            kept.setdefault("anthropic-version", [VERSION])
            kept.setdefault("via", []).append("1.1 tornadoproxy-5e1f00d5")
            kept |= by_name(frame)
            kept |= {"host": ["api.example:8443"], "x-api-key": [KEY]}
            text = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")[1:]
            assert (
                by_name((name, value) for name, _, value in (line.partition(": ") for line in text))
                == kept
            )

        try_out(examples, check, lines_of(), st.integers(0, 2))

    @both
    def test_headers_that_go_to_the_client(self, examples: int) -> None:
        """All that came, in their order, but for what ends here."""

        def check(lines: list[tuple[str, str]], status: int, cookie: str) -> None:
            came = [*lines, ("Set-Cookie", cookie), ("Content-Length", "5")]
            headers = response_headers(status, came)
            gone = {*HOP_BY_HOP, "transfer-encoding", "set-cookie"}
            gone |= named_by_connection(lines) - {"content-length"}
            gone |= {"content-length"} if status == 204 else set()
            kept = by_name(line for line in came if line[0].lower() not in gone)
            assert by_name(headers.get_all()) == kept

        try_out(examples, check, lines_of(), st.sampled_from([200, 204, 304, 529]), field_values)


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
    """A path as a lenient server takes it apart."""

    def without_parameters(path: bytes) -> bytes:
        return b"/".join(segment.partition(b";")[0] for segment in path.split(b"/"))

    plain = path.encode("latin-1")
    if parameters_first:
        plain = without_parameters(plain)
    plain = unquote_to_bytes(plain).replace(b"\\", b"/")
    return without_parameters(plain).split(b"/")


class TestTarget:
    @both
    def test_what_goes_upstream_leads_nowhere_else(self, examples: int) -> None:
        """To no server that decodes it once does it have a dot segment, or one segment more."""

        def check(rest: str) -> None:
            for target in (rest, f"/v1/{rest}", f"/v1{rest}"):
                try:
                    check_target(target)
                except InvalidRequest:
                    continue
                path = target.partition("?")[0]
                assert path.startswith("/")
                assert "#" not in target
                for parameters_first in (True, False):
                    found = segments(path, parameters_first=parameters_first)
                    assert not {b".", b".."} & set(found)
                    assert len(found) == path.count("/") + 1
                    assert "//" not in path

        try_out(examples * 3, check, paths)


# -- chat completions


def encoded(document: Json) -> bytes:
    return json.dumps(document).encode()


CHAT = {
    "model": "claude-sonnet-5-5",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi \u00e9 \U0001f600"}]},
    ],
    "max_tokens": 20,
}
TOOLS = {
    **CHAT,
    "stream": True,
    "stream_options": {"include_usage": True},
    "tools": [
        {
            "type": "function",
            "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
        }
    ],
    "tool_choice": "auto",
    "reasoning_effort": "low",
    "stop": ["\n\n", "x"],
    "temperature": 0.5,
}
DOCUMENTS: list[Json] = [
    CHAT,
    TOOLS,
    {
        "model": "gpt-5",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "look", "arguments": '{"q": [1, {"a": null}]}'},
                    }
                ],
                "thinking_blocks": [{"type": "thinking", "thinking": "x", "signature": "c2ln"}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "warm"},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                    {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk="}},
                ],
            },
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
        },
        "functions": [{"name": "f"}],
        "metadata": {"user_id": "u"},
        "logit_bias": {"1": 2},
        "n": 1,
    },
]
KEYS = sorted(
    {
        *chat_completions.FIELDS,
        *("role", "content", "type", "text", "image_url", "url", "file", "file_data", "name"),
        *("tool_calls", "tool_call_id", "function", "arguments", "parameters", "schema", "strict"),
        *("thinking_blocks", "signature", "thinking", "cache_control", "properties", "required"),
        *("json_schema", "include_usage", "user_id", "items", "anyOf", "$ref", "$defs", "enum"),
    }
)
WORDS = [
    *("user", "assistant", "system", "developer", "tool", "function", "text", "image_url", "file"),
    *("auto", "none", "required", "json_schema", "json_object", "low", "max", "enabled", "object"),
    *("data:image/png;base64,aGk=", "data:;base64,", "data:", "https://x.example", "#/$defs/x"),
    *("", " ", "call_1", "{}", "[", '{"a": NaN}', "1e999", "\ud800", "\x00", "null"),
]
plausible = st.recursive(
    st.sampled_from(WORDS)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**70), 10**400, 1e308, -0.0, 0.5, float("inf"), float("nan")]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=20,
)
abilities = st.sampled_from(
    [
        None,
        Capabilities(),
        Capabilities(max_tokens=1, structured_outputs=False, forced_tools=False, efforts=()),
        Capabilities(thinking=frozenset({"enabled", "disabled"}), efforts=("high",)),
    ]
)


def translate(body: bytes, able: Capabilities | None, options: Options) -> None:
    """As a request is translated when it is served: translated, or the client's fault."""
    try:
        document = chat_completions.parse(body)
        options.model(chat_completions.requested_model(document))
        translation = chat_completions.translate_request(
            document, options=options, capabilities=able
        )
    except InvalidRequest as refused:
        told = json.loads(Dialect.OPENAI.error_body(refused, "req_1"))["error"]
        if not told["message"] or refused.status != 400:
            raise
        return
    asked = json.loads(translation.body.decode(), parse_constant=_no_constant)
    assert isinstance(asked["model"], str)
    assert isinstance(asked["messages"], list)
    assert isinstance(asked["max_tokens"], int)
    assert all(name.isascii() and name.isprintable() for name in translation.ignored)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


ALL_OPTIONS = st.sampled_from(
    [Options(), Options(strict=True), Options(drop_sampling=True, models={"*": "claude-mapped"})]
)


class TestTranslator:
    @both
    def test_a_damaged_request_is_translated_or_refused(self, examples: int) -> None:
        bodies = [encoded(document) for document in DOCUMENTS]

        def check(body: bytes, seed: int, able: Capabilities | None, options: Options) -> None:
            translate(damaged(body, random.Random(seed), bodies), able, options)

        try_out(examples * 3, check, st.sampled_from(bodies), seeds, abilities, ALL_OPTIONS)

    @both
    def test_any_document_is_translated_or_refused(self, examples: int) -> None:
        def check(
            messages: object, more: object, able: Capabilities | None, options: Options
        ) -> None:
            for document in (
                more,
                {"model": "m", "messages": [{"role": "user", "content": messages}]},
                {"model": "m", "messages": messages},
                {"model": "m", "messages": [{"role": "user", "content": "x"}, messages]},
                {
                    **(more if isinstance(more, dict) else {}),
                    "model": "m",
                    "messages": [{"role": "user", "content": "x"}],
                },
            ):
                translate(json.dumps(document).encode(), able, options)

        try_out(examples, check, plausible, plausible, abilities, ALL_OPTIONS)

    @both
    def test_any_bytes_are_translated_or_refused(self, examples: int) -> None:
        signs = soup(*SIGNS, b'{"model": "m", "messages": [', b'"role": "user"', b"\\", b'"', b",")
        try_out(
            examples, lambda body: translate(body, None, Options()), st.binary(max_size=99) | signs
        )

    @both
    def test_any_answer_is_translated_or_the_upstreams_fault(self, examples: int) -> None:
        source = encoded(
            message_document(
                "Hi",
                content=[
                    {"type": "thinking", "thinking": "x", "signature": "c2ln"},
                    {"type": "text", "text": "Hi \u00e9"},
                    {"type": "tool_use", "id": "t", "name": "look", "input": {"a": [1, None]}},
                ],
                stop_reason="tool_use",
            )
        )

        def check(seed: int, noise: bytes, legacy: bool) -> None:
            for body in (damaged(source, random.Random(seed), [source]), noise):
                try:
                    told = chat_completions.translate_response(body, legacy_functions=legacy)
                except UpstreamProtocolError:
                    continue
                ChatCompletion.model_validate(json.loads(told))

        half = source.replace(b"Hi ", b"\\ud800")
        noise = st.binary(max_size=40) | soup(*SIGNS)
        try_out(examples * 2, check, seeds, noise, st.booleans(), known=[(0, half, False)])

    @both
    def test_any_error_is_translated(self, examples: int) -> None:
        source = encoded({"type": "error", "error": {"type": "overloaded_error", "message": "No."}})

        def check(status: int, seed: int, noise: bytes) -> None:
            for body in (damaged(source, random.Random(seed), [source]), noise):
                error = chat_completions.translate_error(status, body)
                assert error.status == status
                assert error.message
                document = json.loads(Dialect.OPENAI.error_body(error, "req_1").decode())
                assert document["error"].keys() == {"message", "type", "param", "code"}

        noise = st.binary(max_size=40) | soup(*SIGNS)
        known = [(500, 0, body) for body in (b'{"error": []}', b'{"error": "x"}', b"[1]", b'"x"')]
        try_out(examples, check, st.integers(400, 599), seeds, noise, known=known)

    @both
    def test_any_stream_is_translated_or_the_upstreams_fault(self, examples: int) -> None:
        """The same at any split; what goes out are whole chunks, or an error and nothing more."""
        sources = [
            b"".join(
                message_events(
                    message_document(
                        "Hi",
                        content=[
                            {"type": "thinking", "thinking": "x", "signature": "c2ln"},
                            {"type": "text", "text": "Hi \u00e9 \U0001f600"},
                            {"type": "tool_use", "id": "t", "name": "look", "input": {"a": [1]}},
                        ],
                        stop_reason="tool_use",
                    )
                )
            ),
            b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n',
        ]

        def check(stream: bytes, sizes: list[int]) -> None:
            whole, fault = translated([stream])
            split, same_fault = translated(pieces_of(stream, sizes))
            assert fault == same_fault
            assert split.startswith(whole)
            assert fault or split == whole
            for chunk in split.decode().split("\n\n")[:-1]:
                data = chunk.removeprefix("data: ")
                if data not in {"[DONE]", ": ping"} and "error" not in json.loads(data):
                    ChatCompletionChunk.model_validate(json.loads(data))

        def check_damaged(source: bytes, seed: int, sizes: list[int]) -> None:
            check(damaged(source, random.Random(seed), sources), sizes)

        try_out(examples, check, streams, piece_sizes)
        try_out(examples * 2, check_damaged, st.sampled_from(sources), seeds, piece_sizes)

    @both
    def test_any_list_of_models_is_translated(self, examples: int) -> None:
        def check(entry: object, capabilities: object, created: object) -> None:
            model: Json = {"id": "m", "capabilities": capabilities, "created_at": created}
            more = entry if isinstance(entry, dict) else {}
            for each in (model, {**model, **more}, {**more, "max_tokens": created}):
                listed = chat_completions.translate_models([each], {"x": "m"})
                assert all(type(shown["created"]) is int for shown in listed["data"])
                Capabilities.of_model(each).effort("low")

        dates = plausible | st.datetimes().map(str) | st.dates().map(str)
        try_out(examples, check, plausible, plausible, dates)


def translated(pieces: Iterable[bytes]) -> tuple[bytes, bool]:
    """What becomes of a stream, and whether it ends with the upstream's fault."""
    translator = StreamTranslator(include_usage=True, created=1)
    told = b""
    try:
        for piece in pieces:
            told += translator.feed(piece)
    except UpstreamProtocolError:
        return told, True
    return told, False


@pytest.mark.parametrize(
    "document",
    [
        {"data": [{"id": "\ud800"}]},
        {"data": [{"id": "a"}], "has_more": True, "last_id": "\ud800"},
        {"data": [{"id": "a\r\nb"}, {"id": ""}, {"id": None}, 1, None, []]},
        {"data": [{"id": "a", "created_at": 10**300, "capabilities": [1]}]},
        {"data": [], "has_more": True, "last_id": ""},
        {"data": {}},
        [],
    ],
)
async def test_any_list_of_models_is_served_or_the_upstreams_fault(
    document: Any,  # JSON
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream.script(json_response(document), json_response({"data": []}))
    client = await raw()
    await client.send(request_bytes("GET", "/openai/v1/models", token=TEST_TOKEN))
    response = await client.response()
    assert response.status in {200, 502}
    json.loads(response.body)
    assert [each.getMessage() for each in caplog.records if each.exc_info] == []
