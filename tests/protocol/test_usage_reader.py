"""Usage read from bytes as they pass by: compressed, cut, invalid or too long."""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
import tracemalloc
import zlib

import pytest
from damage import damaged
from hypothesis import strategies as st
from properties import holds_of
from tornado.httputil import HTTPHeaders
from usage_streams import (
    MESSAGE_STOP,
    MODEL,
    Document,
    block_start,
    content_event,
    dump,
    event,
    in_pieces,
    message_delta,
    message_start,
    read,
    read_cut,
    read_stream,
    text_delta,
)

from tornadoproxy.protocol.decompression import MAX_DECOMPRESSED
from tornadoproxy.protocol.usage import ModelUsage, Usage
from tornadoproxy.protocol.usage_reader import MAX_EVENT, MAX_JSON, UsageReader
from tornadoproxy.testing import message_document, message_events

MEGABYTE = 1024 * 1024
TEXT = "Grüße, 世界 😀"
DOCUMENT = message_document(
    TEXT,
    model=MODEL,
    usage={
        "input_tokens": 25,
        "output_tokens": 15,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 3,
        "cache_creation": {"ephemeral_5m_input_tokens": 3},
    },
)
MESSAGE, STREAM = dump(DOCUMENT), b"".join(message_events(DOCUMENT))
USAGE = Usage(25, 15, 4, 3)


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize(
    ("body", "is_stream"),
    [(MESSAGE, False), (STREAM, True), (STREAM.replace(b"\n", b"\r\n"), True)],
    ids=["json", "stream", "CRLF"],
)
def test_usage_is_read_in_pieces_of_any_size(body: bytes, is_stream: bool, coding: str) -> None:
    packed = gzip.compress(body) if coding == "gzip" else body
    for size in (1, 2, 3, 5, 17, 10_000):
        found = read(in_pieces(size, packed), is_stream=is_stream, coding=coding)
        assert found == (MODEL, USAGE)


DAMAGED = st.integers(0, 2**32 - 1).map(lambda seed: damaged(STREAM, random.Random(seed), [STREAM]))


@holds_of(DAMAGED, st.integers(1, 30), st.booleans())
def test_usage_is_the_same_at_any_split(body: bytes, size: int, is_stream: bool) -> None:
    assert read([body], is_stream=is_stream) == read(in_pieces(size, body), is_stream=is_stream)


def test_usage_is_partial_until_the_end() -> None:
    reader = UsageReader(is_stream=True)
    reader.feed(message_start(input_tokens=25, output_tokens=1))
    assert (reader.model, reader.usage) == (MODEL, Usage(25, 1, partial=True))
    reader.feed(message_delta(output_tokens=8)[:-1])
    assert reader.usage == Usage(25, 1, partial=True)
    reader.feed(b"\n")
    assert reader.usage == Usage(25, 8, partial=True)
    reader.feed(MESSAGE_STOP)
    assert reader.usage == Usage(25, 8)
    reader = UsageReader(is_stream=False)
    reader.feed(MESSAGE)
    assert (reader.model, reader.usage) == (None, Usage(partial=True))


def test_first_token_is_the_first_content() -> None:
    reader = UsageReader(is_stream=True)
    found = []
    start = message_start(input_tokens=1) + event("ping", {})
    for piece in (start, content_event("x")[:-1], b"\n", content_event("y") + MESSAGE_STOP):
        before = time.monotonic()
        reader.feed(piece)
        at = reader.first_token_at
        found.append(None if at is None else before <= at <= time.monotonic())
    assert found == [None, None, True, False]


# -- invalid input

GARBAGE = [
    *(b"", b"\xff\xfe\xfd" * 50, b"null", b'["usage"]', b'"usage"', b"12", b"<html>usage</html>"),
    *(b'{"usage": null}', b'{"usage": []}', b'{"message": null, "usage": 1}'),
    *(b'{"usage": {"output_tokens": 5}', b'{"usage": {"output_tokens": 5}} x'),
    *(b'{"usage": {"output_tokens": \xff}}', b'{"usage": {"output_tokens": NaN}}'),
    b'{"usage": {"output_tokens": ' + b"9" * 5000 + b"}}",
    b"[" * 100_000 + b'"usage"' + b"]" * 100_000,
    b'{"usage":' * 100_000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage[:30]))
