"""The keys plugin's limits: models, requests and tokens a minute, requests at once."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from anthropic import AsyncAnthropic, PermissionDeniedError, RateLimitError
from hypothesis import example, given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai import PermissionDeniedError as OpenAIPermissionDeniedError
from openai import RateLimitError as OpenAIRateLimitError
from tornadoproxy_keys import store
from tornadoproxy_keys.live_key import Window
from tornadoproxy_keys.store import Limits

from tornadoproxy import Database, Denied, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    clean_environment,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
        OpenRaw,
        RawConnection,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

MODEL = "claude-sonnet-5-5"


def message(model: str | None = MODEL, **fields: object) -> bytes:
    named = {} if model is None else {"model": model}
    messages = [{"role": "user", "content": "Hi"}]
    return json.dumps({**named, "max_tokens": 50, "messages": messages, **fields}).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


def make_key(path: Path, limits: Limits, name: str = "ada") -> str:
    with Database(path, store.SCHEMA, name="keys") as database, database.transaction() as it:
        return store.create(it, name, (), limits, None, int(time.time()))


class Key:
    """Sends requests with one key."""

    def __init__(self, raw: OpenRaw, key: str) -> None:
        self._raw = raw
        self._key = key

    async def send(
        self, method: str = "POST", target: str = "/v1/messages", body: bytes | None = None
    ) -> RawConnection:
        """Send a request, a message by default; its answer is still to be read."""
        connection = await self._raw()
        content = message() if body is None and method == "POST" else body or b""
        await connection.send(request_bytes(method, target, body=content, token=self._key))
        return connection

    async def ask(
        self, method: str = "POST", target: str = "/v1/messages", body: bytes | None = None
    ) -> RawResponse:
        """Send a request; return the answer."""
        return await (await self.send(method, target, body)).response()


def retry_after(response: RawResponse) -> int:
    value = response.header("retry-after")
    assert value is not None
    return int(value)


def error_of(response: RawResponse) -> dict[str, str]:
    error: dict[str, str] = json.loads(response.body)["error"]
    return error


# The window


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 90, allow_nan=False), st.integers(1, 5)), min_size=1, max_size=60
    ),
    limit=st.integers(1, 12),
)
@example(steps=[(2.928748568265113e-122, 1), (60.0, 1)], limit=1)
def test_within_no_minute_more_is_let_in_than_the_limit(
    steps: list[tuple[float, int]], limit: int
) -> None:
    window = Window()
    now = 0.0
    entered: list[float] = []
    for pause, tries in steps:
        now += pause
        for _ in range(tries):
            wait = window.wait(limit, now)
            recent = [at for at in entered if at + 60 > now]  # as floats are rounded in `Window`
            if wait == 0:
                assert len(recent) < limit
                window.add(1, now)
                entered.append(now)
                continue
            # nobody is turned away whose turn came more than a second ago
            assert len([at for at in entered if at > now - 61.01]) >= limit
            assert 0 < wait <= 60
            # and who comes back when told finds a place
            later = Window()
            for at in entered:
                later.add(1, at)
            assert later.wait(limit, now + wait + 0.001) == 0


def test_an_amount_over_the_limit_counts_for_its_minute_and_no_longer() -> None:
    window = Window()
    window.add(1_000_000, 100.0)
    assert window.wait(10, 100.0) == 60.0
    assert window.wait(10, 130.0) == 30.0
    assert window.wait(10, 160.0) == 0


# Models


@pytest.mark.parametrize("target", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_model_that_is_refused_is_in_the_record(
    target: str, path: Path, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    key = Key(raw, make_key(path, Limits(models=("claude-haiku-*",))))
    await start_proxy(KEYS_DB=path)
    response = await key.ask("POST", target, message("claude-opus-5-5\x1b[31m"))
    assert response.status == 403
    assert error_of(response)["message"].endswith(r"asks for claude-opus-5-5\x1b[31m.")
    assert (await records.finished()).requested_model == "claude-opus-5-5\x1b[31m"


async def test_models_are_held_to_the_patterns(
    path: Path, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    limits = Limits(models=("claude-sonnet-*", "claude-haiku-5"))
    key = Key(raw, make_key(path, limits))
    await start_proxy(KEYS_DB=path)
    assert (await key.ask(body=message("claude-sonnet-5-5"))).status == 200
    assert (await key.ask(body=message("claude-haiku-5"))).status == 200
    let_in = len(upstream.requests)
    for model in ("claude-haiku-5-1", "claude-opus-5", "Claude-Sonnet-5-5", "", None):
        response = await key.ask(body=message(model))
        assert response.status == 403
        error = error_of(response)
        assert error["type"] == "permission_error"
        assert "claude-sonnet-*, claude-haiku-5" in error["message"]
        assert f"asks for {model}." in error["message"] or not model
    assert len(upstream.requests) == let_in


@pytest.mark.parametrize("allowed", ["claude-sonnet-*", "*"])
@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/v1/messages", {"fallbacks": "default"}),
        ("/v1/messages", {"fallbacks": [{"model": MODEL}, {"model": "claude-opus-5-5"}]}),
        ("/v1/messages", {"tools": [{"type": "advisor_20260301", "model": "claude-opus-5-5"}]}),
        ("/v1/messages", {"thread": {"type": "continue", "previous_message_id": "msg_1"}}),
        ("/openai/v1/chat/completions", {"fallbacks": "default"}),
        ("/openai/v1/chat/completions", {"fallbacks": [{"model": "claude-opus-5-5"}]}),
        ("/openai/v1/chat/completions", {"thread": {"type": "continue"}}),
    ],
)
async def test_models_besides_the_first_are_held_to_the_patterns(
    target: str,
    fields: dict[str, object],
    allowed: str,
    path: Path,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    key = Key(raw, make_key(path, Limits(models=(allowed,))))
    await start_proxy(KEYS_DB=path)
    upstream.script(json_response(message_document("Hi")))
    body = json.dumps({**json.loads(message()), **fields}).encode()
    response = await key.ask("POST", target, body)
    assert (response.status, len(upstream.requests)) == ((200, 1) if allowed == "*" else (403, 0))
    if allowed != "*":
        assert allowed in error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/messages/batches?beta=true"),
        ("POST", "/v1/messages/batches/"),
        ("POST", "/v1/messages/%62atches"),
        ("POST", "/v1/complete"),
        ("POST", "/v1/of-the-future"),
        ("PUT", "/v1/messages"),
    ],
)
async def test_a_key_for_some_models_is_of_no_use_where_they_are_not_looked_for(
    method: str,
    target: str,
    path: Path,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    limited = Key(raw, make_key(path, Limits(models=(MODEL,))))
    free = Key(raw, make_key(path, Limits(), "bob"))
    await start_proxy(KEYS_DB=path)
    body = json.dumps({"requests": [{"custom_id": "1", "params": {"model": MODEL}}]}).encode()
    response = await limited.ask(method, target, body)
    assert response.status == 403
    error = error_of(response)
    assert error["type"] == "permission_error"
    assert MODEL in error["message"]
    assert "batches" in error["message"]
    assert upstream.requests == []
    upstream.script(json_response({}))
    assert (await free.ask(method, target, body)).status == 200


@pytest.mark.parametrize("target", ["/v1/%6dessages", "/v1/messages/", "/v1/Messages"])
async def test_another_spelling_of_messages_is_no_way_around(
    target: str, path: Path, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    key = Key(raw, make_key(path, Limits(models=(MODEL,))))
    await start_proxy(KEYS_DB=path)
    assert (await key.ask("POST", target, message("claude-opus-5"))).status == 403
    assert upstream.requests == []


async def test_a_key_for_some_models_does_what_runs_none(
    path: Path, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    key = Key(raw, make_key(path, Limits(models=("claude-haiku-*",))))
    await start_proxy(KEYS_DB=path)
    for method, target in (
        ("GET", "/v1/models"),
        ("GET", "/openai/v1/models"),
        ("GET", "/v1/messages/batches"),
        ("DELETE", "/v1/files/file_1"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/messages/batches/msgbatch_1/cancel"),
        ("POST", "/v1/files"),
    ):
        answered = len(upstream.requests)
        response = await key.ask(method, target)
        assert response.status != 403
        assert len(upstream.requests) > answered


async def test_both_sdks_know_a_model_that_is_not_permitted(
    path: Path, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(path, Limits(models=("claude-haiku-*",)))
    proxy = await start_proxy(KEYS_DB=path)
    clean_environment(monkeypatch)
    async with AsyncAnthropic(base_url=proxy.url, api_key=key, max_retries=0) as client:
        with pytest.raises(PermissionDeniedError) as refused:
            await client.messages.create(
                model=MODEL, max_tokens=50, messages=[{"role": "user", "content": "Hi"}]
            )
    assert refused.value.type == "permission_error"
    assert "claude-haiku-*" in refused.value.message
    url = f"{proxy.url}/openai/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as openai:
        with pytest.raises(OpenAIPermissionDeniedError, match=r"claude-haiku-\*"):
            await openai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}]
            )


# Requests and tokens a minute


async def test_of_parallel_requests_exactly_as_many_enter_as_may(
    path: Path, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    key = Key(raw, make_key(path, Limits(requests_per_minute=7)))
    other = Key(raw, make_key(path, Limits(requests_per_minute=7), "bob"))
    await start_proxy(KEYS_DB=path)
    responses = await asyncio.gather(*(key.ask() for _ in range(25)))
    statuses = [response.status for response in responses]
    assert (statuses.count(200), statuses.count(429)) == (7, 18)
    assert len(upstream.requests) == 7
    for response in responses:
        if response.status == 429:
            assert error_of(response)["type"] == "rate_limit_error"
            assert "7 requests a minute" in error_of(response)["message"]
            assert 1 <= retry_after(response) <= 60
    assert (await key.ask("GET", "/v1/models")).status == 429
    assert (await other.ask()).status == 200


async def test_both_sdks_know_a_rate_limit(
    path: Path, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(path, Limits(requests_per_minute=1))
    proxy = await start_proxy(KEYS_DB=path)
    clean_environment(monkeypatch)
    async with AsyncAnthropic(base_url=proxy.url, api_key=key, max_retries=0) as client:
        await client.models.list()
        with pytest.raises(RateLimitError) as refused:
            await client.messages.create(
                model=MODEL, max_tokens=50, messages=[{"role": "user", "content": "Hi"}]
            )
    assert refused.value.type == "rate_limit_error"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    url = f"{proxy.url}/openai/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as openai:
        with pytest.raises(OpenAIRateLimitError) as also:
            await openai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}]
            )
    assert (also.value.type, also.value.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(also.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_tokens_count_when_they_are_known(
    stream: bool,
    path: Path,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    key = Key(raw, make_key(path, Limits(tokens_per_minute=100)))
    await start_proxy(KEYS_DB=path)

    def script(
        input_tokens: int, output_tokens: int, read: int, creation: int, advice: int
    ) -> None:
        document = message_document(
            "Hi",
            usage={
                "input_tokens": input_tokens,
                "output_tokens": output_tokens,
                "cache_read_input_tokens": read,
                "cache_creation_input_tokens": creation,
                "iterations": [
                    {"type": "advisor_message", "model": "opus", "input_tokens": advice}
                ],
            },
        )
        scripted = sse_response(message_events(document)) if stream else json_response(document)
        upstream.script(scripted)

    script(20, 30, 1_000_000, 39, 10)
    assert (await key.ask(body=message(stream=stream))).status == 200
    script(1, 0, 0, 0, 0)
    assert (await key.ask(body=message(stream=stream))).status == 200  # 99 until now
    response = await key.ask(body=message(stream=stream))
    assert response.status == 429
    assert error_of(response)["type"] == "rate_limit_error"
    assert "100 tokens a minute" in error_of(response)["message"]
    assert 1 <= retry_after(response) <= 60


async def test_an_answer_that_does_not_tell_counts_with_what_was_asked_for(
    path: Path,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    """Otherwise a compression that nobody here knows would be a way around the limit."""
    body = message()
    # more than an error, less than its question alone, and its question and 50 tokens
    key = Key(raw, make_key(path, Limits(tokens_per_minute=len(body) // 4 + 1)))
    await start_proxy(KEYS_DB=path)
    upstream.script(error_response(500, "api_error", "No"), silent_response())
    assert (await key.ask(body=body)).status == 500
    left = await key.send(body=body)
    await upstream.received(2)
    await left.close()
    assert (await records.finished(2)).outcome == "abandoned"
    upstream.script(json_response(message_document("Hi"), headers={"Content-Encoding": "secret"}))
    assert (await key.ask(body=body)).status == 200
    assert (await records.finished(3)).usage.output_tokens is None
    assert (await key.ask(body=body)).status == 429
    assert len(upstream.requests) == 3


async def test_named_file_counts_as_large_without_a_usage(
    path: Path, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    key = Key(raw, make_key(path, Limits(tokens_per_minute=100_000)))
    await start_proxy(KEYS_DB=path)
    body = json.dumps({**json.loads(message()), "file_id": "file_1"}).encode()
    upstream.script(json_response(message_document("Hi"), headers={"Content-Encoding": "secret"}))
    assert (await key.ask(body=body)).status == 200
    assert (await key.ask()).status == 429


async def test_who_leaves_a_document_before_its_end_has_used_it(
    path: Path,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    body = message()
    key = Key(raw, make_key(path, Limits(tokens_per_minute=len(body) // 4 + 50)))
    await start_proxy(KEYS_DB=path)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Type": "application/json", "Content-Length": "999"})
        await exchange.send(b'{"type":"message","content":"All of it"')
        await exchange.disconnected()

    upstream.script(response)
    connection = await key.send(body=body)
    await connection.read_until(b"All of it")
    await connection.close()
    assert (await records.finished()).outcome == "abandoned"
    assert (await key.ask(body=body)).status == 429


# At once


async def test_of_parallel_requests_no_more_run_than_may(
    path: Path, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    key = Key(raw, make_key(path, Limits(concurrency=3)))
    await start_proxy(KEYS_DB=path)
    over = asyncio.Event()

    async def scripted(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await over.wait()
        await exchange.head(200, {"Content-Length": "2"})
        await exchange.send(b"{}")

    upstream.script(*[scripted] * 3)
    asking = [asyncio.ensure_future(key.ask()) for _ in range(12)]
    for refused in islice(asyncio.as_completed(asking), 9):
        response = await refused
        assert response.status == 429
        assert error_of(response)["type"] == "rate_limit_error"
        assert "3 requests at once" in error_of(response)["message"]
        assert retry_after(response) == 1
    await upstream.received(3)
    over.set()
    statuses = sorted(response.status for response in await asyncio.gather(*asking))
    assert statuses == [200] * 3 + [429] * 9
    assert (await key.ask()).status == 200


async def test_a_place_is_free_again_however_a_request_ends(
    path: Path,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    key = Key(raw, make_key(path, Limits(concurrency=1)))

    class Moody:
        """An authorizer that is asked after the keys."""

        @hookimpl
        def authorize(self, request: IncomingRequest) -> None:
            if "refused" in request.headers:
                raise Denied("Not today.")
            if "broken" in request.headers:
                raise RuntimeError

    await start_proxy(plugins=[Moody()], KEYS_DB=path, UPSTREAM_IDLE_TIMEOUT=0.2)
    # one that is refused later, or fails later
    for header, status in (("Refused", 403), ("Broken", 503)):
        connection = await raw()
        request = request_bytes("POST", "/v1/messages", {header: "1"}, message(), token=key._key)
        await connection.send(request)
        assert (await connection.response()).status == status
    # an upstream that refuses, cuts, or goes silent
    upstream.script(
        error_response(529, "overloaded_error", "Overloaded"),
        sse_response([event({"type": "ping"})], end="reset"),
        sse_response([event({"type": "ping"})], end="hang"),
    )
    assert (await key.ask()).status == 529
    for _ in range(2):
        connection = await key.send()
        assert b"event: error" in await connection.read_to_end()
    # a message that is none
    assert (await key.ask(body=b"not JSON")).status == 400
    # a client that leaves
    upstream.script(silent_response())
    before = len(records.all)
    connection = await key.send()
    await upstream.received(4)
    await connection.close()
    assert (await records.finished(before + 1)).outcome == "abandoned"
    assert (await key.ask()).status == 200


@pytest.mark.parametrize("target", ["/v1/messages", "/openai/v1/chat/completions", "/v1/files"])
@pytest.mark.parametrize(
    "limits", [Limits(concurrency=2), Limits(requests_per_minute=2)], ids=["at once", "a minute"]
)
async def test_slow_bodies_count_against_limits_of_key(
    target: str, limits: Limits, path: Path, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    secret = make_key(path, limits)
    await start_proxy(KEYS_DB=path)
    slow = request_bytes("POST", target, body=message(), token=secret)[:-1]
    clients = [await raw() for _ in range(3)]
    for client in clients:
        await client.send(slow)
    responses = [asyncio.ensure_future(client.response()) for client in clients]
    refused, slow_ones = await asyncio.wait(responses, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().status for task in refused] == [429]
    for task in slow_ones:
        task.cancel()
    for client in clients:
        await client.close()
    await records.finished(3)
    status = (await Key(raw, secret).ask()).status
    assert status == (429 if limits.requests_per_minute else 200)


async def test_nothing_leaks_after_many_aborted_streams(
    path: Path,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    key = Key(raw, make_key(path, Limits(concurrency=2)))
    await start_proxy(KEYS_DB=path)
    aborted = 60
    for count in range(1, aborted + 1):
        upstream.script(sse_response([event({"type": "ping"})], end="hang"))
        connection = await key.send(body=message(stream=True))
        await connection.head()
        await connection.reset()
        assert (await records.finished(count)).outcome == "abandoned"
    # two places, no more and no fewer
    upstream.script(silent_response(), silent_response())
    held = [await key.send(), await key.send()]
    await upstream.received(aborted + 2)
    assert (await key.ask()).status == 429
    for connection in held:
        await connection.close()
    await records.finished(aborted + 3)
    assert (await key.ask()).status == 200


async def test_who_has_no_key_has_no_limits_of_one(
    path: Path, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    make_key(path, Limits(("claude-haiku-*",), 1, 1, 1), "token")  # the token's own principal
    await start_proxy(KEYS_DB=path)
    token = Key(raw, TEST_TOKEN)
    assert [(await token.ask()).status for _ in range(3)] == [200] * 3
