"""The hooks that decide, in a served proxy: ``authenticate``, ``admit`` and ``authorize``."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from scene import Scene
from served import (
    CHAT_BODY,
    CHAT_PATH,
    CHUNKED,
    MESSAGE,
    MESSAGE_FIELDS,
    RESPONSES_FIELDS,
    RESPONSES_PATH,
    Authorizer,
    anthropic_error,
    in_chunks,
    openai_error,
    request,
)

from tornadoproxy import (
    Denied,
    Identity,
    IncomingRequest,
    ModelRequest,
    Permit,
    RequestRecord,
    Usage,
    hookimpl,
)
from tornadoproxy.handlers.relay import HELD_BODY
from tornadoproxy.protocol.body_fields import IN_THREAD
from tornadoproxy.testing import Document, json_response, message_document

MODEL = "claude-sonnet-5-5"
BODY = json.dumps(MESSAGE_FIELDS).encode()

each_api = pytest.mark.parametrize(
    ("page", "fields"),
    [
        ("/v1/messages?beta=true", MESSAGE_FIELDS),
        (CHAT_PATH, MESSAGE_FIELDS),
        (RESPONSES_PATH, RESPONSES_FIELDS),
    ],
)


# -- who sends a request; tests/plugin has authenticators that fail


async def test_disconnect_during_authentication_is_abandoned_once(scene: Scene) -> None:
    begun, decided = asyncio.Event(), asyncio.Event()

    class Slow:
        @hookimpl(tryfirst=True)
        async def authenticate(self) -> Identity:
            if not decided.is_set():
                begun.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                decided.set()
            return Identity("slow")

    await scene.start(plugins=[Slow()])
    client = await scene.send(MESSAGE)
    await begun.wait()
    await client.close()
    record = await scene.records.finished()
    await decided.wait()
    # what the late result leads to has happened once this request has ended
    assert (await scene.ask("/v1/models")).status == 200
    await scene.records.finished(2)
    assert (record.status, record.outcome) == (None, "abandoned")
    assert [each.outcome for each in scene.records.all] == ["abandoned", "completed"]
    assert [received.path for received in scene.upstream.requests] == ["/v1/models"]


class Badge:
    """Declares a credential header, and logs the request."""

    @hookimpl
    def credential_headers(self) -> list[str]:
        return ["x-badge"]

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> None:
        logging.getLogger("badge").warning("asked about %s %s", request, request.headers)


@pytest.mark.parametrize(("target", "body"), [("/v1/files", b"%PDF"), (CHAT_PATH, CHAT_BODY)])
async def test_credential_header_reaches_neither_upstream_nor_log(
    target: str, body: bytes, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await scene.start(plugins=[Badge()], LOG_LEVEL="debug")
    lines = [("X-Badge", "secret-badge-1"), ("x-BADGE", "secret-badge-2"), ("X-Own", "crosses")]
    await scene.ask(target, headers=lines, body=body)
    (received,) = scene.upstream.requests
    assert received.header("x-own") == "crosses"
    assert "secret-badge" not in str(received.headers)
    assert "asked about" in caplog.text
    assert "secret-badge" not in caplog.text + str(await scene.records.finished())


# -- plugins that admit and authorize


class Admitter:
    """Decides on the headers with this function."""

    def __init__(self, decide: Callable[[], object]) -> None:
        self._decide = decide

    @hookimpl
    def admit(self, request: IncomingRequest, identity: Identity) -> Any:  # Any: what is tested
        assert identity.principal
        return self._decide()


class Settled:
    """Grants permits, and records what they are settled with."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def permit(self, _: object = None) -> Permit:
        return Permit(settle=self.records.append)


async def later(result: object) -> object:
    await asyncio.sleep(0)
    return result


@each_api
@pytest.mark.parametrize("stream", [False, True])
async def test_authorize_sees_model_request_with_its_cost(
    page: str, fields: Document, scene: Scene, *, stream: bool
) -> None:
    class Prices:
        @hookimpl(tryfirst=True)
        def price(self, usage: Usage) -> int:
            return (usage.input_tokens or 0) * 1_000_000 + (usage.output_tokens or 0) * 2_000_000

    authorizer = Authorizer()
    await scene.start(plugins=[authorizer, Prices()])
    body = json.dumps({**fields, "stream": stream}).encode()
    assert (await scene.ask(page, body=body)).status == 200
    ((incoming, identity, asked),) = authorizer.asked
    assert incoming.path == page.partition("?")[0]
    assert identity == Identity("token")
    assert asked is not None
    assert (asked.model, asked.max_tokens, asked.stream) == (MODEL, 20, stream)
    assert asked.size == len(body)
    assert asked.input_cost is not None
    assert asked.max_cost == asked.input_cost + 20 * 2_000_000
    record = await scene.records.finished()
    assert record.cost == Prices().price(record.usage)


