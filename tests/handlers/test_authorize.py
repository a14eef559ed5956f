"""Authorizers in a served proxy: what they are shown, what they decide, and how it is settled."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tornadoproxy import Denied, Identity, IncomingRequest, ModelRequest, Permit, hookimpl
from tornadoproxy.handlers.body_budget import UNCHARGED_BODY
from tornadoproxy.handlers.proxying import IN_THREAD
from tornadoproxy.testing import (
    TEST_TOKEN,
    json_response,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

    from tornadoproxy import RequestRecord, Usage
    from tornadoproxy.testing import (
        OpenRaw,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

MODEL = "claude-sonnet-5-5"
MESSAGES = [{"role": "user", "content": "Hi"}]
MESSAGE = json.dumps({"model": MODEL, "max_tokens": 100, "messages": MESSAGES}).encode()
# the same question in both dialects
ASKED = {
    "/v1/messages": MESSAGE,
    "/v1/messages?beta=true": MESSAGE,
    "/openai/v1/chat/completions": MESSAGE,
}
CANARY = "sk-canary-0123456789"

each_dialect = pytest.mark.parametrize("page", ASKED)


class Authorizer:
    """Notes what it is shown, and answers as it was told to."""

    def __init__(self, decide: Callable[[ModelRequest | None], object] = lambda _: None) -> None:
        self._decide = decide
        self.shown: list[tuple[IncomingRequest, Identity, ModelRequest | None]] = []

    @hookimpl
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Any:  # Any: that is what is tested
        self.shown.append((request, identity, model_request))
        return self._decide(model_request)


class Ends:
    """Grants permits, and notes how what they were for has ended."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def permit(self, _: object = None) -> Permit:
        return Permit(settle=self.records.append)


class Prices:
    """A dollar for a thousand tokens of input, two for output."""

    @hookimpl(tryfirst=True)
    def price(self, usage: Usage) -> int:
        return (usage.input_tokens or 0) * 1_000_000 + (usage.output_tokens or 0) * 2_000_000


async def post(
    raw: OpenRaw, page: str, body: bytes, headers: dict[str, str] | None = None
) -> RawResponse:
    client = await raw()
    await client.send(request_bytes("POST", page, headers or {}, body, token=TEST_TOKEN))
    return await client.response()


def refusal(response: RawResponse) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(response.body)["error"]
    return error


async def later(response: object) -> object:
    await asyncio.sleep(0)
    if response is KeyError:
        raise KeyError(CANARY)
    return response


# -- what it is shown


@each_dialect
@pytest.mark.parametrize("stream", [False, True])
async def test_it_is_shown_who_asks_what_of_which_model(
    page: str, start_proxy: StartProxy, raw: OpenRaw, records: Records, *, stream: bool
) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer, Prices()])
    body = json.dumps({**json.loads(MESSAGE), "stream": stream}).encode()

    response = await post(raw, page, body)

    assert response.status == 200
    ((request, identity, model_request),) = authorizer.shown
    assert request.path == page.partition("?")[0]
    assert identity == Identity("token")
    assert model_request is not None
    assert (model_request.model, model_request.max_tokens) == (MODEL, 100)
    assert model_request.stream is stream
    assert model_request.size == len(body)
    assert model_request.input_cost is not None
    assert model_request.max_cost == model_request.input_cost + 100 * 2_000_000
    record = await records.finished()
    assert record.cost == Prices().price(record.usage)


async def test_it_is_shown_the_model_that_goes_upstream(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer], CHAT_MODELS=f"gpt-5={MODEL}", CHAT_DEFAULT_MAX_TOKENS=7)

    body = json.dumps({"model": "gpt-5", "messages": MESSAGES}).encode()
    assert (await post(raw, "/openai/v1/chat/completions", body)).status == 200

    ((_, _, model_request),) = authorizer.shown
    assert model_request is not None
    assert (model_request.model, model_request.max_tokens) == (MODEL, 7)


