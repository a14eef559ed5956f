"""Model and tokens, read from an answer's bytes as they pass by: all that is told, and no more."""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import brotli  # type: ignore[import-untyped]  # it has no types
import pytest
import zstandard
from msgspec.structs import asdict
from tornado.httputil import HTTPHeaders

from tornadoproxy.protocol.decompression import MAX_DECOMPRESSED
from tornadoproxy.protocol.usage import ModelUsage, Usage
from tornadoproxy.protocol.usage_fields import read_message
from tornadoproxy.protocol.usage_reader import MAX_EVENT, MAX_JSON, UsageReader
from tornadoproxy.testing import message_document, message_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MODEL = "claude-sonnet-5-5"
MEGABYTE = 1024 * 1024

Document = dict[str, Any]  # Any: JSON


def dump(document: Document) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def event(name: str, document: Document) -> bytes:
    return f"event: {name}\ndata: ".encode() + dump({"type": name, **document}) + b"\n\n"


def message_start(usage: Document) -> bytes:
    message = {"id": "msg_1", "type": "message", "model": MODEL, "content": [], "usage": usage}
    return event("message_start", {"message": message})


def text_delta(text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return event("content_block_delta", {"index": 0, "delta": delta})


def content_event(text: str) -> bytes:
    """In the API's own form, without a blank too many."""
    data = (
        '{"type":"content_block_delta","index":0,'
        f'"delta":{{"type":"text_delta","text":{json.dumps(text)}}}}}'
    )
    return f"event: content_block_delta\ndata: {data}\n\n".encode()


def message_delta(usage: Document) -> bytes:
    return event("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": usage})


MESSAGE_STOP = event("message_stop", {})
MESSAGE = dump(
    {
        "id": "msg_1",
        "type": "message",
        "model": MODEL,
        "content": [{"type": "text", "text": "Grüße, 世界 😀"}],
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 4,
            "output_tokens": 15,
            "service_tier": "standard",
            "cache_creation": {"ephemeral_5m_input_tokens": 3},
        },
    }
)
STREAM = b"".join(
    [
        message_start(
            {
                "input_tokens": 25,
                "cache_creation_input_tokens": 3,
                "cache_read_input_tokens": 4,
                "output_tokens": 1,
            }
        ),
        event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        event("ping", {}),
        text_delta("Grüße, 世界 😀"),
        event("content_block_stop", {"index": 0}),
        message_delta({"output_tokens": 7}),
        message_delta({"output_tokens": 15}),
        MESSAGE_STOP,
    ]
)
TOLD = Usage(
    input_tokens=25, output_tokens=15, cache_read_input_tokens=4, cache_creation_input_tokens=3
)


def read(
    pieces: Iterable[bytes], *, is_stream: bool = False, content_encoding: str = "identity"
) -> tuple[str | None, Usage]:
    reader = UsageReader(is_stream=is_stream, content_encoding=content_encoding)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return reader.model, reader.usage


def read_stream(*pieces: bytes) -> tuple[str | None, Usage]:
    """What is told by a stream of these pieces and its end."""
    return read([*pieces, MESSAGE_STOP], is_stream=True)


def read_stream_cut(body: bytes) -> tuple[str | None, Usage]:
    """What is told by a stream that ends there, whole or in pieces."""
    told = read([body], is_stream=True)
    assert told == read(in_pieces_of(1, body), is_stream=True)
    return told


def in_pieces_of(size: int, body: bytes) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def in_random_pieces(seed: int, body: bytes) -> list[bytes]:
    pick = random.Random(seed)
    pieces = []
    while body:
        size = pick.choice([0, 1, 1, 2, 3, 10, 100, 1000])
        pieces.append(body[:size])
        body = body[size:]
    return pieces


def zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(body)


def zstd_streamed(body: bytes) -> bytes:
    """As a server writes it: flushed now and then, and no size in its header."""
    compressor = zstandard.ZstdCompressor().compressobj()
    packed = b"".join(
        compressor.compress(piece) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for piece in in_pieces_of(100, body)
    )
    return packed + compressor.flush()


def gzip_streamed(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    packed = b"".join(
        compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
        for piece in in_pieces_of(100, body)
    )
    return packed + compressor.flush()


def brotli_streamed(body: bytes) -> bytes:
    compressor = brotli.Compressor()
    packed = b"".join(
        compressor.process(piece) + compressor.flush() for piece in in_pieces_of(100, body)
    )
    return packed + bytes(compressor.finish())


ENCODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip flushed": ("gzip", gzip_streamed),
    "gzip in two members": (
        "gzip",
        lambda body: gzip.compress(body[:50]) + gzip.compress(body[50:]),
    ),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its header": ("deflate", lambda body: zlib.compress(body, wbits=-15)),
    "br": ("br", lambda body: bytes(brotli.compress(body, quality=5))),
    "br flushed": ("br", brotli_streamed),
    "zstd": ("zstd", zstd),
    "zstd flushed": ("zstd", zstd_streamed),
    "zstd in two frames": ("zstd", lambda body: zstd(body[:50]) + zstd(body[50:])),
}
encoded = pytest.mark.parametrize(
    ("content_encoding", "pack"), ENCODINGS.values(), ids=list(ENCODINGS)
)
json_or_stream = pytest.mark.parametrize(
    ("body", "is_stream"), [(MESSAGE, False), (STREAM, True)], ids=["json", "stream"]
)