async def test_authorize_sees_model_and_limit_sent_upstream(scene: Scene) -> None:
    authorizer = Authorizer()
    await scene.start(plugins=[authorizer], CHAT_MODELS=f"gpt-5={MODEL}", CHAT_DEFAULT_MAX_TOKENS=7)
    await scene.ask(CHAT_PATH, {"model": "gpt-5", "messages": MESSAGE_FIELDS["messages"]})
    for more in ({}, {"fallbacks": [{"model": "claude-unheard-of"}]}):
        await scene.ask("/v1/messages", {**MESSAGE_FIELDS, "max_tokens": 10**12, **more})
    asked = [(each.model, each.max_tokens, each.output_tokens) for each in authorizer.models()]
    assert asked == [(MODEL, 7, 7), (MODEL, 10**12, 64_000), (MODEL, 10**12, 128_000)]


async def test_other_request_is_authorized_by_its_headers(scene: Scene) -> None:
    authorizer = Authorizer()
    await scene.start(plugins=[authorizer])
    pages = [
        *(("GET", "/v1/models"), ("GET", "/openai/v1/models"), ("GET", "/v1/messages")),
        *(("POST", "/v1/messages/count_tokens"), ("GET", "/nothing")),
        *(("POST", f"{RESPONSES_PATH}/input_tokens"), ("DELETE", f"{RESPONSES_PATH}/x")),
    ]
    for method, page in pages:
        await scene.ask(page, method=method, body=b"{}" if method == "POST" else b"")
    assert [(each.method, each.path) for each, _, _ in authorizer.asked] == pages
    assert authorizer.models() == []


# -- what they decide


def refuse(_: object = None) -> NoReturn:
    raise Denied("Too often: wait.", status=429, retry_after=7)


@pytest.mark.parametrize(
    ("page", "decide", "status"),
    [
        *(
            (page, refuse, 429)
            for page in ("/v1/messages", RESPONSES_PATH, "/v1/files", "/nowhere")
        ),
        (CHAT_PATH, lambda: True, 503),
        (CHAT_PATH, lambda: later(True), 503),
        ("/v1/files", lambda: later(True), 503),
    ],
)
async def test_admit_refusal_precedes_body_and_authorize(
    page: str, decide: Callable[[], object], status: int, scene: Scene
) -> None:
    settled, authorizer = Settled(), Authorizer()
    plugins = {"a": Admitter(settled.permit), "b": Admitter(decide), "c": authorizer}
    await scene.start(plugins=plugins)
    response = await scene.ask(page, method="POST", headers=[("Content-Length", "1000000")])
    assert response.status == status
    assert response.header("retry-after") == ("7" if status == 429 else "1")
    assert settled.records == [await scene.records.finished()]
    assert authorizer.asked == []
    assert scene.upstream.connections == 0


@each_api
@pytest.mark.parametrize("refused", [False, True])
async def test_async_admit_and_authorize_are_awaited_together(
    page: str, fields: Document, refused: bool, scene: Scene
) -> None:
    settled, authorizing = Settled(), asyncio.Event()

    async def admit() -> Permit:
        await authorizing.wait()
        return refuse() if refused else settled.permit()

    async def authorize() -> Permit:
        authorizing.set()
        return settled.permit()

    await scene.start(plugins={"a": Admitter(admit), "b": Authorizer(lambda _: authorize())})
    scene.upstream.script(json_response(message_document("Hi")))
    response = await scene.ask(page, fields)
    assert (response.status, len(scene.upstream.requests)) == ((429, 0) if refused else (200, 1))
    record = await scene.records.finished()
    assert settled.records == [record] * (1 if refused else 2)


@each_api
async def test_authorize_refusal_settles_and_stays_here(
    page: str, fields: Document, scene: Scene
) -> None:
    settled, other = Settled(), Authorizer()
    plugins = {"a": Authorizer(settled.permit), "b": Authorizer(refuse), "c": other}
    await scene.start(plugins=plugins, DISABLED_PLUGINS="keys budgets")
    response = await scene.ask(page, fields)
    assert response.header("retry-after") == "7"
    error = openai_error if page.startswith("/openai") else anthropic_error
    assert error(response, 429, "rate_limit_error") == "Too often: wait."
    record = await scene.records.finished()
    assert (record.outcome, record.cost) == ("denied", None)
    assert scene.upstream.connections == 0
    assert other.asked == []
    assert settled.records == [record]


# -- how permits are settled


@each_api
async def test_authorize_refusal_settles_admit_that_waits(
    page: str, fields: Document, scene: Scene
) -> None:
    settled, may_decide = Settled(), asyncio.Event()

    async def admit() -> Permit:
        await may_decide.wait()
        return settled.permit()

    await scene.start(plugins={"a": Admitter(admit), "b": Authorizer(refuse)})
    assert (await scene.ask(page, fields)).status == 429
    record = await scene.records.finished()
    assert settled.records == []
    may_decide.set()
    await scene.ask("/v1/models")
    assert settled.records == [record, await scene.records.finished(2)]


