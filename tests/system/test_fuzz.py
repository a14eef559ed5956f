"""Fuzzing of the whole proxy: damaged requests and responses, the same in each run.

A failure names the seed and a number, which decide the damage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from damage import damaged
from strict_reading import Request, read
from upstream_record import check_clean, settled

from tornadoproxy.testing import (
    RawConnection,
    Truncated,
    json_response,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    response_head,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tornadoproxy.testing import Ask, OpenRaw, RawResponse, ScriptedUpstream, StartProxy

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

TOKEN = "token-of-the-fuzzer"
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
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "reasoning_effort": "low",
    "stop": ["\n\n", "x"],
    "temperature": 0.5,
}
MESSAGE = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "Hi"}],
}


def encoded(document: Json) -> bytes:
    return json.dumps(document).encode()


def request(
    method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> bytes:
    return request_bytes(method, target, headers or {}, body, token=TOKEN)


CHUNKED = {"Transfer-Encoding": "chunked"}
JSON_TYPE = {"Content-Type": "application/json"}
GOOD = [
    request("GET", "/v1/models?limit=1000&after_id=a%2Fb"),
    request("POST", "/v1/messages?beta=true", JSON_TYPE, encoded(MESSAGE)),
    request("POST", "/v1/messages", {"Expect": "100-continue"}, encoded(MESSAGE)),
    request("POST", "/v1/messages", JSON_TYPE, encoded({**MESSAGE, "stream": True})),
    request("POST", "/v1/files", CHUNKED) + b"5\r\nhello\r\n1f\r\n" + b"x" * 31 + b"\r\n0\r\n\r\n",
    request("DELETE", "/v1/files/f", {"Connection": "x-private, te", "X-Private": "1", "TE": "x"}),
    request("GET", "/v1/models").replace(b"HTTP/1.1", b"HTTP/1.0"),
    request("OPTIONS", "/v1/x/y;z", {"Cookie": "a=b", "X-Api-Key": TOKEN, "Via": "1.0 a"}),
    request("POST", "/openai/v1/chat/completions", JSON_TYPE, encoded(CHAT)),
    request("POST", "/openai/v1/chat/completions", JSON_TYPE, encoded(TOOLS)),
    request("POST", "/openai/v1/chat/completions", CHUNKED)
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(encoded(CHAT)), encoded(CHAT)),
    request("GET", "/openai/v1/models/claude-sonnet-5-5"),
    request("GET", "/health"),
    request("GET", "/nowhere"),
    request("GET", "/v1/models") + request("POST", "/v1/x", {}, b"hello"),
]
HEALTH = request_bytes("GET", "/health")
WORKERS = 8


class Fuzzer:
    """Sender of damaged requests, which keeps what the strictest reading finds in them.

    :param seed: decides the damage, together with a request's number.
    """

    def __init__(self, raw: OpenRaw, port: int, seed: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.whole: Counter[Request] = Counter()
        self.broken: list[Request] = []
        self._raw = raw
        self._port = port
        self._seed = seed

    def request(self, number: int) -> bytes:
        pick = random.Random(f"{self._seed}:{number}")
        return damaged(pick.choice(GOOD), pick, GOOD)

    async def run(self, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for first in range(WORKERS):
                group.create_task(self._work(range(first, count, WORKERS)))

    async def _work(self, numbers: Iterable[int]) -> None:
        good = await self._raw()
        for number in numbers:
            sent = self.request(number)
            client = await RawConnection.open(self._port)
            try:
                with noted(f"seed {self._seed}, request {number}: {sent!r}"):
                    async with asyncio.timeout(10):
                        await self._send(client, sent, good)
            finally:
                await client.close()

    async def _send(self, client: RawConnection, sent: bytes, good: RawConnection) -> None:
        reading = read(sent)
        self.whole.update(reading.whole)
        self.broken += [reading.broken] if reading.broken else []
        await client.send(sent)
        # each unambiguous request gets a response, unless one before it ends the connection
        open_ = True
        for number in range(len(reading.whole)):
            if open_:
                response = await self._response(client)
                assert response is not None or number, "no response"
                open_ = _may_go_on(response)
        # the rest has been read once a good request after it has been served
        await good.send(HEALTH)
        assert (await good.response()).status == 200
        client.half_close()
        while open_:
            open_ = _may_go_on(await self._response(client))

    async def _response(self, client: RawConnection) -> RawResponse | None:
        """Read a response; ``None`` if the connection ends instead."""
        try:
            response = await client.response()
        except Truncated as cut:
            if cut.response is not None:
                raise
            return None
        self.statuses[response.status] += 1
        check_response(response)
        return response

    async def check_upstream(self, upstream: ScriptedUpstream) -> None:
        """All requests upstream are well-framed, and are the clients' or translated from them."""
        whole, cut = await settled(upstream.requests)
        chats = sum(each.target.startswith("/openai/") for each in self.whole.elements())
        models = Request("GET", "/v1/models?limit=1000", b"")
        for request in whole:
            if self.whole[request]:
                self.whole[request] -= 1
            elif request != models:
                assert (request.method, request.target) == ("POST", "/v1/messages"), request
                json.loads(request.body.decode())
                chats -= 1
        assert chats >= 0
        for request in cut:
            assert any(
                (each.method, each.target) == (request.method, request.target)
                and each.body.startswith(request.body)
                for each in (*self.broken, *self.whole)
            ), request
        for received in upstream.requests:
            check_clean(received, f"127.0.0.1:{upstream.port}")