class TestReads:
    @json_or_stream
    def test_whole(self, body: bytes, is_stream: bool) -> None:
        assert read([body], is_stream=is_stream) == (MODEL, TOLD)

    @json_or_stream
    def test_split_at_every_byte(self, body: bytes, is_stream: bool) -> None:
        for cut in range(len(body) + 1):
            assert read([body[:cut], body[cut:]], is_stream=is_stream) == (MODEL, TOLD)

    @json_or_stream
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17])
    def test_in_pieces_of(self, size: int, body: bytes, is_stream: bool) -> None:
        assert read(in_pieces_of(size, body), is_stream=is_stream) == (MODEL, TOLD)

    @json_or_stream
    @pytest.mark.parametrize("seed", range(20))
    def test_in_random_pieces(self, seed: int, body: bytes, is_stream: bool) -> None:
        assert read(in_random_pieces(seed, body), is_stream=is_stream) == (MODEL, TOLD)

    @pytest.mark.parametrize("seed", range(20))
    def test_line_ends_of_two_bytes(self, seed: int) -> None:
        body = STREAM.replace(b"\n", b"\r\n")
        assert read_stream(body) == (MODEL, TOLD)
        assert read(in_random_pieces(seed, body), is_stream=True) == (MODEL, TOLD)
        assert read(in_pieces_of(1, body), is_stream=True) == (MODEL, TOLD)

    @encoded
    @json_or_stream
    def test_compressed(
        self, body: bytes, is_stream: bool, content_encoding: str, pack: Callable[[bytes], bytes]
    ) -> None:
        packed = pack(body)
        for pieces in (
            [packed],
            in_pieces_of(1, packed),
            *(in_random_pieces(seed, packed) for seed in range(5)),
            *([packed[:cut], packed[cut:]] for cut in range(0, len(packed), 11)),
        ):
            told = read(pieces, is_stream=is_stream, content_encoding=content_encoding)
            assert told == (MODEL, TOLD)

    @encoded
    def test_compressed_so_well_that_much_comes_at_once(
        self, content_encoding: str, pack: Callable[[bytes], bytes]
    ) -> None:
        body = message_start({"input_tokens": 25}) + text_delta("x" * 1000) * 200
        packed = pack(body + message_delta({"output_tokens": 15}) + MESSAGE_STOP)
        for pieces in ([packed], in_pieces_of(1000, packed)):
            _, usage = read(pieces, is_stream=True, content_encoding=content_encoding)
            assert usage == Usage(input_tokens=25, output_tokens=15)

    def test_what_it_knows_so_far(self) -> None:
        reader = UsageReader(is_stream=True)
        reader.feed(message_start({"input_tokens": 25, "output_tokens": 1}))
        assert (reader.model, reader.usage) == (MODEL, Usage(25, 1, partial=True))
        reader.feed(message_delta({"output_tokens": 8})[:-1])
        assert reader.usage == Usage(25, 1, partial=True)
        reader.feed(b"\n")
        assert reader.usage == Usage(25, 8, partial=True)
        reader.feed(MESSAGE_STOP)
        assert reader.usage == Usage(25, 8)

    def test_nothing_is_told_until_a_document_is_whole(self) -> None:
        reader = UsageReader(is_stream=False)
        reader.feed(MESSAGE)
        assert (reader.model, reader.usage) == (None, Usage(partial=True))
        reader.finish()
        assert (reader.model, reader.usage) == (MODEL, TOLD)

    def test_an_event_of_several_data_lines(self) -> None:
        body = b'event: x\ndata: {"usage":\ndata:{"output_tokens":\ndata:  5}}\n\n'
        assert read_stream(body)[1] == Usage(output_tokens=5)


