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
tests/upstream has all that is not HTTP, and certificates.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import uvloop
from damage import damaged
from upstream_scene import (
    CHUNKED,
    LAST_CHUNK,
    SILENCE,
    WAYS,
    WITHIN,
    Fault,
    Scene,
    Way,
    chunk,
    length,
    openai_type,
)

from tornadoproxy.testing import (
    RawResponse,
    ScriptedUpstream,
    Truncated,
    json_response,
    raw_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.testing import Ask, OpenRaw, Proxy, Records, Response, StartProxy

pytest_plugins = ("upstream_scene",)
pytestmark = pytest.mark.usefixtures("no_errors_logged")

OK = b"HTTP/1.1 200 OK\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Hint: 1\r\n\r\n"


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.long)])
def asyncio_loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoop:
    """Either loop. All of it together takes long enough for one of them to be left for later."""
    return uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()


# -- before the head, and in it

HEAD_MOMENTS = {
    "before the head": b"",
    "in the status line": b"HTTP/1.1 20",
    "in a header": OK + b"Content-Ty",
    "after 103": HINT,
}
# the connection stays open: the proxy has to see that nothing valid will follow
NOT_HTTP = {
    "a page": b"<html>hello</html>\r\n",
    "garbage after 103": HINT + b"\0so long\r\n\r\n",
    "a bare LF in a header": OK + b"X-Id: a\nb: c\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x00\x00\x12\x04",
}


def head_faults() -> Iterator[tuple[str, Fault]]:
    for moment, sent in HEAD_MOMENTS.items():
        for end in ("FIN", "RST"):
            yield f"{end} {moment}", Fault(sent, end=end)
    for name, sent in NOT_HTTP.items():
        yield name, Fault(sent)
    # a head of a megabyte is refused at the latest
    yield "endless headers", Fault(OK, *[b"X-Endless: " + b"x" * 4000 + b"\r\n"] * 256)
    yield "endless 103", Fault(*[HINT * 90] * 256)