def test_invalid_document_or_event_is_skipped(garbage: bytes) -> None:
    model, usage = read([garbage])
    assert (model, usage) == (None, Usage(partial=usage.partial))
    start, end = message_start(input_tokens=1), message_delta(output_tokens=2)
    for skipped in (b"data: " + garbage + b"\n\n", garbage + b"\n\n"):
        assert read_stream(start, skipped, end) == (MODEL, Usage(1, 2))
        assert read_stream(start + skipped + end) == (MODEL, Usage(1, 2))


# -- cut streams


def test_corrupt_or_endless_coding_reports_what_was_read() -> None:
    start, end = message_start(input_tokens=25), message_delta(output_tokens=9)
    packer = zlib.compressobj(wbits=31)
    begun = packer.compress(start) + packer.flush(zlib.Z_SYNC_FLUSH)
    bomb = gzip.compress(start + b":".ljust(MAX_DECOMPRESSED) + b"\n\n" + end)
    for pieces in ([begun, b"\xff" * 500, end], [begun], [bomb, end]):
        found = read(pieces, is_stream=True, coding="gzip")
        assert found == (MODEL, Usage(25, partial=True))
    assert read([MESSAGE, MESSAGE], coding="gzip") == (None, Usage(partial=True))


def test_cut_stream_reports_usage_or_a_token_for_four_bytes() -> None:
    start = message_start(input_tokens=25, output_tokens=1)
    hundred = content_event("x" * 400)
    for body, expected in [
        (b"", Usage(partial=True)),
        (start[:-1], Usage(partial=True)),
        (start, Usage(25, 1, partial=True)),
        (start + content_event(""), Usage(25, 1, partial=True)),
        (start + content_event("x" * 4), Usage(25, 1, partial=True)),
        (start + content_event("x" * 5), Usage(25, 2, partial=True)),
        (start + hundred + event("ping", {}), Usage(25, 100, partial=True)),
        (start + hundred * 3, Usage(25, 300, partial=True)),
        (start + hundred * 3 + MESSAGE_STOP, Usage(25, 1)),
        (start + hundred + message_delta(output_tokens=90), Usage(25, 100, partial=True)),
        (start + hundred + message_delta(output_tokens=110), Usage(25, 110, partial=True)),
        (start + hundred + message_delta(output_tokens=90) + MESSAGE_STOP, Usage(25, 90)),
        (start + event("error", {"error": {"type": "api_error"}}), Usage(25, 1, partial=True)),
        (hundred, Usage(None, 100, partial=True)),
    ]:
        assert read_cut(body)[1] == expected, body


def test_output_of_a_cut_stream_never_falls() -> None:
    start = message_start(input_tokens=25, output_tokens=1)
    first = text_delta("some text of a stream, piece by piece  ") * 4
    body = start + first + message_delta(output_tokens=90) + MESSAGE_STOP
    found = [read([body[:cut]], is_stream=True)[1] for cut in range(len(body) + 1)]
    counts = [usage.output_tokens or 0 for usage in found]
    assert counts == sorted(counts)
    assert [usage.partial for usage in found] == [True] * len(body) + [False]
    # the 156 bytes of text, a quarter of them, and a little for the form of their events
    assert 39 <= counts[len(start + first)] <= 39 + 4 * 10


def test_stream_cut_after_a_fallback_reports_both_attempts() -> None:
    to_next = block_start(type="fallback", to={"model": "claude-opus-5-5"})
    start = message_start(input_tokens=25, cache_read_input_tokens=3, output_tokens=1)
    hundred, end = content_event("x" * 400), message_delta(output_tokens=90) + MESSAGE_STOP
    declined = (ModelUsage(MODEL, Usage(25, 100, 3, partial=True)),)
    for body, expected in (
        (start + to_next, Usage(25, None, 3, partial=True)),
        (start + hundred + to_next, Usage(25, None, 3, partial=True, others=declined)),
        (start + hundred + to_next + hundred * 2, Usage(25, 200, 3, partial=True, others=declined)),
        (start + hundred + to_next + end, Usage(25, 90, 3, others=declined)),
    ):
        assert read_cut(body) == ("claude-opus-5-5", expected)