class TestMeaning:
    def test_the_last_figures_count_and_nothing_is_summed(self) -> None:
        _, usage = read_stream(
            message_start({"input_tokens": 10, "output_tokens": 1}),
            message_delta({"output_tokens": 20}),
            message_delta({"input_tokens": 12, "output_tokens": 50}),
        )
        assert usage == Usage(input_tokens=12, output_tokens=50)

    def test_a_lower_figure_replaces_a_higher_one(self) -> None:
        _, usage = read_stream(
            message_delta({"output_tokens": 9}), message_delta({"output_tokens": 4})
        )
        assert usage == Usage(output_tokens=4)

    def test_what_a_later_event_does_not_tell_stays(self) -> None:
        _, usage = read_stream(
            message_start({"input_tokens": 10, "cache_read_input_tokens": 2}),
            message_delta({"input_tokens": None, "output_tokens": 5}),
            message_delta({}),
        )
        assert usage == Usage(input_tokens=10, output_tokens=5, cache_read_input_tokens=2)

    @pytest.mark.parametrize(
        "text", ['"usage": {"output_tokens": 999}', '{"usage":{"output_tokens":999}}']
    )
    def test_words_of_an_answer_are_not_figures(self, text: str) -> None:
        deltas = [
            text_delta(text),
            event(
                "content_block_delta",
                {"index": 1, "delta": {"type": "input_json_delta", "partial_json": text}},
            ),
        ]
        start = message_start({"input_tokens": 10})
        for pieces in ([start, *deltas], [start + b"".join(deltas)]):
            assert read_stream(*pieces)[1] == Usage(input_tokens=10)

    @pytest.mark.parametrize(
        "document",
        [
            {
                "index": 0,
                "content_block": {"type": "tool_use", "input": {"usage": {"output_tokens": 9}}},
            },
            {"index": 0, "content_block": {"usage": {"output_tokens": 9}, "model": "other"}},
            {"index": 0, "delta": {"usage": {"output_tokens": 9}}},
            {"error": {"usage": {"output_tokens": 9}}},
        ],
    )
    def test_nor_are_figures_elsewhere_in_an_event(self, document: Document) -> None:
        start = message_start({"input_tokens": 10})
        assert read_stream(start, event("x", document)) == (MODEL, Usage(input_tokens=10))

    def test_nor_in_the_input_of_a_tool(self) -> None:
        document = {
            "model": MODEL,
            "content": [
                {"type": "text", "text": '"usage": {"output_tokens": 999}'},
                {"type": "tool_use", "input": {"usage": {"output_tokens": 9}, "model": "other"}},
            ],
            "usage": {"output_tokens": 5},
        }
        assert read([dump(document)]) == (MODEL, Usage(output_tokens=5))
        assert read([dump(dict(reversed(document.items())))]) == (MODEL, Usage(output_tokens=5))

    @pytest.mark.parametrize(
        "value", [None, True, False, -1, 1.5, 7.0, "7", [7], {"x": 7}, 2**63, 10**400]
    )
    def test_what_is_no_count_is_not_told(self, value: object) -> None:
        usage = {"input_tokens": value, "output_tokens": 5}
        assert read([dump({"usage": usage})])[1] == Usage(output_tokens=5)
        assert read_message({"usage": usage}).usage == Usage(output_tokens=5)
        assert read_stream(message_delta(usage))[1] == Usage(output_tokens=5)

    def test_half_of_a_surrogate_pair_hides_no_figure(self) -> None:
        body = (
            rb'{"model": "m\ud83d", "usage": {"output_tokens": 5, "cache\ud83d": {"a": "\udc00"}}}'
        )
        expected = Usage(output_tokens=5)
        assert read_message(json.loads(body)).usage == expected
        assert read([body])[1] == expected

    @pytest.mark.parametrize("value", [0, 1, 2**63 - 1])
    def test_what_is_a_count_is_told(self, value: int) -> None:
        assert read([dump({"usage": {"input_tokens": value}})])[1] == Usage(input_tokens=value)

    @pytest.mark.parametrize("model", [None, 5, ["x"], {"x": "y"}])
    def test_what_is_no_model_is_not_told(self, model: object) -> None:
        document = {"model": model, "usage": {"output_tokens": 5}}
        assert read([dump(document)]) == (None, Usage(output_tokens=5))
        assert read_message(document) == (None, None, Usage(output_tokens=5))


GARBAGE = [
    b"",
    b"\0" * 100,
    b"\xff\xfe\xfd" * 50,
    b"null",
    b"[]",
    b'["usage"]',
    b'"usage"',
    b"12",
    b'{"usage": null}',
    b'{"usage": []}',
    b'{"usage": "5"}',
    b'{"usage": {}}',
    b'{"message": null, "usage": 1}',
    b'{"message": "usage", "x": "usage"}',
    b'{"usage": {"output_tokens": 5}',
    b'{"usage": {"output_tokens": 5}} x',
    b'{"usage": {"output_tokens": \xff}}',
    b'{"usage": {"output_tokens": NaN}}',
    b'{"usage": {"output_tokens": ' + b"9" * 5000 + b"}}",
    b"[" * 100_000 + b'"usage"' + b"]" * 100_000,
    b'{"usage":' * 100_000,
    b"<html>usage</html>",
]