def _may_go_on(response: RawResponse | None) -> bool:
    return response is not None and response.header("Connection") != "close"


@contextmanager
def noted(what: str) -> Iterator[None]:
    """Name the input in a failure."""
    try:
        yield
    except BaseException as error:
        error.add_note(what)
        raise


def check_response(response: RawResponse) -> None:
    """No failure of the proxy; an error has the form of one of the dialects."""
    assert response.status < 500
    if response.status >= 400:
        error = json.loads(response.body)["error"]
        assert error["message"]
        assert response.header("Request-Id") or response.header("X-Request-Id")


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The logged failures of the proxy."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.exc_info or each.levelno >= logging.ERROR
    ]


few_and_many = pytest.mark.parametrize(
    ("seed", "count"),
    [
        (4, 150),
        pytest.param(
            5,
            5000,
            marks=[pytest.mark.long, pytest.mark.gen_test(timeout=200), pytest.mark.timeout(240)],
        ),
    ],
)


@few_and_many
async def test_damaged_requests_are_answered_and_never_smuggled(
    seed: int,
    count: int,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    proxy = await start_proxy(AUTH_TOKEN=TOKEN)
    fuzzer = Fuzzer(raw, proxy.port, seed)
    await fuzzer.run(count)
    good = await raw()
    for request in GOOD:
        await good.send(request.replace(b"HTTP/1.0", b"HTTP/1.1"))
        assert (await good.response()).status in {200, 404}
        fuzzer.whole.update(read(request).whole)
    with noted(f"seed {seed}, statuses {fuzzer.statuses}"):
        assert errors_in(caplog) == []
        await fuzzer.check_upstream(upstream)
        # the damage was neither none nor total
        for status in (200, 400, 401, 404):
            assert fuzzer.statuses[status] >= count / 100, status


# -- responses

DOCUMENT = message_document("Hi \u00e9", id="msg_1")
EVENTS = message_events(DOCUMENT)
HEADERS = [
    ("Date", "Tue, 24 Nov 2026 10:28:36 GMT"),
    ("request-id", "req_1"),
    ("retry-after", "1"),
    ("Set-Cookie", "a=b"),
    ("Connection", "keep-alive"),
]


def response(status: int, headers: dict[str, str], body: bytes) -> bytes:
    return response_head(status, [*headers.items(), *HEADERS]) + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


def sized(body: bytes) -> dict[str, str]:
    return {**JSON_TYPE, "Content-Length": str(len(body))}


ERROR = encoded({"type": "error", "error": {"type": "overloaded_error", "message": "Later."}})
EVENT_STREAM = {"Content-Type": "text/event-stream", **CHUNKED}
RESPONSES = [
    response(200, sized(encoded(DOCUMENT)), encoded(DOCUMENT)),
    response(
        200, {**JSON_TYPE, **CHUNKED}, chunked(encoded(DOCUMENT)[:50], encoded(DOCUMENT)[50:])
    ),
    response(200, JSON_TYPE, encoded(DOCUMENT)),
    response(200, EVENT_STREAM, chunked(*EVENTS)),
    response(200, {"Content-Type": "text/event-stream"}, b"".join(EVENTS)),
    response(529, sized(ERROR), ERROR),
    response(204, {}, b""),
    response(302, {"Location": "http://127.0.0.1:1/", "Content-Length": "0"}, b""),
    response_head(103, {"Link": "</a>"}) + response(200, sized(ERROR), ERROR),
]
ASKING = [
    request("POST", "/v1/messages", JSON_TYPE, encoded(MESSAGE)),
    request("GET", "/v1/models"),
    request("POST", "/openai/v1/chat/completions", JSON_TYPE, encoded(CHAT)),
    request("POST", "/openai/v1/chat/completions", JSON_TYPE, encoded({**CHAT, "stream": True})),
]
_WELL_FORMED = re.compile(
    rb"HTTP/1\.1 [1-9][0-9]{2} [\t\x20-\x7e\x80-\xff]*\r\n"
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+: ?[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)


def check_relayed(response: RawResponse) -> None:
    """Well-formed, with one framing, without headers that end here, and no failure of the proxy."""
    assert _WELL_FORMED.fullmatch(response.raw_head)
    assert len(response.all("Content-Length") + response.all("Transfer-Encoding")) <= 1
    assert response.header("Set-Cookie") is None
    assert b"The proxy failed" not in response.body


@few_and_many
async def test_damaged_responses_are_relayed_cut_or_refused(
    seed: int,
    count: int,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    proxy = await start_proxy(AUTH_TOKEN=TOKEN)
    ends: Counter[int | None] = Counter()
    for number in range(count):
        pick = random.Random(f"{seed}:{number}")
        sent = damaged(pick.choice(RESPONSES), pick, RESPONSES)
        with noted(f"seed {seed}, response {number}: {sent!r}"):
            upstream.script(raw_response(sent, end=pick.choice(("close", "close", "reset"))))
            client = await RawConnection.open(proxy.port)
            response: RawResponse | None
            try:
                async with asyncio.timeout(10):
                    await client.send(pick.choice(ASKING))
                    response = whole = await client.response()
                ends[whole.status] += 1
            except Truncated as cut:
                ends[None] += 1
                response = cut.response
            finally:
                await client.close()
            assert response is not None, "no response"
            check_relayed(response)
    with noted(f"seed {seed}, statuses {ends}"):
        assert errors_in(caplog) == []
        for end in (200, 502, None):
            assert ends[end] >= count / 100, end
    good = await raw()
    for asking in ASKING:
        await good.send(asking)
        assert (await good.response()).status == 200


async def test_any_list_of_models_is_served_or_the_upstreams_error(
    start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    documents: list[Any] = [
        {"data": [{"id": "\ud800"}]},
        {"data": [{"id": "a"}], "has_more": True, "last_id": "\ud800"},
        {"data": [{"id": "a\r\nb"}, {"id": ""}, {"id": None}, 1, None, []]},
        {"data": [{"id": "a", "created_at": 10**300, "capabilities": [1]}]},
        {"data": [], "has_more": True, "last_id": ""},
        {"data": {}},
        [],
    ]
    for document in documents:
        await start_proxy()  # which keeps no list
        upstream.script(json_response(document), json_response({"data": []}))
        response = await ask("/openai/v1/models")
        assert response.status in {200, 502}
        json.loads(response.body)
    assert [each.getMessage() for each in caplog.records if each.exc_info] == []