@pytest.mark.parametrize(
    "block",
    [{"type": "server_tool_use", "name": "advisor"}, {"type": "compaction", "content": None}],
)
def test_stream_cut_before_its_iterations_has_an_unknown_part(block: Document) -> None:
    begun = message_start(input_tokens=10, output_tokens=1) + block_start(**block)
    unknown = ModelUsage(None, Usage(partial=True))
    assert read_cut(begun)[1] == Usage(10, 1, partial=True, others=(unknown,))
    reported = message_delta(output_tokens=5, iterations=[])
    assert read_cut(begun + reported)[1] == Usage(10, 5, partial=True)


@pytest.mark.parametrize("name", ["advisor", "compaction", "fallback"])
def test_clients_tool_named_like_a_spending_block_spends_nothing(name: str) -> None:
    block = block_start(type="tool_use", name=name, input={"type": name})
    body = message_start(input_tokens=10, output_tokens=1) + block
    assert read_cut(body) == (MODEL, Usage(10, 1, partial=True))


@pytest.mark.parametrize("size", [1, 1000, 10 * MEGABYTE])
def test_content_of_an_event_that_is_too_long_counts(size: int) -> None:
    start = message_start(input_tokens=25, output_tokens=1)
    long = content_event("x" * (2 * MAX_EVENT))
    expected = Usage(25, MAX_EVENT // 2, partial=True)
    assert read(in_pieces(size, start + long), is_stream=True)[1] == expected
    if size > 1:
        assert read(in_pieces(size, start + long[:-2]), is_stream=True)[1] == expected
        _, usage = read(in_pieces(size, start + long[:-1000]), is_stream=True)
        assert MAX_EVENT // 2 - 300 < (usage.output_tokens or 0) < MAX_EVENT // 2


@pytest.mark.parametrize(
    "form",
    [
        "data: {0}\n\n",
        "event:content_block_delta\ndata:{0}\n\n",
        "data: {0}\nevent: content_block_delta\n\n",
        "id: 7\nevent: content_block_delta\r\ndata: {0}\r\n\r\n",
    ],
)
def test_content_and_end_in_an_unusual_form_are_read(form: str) -> None:
    delta = {"type": "text_delta", "text": "x" * 4000}
    content = json.dumps({"type": "content_block_delta", "index": 0, "delta": delta})
    _, usage = read([form.format(content).encode()], is_stream=True)
    assert 990 < (usage.output_tokens or 0) < 1010
    usage_and_end = '{"usage":\ndata:{"output_tokens": 5}}', '{"type": "message_stop"}'
    pieces = [form.format(each).encode() for each in usage_and_end]
    assert read(pieces, is_stream=True)[1] == Usage(output_tokens=5)


def test_text_that_looks_like_an_end_is_not_one() -> None:
    words = 'event: message_stop\ndata: {"type": "message_stop"}'
    for part in (
        content_event(words),
        block_start(type="web_search_tool_result", content=[{"title": words}]),
        event("x", {"message_stop": "message_stop"}),
        b": message_stop\n\n",
    ):
        assert read([message_start(input_tokens=25), part], is_stream=True)[1].partial


# -- oversized input


@pytest.mark.parametrize("size", [1, 3, 1000, 65536, 10 * MEGABYTE])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_events_after_one_that_is_too_long_are_read(size: int, line_end: bytes) -> None:
    long = text_delta("x" * (MAX_EVENT + 10 if size < 1000 else 5 * MAX_EVENT))
    ends = [message_delta(output_tokens=number) for number in range(1 if size < 1000 else 3)]
    body = message_start(input_tokens=1) + b"".join(long + end for end in ends) + MESSAGE_STOP
    pieces = in_pieces(size, body.replace(b"\n", line_end))
    assert read(pieces, is_stream=True) == (MODEL, Usage(1, len(ends) - 1))


def test_rest_of_a_long_event_is_not_read_as_an_event() -> None:
    padding = {"padding": "x" * (2 * MAX_EVENT), "usage": {"output_tokens": 9}}
    rest = b'\ndata: {"usage": {"output_tokens": 9}}\n\n'
    body = event("x", padding)[:-2] + rest + MESSAGE_STOP
    assert read(in_pieces(1000, body), is_stream=True) == (None, Usage())


INPUT = {"type": "tool_use", "input": {"usage": {"output_tokens": 9}, "model": "x"}}


@pytest.mark.parametrize(
    "end",
    [
        {"stop_reason": "end_turn", "usage": {"output_tokens": 5}},
        {"usage": {"output_tokens": 5}, "stop_reason": "end_turn"},
        {"usage": {"output_tokens": 5, "x": {"usage": {"output_tokens": 9}}}, "x": ["usage"]},
    ],
)
@pytest.mark.parametrize("size", [1000, 65536, 10 * MEGABYTE])
def test_long_document_is_read_at_both_ends(size: int, end: Document) -> None:
    content = [INPUT, {"type": "text", "text": "x" * MAX_JSON + '"usage"'}, INPUT]
    reader = UsageReader(is_stream=False)
    for piece in in_pieces(size, dump({"model": MODEL, "content": content, **end})):
        reader.feed(piece)
    reader.finish()
    assert (reader.model, reader.usage) == (MODEL, Usage(output_tokens=5))
    assert reader.stop_reason == end.get("stop_reason")


@pytest.mark.parametrize("cut", [-1, -20, -70_000])
def test_long_document_that_was_cut_has_no_usage(cut: int) -> None:
    content = [INPUT, "x" * 2 * MAX_JSON]
    document = dump({"model": MODEL, "content": content, "usage": {"output_tokens": 5}})
    assert read(in_pieces(65536, document[:cut])) == (MODEL, Usage(partial=True))


def test_document_of_the_largest_size_is_read() -> None:
    document = dump({"model": MODEL, "usage": {"output_tokens": 5}}).ljust(MAX_JSON)
    assert read(in_pieces(65536, document)) == (MODEL, Usage(output_tokens=5))
    assert read([document, b" "]) == (None, Usage(partial=True))


# -- memory


@pytest.mark.parametrize("size", [100, 65536])
@pytest.mark.parametrize(("is_stream", "most"), [(False, 3 * MAX_JSON), (True, 8 * MAX_EVENT)])
def test_endless_document_or_event_takes_bounded_memory(
    is_stream: bool, most: int, size: int
) -> None:
    piece = b"x" * size
    tracemalloc.start()
    read((piece for _ in range(2 * MAX_JSON // size)), is_stream=is_stream)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < most


# -- the reader for a response


@pytest.mark.parametrize("coding", ["", "GZIP", "X-Gzip", "br", "zstd", "Identity"])
def test_reader_follows_from_type_and_coding(coding: str) -> None:
    for content_type, body in (("Application/JSON", MESSAGE), ("Text/Event-Stream; x", STREAM)):
        reader = UsageReader.for_response(headers_of(content_type, coding))
        assert reader is not None
        if coding in ("", "Identity"):
            reader.feed(body)
            reader.finish()
            assert (reader.model, reader.usage) == (MODEL, USAGE)


@pytest.mark.parametrize(
    ("content_type", "coding"),
    [
        *(("", ""), ("text/html", ""), ("application/x-jsonl", "")),
        *(("application/json", coding) for coding in ("gzip, br", "x-of-tomorrow", "br", "zstd")),
    ],
)
def test_unreadable_response_has_no_reader(
    monkeypatch: pytest.MonkeyPatch, content_type: str, coding: str
) -> None:
    for package in ("brotli", "zstandard"):
        monkeypatch.setitem(sys.modules, package, None)
    assert UsageReader.for_response(headers_of(content_type, coding)) is None


def headers_of(content_type: str, coding: str) -> HTTPHeaders:
    headers = {"Content-Type": content_type, "Content-Encoding": coding}
    return HTTPHeaders({name: value for name, value in headers.items() if value})