class TestGarbage:
    @pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
    def test_tells_nothing_and_does_no_harm(self, garbage: bytes) -> None:
        model, usage = read([garbage])
        assert (model, usage) == (None, Usage(partial=usage.partial))
        start, end = message_start({"input_tokens": 1}), message_delta({"output_tokens": 2})
        for pieces in (
            [start, b"data: " + garbage + b"\n\n", end],
            [start, garbage + b"\n\n", end],
            [start + b"data: " + garbage + b"\n\n" + end],
        ):
            assert read_stream(*pieces) == (MODEL, Usage(1, 2))

    @encoded
    def test_that_is_not_compressed(
        self, content_encoding: str, pack: Callable[[bytes], bytes]
    ) -> None:
        for is_stream, body in ((False, MESSAGE), (True, STREAM)):
            told = read([body, body], is_stream=is_stream, content_encoding=content_encoding)
            assert told == (None, Usage(partial=True))

    @pytest.mark.parametrize("content_encoding", ["gzip", "br", "zstd"])
    @pytest.mark.parametrize("garbage", [b"<html>busy</html>", b"\xff" * 10_000])
    def test_for_a_compressed_stream(self, garbage: bytes, content_encoding: str) -> None:
        """What follows it is not taken for text."""
        pieces = [garbage, b"\n\n", STREAM, garbage]
        told = read(pieces, is_stream=True, content_encoding=content_encoding)
        assert told == (None, Usage(partial=True))

    @pytest.mark.parametrize("name", ["gzip flushed", "br flushed", "zstd flushed"])
    def test_in_the_middle_leaves_what_was_told_before(self, name: str) -> None:
        content_encoding, pack = ENCODINGS[name]
        start = message_start({"input_tokens": 25, "output_tokens": 1})
        packed = pack(start.ljust(3000, b"\n") + STREAM)
        broken = packed[: len(packed) // 2] + b"\xff" * 500
        for rest in (b"", STREAM, b"\n\n" + STREAM):
            model, usage = read(
                [*in_pieces_of(100, broken), rest],
                is_stream=True,
                content_encoding=content_encoding,
            )
            assert model == MODEL
            assert usage.input_tokens == 25


class Shape(NamedTuple):
    """A message, and what it tells that it consumed."""

    document: Document
    told: Usage


def shape(told: Usage, usage: Document, *content: Document, stop_reason: str = "end_turn") -> Shape:
    document = message_document(
        model=MODEL, content=content or [TEXT], stop_reason=stop_reason, usage=usage
    )
    return Shape(document, told)


def iteration(kind: str, model: str | None, usage: Usage, **more: object) -> Document:
    """An entry of ``iterations``, with the counts of `usage` that are told."""
    counts = {name: count for name, count in asdict(usage).items() if type(count) is int}
    return {"type": kind, **({"model": model} if model else {}), **counts, **more}


TEXT = {"type": "text", "text": "Grüße, 世界 😀"}
DECLINED = "claude-fable-5-1"
ADVISOR = "claude-opus-5-5"
FALLBACK = {"type": "fallback", "from": {"model": DECLINED}, "to": {"model": MODEL}}
ADVICE = Usage(200_000, 5000, 0, 0)
TEN = {"input_tokens": 10, "output_tokens": 1}
SHAPES = {
    "plain": shape(Usage(25, 15), {"input_tokens": 25, "output_tokens": 15}),
    "zeros": shape(Usage(0, 0), {"input_tokens": 0, "output_tokens": 0}),
    "cache": shape(
        Usage(3, 15, 20_000, 5000, 2000),
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 5000,
            "cache_read_input_tokens": 20_000,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 3000,
                "ephemeral_1h_input_tokens": 2000,
            },
            "output_tokens": 15,
            "service_tier": "standard",
        },
    ),
    "no cache": shape(
        Usage(25, 15, 0, 0),
        {
            "input_tokens": 25,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": None,
            "server_tool_use": None,
            "output_tokens": 15,
        },
    ),
    "server tools": shape(
        Usage(700, 80, web_search_requests=3, web_fetch_requests=2),
        {
            "input_tokens": 700,
            "output_tokens": 80,
            "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 2},
        },
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"q": "x"}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "srvtoolu_1",
            "content": [
                {"type": "web_search_result", "title": '"usage": message_stop', "url": "x"}
            ],
        },
        TEXT,
        stop_reason="pause_turn",
    ),
    "tool use": shape(
        Usage(30, 60),
        {"input_tokens": 30, "output_tokens": 60},
        TEXT,
        {
            "type": "tool_use",
            "id": "toolu_1",
            "name": "f",
            "input": {"usage": {"output_tokens": 9}, "type": "message_stop"},
        },
        stop_reason="tool_use",
    ),
    "thinking": shape(
        Usage(30, 400),
        {
            "input_tokens": 30,
            "output_tokens": 400,
            "output_tokens_details": {"thinking_tokens": 300},
        },
        {"type": "thinking", "thinking": "Hm. So it is.", "signature": "EqoBCkgIARABGAIiQA=="},
        TEXT,
    ),
    "refusal": shape(Usage(30, 2), {"input_tokens": 30, "output_tokens": 2}, stop_reason="refusal"),
    "advisor": shape(
        Usage(10, 1, others=(ModelUsage(ADVISOR, ADVICE), ModelUsage(ADVISOR, Usage(7, 8)))),
        {
            **TEN,
            "iterations": [
                iteration("message", None, Usage(10, 1)),
                iteration("advisor_message", ADVISOR, ADVICE),
                iteration("message", f"{MODEL}-20260901", Usage(10, 1)),
                iteration("advisor_message", ADVISOR, Usage(7, 8)),
            ],
        },
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "advisor", "input": {}},
        TEXT,
    ),
    "compaction": shape(
        Usage(10, 1, others=(ModelUsage(MODEL, Usage(150_000, 3000, 7)),)),
        {
            **TEN,
            "iterations": [
                iteration("compaction", None, Usage(150_000, 3000, 7)),
                iteration("message", MODEL, Usage(10, 1)),
            ],
        },
        {"type": "compaction", "content": "What was said."},
        TEXT,
    ),
    "fallback": shape(
        Usage(10, 1, others=(ModelUsage(DECLINED, Usage(408, 299, 560_186)),)),
        {
            **TEN,
            "iterations": [
                iteration("message", DECLINED, Usage(408, 299, 560_186)),
                iteration("message", MODEL, Usage(4, 1)),
                iteration("fallback_message", MODEL, Usage(6, 0)),
            ],
        },
        TEXT,
        FALLBACK,
        TEXT,
    ),
    "fallback before any output": shape(
        Usage(10, 1),
        {
            **TEN,
            "iterations": [
                iteration("message", DECLINED, Usage(408, 0)),
                iteration("fallback_message", MODEL, Usage(10, 1)),
            ],
        },
        FALLBACK,
        TEXT,
    ),
    "iterations that make no sense": shape(
        Usage(
            10, 1, others=(ModelUsage(ADVISOR, Usage()), ModelUsage(None, Usage(output_tokens=9)))
        ),
        {
            **TEN,
            "iterations": [
                {"type": "advisor_message", "model": ADVISOR, "input_tokens": "many"},
                {"type": "of_tomorrow", "output_tokens": 9},
            ],
        },
    ),
    "lifetimes by iteration": shape(
        Usage(10, 1, None, 500, 300),
        {
            **TEN,
            "cache_creation_input_tokens": 500,
            "iterations": [
                iteration("message", None, Usage(5, 0), cache_creation=lifetimes)
                for lifetimes in ({"ephemeral_1h_input_tokens": 300}, {})
            ],
        },
    ),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip_streamed,
    "br": brotli_streamed,
    "zstd": zstd_streamed,
}


