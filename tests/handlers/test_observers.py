"""The hook observe, in a served proxy: an observer sees what the client sent and got."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from scene import Scene
from served import (
    CHAT,
    CHAT_BODY,
    CHAT_PATH,
    CHAT_STREAM,
    CHUNKED,
    EVENTS,
    MESSAGE,
    MESSAGE_BODY,
    RESPONSES_BODY,
    RESPONSES_STREAM,
    Authorizer,
    in_chunks,
    request,
)
from tornado.httputil import HTTPHeaders

from tornadoproxy import (
    INACTIVE,
    Denied,
    Inactive,
    IncomingRequest,
    Observer,
    Page,
    PageResponse,
    RequestRecord,
    hookimpl,
)
from tornadoproxy.testing import (
    RawResponse,
    Response,
    Truncated,
    error_response,
    silent_response,
    sse_response,
)

LARGE = b"x" * 3_000_000
FAILING = sse_response(EVENTS[:4], end="reset")
ORIGIN = "https://app.example.com"


class Seen(Observer):
    """Keeps all that it sees."""

    def __init__(self) -> None:
        self.request = self.response = b""
        self.heads: list[tuple[int, HTTPHeaders]] = []
        self.records: list[RequestRecord] = []

    def request_body(self, chunk: bytes) -> None:
        assert not self.records
        self.request += chunk

    def response_began(self, status: int, headers: HTTPHeaders) -> None:
        self.heads.append((status, headers))

    def response_body(self, chunk: bytes) -> None:
        assert len(self.heads) == 1
        assert not self.records
        self.response += chunk

    def ended(self, record: RequestRecord) -> None:
        self.records.append(record)


class Watches:
    """Observes each request, and has a page."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.credential_names: list[frozenset[str]] = []

    @hookimpl
    def observe(
        self, request: IncomingRequest, credential_headers: frozenset[str]
    ) -> Observer | None:
        assert request.path
        self.credential_names.append(credential_headers)
        self.seen.append(Seen())
        return self.seen[-1]

    @hookimpl
    def credential_headers(self) -> list[str]:
        return ["x-badge"]

    @hookimpl
    def pages(self) -> list[Page]:
        return [Page("/page", lambda page: PageResponse(page.body * 2), methods=("POST",))]


CASES: dict[str, tuple[bytes, bytes, Response | None]] = {
    "a stream": (MESSAGE, MESSAGE_BODY, sse_response(EVENTS)),
    "a stream that fails": (MESSAGE, MESSAGE_BODY, FAILING),
    "an error": (MESSAGE, MESSAGE_BODY, error_response(429, "rate_limit_error", "Slow down.")),
    "a chat completion": (CHAT, CHAT_BODY, None),
    "a chat stream": (CHAT_STREAM, b'{"stream":true,' + CHAT_BODY[1:], None),
    "a chat stream that fails": (CHAT_STREAM, b'{"stream":true,' + CHAT_BODY[1:], FAILING),
    "a response's stream": (RESPONSES_STREAM, b'{"stream":true,' + RESPONSES_BODY[1:], None),
    "a response's stream that fails": (
        RESPONSES_STREAM,
        b'{"stream":true,' + RESPONSES_BODY[1:],
        FAILING,
    ),
    "an invalid chat completion": (request("POST", CHAT_PATH, body=b"[]"), b"[]", None),
    "a chunked upload": (
        request("POST", "/v1/files", CHUNKED) + in_chunks(LARGE, 100_000),
        LARGE,
        None,
    ),
    "models": (request("GET", "/openai/v1/models"), b"", None),
    "HEAD": (request("HEAD", "/v1/models"), b"", None),
    "HEAD of nothing": (request("HEAD", "/nothing"), b"", None),
    "a page": (request("POST", "/page", body=b"page"), b"page", None),
}


@pytest.mark.parametrize("origins", ["", ORIGIN])
@pytest.mark.parametrize("case", CASES)
async def test_observer_sees_what_the_client_sent_and_got(
    scene: Scene, case: str, origins: str
) -> None:
    watches = Watches()
    await scene.start(plugins=[watches], ALLOWED_ORIGINS=origins)
    sent, body, response = CASES[case]
    if response is not None:
        scene.upstream.script(response)
    head, _, rest = sent.partition(b"\r\n")
    client = await scene.send(head + b"\r\nOrigin: " + ORIGIN.encode() + b"\r\n" + rest)
    try:
        got: RawResponse | None = await client.response(to_head="HEAD" in case)
    except Truncated as cut:
        got = cut.response
    assert got is not None
    (seen,) = watches.seen
    record = await scene.records.finished()
    assert seen.records == [record]
    assert seen.request == body
    assert seen.response == got.body
    ((status, headers),) = seen.heads
    assert status == got.status == record.status
    own = {"date", "transfer-encoding", "connection"}
    shown, received = (
        [(name.lower(), value) for name, value in fields if name.lower() not in own]
        for fields in (headers.get_all(), got.headers)
    )
    assert shown == received
    assert ("Access-Control-Allow-Origin" in headers) == bool(origins)
    assert watches.credential_names == [
        {"Authorization", "Cookie", "Proxy-Authorization", "X-Api-Key", "X-Badge"}
    ]


