"""The limits of keys: models, requests and tokens a minute, requests in flight."""

from __future__ import annotations

import asyncio
import re
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from anthropic import AsyncAnthropic, PermissionDeniedError, RateLimitError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai import PermissionDeniedError as OpenAIPermissionDeniedError
from openai import RateLimitError as OpenAIRateLimitError
from people import CHAT, MESSAGES, MODEL, error_of, message
from tornado.httputil import HTTPHeaders
from tornadoproxy_keys import model_rules
from tornadoproxy_keys.live_key import Window
from tornadoproxy_keys.store import Limits

from tornadoproxy import UNKNOWN_MODEL, Denied, Dialect, IncomingRequest, ModelRequest, hookimpl
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
    from keyed import Keyed

    from tornadoproxy.testing import RawResponse, UpstreamExchange

pytest_plugins = ("keyed",)

PING = event({"type": "ping"})


def retry_after(response: RawResponse) -> int:
    value = response.header("retry-after")
    assert value is not None
    return int(value)


# The window


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 90, allow_nan=False), st.integers(1, 5)), min_size=1, max_size=60
    ),
    limit=st.integers(1, 12),
)
@example(steps=[(2.928748568265113e-122, 1), (60.0, 1)], limit=1)
@settings(max_examples=60, deadline=None)
def test_window_accepts_the_limit_in_any_minute(steps: list[tuple[float, int]], limit: int) -> None:
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
            # a place is free at most a second late
            assert len([at for at in entered if at > now - 61.01]) >= limit
            assert 0 < wait <= 60
            # and after the wait there is a place
            later = Window()
            for at in entered:
                later.add(1, at)
            assert later.wait(limit, now + wait + 0.001) == 0


def test_window_counts_a_large_amount_for_a_minute() -> None:
    window = Window()
    window.add(1_000_000, 100.0)
    assert [window.wait(10, now) for now in (100.0, 130.0, 160.0)] == [60.0, 30.0, 0]


# Models


def check(
    patterns: tuple[str, ...],
    *models: str,
    method: str = "POST",
    path: str = MESSAGES,
) -> str:
    """Return the error for a request for `models`, or for a request of which none is known."""
    request = IncomingRequest(method, path, HTTPHeaders(), "127.0.0.1", Dialect.ANTHROPIC)
    asked = ModelRequest(models[0] or None, models, 1, False, 1) if models else None
    allowed = re.compile("|".join(each.replace("*", ".*") + r"\Z" for each in patterns))
    try:
        model_rules.check(allowed, patterns, request, asked)
    except Denied as denied:
        return f"{denied.status}: {denied}"
    return ""


@pytest.mark.parametrize(
    ("models", "fault"),
    [
        (("claude-sonnet-5-5",), ""),
        (("claude-haiku-5", "claude-sonnet-x"), ""),
        (("claude-haiku-5-1",), "asks for claude-haiku-5-1."),
        (("Claude-Sonnet-5-5",), "asks for Claude-Sonnet-5-5."),
        (("claude-sonnet-5", "claude-opus-5"), "asks for claude-opus-5."),
        (("claude-sonnet-5", UNKNOWN_MODEL), "may use a model that it does not name"),
        (("opus\x1b[31m",), r"asks for opus\x1b[31m."),
        (("x" * 1000,), "asks for " + "x" * 100 + "."),
        (("",), "the request names no model."),
    ],
)
def test_key_is_restricted_to_its_models(models: tuple[str, ...], fault: str) -> None:
    error = check(("claude-sonnet-*", "claude-haiku-5"), *models)
    assert fault in error
    if fault:
        assert error.startswith("403: This key is for the models claude-sonnet-*, claude-haiku-5")