@pytest.mark.parametrize("content_encoding", PACKERS)
@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_split_at_every_byte(name: str, is_stream: bool, content_encoding: str) -> None:
    document, told = SHAPES[name]
    body = b"".join(message_events(document)) if is_stream else dump(document)
    packed = PACKERS[content_encoding](body)
    for cut in range(len(packed) + 1):
        reader = UsageReader(is_stream=is_stream, content_encoding=content_encoding)
        reader.feed(packed[:cut])
        reader.feed(packed[cut:])
        reader.finish()
        assert reader.usage == told
        assert reader.model == MODEL
        assert reader.stop_reason == document["stop_reason"]
        assert (reader.first_token_at is not None) == is_stream


@pytest.mark.parametrize(
    ("one_hour", "told", "kept"), [(9, 900, 900), (4, 900, 4), (0, 900, 0), (9, None, 9)]
)
def test_growth_of_cache_writes_lives_as_long_as_what_it_adds_to(
    one_hour: int, told: int | None, kept: int
) -> None:
    lifetimes = {"ephemeral_1h_input_tokens": one_hour, "ephemeral_5m_input_tokens": 9 - one_hour}
    start = {"cache_creation_input_tokens": 9, "cache_creation": lifetimes}
    growth = {"cache_creation_input_tokens": told, "output_tokens": 5}
    _, usage = read_stream(message_start(start), message_delta(growth), message_delta(growth))
    assert usage == Usage(None, 5, None, told or 9, kept)


def test_figures_of_server_tools_and_of_the_cache_are_cumulative_too() -> None:
    _, usage = read_stream(
        message_start(
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_1h_input_tokens": 9},
                "output_tokens": 1,
            }
        ),
        message_delta({"server_tool_use": {"web_search_requests": 1}, "output_tokens": 20}),
        message_delta(
            {
                "input_tokens": 900,
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
                "output_tokens": 50,
            }
        ),
    )
    assert usage == Usage(900, 50, None, 9, 9, 2, 1)


def test_the_first_token_is_the_first_piece_of_content() -> None:
    reader = UsageReader(is_stream=True)
    told = []
    start = message_start({"input_tokens": 1}) + event("ping", {})
    for piece in (start, content_event("x")[:-1], b"\n", content_event("y") + MESSAGE_STOP):
        before = time.monotonic()
        reader.feed(piece)
        at = reader.first_token_at
        told.append(None if at is None else before <= at <= time.monotonic())
    assert told == [None, None, True, False]