async def test_models_own_limit_bounds_the_estimate(start_proxy: StartProxy, raw: OpenRaw) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer])
    for fields in ({"max_tokens": 10**12}, {"fallbacks": [{"model": "claude-unheard-of"}]}):
        asked = {**json.loads(MESSAGE), "max_tokens": 10**12, **fields}
        await post(raw, "/v1/messages", json.dumps(asked).encode())
    limits = [each.output_tokens for _, _, each in authorizer.shown if each is not None]
    assert limits == [64_000, 128_000]


@pytest.mark.parametrize("page", ["/v1/messages/", "/v1/%6Dessages", "/v1/messages;x"])
async def test_a_path_that_a_server_could_take_for_messages_is_judged_as_that(
    page: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer])
    await post(raw, page, MESSAGE)
    ((_, _, model_request),) = authorizer.shown
    assert model_request is not None
    assert model_request.model == MODEL


@pytest.mark.parametrize(
    ("method", "page", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/openai/v1/models", 200),
        ("POST", "/v1/messages/count_tokens", 200),
        ("GET", "/v1/messages", 404),
        ("GET", "/nothing", 404),
    ],
)
async def test_it_is_asked_about_everything_else_by_its_head(
    method: str, page: str, status: int, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer])
    client = await raw()
    body = MESSAGE if method == "POST" else b""
    await client.send(request_bytes(method, page, body=body, token=TEST_TOKEN))
    assert (await client.response()).status == status
    ((request, _, model_request),) = authorizer.shown
    assert (request.method, request.path) == (method, page)
    assert model_request is None


async def test_it_is_asked_before_the_body_of_an_upload_is_read(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    def deny(_: object) -> None:
        raise Denied("No files.")

    await start_proxy(plugins=[Authorizer(deny)])
    client = await raw()
    await client.send(
        request_bytes("POST", "/v1/files", {"Content-Length": "1000000"}, token=TEST_TOKEN)
    )
    assert (await client.response()).status == 403
    assert upstream.connections == 0


@pytest.mark.parametrize("page", ["/v1/models", "/v1/messages"])
async def test_it_is_not_asked_about_who_was_not_let_in(
    page: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer])
    client = await raw()
    await client.send(request_bytes("POST", page, body=MESSAGE, token="guess"))
    assert (await client.response()).status == 401
    assert authorizer.shown == []


# -- what is decided by the head


class Admitter:
    """Answers as it was told to, by the head."""

    def __init__(self, decide: Callable[[], object]) -> None:
        self._decide = decide

    @hookimpl
    def admit(self, request: IncomingRequest, identity: Identity) -> Any:  # Any: that is tested
        assert identity.principal
        return self._decide()


def refuse() -> None:
    raise Denied("Too often.", status=429, retry_after=7)


def fail() -> None:
    raise KeyError(CANARY)


every_route = pytest.mark.parametrize("page", [*ASKED, "/v1/files", "/nowhere"])