async def test_request_that_is_not_admitted_is_not_observed(scene: Scene) -> None:
    class Closed:
        @hookimpl
        def admit(self) -> None:
            raise Denied("Closed.")

    watches = Watches()
    await scene.start(plugins=[watches])
    assert (await scene.ask("/v1/models", token="wrong")).status == 401
    await scene.start(plugins=[watches, Closed()])
    assert (await scene.ask("/v1/models")).status == 403
    assert watches.seen == []


async def test_client_that_leaves_and_refused_request_end_once(scene: Scene) -> None:
    def refuse(_: object) -> None:
        raise Denied("No.")

    watches = Watches()
    await scene.start(plugins=[watches, Authorizer(refuse)])
    assert (await scene.send(MESSAGE)) is not None
    await scene.records.finished()
    await scene.start(plugins=[watches])
    scene.upstream.script(silent_response())
    client = await scene.send(MESSAGE)
    await scene.upstream.received()
    await client.reset()
    await scene.records.finished(2)
    assert [seen.records for seen in watches.seen] == [[each] for each in scene.records.all]
    assert [seen.request for seen in watches.seen] == [MESSAGE_BODY] * 2
    assert [(len(seen.heads), bool(seen.response)) for seen in watches.seen] == [
        (1, True),
        (0, False),
    ]


class Breaks(Observer):
    """Does in each method what an observer must not do."""

    def __init__(self, do: Callable[..., object]) -> None:
        for name in ("request_body", "response_began", "response_body", "ended"):
            setattr(self, name, do)


def raises(*_: object) -> None:
    raise KeyboardInterrupt


def changes_headers(*what: Any) -> None:  # Any: each method has arguments of its own
    what[1].clear() if len(what) == 2 else raises()


async def waits(*_: object) -> None:
    await asyncio.sleep(9)


def blocks(*_: object) -> None:
    time.sleep(0.06)


@pytest.mark.parametrize("do", [raises, changes_headers, waits, blocks])
async def test_observer_that_fails_changes_nothing(
    scene: Scene, do: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    class Bad:
        @hookimpl
        def observe(self) -> Observer:
            return Breaks(do)

    watches = Watches()
    proxy = await scene.start(plugins={"bad": Bad(), "good": watches}, PLUGIN_TIMEOUT=0.05)
    scene.upstream.script(sse_response(EVENTS))
    got = await (await scene.raw()).ask(MESSAGE)
    assert got.body == watches.seen[0].response == b"".join(EVENTS)
    record = await scene.records.finished()
    assert watches.seen[0].records == [record]
    assert proxy.plugins.failures["bad"] >= 4
    assert "plugin 'bad' failed in observe (request_body) (1 so far)" in caplog.text
    assert "plugin 'bad' failed in observe (response_began) (2 so far)" in caplog.text


@pytest.mark.parametrize("result", [raises, lambda: "me", lambda: waits(), lambda: Observer, None])
async def test_request_without_an_observer_is_served(
    scene: Scene, result: Callable[[], object] | None
) -> None:
    class Odd:
        @hookimpl
        def observe(self) -> Any:  # Any: what is tested
            return None if result is None else result()

    watches = Watches()
    proxy = await scene.start(plugins={"odd": Odd(), "other": watches})
    response: RawResponse = await scene.ask("/v1/models")
    assert watches.seen[0].response == response.body
    assert proxy.plugins.failures["odd"] == (result is not None)


async def test_inactive_observer_is_not_asked(scene: Scene) -> None:
    class Asleep(Watches):
        @hookimpl
        def configure(self) -> Inactive:
            return INACTIVE

    asleep = Asleep()
    proxy = await scene.start(plugins=[asleep])
    assert (await scene.ask("/v1/models")).status == 200
    assert (asleep.seen, proxy.plugins.observes) == ([], False)
