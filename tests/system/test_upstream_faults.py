"""Faulty responses of the upstream, and what a client of either API sees of each.

A fault happens before the response's head, in it, or in its body. What the client sees depends on
how it asked:

=============== ============================== ================================================
 asked for       the head was not whole         the body was not whole
=============== ============================== ================================================
Anthropic JSON  an error document, 502 or 504  the part that came, and the connection cut
Anthropic SSE   the same                       the part that came, ``event: error``, and a cut
OpenAI JSON     the same, in OpenAI's shape    an error document: nothing has been sent yet
OpenAI SSE      the same, in OpenAI's shape    chunks of it, ``data: {"error": …}``, and a cut
=============== ============================== ================================================

Each time there is one record, the upstream connection is closed, and the next request is served.
tests/upstream has all that is not HTTP, and certificates; tests/handlers has responses whose
framing is whole, and whose content is not.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pytest
import uvloop
from damage import damaged
from scene import Scene
from served import CHAT_PATH, MESSAGE_FIELDS, anthropic_error, openai_error, request

from tornadoproxy.testing import (
    Document,
    RawConnection,
    RawResponse,
    Response,
    Truncated,
    json_response,
    message_document,
    message_events,
    raw_response,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged", "proxy")

Seen: TypeAlias = RawResponse | Truncated

TEXT = "Half of this answer will do."
EVENTS = message_events(message_document(TEXT))
JSON = json.dumps(message_document(TEXT)).encode()
OK = b"HTTP/1.1 200 OK\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Hint: 1\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"

WITHIN = 1.0
"""How soon after a fault all of its consequences are there, in seconds: they come within a few
milliseconds, and the rest is for a machine that is busy with other things."""

SILENCE = 0.3
"""How long the upstream may be silent, in seconds, where that is the fault. The next response may
take no longer than that, also on a busy machine."""


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.long)])
def asyncio_loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoop:
    """Either loop. All of it together takes long enough for one of them to be left for later."""
    return uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def length(number: int) -> bytes:
    return b"Content-Length: %d" % number


# -- what a client asks for, and what it sees


@dataclass(frozen=True)
class Way:
    """How a client asks: its request, and the upstream's response to it."""

    dialect: str
    stream: bool

    @property
    def request(self) -> bytes:
        path = "/v1/messages" if self.dialect == "anthropic" else CHAT_PATH
        body = json.dumps({**MESSAGE_FIELDS, "stream": self.stream}).encode()
        return request("POST", path, body=body)

    @property
    def body(self) -> bytes:
        return b"".join(EVENTS) if self.stream else JSON

    @property
    def part(self) -> bytes:
        """The first half of the body; that of a stream ends within an event."""
        return b"".join(EVENTS[:6])[:-20] if self.stream else JSON[: len(JSON) // 2]

    def head(self, *lines: bytes) -> bytes:
        """The response's head, with these further lines."""
        kind = b"text/event-stream" if self.stream else b"application/json"
        return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Type: " + kind, *lines, b"", b""])


WAYS = [Way(dialect, stream) for dialect in ("anthropic", "openai") for stream in (False, True)]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way.dialect} {'SSE' if way.stream else 'JSON'}")
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    return way