@pytest.mark.parametrize("page", ["/v1/messages", CHAT_PATH, "/v1/files"])
async def test_permits_are_settled_once(page: str, scene: Scene) -> None:
    settled = Settled()
    plugins = {
        "a": Admitter(settled.permit),
        "b": Authorizer(settled.permit),
        "c": Authorizer(lambda _: later(settled.permit())),
    }
    await scene.start(plugins=plugins)
    await scene.ask(page, MESSAGE_FIELDS)
    assert settled.records == [await scene.records.finished()] * 3

    lines = [("Expect", "100-continue"), ("Content-Length", "9")]
    client = await scene.send(request("POST", page, *lines))
    await client.read_until(b"100 Continue")
    await client.close()
    record = await scene.records.finished(2)
    assert settled.records[3:] == [record] * (3 if page == "/v1/files" else 1)


@each_api
async def test_disconnect_during_authorization_is_settled(
    page: str, fields: Document, scene: Scene
) -> None:
    settled, asked, may_decide = Settled(), asyncio.Event(), asyncio.Event()

    async def decide(model_request: ModelRequest | None) -> Permit | None:
        if model_request is None:
            return None
        asked.set()
        await may_decide.wait()
        return settled.permit()

    await scene.start(plugins=[Authorizer(decide)])
    client = await scene.send(request("POST", page, body=json.dumps(fields).encode()))
    await asked.wait()
    await client.close()
    record = await scene.records.finished()
    assert record.outcome == "abandoned"
    assert settled.records == []
    may_decide.set()
    assert (await scene.ask("/v1/models")).status == 200
    assert settled.records == [record]
    assert [each.path for each in scene.upstream.requests] == ["/v1/models"]


@each_api
async def test_permit_withholds_headers_of_upstream(
    page: str, fields: Document, scene: Scene
) -> None:
    permit = Permit(withheld_headers=("anthropic-ratelimit-unified-",))
    await scene.start(plugins=[Authorizer(lambda _: permit)])
    headers = {
        "Anthropic-Ratelimit-Unified-5h-Utilization": "0.9",
        "anthropic-ratelimit-unified-status": "allowed",
        "anthropic-ratelimit-requests-remaining": "7",
    }
    scene.upstream.script(json_response(message_document("Hi"), headers=headers))
    response = await scene.ask(page, fields)
    assert response.status == 200
    assert response.header("anthropic-ratelimit-requests-remaining") == "7"
    assert not [name for name, _ in response.headers if "unified" in name.lower()]


@pytest.mark.parametrize("chunked", [False, True])
async def test_authorized_message_goes_upstream_unchanged(scene: Scene, *, chunked: bool) -> None:
    await scene.start(plugins=[Authorizer()])
    scene.upstream.script(json_response(message_document("Hello")))
    body = BODY.replace(b'"Hi"', b' "H\\u00ef' + b"y" * (HELD_BODY + 1) + b'"')
    whole = request("POST", "/v1/messages", body=body)
    in_pieces = request("POST", "/v1/messages", CHUNKED) + in_chunks(body, len(body))
    assert (await scene.ask(in_pieces if chunked else whole)).status == 200
    (received,) = scene.upstream.requests
    assert received.body_sha256 == hashlib.sha256(body).hexdigest()
    assert received.all("content-length") == [str(len(body))]
    assert received.all("transfer-encoding") == []


@pytest.mark.parametrize("leaves", [False, True])
@each_api
async def test_large_body_is_parsed_in_thread(
    page: str, fields: Document, scene: Scene, *, leaves: bool
) -> None:
    authorizer, may_go_on = Authorizer(), threading.Event()
    proxy = await scene.start(plugins=[authorizer])
    gateway = proxy.server._gateway
    assert gateway is not None
    before = asyncio.create_task(gateway.body_thread.run("another", may_go_on.wait))
    try:
        large = await scene.raw()
        body = json.dumps(fields).encode().replace(b"Hi", b"x" * (IN_THREAD + 1))
        await large.send(request("POST", page, body=body))
        assert (await scene.ask(page, fields)).status == 200, "the loop is free"
        assert len(authorizer.asked) == 1
        if leaves:
            await large.close()
            await scene.records.finished(2)
    finally:
        may_go_on.set()
        await before
    if not leaves:
        assert (await large.response()).status == 200
    assert len(authorizer.asked) == len(scene.upstream.requests) == (1 if leaves else 2)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"model": "a", "model": "b"}', {}, 400),
        (BODY, {"Content-Encoding": "gzip"}, 400),
        (b"", {"Content-Length": str(33 * 1024 * 1024)}, 413),
    ],
)
async def test_message_that_cannot_be_parsed_stays_here(
    body: bytes, headers: dict[str, str], status: int, scene: Scene
) -> None:
    authorizer = Authorizer()
    await scene.start(plugins=[authorizer], MAX_BODY_SIZE=64 * 1024 * 1024)
    response = await scene.ask("/v1/messages", method="POST", headers=headers, body=body)
    error_type = "request_too_large" if status == 413 else "invalid_request_error"
    message = anthropic_error(response, status, error_type)
    assert status == 400 or "a messages request can be no larger" in message
    assert authorizer.asked == []
    assert scene.upstream.connections == 0