@pytest.mark.parametrize(
    ("method", "path", "accepted"),
    [
        ("GET", "/v1/messages/batches", True),
        ("POST", "/v1/files", True),
        ("POST", "/v1/skills", True),
        ("POST", "/v1/skills/skill_1/versions", True),
        ("POST", "/v1/skills/skill_1", False),
        ("POST", "/v1/messages/batches", False),
        ("POST", "/v1/messages/%62atches", False),
        ("POST", "/v1/%6dessages", False),
        ("POST", "/v1/Messages", False),
        ("POST", "/v1/of-the-future", False),
        ("PUT", "/v1/messages", False),
    ],
)
def test_restricted_key_may_only_run_known_models(method: str, path: str, accepted: bool) -> None:
    error = check((MODEL,), method=method, path=path)
    assert (error == "") == accepted
    assert accepted or f"the model {MODEL}: it cannot be used here" in error


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        (MESSAGES, {"model": "claude-opus-5-5"}),
        (MESSAGES, {"fallbacks": [{"model": MODEL}, {"model": "claude-opus-5-5"}]}),
        (MESSAGES, {"tools": [{"type": "advisor_20260301", "model": "claude-opus-5-5"}]}),
        (MESSAGES, {"thread": {"type": "continue", "previous_message_id": "msg_1"}}),
        (CHAT, {"fallbacks": "default"}),
        ("/v1/messages/batches?beta=true", {}),
    ],
)
async def test_request_for_other_models_is_rejected(
    target: str, fields: dict[str, object], keyed: Keyed
) -> None:
    limited = keyed.create("ada", Limits(models=("claude-sonnet-*",)))
    unlimited = keyed.create("bob", Limits(models=("*",)))
    await keyed.start()
    document = message(**fields)  # type: ignore[arg-type]  # fields of a body
    response = await keyed.ask(limited, target, document)
    assert response.status == 403
    assert error_of(response)["message"].startswith("This key is for the model claude-sonnet-*")
    assert keyed.upstream.requests == []
    asked = (await keyed.records.finished()).requested_model
    assert asked == (None if "batches" in target else document["model"])
    keyed.upstream.script(json_response(message_document("Hi")))
    status = (await keyed.ask(unlimited, target, document)).status
    assert status == (403 if "batches" in target else 200)


async def test_restricted_key_does_what_runs_no_model(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(models=("claude-haiku-*",)))
    await keyed.start()
    for target in ("/v1/models", "/openai/v1/models"):
        assert (await keyed.get(key, target=target)).status == 200
    assert (await keyed.ask(key, "/v1/messages/count_tokens")).status == 200