async def test_fault_in_upstream_head_is_502(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    for name, fault in head_faults():
        with subtests.test(name):
            got = await scene.ask(fault)
            scene.way.check_refused(got)
            await scene.check_failed(got)


# -- in the body

FRAMINGS: dict[str, Callable[[Way, bytes], tuple[bytes, bytes]]] = {
    # room for the error is in this length, and in none that is a stream's own
    "a length": lambda way, part: (way.head(length(len(way.body) + 1000)), part),
    "chunks": lambda way, part: (way.head(CHUNKED), chunk(part)),
    "a chunk": lambda way, part: (way.head(CHUNKED), b"%x\r\n" % len(way.body) + part),
    "to the close": lambda way, part: (way.head(), part),
}


def begun_bodies(way: Way) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """A moment: its name, what has come of the body, the head, and that part framed."""
    for framing, begin in FRAMINGS.items():
        for when, part in (("nothing yet", b""), ("half of it", way.part)):
            yield f"{framing}, {when}", part, *begin(way, part)


def body_faults(way: Way) -> Iterator[tuple[str, bytes, Fault]]:
    """A fault: its name, what has come of the body, and the fault."""
    for moment, part, head, body in begun_bodies(way):
        yield f"RST: {moment}", part, Fault(head, body, end="RST")
        if not moment.startswith("to the close"):  # which is how such a body ends
            yield f"FIN: {moment}", part, Fault(head, body, end="FIN")
            yield f"FIN at once: {moment}", part, Fault(head + body, end="FIN")
    for sent in (b"so long\r\n", b"0\r\nso long\r\n\r\n"):
        yield f"{sent!r}", way.part, Fault(way.head(CHUNKED), chunk(way.part) + sent)


async def test_fault_in_upstream_body_is_cut_or_502(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    for name, part, fault in body_faults(scene.way):
        with subtests.test(name):
            got = await scene.ask(fault)
            scene.way.check_broken(got, part)
            await scene.check_failed(got)


@pytest.mark.parametrize("end", ["FIN", "RST"])
async def test_truncated_error_of_upstream_is_cut_or_502(
    end: str, proxy: Proxy, scene: Scene
) -> None:
    head = (
        b"HTTP/1.1 529 Overloaded\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    )
    got = await scene.ask(Fault(head, b'{"type":"error",', end=end))
    if scene.way.dialect == "anthropic":
        assert isinstance(got, Truncated)
        assert got.response is not None
        assert (got.response.status, got.response.body) == (529, b'{"type":"error",')
    else:
        scene.way.check_refused(got)
    await scene.check_failed(got)


# -- silence


async def test_upstream_silence_is_504_or_cut_at_each_moment(
    way: Way,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    subtests: pytest.Subtests,
) -> None:
    """All of them at the same time, which takes no longer than one."""
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=SILENCE, UPSTREAM_IDLE_TIMEOUT=SILENCE)
    parts = {moment: part for moment, part, *_ in begun_bodies(way)}
    begun = {moment: [sent] for moment, sent in HEAD_MOMENTS.items()}
    begun |= {moment: pieces for moment, _, *pieces in begun_bodies(way)}
    scenes = {moment: Scene(way, raw, upstream, records) for moment in begun}
    for moment, scene in scenes.items():
        fault = Fault(*begun[moment])
        await scene.begin(fault)
        await fault.happened.wait()
    async with asyncio.timeout(SILENCE + WITHIN):
        got = {moment: await scenes[moment].result(patience=SILENCE) for moment in scenes}
        await records.finished(len(scenes))
        await upstream.all_closed()
    statuses = Counter(record.status for record in records.all)
    whole_heads = Counter({200: len(parts)} if way.shows_all else {504: len(parts)})
    assert statuses == Counter({504: len(HEAD_MOMENTS)}) + whole_heads
    assert {record.outcome for record in records.all} == {"failed"}
    for moment, each in got.items():
        with subtests.test(moment):
            if moment in parts:
                way.check_broken(each, parts[moment], 504)
            else:
                way.check_refused(each, 504)
            await scenes[moment].check_next(each)


@pytest.mark.parametrize("status", [502, 504])
async def test_broken_handshake_with_upstream_is_502_or_504(
    status: int, way: Way, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    """The upstream closes the connection at once, or says nothing."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if status == 504:
            await reader.read()
        writer.close()
        over.set()

    server = await asyncio.start_server(serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    await start_proxy(
        UPSTREAM_BASE_URL=f"https://127.0.0.1:{port}", UPSTREAM_CONNECT_TIMEOUT=SILENCE
    )
    client = await raw()
    await client.send(way.request)
    async with asyncio.timeout(SILENCE + WITHIN):
        way.check_refused(await client.response(), status)
        await over.wait()
    assert (await records.finished()).outcome == "failed"
    server.close()


# -- a response whose framing is whole, and whose content is not


def short_responses(way: Way, part: bytes) -> Iterator[tuple[str, Fault]]:
    yield "length", Fault(way.head(length(len(part))), part, end="none")
    yield "chunks", Fault(way.head(CHUNKED), chunk(part) + LAST_CHUNK, end="none")
    yield "close", Fault(way.head(), part, end="FIN")


async def test_short_content_is_passed_on_but_not_translated(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    """A stream that ends within an event at the connection's end may have been cut, too."""
    way = scene.way
    for part in (way.part, b""):
        for framing, response in short_responses(way, part):
            with subtests.test(framing=framing, part=part):
                got = await scene.ask(response)
                cut = way.stream and framing == "close" and part != b""
                broken = way.dialect == "openai" or cut
                if broken:
                    way.check_broken(got, part)
                else:
                    assert isinstance(got, RawResponse)
                    assert (got.status, got.body) == (200, part)
                assert (await scene.record()).outcome == ("failed" if broken else "completed")
                await scene.check_next(got)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (raw_response(OK + b"Content-Length: 5\r\n\r\n<html"), 502),
        (raw_response(b"HTTP/1.1 204 No Content\r\n\r\n"), 502),
        (json_response({"data": []}, 201), 502),
        (json_response([]), 502),
        (json_response({"data": {}}), 502),
        (json_response({"data": [{"id": "a"}], "has_more": True, "last_id": "\ud800"}), 200),
        (json_response({"data": [{"id": "\ud800"}]}), 200),
        (json_response({"data": [{"id": "a\r\nb"}, {"id": ""}, {"id": None}, 1, None, []]}), 200),
        (json_response({"data": [{"id": "a", "created_at": 10**300}]}), 200),
    ],
)
async def test_model_list_of_any_shape_is_served_or_502(
    response: Response, status: int, proxy: Proxy, ask: Ask, upstream: ScriptedUpstream
) -> None:
    upstream.script(response)
    got = await ask("/openai/v1/models")
    assert got.status == status
    if status == 502:
        assert openai_type(json.loads(got.body)) == "server_error"


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
    count: int, scene: Scene, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    ends: Counter[object] = Counter()
    for number in range(count):
        pick = random.Random(number)
        sent = damaged(pick.choice(DAMAGED), pick, DAMAGED)
        got = await scene.ask(Fault(sent, end=pick.choice(("FIN", "FIN", "RST"))))
        response = got.response if isinstance(got, Truncated) else got
        assert response is not None, number
        assert WELL_FORMED.fullmatch(response.raw_head), number
        assert len(response.all("Content-Length") + response.all("Transfer-Encoding")) <= 1, number
        assert response.header("Set-Cookie") is None, number
        assert b"The proxy failed" not in response.body, number
        ends["cut" if isinstance(got, Truncated) else got.status] += 1
        await scene.client.close()
    assert ends.keys() >= {200, 502}  # the damage was neither none nor total
    assert [each for each in caplog.records if each.exc_info] == []