def chunks_of(stream: bytes) -> list[Document]:
    """The data of each event, all of them JSON; comments are passed over."""
    *events, rest = stream.replace(b": ping\n\n", b"").split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def text_of(chunks: list[Document]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def check_whole(way: Way, seen: Seen) -> None:
    """The client sees the upstream's response, and nothing besides."""
    assert isinstance(seen, RawResponse)
    assert (seen.status, seen.interim) == (200, [])
    if way.dialect == "anthropic":
        assert seen.body == way.body
    elif way.stream:
        chunks, done, rest = seen.body.partition(b"data: [DONE]\n\n")
        assert (text_of(chunks_of(chunks)), bool(done), rest) == (TEXT, True, b"")
    else:
        assert json.loads(seen.body)["choices"][0]["message"]["content"] == TEXT


def check_refused(way: Way, seen: Seen, status: int = 502) -> None:
    """The client sees an error document of the proxy's own."""
    assert isinstance(seen, RawResponse)
    assert seen.interim == []
    if way.dialect == "anthropic":
        anthropic_error(seen, status, {502: "api_error", 504: "timeout_error"}[status])
    else:
        openai_error(seen, status, "server_error")


def check_broken(way: Way, seen: Seen, sent: bytes, status: int = 502) -> None:
    """The client sees that the body broke off after `sent`, and cannot take it for the whole."""
    if way.dialect == "openai" and not way.stream:
        check_refused(way, seen, status)
        return
    assert isinstance(seen, Truncated)
    assert seen.response is not None
    assert (seen.response.status, seen.response.interim) == (200, [])
    body = seen.response.body
    if not way.stream:
        assert body == sent
    elif way.dialect == "anthropic":
        before, _, last = body.rpartition(b"event: error\ndata: ")
        assert before.startswith(sent)
        assert before == b"" or before.endswith(b"\n\n")
        assert last.endswith(b"\n\n")
        assert json.loads(last)["error"]["type"] == "api_error"
    else:
        *chunks, last_chunk = chunks_of(body)
        assert last_chunk["error"]["type"] == "server_error"
        assert TEXT.startswith(text_of(chunks))
        assert bool(text_of(chunks)) == (b"text_delta" in sent)


async def result(client: RawConnection, seconds: float = WITHIN) -> Seen:
    async with asyncio.timeout(seconds):
        try:
            return await client.response()
        except Truncated as cut:
            return cut


async def check_next(way: Way, scene: Scene, client: RawConnection, seen: Seen) -> None:
    """The next request is served, on the same connection if that is left; each is recorded once."""
    scene.upstream.script(raw_response(way.head(CHUNKED) + chunk(way.body) + LAST_CHUNK))
    if isinstance(seen, Truncated):
        client = await scene.raw()
    await client.send(way.request)
    check_whole(way, await result(client))
    record = await scene.records.finished(len(scene.upstream.requests))
    assert record.outcome == "completed"
    assert len(scene.records.all) == len(scene.upstream.requests)


async def see(way: Way, scene: Scene, response: Response) -> tuple[RawConnection, Seen]:
    """Return a new client's connection, and what it sees of the upstream's `response`."""
    scene.upstream.script(response)
    client = await scene.send(way.request)
    return client, await result(client)


async def see_failure(way: Way, scene: Scene, response: Response) -> Seen:
    """Return what a client sees of a `response` that fails, once all consequences are checked."""
    client, seen = await see(way, scene, response)
    async with asyncio.timeout(WITHIN):
        record = await scene.records.finished(len(scene.upstream.requests))
        await scene.upstream.all_closed()
    shown = seen.response if isinstance(seen, Truncated) else seen
    assert shown is not None
    assert (record.outcome, record.status) == ("failed", shown.status)
    assert record.error
    assert record.dialect == way.dialect
    await check_next(way, scene, client, seen)
    return seen


# -- faults

HEAD_MOMENTS = {
    "before the head": b"",
    "in the status line": b"HTTP/1.1 20",
    "in a header": OK + b"Content-Ty",
    "after 103": HINT,
}
HEAD_FAULTS = {
    **{f"FIN {when}": raw_response(sent, end="close") for when, sent in HEAD_MOMENTS.items()},
    **{f"RST {when}": raw_response(sent, end="reset") for when, sent in HEAD_MOMENTS.items()},
    # the connection stays open: the proxy has to see that nothing valid will follow
    "garbage after 103": raw_response(HINT + b"\0so long\r\n\r\n", end="hang"),
    # a head of a megabyte is refused at the latest
    "endless headers": raw_response(OK, *[b"X: " + b"x" * 4000 + b"\r\n"] * 256, end="hang"),
}


async def test_fault_in_upstream_head_is_502(
    way: Way, scene: Scene, subtests: pytest.Subtests
) -> None:
    for name, fault in HEAD_FAULTS.items():
        with subtests.test(name):
            check_refused(way, await see_failure(way, scene, fault))


def begun_bodies(way: Way, part: bytes) -> dict[str, tuple[bytes, bytes]]:
    """The head and what has come of the body, framed in each way."""
    return {
        # room for the error is in this length, and in none that is a stream's own
        "a length": (way.head(length(len(way.body) + 1000)), part),
        "chunks": (way.head(CHUNKED), chunk(part)),
        "a chunk": (way.head(CHUNKED), b"%x\r\n" % len(way.body) + part),
        "to the close": (way.head(), part),
    }


async def test_fault_in_upstream_body_is_cut_or_502(
    way: Way, scene: Scene, subtests: pytest.Subtests
) -> None:
    begun = way.head(CHUNKED) + chunk(way.part)
    faults = [
        (f"{framing}, {end}, {len(part)} bytes", part, raw_response(head, body, end=end))
        for part in (b"", way.part)
        for framing, (head, body) in begun_bodies(way, part).items()
        for end in ("close", "reset")
        if (framing, end) != ("to the close", "close")  # which is how such a body ends
    ]
    faults += [
        ("all at once", way.part, raw_response(begun, end="close")),
        ("a malformed chunk", way.part, raw_response(begun + b"so long\r\n", end="hang")),
        ("a trailer", way.part, raw_response(begun + b"0\r\nso long\r\n\r\n", end="hang")),
    ]
    for name, part, fault in faults:
        with subtests.test(name):
            check_broken(way, await see_failure(way, scene, fault), part)


async def test_truncated_error_of_upstream_is_cut_or_502(way: Way, scene: Scene) -> None:
    head = (
        b"HTTP/1.1 529 Overloaded\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    )
    seen = await see_failure(way, scene, raw_response(head, b'{"type":"error",', end="close"))
    if way.dialect == "anthropic":
        assert isinstance(seen, Truncated)
        assert seen.response is not None
        assert (seen.response.status, seen.response.body) == (529, b'{"type":"error",')
    else:
        check_refused(way, seen)


async def test_upstream_silence_is_504_or_cut_at_each_moment(
    way: Way, scene: Scene, subtests: pytest.Subtests
) -> None:
    """All of them at the same time, which takes no longer than one."""
    await scene.start(UPSTREAM_FIRST_BYTE_TIMEOUT=SILENCE, UPSTREAM_IDLE_TIMEOUT=SILENCE)
    moments: list[tuple[bytes | None, tuple[bytes, ...]]] = [
        *((None, (sent,)) for sent in HEAD_MOMENTS.values()),
        *((part, sent) for part in (b"", way.part) for sent in begun_bodies(way, part).values()),
    ]
    clients = []
    for number, (_, sent) in enumerate(moments, 1):
        scene.upstream.script(raw_response(*sent, end="hang"))
        clients.append(await scene.send(way.request))
        await scene.upstream.received(number)
    seen = [await result(client, SILENCE + WITHIN) for client in clients]
    async with asyncio.timeout(WITHIN):
        await scene.records.finished(len(moments))
        await scene.upstream.all_closed()
    assert {record.outcome for record in scene.records.all} == {"failed"}
    for (part, sent), client, each in zip(moments, clients, seen, strict=True):
        with subtests.test(sent=sent):
            if part is None:
                check_refused(way, each, 504)
            else:
                check_broken(way, each, part, 504)
            await check_next(way, scene, client, each)


async def test_silent_handshake_with_upstream_is_504(way: Way, scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        await scene.start(UPSTREAM_BASE_URL=url, UPSTREAM_CONNECT_TIMEOUT=SILENCE)
        client = await scene.send(way.request)
        check_refused(way, await result(client, SILENCE + WITHIN), 504)
    assert (await scene.records.finished()).outcome == "failed"


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (raw_response(OK + b"Content-Length: 5\r\n\r\n<html"), 502),
        (raw_response(b"HTTP/1.1 204 No Content\r\n\r\n"), 502),
        (json_response([]), 502),
        (json_response({"data": [{"id": "a"}], "has_more": True, "last_id": "\ud800"}), 200),
        (json_response({"data": [{"id": "a\r\nb"}, {"id": "\ud800"}, {"id": None}, 1, []]}), 200),
        (json_response({"data": [{"id": "a", "created_at": 10**300}]}), 200),
    ],
)
async def test_model_list_of_any_shape_is_served_or_502(
    response: Response, status: int, scene: Scene
) -> None:
    scene.upstream.script(response)
    got = await scene.ask("/openai/v1/models")
    assert got.status == status
    if status == 502:
        openai_error(got, status, "server_error")


# -- the client's own fault


async def test_disconnect_at_any_moment_leaves_nothing(
    way: Way, scene: Scene, subtests: pytest.Subtests
) -> None:
    head = way.head(CHUNKED)
    for sent in (b"", head[:20], head, head + chunk(way.part), head + chunk(way.body)):
        for disconnect in (RawConnection.close, RawConnection.reset):
            with subtests.test(sent=sent, how=disconnect.__name__):
                scene.upstream.script(raw_response(sent, end="hang"))
                client = await scene.send(way.request)
                await scene.upstream.received(len(scene.upstream.requests) + 1)
                if len(sent) > 20 and (way.dialect == "anthropic" or way.stream):
                    assert (await client.head()).status == 200
                await disconnect(client)
                async with asyncio.timeout(WITHIN):
                    record = await scene.records.finished(len(scene.upstream.requests))
                    await scene.upstream.all_closed()
                assert record.outcome == "abandoned"


# -- damaged responses, the same in each run: a failure names the number that decides the damage

DAMAGED = [
    *(way.head(length(len(way.body))) + way.body for way in WAYS[:2]),
    *(way.head(CHUNKED) + chunk(way.body) + LAST_CHUNK for way in WAYS[:2]),
    WAYS[1].head(b"Set-Cookie: a=b", b"Connection: keep-alive", b"retry-after: 1") + WAYS[1].body,
    HINT + OK.replace(b"200 OK", b"529 Overloaded") + b"Content-Length: 2\r\n\r\n{}",
    OK.replace(b"200 OK", b"302 Found") + b"Location: http://127.0.0.1:1/\r\n\r\n",
]
WELL_FORMED = re.compile(
    rb"HTTP/1\.1 [1-9][0-9]{2} [\t\x20-\x7e\x80-\xff]*\r\n"
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+: ?[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.gen_test(timeout=200)
@pytest.mark.timeout(240)
async def test_damaged_response_is_relayed_cut_or_refused(
    count: int, way: Way, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    ends: Counter[object] = Counter()
    for number in range(count):
        pick = random.Random(number)
        sent = damaged(pick.choice(DAMAGED), pick, DAMAGED)
        end: Literal["close", "reset"] = "reset" if pick.random() < 1 / 3 else "close"
        client, seen = await see(way, scene, raw_response(sent, end=end))
        shown = seen.response if isinstance(seen, Truncated) else seen
        assert shown is not None, number
        assert WELL_FORMED.fullmatch(shown.raw_head), number
        assert len(shown.all("Content-Length") + shown.all("Transfer-Encoding")) <= 1, number
        assert shown.header("Set-Cookie") is None, number
        assert b"The proxy failed" not in shown.body, number
        ends["cut" if isinstance(seen, Truncated) else shown.status] += 1
        await client.close()
    assert ends.keys() >= {200, 502}  # the damage was neither none nor total
    assert [each for each in caplog.records if each.exc_info] == []