async def test_sdks_raise_what_limits_refuse(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keyed.create("ada", Limits(models=("claude-haiku-*",)))
    once = keyed.create("bob", Limits(requests_per_minute=1))
    proxy = await keyed.start()
    clean_environment(monkeypatch)
    url = f"{proxy.url}/openai/v1"
    async with (
        AsyncAnthropic(base_url=proxy.url, api_key=key, max_retries=0) as client,
        AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as openai,
    ):
        with pytest.raises(PermissionDeniedError, match=r"claude-haiku-\*") as refused:
            await client.messages.create(**message())
        assert refused.value.type == "permission_error"
        with pytest.raises(OpenAIPermissionDeniedError, match=r"claude-haiku-\*"):
            await openai.chat.completions.create(**message())
        client.api_key = openai.api_key = once
        await client.models.list()
        with pytest.raises(RateLimitError) as limited:
            await client.messages.create(**message())
        assert limited.value.type == "rate_limit_error"
        with pytest.raises(OpenAIRateLimitError) as also:
            await openai.chat.completions.create(**message())
        assert (also.value.type, also.value.code) == ("rate_limit_error", "rate_limit_exceeded")
        for response in (limited.value.response, also.value.response):
            assert 1 <= int(response.headers["retry-after"]) <= 60


# Requests and tokens a minute


async def test_parallel_requests_enter_up_to_the_limit(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(requests_per_minute=7))
    other = keyed.create("bob", Limits(requests_per_minute=7))
    await keyed.start()
    responses = await asyncio.gather(*(keyed.ask(key) for _ in range(15)))
    refused = [response for response in responses if response.status == 429]
    assert (len(refused), len(keyed.upstream.requests)) == (8, 7)
    for response in refused:
        assert error_of(response)["type"] == "rate_limit_error"
        assert "reached its limit of 7 requests a minute" in error_of(response)["message"]
        assert 1 <= retry_after(response) <= 60
    assert (await keyed.get(key)).status == 429
    assert (await keyed.ask(other)).status == 200


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
async def test_tokens_count_when_they_are_known(stream: bool, keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(tokens_per_minute=100))
    await keyed.start()
    advice = {"type": "advisor_message", "model": "opus", "input_tokens": 10}
    first = {
        "input_tokens": 20,
        "output_tokens": 30,
        "cache_read_input_tokens": 1_000_000,
        "cache_creation_input_tokens": 39,
        "iterations": [advice],
    }
    for usage in (first, {"input_tokens": 1, "output_tokens": 0}):  # 99, then 100
        document = message_document("Hi", usage=usage)
        scripted = sse_response(message_events(document)) if stream else json_response(document)
        keyed.upstream.script(scripted)
        assert (await keyed.ask(key, document=message(stream=stream))).status == 200
    response = await keyed.ask(key)
    assert (response.status, error_of(response)["type"]) == (429, "rate_limit_error")
    assert "100 tokens a minute" in error_of(response)["message"]
    assert 1 <= retry_after(response) <= 60


async def test_response_without_usage_counts_its_estimate(keyed: Keyed) -> None:
    """Otherwise an unknown compression would circumvent the limit."""
    document = message()
    # an error counts 0, a request without a response its input, any other input and 50 tokens
    key = keyed.create("ada", Limits(tokens_per_minute=30))
    await keyed.start()
    keyed.upstream.script(error_response(500, "api_error", "No"), silent_response())
    assert (await keyed.ask(key, document=document)).status == 500
    left = await keyed.send(key)
    await keyed.upstream.received(2)
    await left.close()
    assert (await keyed.records.finished(2)).outcome == "abandoned"
    secret = json_response(message_document("Hi"), headers={"Content-Encoding": "secret"})
    keyed.upstream.script(secret)
    assert (await keyed.ask(key, document=document)).status == 200
    assert (await keyed.records.finished(3)).usage.output_tokens is None
    assert (await keyed.ask(key, document=document)).status == 429
    assert len(keyed.upstream.requests) == 3


async def test_named_file_counts_as_large_without_usage(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(tokens_per_minute=100_000))
    await keyed.start()
    secret = json_response(message_document("Hi"), headers={"Content-Encoding": "secret"})
    keyed.upstream.script(secret)
    assert (await keyed.ask(key, document=message(file_id="file_1"))).status == 200
    assert (await keyed.ask(key)).status == 429


async def test_disconnect_within_a_document_counts_its_estimate(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(tokens_per_minute=60))
    await keyed.start()

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Type": "application/json", "Content-Length": "999"})
        await exchange.send(b'{"type":"message","content":"All of it"')
        await exchange.disconnected()

    keyed.upstream.script(response)
    connection = await keyed.send(key)
    await connection.read_until(b"All of it")
    await connection.close()
    assert (await keyed.records.finished()).outcome == "abandoned"
    assert (await keyed.ask(key)).status == 429


# Requests in flight


async def test_parallel_requests_run_up_to_the_limit(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(concurrency=3))
    await keyed.start()
    over = asyncio.Event()

    async def scripted(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await over.wait()
        await exchange.head(200, {"Content-Length": "2"})
        await exchange.send(b"{}")

    keyed.upstream.script(*[scripted] * 3)
    asking = [asyncio.ensure_future(keyed.ask(key)) for _ in range(8)]
    for refused in islice(asyncio.as_completed(asking), 5):
        response = await refused
        assert (response.status, error_of(response)["type"]) == (429, "rate_limit_error")
        assert "3 requests at once" in error_of(response)["message"]
        assert retry_after(response) == 1
    await keyed.upstream.received(3)
    over.set()
    statuses = sorted(response.status for response in await asyncio.gather(*asking))
    assert statuses == [200] * 3 + [429] * 5
    assert (await keyed.ask(key)).status == 200


async def test_place_is_freed_however_a_request_ends(keyed: Keyed) -> None:
    class Moody:
        """An authorizer that runs after the keys."""

        @hookimpl
        def authorize(self, request: IncomingRequest) -> None:
            if request.method == "PUT":
                raise Denied("Not today.")
            if request.method == "PATCH":
                raise RuntimeError

    key = keyed.create("ada", Limits(concurrency=1))
    await keyed.start(plugins=[Moody()], UPSTREAM_IDLE_TIMEOUT=0.05)
    for method, status in (("PUT", 403), ("PATCH", 503)):
        connection = await keyed.raw()
        await connection.send(request_bytes(method, MESSAGES, body=b"{}", token=key))
        assert (await connection.response()).status == status
    # an upstream that refuses, resets or goes silent
    keyed.upstream.script(
        error_response(529, "overloaded_error", "Overloaded"),
        sse_response([PING], end="reset"),
        sse_response([PING], end="hang"),
    )
    assert (await keyed.ask(key)).status == 529
    for _ in range(2):
        assert b"event: error" in await (await keyed.send(key)).read_to_end()
    assert (await keyed.ask(key, document={"max_tokens": "x"})).status != 429
    # a client that disconnects
    keyed.upstream.script(silent_response())
    before, sent = len(keyed.records.all), len(keyed.upstream.requests)
    connection = await keyed.send(key)
    await keyed.upstream.received(sent + 1)
    await connection.close()
    assert (await keyed.records.finished(before + 1)).outcome == "abandoned"
    assert (await keyed.ask(key)).status == 200


@pytest.mark.parametrize(
    ("target", "limits"),
    [
        (MESSAGES, Limits(concurrency=2)),
        (CHAT, Limits(requests_per_minute=2)),
        ("/v1/files", Limits(concurrency=2)),
    ],
)
async def test_slow_bodies_count_against_the_limits(
    target: str, limits: Limits, keyed: Keyed
) -> None:
    key = keyed.create("ada", limits)
    await keyed.start()
    slow = request_bytes("POST", target, body=b"{}", token=key)[:-1]
    clients = [await keyed.raw() for _ in range(3)]
    for client in clients:
        await client.send(slow)
    responses = [asyncio.ensure_future(client.response()) for client in clients]
    refused, slow_ones = await asyncio.wait(responses, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().status for task in refused] == [429]
    for task in slow_ones:
        task.cancel()
    for client in clients:
        await client.close()
    await keyed.records.finished(3)
    status = (await keyed.ask(key)).status
    assert status == (429 if limits.requests_per_minute else 200)


async def test_many_aborted_streams_leak_no_place(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(concurrency=2))
    await keyed.start()
    aborted = 30
    for count in range(1, aborted + 1):
        keyed.upstream.script(sse_response([PING], end="hang"))
        connection = await keyed.send(key, stream=True)
        await connection.head()
        await connection.reset()
        assert (await keyed.records.finished(count)).outcome == "abandoned"
    keyed.upstream.script(silent_response(), silent_response())
    held = [await keyed.send(key), await keyed.send(key)]
    await keyed.upstream.received(aborted + 2)
    assert (await keyed.ask(key)).status == 429
    for connection in held:
        await connection.close()
    await keyed.records.finished(aborted + 3)
    assert (await keyed.ask(key)).status == 200


async def test_limits_of_a_key_do_not_apply_to_the_token(keyed: Keyed) -> None:
    keyed.create("token", Limits(("claude-haiku-*",), 1, 1, 1))
    await keyed.start()
    assert [(await keyed.ask(TEST_TOKEN)).status for _ in range(3)] == [200] * 3