@every_route
@pytest.mark.parametrize(
    ("decide", "status"),
    [
        (refuse, 429),
        (fail, 503),
        (lambda: True, 503),
        (lambda: later(KeyError), 503),
    ],
)
async def test_admit_refusal_precedes_body_and_authorize(
    page: str,
    decide: Callable[[], object],
    status: int,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    ends, unasked = Ends(), Authorizer()
    await start_proxy(
        plugins={"a": Admitter(ends.permit), "b": Admitter(decide), "c": unasked},
    )
    response = await post(raw, page, b"", {"Content-Length": "1000000"})
    assert response.status == status
    assert response.header("retry-after") == ("7" if status == 429 else "1")
    assert ends.records == [await records.finished()]
    assert unasked.shown == []
    assert upstream.connections == 0


@pytest.mark.parametrize("page", [*ASKED, "/v1/files"])
@pytest.mark.parametrize("authorized", [False, True])
async def test_admit_permit_is_settled_once(
    page: str, start_proxy: StartProxy, raw: OpenRaw, records: Records, *, authorized: bool
) -> None:
    """Also if the client disconnects within its body, and beside a permit of `authorize`."""
    ends = Ends()
    plugins: list[object] = [Admitter(ends.permit)]
    if authorized:
        plugins.append(Authorizer(ends.permit))
    await start_proxy(plugins=plugins)
    await post(raw, page, MESSAGE)
    record = await records.finished()
    assert ends.records == [record] * len(plugins)

    client = await raw()
    expect = {"Expect": "100-continue", "Content-Length": "9"}
    await client.send(request_bytes("POST", page, expect, token=TEST_TOKEN))
    await client.read_until(b"100 Continue")
    await client.close()
    record = await records.finished(2)
    assert ends.records.count(record) == (1 if page in ASKED else len(plugins))


# -- what it decides


@each_dialect
async def test_what_is_refused_does_not_go_upstream(
    page: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    def deny(model_request: ModelRequest | None) -> None:
        assert model_request is not None
        raise Denied(f"Not {model_request.model}.", status=429, retry_after=30)

    ends, unasked = Ends(), Authorizer()
    await start_proxy(
        plugins={"a": Authorizer(ends.permit), "b": Authorizer(deny), "c": unasked},
        DISABLED_PLUGINS="keys budgets",
    )

    response = await post(raw, page, ASKED[page])

    assert response.status == 429
    assert response.header("retry-after") == "30"
    assert refusal(response)["type"] == "rate_limit_error"
    assert refusal(response)["message"] == f"Not {MODEL}."
    record = await records.finished()
    assert (record.outcome, record.cost) == ("denied", None)
    assert upstream.connections == 0
    assert unasked.shown == []
    assert ends.records == [record]


@each_dialect
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("scripted", [KeyError, True, "yes", Identity("x"), Permit])
async def test_what_is_no_decision_fails_closed(
    page: str,
    scripted: object,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
    *,
    awaited: bool,
) -> None:
    def decide(_: object) -> object:
        if awaited:
            return later(scripted)
        if scripted is KeyError:
            raise KeyError(CANARY)
        return scripted

    proxy = await start_proxy(plugins={"bad": Authorizer(decide)})

    response = await post(raw, page, ASKED[page])

    assert response.status == 503
    assert "try again" in refusal(response)["message"]
    assert upstream.connections == 0
    assert proxy.plugins.refusals == {"bad": 1}
    assert "plugin 'bad' failed in authorize" in caplog.text
    assert CANARY not in caplog.text


@each_dialect
async def test_one_that_is_too_late_fails_closed_and_what_it_grants_is_settled(
    page: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    ends, cancelled = Ends(), asyncio.Event()

    async def hang(_: object) -> Permit:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
        return ends.permit()

    await start_proxy(plugins=[Authorizer(hang)], PLUGIN_TIMEOUT=0.05)

    response = await post(raw, page, ASKED[page])

    assert response.status == 503
    assert upstream.connections == 0
    await cancelled.wait()
    assert ends.records == [await records.finished()]


@each_dialect
async def test_async_ones_are_asked_in_order_with_the_others(
    page: str, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    ends = Ends()
    authorizers = {
        "a": Authorizer(ends.permit),
        "b": Authorizer(lambda _: later(ends.permit())),
        "c": Authorizer(lambda _: later(None)),
        "d": Authorizer(ends.permit),
    }
    await start_proxy(plugins=authorizers)

    assert (await post(raw, page, ASKED[page])).status == 200

    assert all(len(each.shown) == 1 for each in authorizers.values())
    record = await records.finished()
    assert ends.records == [record, record, record]


# -- how it is settled


@each_dialect
async def test_a_client_that_leaves_while_it_is_decided_is_settled_after(
    page: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    ends, asked, may_answer = Ends(), asyncio.Event(), asyncio.Event()

    async def decide(model_request: ModelRequest | None) -> Permit | None:
        if model_request is None:
            return None
        asked.set()
        await may_answer.wait()
        return ends.permit()

    await start_proxy(plugins=[Authorizer(decide)])
    client = await raw()
    await client.send(request_bytes("POST", page, body=ASKED[page], token=TEST_TOKEN))
    await asked.wait()
    await client.close()
    record = await records.finished()
    assert record.outcome == "abandoned"
    assert ends.records == []

    may_answer.set()
    other = await raw()
    await other.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    assert (await other.response()).status == 200

    assert ends.records == [record]
    assert [request.path for request in upstream.requests] == ["/v1/models"]


@each_dialect
@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_leaves_during_the_answer_is_settled_once(
    page: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    *,
    streams: bool,
) -> None:
    ends = Ends()
    await start_proxy(plugins=[Authorizer(ends.permit)])
    events = message_events(message_document("Hello"))[:3]
    upstream.script(sse_response(events, end="hang") if streams else silent_response())
    client = await raw()
    body = json.dumps({**json.loads(ASKED[page]), "stream": True}).encode()
    await client.send(request_bytes("POST", page, body=body, token=TEST_TOKEN))
    request = await upstream.received()
    if streams:
        await client.head()
    await client.close()
    await request.disconnected()

    record = await records.finished()
    assert record.outcome == "abandoned"
    assert ends.records == [record]


async def test_a_settlement_that_fails_is_logged_and_changes_nothing(
    start_proxy: StartProxy, raw: OpenRaw, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    ends = Ends()

    def fail(_: RequestRecord) -> None:
        raise KeyError(CANARY)

    proxy = await start_proxy(
        plugins={"a": Authorizer(lambda _: Permit(settle=fail)), "b": Authorizer(ends.permit)}
    )

    assert (await post(raw, "/v1/messages", MESSAGE)).status == 200

    assert ends.records == [await records.finished()]
    assert proxy.plugins.failures == {"a": 1}
    assert "plugin 'a' failed in settle" in caplog.text
    assert CANARY not in caplog.text


@each_dialect
async def test_the_upstreams_headers_can_be_withheld(
    page: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    permit = Permit(withheld_headers=("anthropic-ratelimit-unified-",))
    await start_proxy(plugins=[Authorizer(lambda _: permit)])
    headers = {
        "Anthropic-Ratelimit-Unified-5h-Utilization": "0.9",
        "anthropic-ratelimit-unified-status": "allowed",
        "anthropic-ratelimit-requests-remaining": "7",
    }
    upstream.script(json_response(message_document("Hi"), headers=headers))

    response = await post(raw, page, ASKED[page])

    assert response.status == 200
    assert response.header("anthropic-ratelimit-requests-remaining") == "7"
    assert not [name for name, _ in response.headers if "unified" in name.lower()]


@pytest.mark.parametrize("prefixes", [("Anthropic-Ratelimit-",), ("",), "anthropic-", ["x-"]])
def test_prefixes_that_would_withhold_something_else_are_refused(prefixes: Any) -> None:
    # Any: that is what is tested
    with pytest.raises(ValueError, match=r"lower case|tuple"):
        Permit(withheld_headers=prefixes)


# -- the body


@pytest.mark.parametrize("size", [0, 100, 2 * 1024 * 1024])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_message_of_any_size_goes_upstream_as_it_came(
    size: int, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, *, chunked: bool
) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer])
    upstream.script(json_response(message_document("Hello")))
    body = MESSAGE.replace(b'"Hi"', b' "H\\u00ef' + b"y" * size + b'"')
    client = await raw()
    if chunked:
        head = request_bytes(
            "POST", "/v1/messages", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN
        )
        await client.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    else:
        await client.send(request_bytes("POST", "/v1/messages", body=body, token=TEST_TOKEN))
    assert (await client.response()).status == 200

    request = await upstream.received()
    assert request.body_length == len(body)
    assert request.all("content-length") == [str(len(body))]
    assert request.all("transfer-encoding") == []
    if size < 1024:
        assert request.body == body
    assert len(authorizer.shown) == 1


async def test_a_message_that_is_too_large_is_told_the_limit_that_it_meets(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    await start_proxy(plugins=[Authorizer()], MAX_BODY_SIZE=64 * 1024 * 1024)
    response = await post(raw, "/v1/messages", b"", {"Content-Length": str(33 * 1024 * 1024)})
    assert response.status == 413
    assert "a messages request can be no larger" in refusal(response)["message"]


@pytest.mark.parametrize("page", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_a_body_that_is_whole_takes_no_more_room_than_it_needs(
    page: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    proxy = await start_proxy(plugins=[Authorizer()])
    upstream.script(silent_response())
    client = await raw()
    head = request_bytes("POST", page, {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    body = MESSAGE + b" " * UNCHARGED_BODY
    await client.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    await upstream.received()
    assert proxy.server.status().held_bytes == len(body)
    await client.close()
    await records.finished()
    assert proxy.server.status().held_bytes == 0


@pytest.mark.parametrize("leaves", [False, True])
@each_dialect
async def test_large_body_is_read_in_a_thread(
    page: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    *,
    leaves: bool,
) -> None:
    authorizer, may_go_on = Authorizer(), threading.Event()
    proxy = await start_proxy(plugins=[authorizer])
    gateway = proxy.server._gateway
    assert gateway is not None
    before = asyncio.create_task(gateway.body_thread.run("another", may_go_on.wait))
    try:
        large = await raw()
        body = MESSAGE.replace(b"Hi", b"x" * (IN_THREAD + 1))
        await large.send(request_bytes("POST", page, body=body, token=TEST_TOKEN))
        assert (await post(raw, page, MESSAGE)).status == 200, "the loop is free"
        assert len(authorizer.shown) == 1
        if leaves:
            await large.close()
            await records.finished(2)
    finally:
        may_go_on.set()
        await before
    if not leaves:
        assert (await large.response()).status == 200
    assert len(authorizer.shown) == len(upstream.requests) == (1 if leaves else 2)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"model": "a", "model": "b"}', {}, 400),
        (b"{", {}, 400),
        (b"", {}, 400),
        (MESSAGE, {"Content-Encoding": "gzip"}, 400),
        (b"", {"Content-Length": str(33 * 1024 * 1024)}, 413),
    ],
)
async def test_a_message_that_cannot_be_judged_does_not_go_upstream(
    body: bytes,
    headers: dict[str, str],
    status: int,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    authorizer = Authorizer()
    await start_proxy(plugins=[authorizer])
    response = await post(raw, "/v1/messages", body, headers)
    assert response.status == status
    assert refusal(response)["message"]
    assert authorizer.shown == []
    assert upstream.connections == 0


# -- what the SDKs make of it


def deny(_: object) -> None:
    raise Denied(
        "The monthly budget is used up.",
        status=429,
        error_type="billing_error",
        retry_after=3600,
        headers={"x-should-retry": "false"},
    )


async def test_anthropics_sdk_raises_its_own_error(
    start_proxy: StartProxy, anthropic_client: AsyncAnthropic
) -> None:
    proxy = await start_proxy(plugins=[Authorizer(deny)])
    client = anthropic_client.with_options(base_url=proxy.url, max_retries=2)
    with pytest.raises(anthropic.RateLimitError) as caught:
        await client.messages.create(model=MODEL, max_tokens=10, messages=MESSAGES)  # type: ignore[arg-type]  # plain dicts
    assert caught.value.type == "billing_error"
    assert caught.value.response.headers["retry-after"] == "3600"


async def test_openais_sdk_raises_its_own_error(
    start_proxy: StartProxy, openai_client: AsyncOpenAI
) -> None:
    proxy = await start_proxy(plugins=[Authorizer(deny)])
    client = openai_client.with_options(base_url=f"{proxy.url}/openai/v1", max_retries=2)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)  # type: ignore[arg-type]  # plain dicts
    assert (caught.value.type, caught.value.code) == ("insufficient_quota", "insufficient_quota")
    assert caught.value.response.headers["retry-after"] == "3600"