class TestTruncated:
    """What had been seen, marked as partial: never less than was told, and never nothing of it."""

    def test_stream_tells_what_was_seen_till_then(self) -> None:
        """By hand: the last figure told, or a token for four bytes of content if that is more."""
        start = message_start({"input_tokens": 25, "output_tokens": 1})
        hundred = content_event("x" * 400)
        cases = [
            (b"", Usage(partial=True)),
            (start[:-1], Usage(partial=True)),
            (start, Usage(25, 1, partial=True)),
            (start + content_event(""), Usage(25, 1, partial=True)),
            (start + content_event("x"), Usage(25, 1, partial=True)),
            (start + content_event("x" * 4), Usage(25, 1, partial=True)),
            (start + content_event("x" * 5), Usage(25, 2, partial=True)),
            (start + hundred, Usage(25, 100, partial=True)),
            (start + hundred + event("ping", {}), Usage(25, 100, partial=True)),
            (start + hundred * 3, Usage(25, 300, partial=True)),
            (start + hundred * 3 + MESSAGE_STOP, Usage(25, 1)),
            (start + hundred + message_delta({"output_tokens": 90}), Usage(25, 100, partial=True)),
            (start + hundred + message_delta({"output_tokens": 110}), Usage(25, 110, partial=True)),
            (
                start + hundred + message_delta({"output_tokens": 90}) + MESSAGE_STOP,
                Usage(25, 90),
            ),
            (start + event("error", {"error": {"type": "api_error"}}), Usage(25, 1, partial=True)),
            (hundred, Usage(None, 100, partial=True)),
        ]
        for body, expected in cases:
            assert read([body], is_stream=True)[1] == expected, body
            assert read(in_pieces_of(1, body), is_stream=True)[1] == expected, body

    def test_stream_cut_at_every_byte(self) -> None:
        start = message_start({"input_tokens": 25, "output_tokens": 1})
        first = b"".join(text_delta("some text that is told piece by piece ") for _ in range(4))
        last = message_delta({"output_tokens": 90})
        body = start + first + event("ping", {}) + last + MESSAGE_STOP
        before: list[int] = [0]
        for cut in range(len(body) + 1):
            model, usage = read([body[:cut]], is_stream=True)
            assert (model, usage) == read(in_pieces_of(1, body[:cut]), is_stream=True), cut
            assert model == (MODEL if cut >= len(start) else None)
            assert usage.input_tokens == (25 if cut >= len(start) else None)
            assert usage.partial == (cut < len(body))
            told = 1 if cut >= len(start) else 0
            told = 90 if cut >= len(body) - len(MESSAGE_STOP) else told
            before.append(usage.output_tokens or 0)
            assert before[-1] >= max(before[-2], told)
        assert usage == Usage(25, 90)
        # the 152 bytes of text, a quarter of them, and a little for the form of their events
        seen = before[len(start + first) + 1]
        assert 38 <= seen <= 38 + 4 * 10

    def test_stream_cut_after_a_fallback_tells_both_attempts(self) -> None:
        counts = {"input_tokens": 25, "cache_read_input_tokens": 3, "output_tokens": 1}
        to_next = event(
            "content_block_start", {"content_block": {**FALLBACK, "to": {"model": ADVISOR}}}
        )
        start, hundred = message_start(counts), content_event("x" * 400)
        declined = ModelUsage(MODEL, Usage(25, 100, 3, partial=True))
        for body, expected in (
            (start + to_next, Usage(25, None, 3, partial=True)),
            (start + hundred + to_next, Usage(25, None, 3, partial=True, others=(declined,))),
            (
                start + hundred + to_next + hundred * 2,
                Usage(25, 200, 3, partial=True, others=(declined,)),
            ),
            (
                start + hundred + to_next + message_delta({"output_tokens": 90}) + MESSAGE_STOP,
                Usage(25, 90, 3, others=(declined,)),
            ),
        ):
            assert read_stream_cut(body) == (ADVISOR, expected)

    @pytest.mark.parametrize(
        "block",
        [{"type": "server_tool_use", "name": "advisor"}, {"type": "compaction", "content": None}],
        ids=["advisor", "compaction"],
    )
    def test_stream_cut_before_its_iterations_has_an_unknown_part(self, block: Document) -> None:
        begun = message_start(TEN) + event("content_block_start", {"content_block": block})
        unknown = ModelUsage(None, Usage(partial=True))
        assert read_stream_cut(begun)[1] == Usage(10, 1, partial=True, others=(unknown,))
        reported = message_delta({"output_tokens": 5, "iterations": []})
        assert read_stream_cut(begun + reported)[1] == Usage(10, 5, partial=True)

    @pytest.mark.parametrize("name", ["advisor", "compaction", "fallback"])
    def test_word_in_a_clients_tool_spends_nothing(self, name: str) -> None:
        block = {"type": "tool_use", "name": name, "input": {"type": name}}
        body = message_start(TEN) + event("content_block_start", {"content_block": block})
        assert read_stream_cut(body) == (MODEL, Usage(10, 1, partial=True))

    @pytest.mark.parametrize("size", [1, 1000, 10 * MEGABYTE])
    def test_stream_cut_after_an_event_that_is_too_long(self, size: int) -> None:
        start = message_start({"input_tokens": 25, "output_tokens": 1})
        long = content_event("x" * (2 * MAX_EVENT))
        expected = Usage(25, MAX_EVENT // 2, partial=True)
        assert read(in_pieces_of(size, start + long), is_stream=True)[1] == expected
        assert read(in_pieces_of(size, start + long[:-2]), is_stream=True)[1] == expected
        _, usage = read(in_pieces_of(size, start + long[:-1000]), is_stream=True)
        assert MAX_EVENT // 2 - 300 < (usage.output_tokens or 0) < MAX_EVENT // 2

    @pytest.mark.parametrize(
        "form",
        [
            b"data: {DATA}\n\n",
            b"event:content_block_delta\ndata:{DATA}\n\n",
            b"data: {DATA}\nevent: content_block_delta\n\n",
            b"id: 7\nevent: content_block_delta\r\ndata: {DATA}\r\n\r\n",
        ],
    )
    def test_content_in_an_unusual_form_is_seen(self, form: bytes) -> None:
        delta = {"type": "text_delta", "text": "x" * 4000}
        data = dump({"type": "content_block_delta", "index": 0, "delta": delta})
        _, usage = read([form.replace(b"{DATA}", data)], is_stream=True)
        assert 990 < (usage.output_tokens or 0) < 1010

    @pytest.mark.parametrize("form", [b"data: {DATA}\n\n", b"event:message_stop\ndata:{DATA}\n\n"])
    def test_an_end_in_an_unusual_form_is_seen(self, form: bytes) -> None:
        stop = form.replace(b"{DATA}", b'{"type": "message_stop"}')
        assert read([message_start({"input_tokens": 25}), stop], is_stream=True)[1] == Usage(25)

    def test_words_of_an_answer_are_not_its_end(self) -> None:
        start = message_start({"input_tokens": 25})
        words = 'event: message_stop\ndata: {"type": "message_stop"}'
        found = {"type": "web_search_tool_result", "content": [{"title": words}]}
        for part in (
            content_event(words),
            event("content_block_start", {"index": 0, "content_block": found}),
            event("x", {"message_stop": "message_stop"}),
            b": message_stop\n\n",
        ):
            assert read([start, part], is_stream=True)[1].partial

    def test_document_tells_that_there_was_more(self) -> None:
        for cut in range(len(MESSAGE)):
            assert read([MESSAGE[:cut]]) == (None, Usage(partial=True))

    @pytest.mark.parametrize("name", ["gzip flushed", "br flushed", "zstd flushed"])
    def test_compressed_stream_tells_what_was_seen_till_then(self, name: str) -> None:
        content_encoding, pack = ENCODINGS[name]
        packed = pack(STREAM)
        told = [
            read([packed[:cut]], is_stream=True, content_encoding=content_encoding)[1]
            for cut in range(len(packed) + 1)
        ]
        counts = [usage.output_tokens for usage in told]
        assert counts[0] is None
        assert {1, 7, 15} <= set(counts)
        assert [count or 0 for count in counts] == sorted(count or 0 for count in counts)
        assert told[0] == Usage(partial=True)
        assert told[-1] == TOLD
        assert [usage.partial for usage in told] == sorted(
            (usage.partial for usage in told), reverse=True
        )


class TestOversized:
    """What is too long is passed over, and what follows it is read."""

    @pytest.mark.parametrize("size", [1, 2, 3, 1000, 65536, 10 * MEGABYTE])
    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
    def test_event(self, size: int, line_end: bytes) -> None:
        if size < 1000:
            long = text_delta("x" * (MAX_EVENT + 10))
        else:
            long = text_delta("x" * (5 * MAX_EVENT))
        body = message_start({"input_tokens": 1}) + long + message_delta({"output_tokens": 2})
        body = (body + MESSAGE_STOP).replace(b"\n", line_end)
        assert read(in_pieces_of(size, body), is_stream=True) == (MODEL, Usage(1, 2))

    def test_event_whose_end_comes_with_others(self) -> None:
        """The rest of a long event, the last figures and the end in one piece."""
        long = text_delta("x" * (2 * MAX_EVENT))
        cut = len(long) - 100
        last = message_delta({"output_tokens": 2}) + event("message_stop", {})
        start = message_start({"input_tokens": 1})
        assert read_stream(start, long[:cut], long[cut:] + last) == (MODEL, Usage(1, 2))
        assert read_stream(start + long[:cut], long[cut:] + last) == (MODEL, Usage(1, 2))

    def test_several_events(self) -> None:
        long = text_delta("x" * (2 * MAX_EVENT))
        body = b"".join(
            part for number in range(5) for part in (long, message_delta({"output_tokens": number}))
        )
        pieces = in_pieces_of(5000, body + MESSAGE_STOP)
        assert read(pieces, is_stream=True)[1] == Usage(output_tokens=4)

    def test_event_is_passed_over_whole(self) -> None:
        """Its rest is not taken for an event of its own."""
        padding = "x" * (2 * MAX_EVENT)
        long = event("x", {"padding": padding, "usage": {"output_tokens": 9}})
        rest = b'\ndata: {"usage": {"output_tokens": 9}}\n\n'
        pieces = in_pieces_of(1000, long[:-2] + rest + MESSAGE_STOP)
        assert read(pieces, is_stream=True) == (None, Usage())

    @pytest.mark.parametrize(
        "end",
        [
            {"stop_reason": "end_turn", "usage": {"output_tokens": 5}},
            {"usage": {"output_tokens": 5}, "stop_reason": "end_turn"},
            {"usage": {"output_tokens": 5, "x": {"usage": {"output_tokens": 9}}}, "x": ["usage"]},
        ],
    )
    @pytest.mark.parametrize("size", [1000, 65536, 10 * MEGABYTE])
    def test_document_is_read_at_both_ends(self, size: int, end: dict[str, Any]) -> None:
        block = {"type": "tool_use", "input": {"usage": {"output_tokens": 9}, "model": "x"}}
        content = [block, {"type": "text", "text": "x" * MAX_JSON + '"usage"'}, block]
        reader = UsageReader(is_stream=False)
        for piece in in_pieces_of(size, dump({"model": MODEL, "content": content, **end})):
            reader.feed(piece)
        reader.finish()
        assert (reader.model, reader.usage) == (MODEL, Usage(output_tokens=5))
        assert reader.stop_reason == end.get("stop_reason")

    @pytest.mark.parametrize("cut", [-1, -20, -70_000])
    def test_cut_document_has_no_usage(self, cut: int) -> None:
        content = [
            {"type": "tool_use", "input": {"usage": {"output_tokens": 9}}},
            "x" * 2 * MAX_JSON,
        ]
        document = dump({"model": MODEL, "content": content, "usage": {"output_tokens": 5}})
        assert read(in_pieces_of(65536, document[:cut])) == (MODEL, Usage(partial=True))

    def test_document_of_just_the_largest_size(self) -> None:
        document = dump({"model": MODEL, "usage": {"output_tokens": 5}}).ljust(MAX_JSON)
        assert read(in_pieces_of(65536, document)) == (MODEL, Usage(output_tokens=5))
        assert read([document, b" "]) == (None, Usage(partial=True))


def peak_while_feeding(reader: UsageReader, pieces: Iterable[bytes]) -> int:
    """The most memory that reading took beyond the pieces themselves, in bytes."""
    tracemalloc.start()
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.finish()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestMemory:
    @pytest.mark.parametrize("size", [10, 65536])
    def test_a_document_without_end(self, size: int) -> None:
        piece = b"x" * size
        reader = UsageReader(is_stream=False)
        pieces = (piece for _ in range(2 * MAX_JSON // size))
        assert peak_while_feeding(reader, pieces) < 3 * MAX_JSON

    @pytest.mark.parametrize("size", [10, 65536])
    def test_an_event_without_end(self, size: int) -> None:
        piece = b"x" * size
        reader = UsageReader(is_stream=True)
        pieces = (piece for _ in range(20 * MAX_EVENT // size))
        assert peak_while_feeding(reader, pieces) < 8 * MAX_EVENT

    @pytest.mark.parametrize("is_stream", [False, True])
    @pytest.mark.parametrize("unit", [b"\0", b"data: " + b"x" * 3000 + b"\n\n"])
    @pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
    def test_a_decompression_bomb(self, name: str, unit: bytes, is_stream: bool) -> None:
        content_encoding, pack = ENCODINGS[name]
        bomb = pack(unit * (64 * MEGABYTE // len(unit)))
        assert len(bomb) < MEGABYTE
        reader = UsageReader(is_stream=is_stream, content_encoding=content_encoding)
        assert peak_while_feeding(reader, [bomb]) < 8 * MEGABYTE

    @pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
    def test_after_a_bomb_nothing_more_is_read(self, name: str) -> None:
        content_encoding, pack = ENCODINGS[name]
        start = message_start({"input_tokens": 25})
        bomb = pack(
            start + b":".ljust(MAX_DECOMPRESSED) + b"\n\n" + message_delta({"output_tokens": 9})
        )
        told = read([bomb, STREAM], is_stream=True, content_encoding=content_encoding)
        assert told == (MODEL, Usage(input_tokens=25, partial=True))

    @pytest.mark.parametrize("content_encoding", ["gzip", "br", "zstd"])
    def test_what_follows_the_end_of_a_compressed_body(self, content_encoding: str) -> None:
        packed = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstd}[content_encoding]
        reader = UsageReader(is_stream=True, content_encoding=content_encoding)
        reader.feed(packed(STREAM))
        garbage = b"x" * 65536
        assert peak_while_feeding(reader, (garbage for _ in range(100))) < MEGABYTE
        assert (reader.model, reader.usage) == (MODEL, TOLD)

    def test_a_zstd_window_as_large_as_the_format_allows(self) -> None:
        """Decoders need not take windows over 8 MB (RFC 9659), which the sender chooses."""
        parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        packed = packer.compress(STREAM) + packer.flush()
        assert read([packed], is_stream=True, content_encoding="zstd") == (
            None,
            Usage(partial=True),
        )


class TestForAnswer:
    @pytest.mark.parametrize(
        "content_type", ["application/json", "Application/JSON; charset=utf-8"]
    )
    def test_a_document(self, content_type: str) -> None:
        reader = UsageReader.for_response(HTTPHeaders({"Content-Type": content_type}))
        assert reader is not None
        reader.feed(MESSAGE)
        reader.finish()
        assert reader.usage == TOLD

    @pytest.mark.parametrize(
        "content_type", ["text/event-stream", "Text/Event-Stream; charset=utf-8"]
    )
    def test_a_stream(self, content_type: str) -> None:
        reader = UsageReader.for_response(HTTPHeaders({"Content-Type": content_type}))
        assert reader is not None
        reader.feed(STREAM)
        assert reader.usage == TOLD

    @pytest.mark.parametrize(
        "content_encoding", ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity"]
    )
    def test_a_compressed_one(self, content_encoding: str) -> None:
        packers: dict[str, Callable[[bytes], bytes]] = {
            "gzip": gzip.compress,
            "x-gzip": gzip.compress,
            "deflate": zlib.compress,
            "br": brotli.compress,
            "zstd": zstd,
            "identity": bytes,
        }
        headers = HTTPHeaders(
            {"Content-Type": "application/json", "Content-Encoding": content_encoding}
        )
        reader = UsageReader.for_response(headers)
        assert reader is not None
        reader.feed(packers[content_encoding.lower()](MESSAGE))
        reader.finish()
        assert (reader.model, reader.usage) == (MODEL, TOLD)

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Type": "text/html"},
            {"Content-Type": "application/x-jsonl"},
            {"Content-Type": "application/json", "Content-Encoding": "compress"},
            {"Content-Type": "application/json", "Content-Encoding": "gzip, br"},
            {"Content-Type": "text/event-stream", "Content-Encoding": "x-of-tomorrow"},
        ],
    )
    def test_what_cannot_be_read(self, headers: dict[str, str]) -> None:
        assert UsageReader.for_response(HTTPHeaders(headers)) is None

    @pytest.mark.parametrize(("package", "encoding"), [("brotli", "br"), ("zstandard", "zstd")])
    def test_an_encoding_whose_package_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch, package: str, encoding: str
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        headers = HTTPHeaders({"Content-Type": "application/json", "Content-Encoding": encoding})
        assert UsageReader.for_response(headers) is None
