"""The limits of keys: models, requests and tokens a minute, requests in flight."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from people import CHAT, MESSAGES, Held, error_of, message
from tornado.httputil import HTTPHeaders
from tornadoproxy_keys import model_rules
from tornadoproxy_keys.live_key import LiveKey, Window
from tornadoproxy_keys.store import KeyRow, Limits

from tornadoproxy import (
    UNKNOWN_MODEL,
    Denied,
    Dialect,
    IncomingRequest,
    ModelRequest,
    ModelUsage,
    Usage,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    json_response,
    message_document,
    request_bytes,
    request_record,
)

if TYPE_CHECKING:
    from keyed import Keyed

pytest_plugins = ("keyed",)


def live_key(limits: Limits) -> LiveKey:
    return LiveKey(KeyRow("k-1", "ada", (), limits, 0, None, None))


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


def check(*models: str, method: str = "POST", path: str = MESSAGES) -> str:
    """Return the error for a request for `models`, or for a request of which none is known."""
    patterns = ("claude-sonnet-*", "claude-haiku-5")
    allowed = live_key(Limits(models=patterns)).models
    assert allowed is not None
    request = IncomingRequest(method, path, HTTPHeaders(), "127.0.0.1", Dialect.ANTHROPIC)
    asked = ModelRequest(models[0] or None, models, 1, False, 1) if models else None
    try:
        model_rules.check(allowed, patterns, request, asked)
    except Denied as denied:
        return f"{denied.status}: {denied}"
    return ""


@pytest.mark.parametrize(
    ("models", "fault"),
    [
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
    error = check(*models)
    assert fault in error
    if fault:
        assert error.startswith("403: This key is for the models claude-sonnet-*, claude-haiku-5")


@pytest.mark.parametrize(
    ("method", "path", "accepted"),
    [
        ("GET", "/v1/messages/batches", True),
        ("POST", "/v1/skills", True),
        ("POST", "/v1/skills/skill_1/versions", True),
        ("POST", "/v1/skills/skill_1", False),
        ("POST", "/v1/messages/batches", False),
        ("POST", "/v1/%6dessages", False),
    ],
)
def test_restricted_key_may_only_run_known_models(method: str, path: str, accepted: bool) -> None:
    error = check(method=method, path=path)
    assert (error == "") == accepted
    assert accepted or "claude-haiku-5: it cannot be used here" in error


async def test_request_for_other_models_is_rejected(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(models=("claude-sonnet-*",)))
    await keyed.start()
    advised = message(tools=[{"type": "advisor_20260301", "model": "claude-opus-5-5"}])
    for target, document in ((MESSAGES, advised), ("/v1/messages/batches?beta=true", {"x": 1})):
        response = await keyed.ask(key, target, document)
        assert response.status == 403
        assert error_of(response)["message"].startswith("This key is for the model claude-sonnet-*")
    assert keyed.upstream.requests == []


# Requests and tokens a minute


async def test_parallel_requests_enter_up_to_the_limit(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(requests_per_minute=7))
    other = keyed.create("bob", Limits(requests_per_minute=7))
    await keyed.start()
    statuses = [each.status for each in await asyncio.gather(*(keyed.ask(key) for _ in range(15)))]
    assert (statuses.count(429), len(keyed.upstream.requests)) == (8, 7)
    refused = await keyed.ask(key, CHAT)
    error = error_of(refused)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "reached its limit of 7 requests a minute" in error["message"]
    assert 1 <= int(refused.header("retry-after") or 0) <= 60
    assert (await keyed.ask(other)).status == 200


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (Usage(20, 30, 1_000_000, 39, others=(ModelUsage("opus", Usage(10)),)), 99),
        (Usage(None, 5), 5),
        # otherwise an unknown compression would circumvent the limit
        (Usage(partial=True), 107),
    ],
    ids=["all but those read from the cache", "output alone", "estimate without usage"],
)
def test_tokens_of_a_minute_are_limited(usage: Usage, tokens: int) -> None:
    asked = ModelRequest("opus", ("opus",), 7, False, 400, input_tokens=100)
    room, full = (live_key(Limits(tokens_per_minute=limit)) for limit in (tokens + 1, tokens))
    for key in (room, full):
        key.count_tokens(asked, request_record(usage=usage))
    room.admit(time.monotonic())
    with pytest.raises(Denied, match=f"limit of {tokens} tokens a minute: try again in 60 s"):
        full.admit(time.monotonic())


async def test_tokens_count_when_a_response_ends(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(tokens_per_minute=100))
    await keyed.start()
    usage = {"input_tokens": 60, "output_tokens": 40}
    keyed.upstream.script(json_response(message_document("Hi", usage=usage)))
    assert [(await keyed.ask(key)).status for _ in range(2)] == [200, 429]


# Requests in flight


async def test_parallel_requests_run_up_to_the_limit(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(concurrency=3))
    await keyed.start()
    held = Held(json_response({}))
    keyed.upstream.script(*[held] * 3)
    asking = [asyncio.ensure_future(keyed.ask(key)) for _ in range(8)]
    for refused in islice(asyncio.as_completed(asking), 5):
        response = await refused
        assert (response.status, error_of(response)["type"]) == (429, "rate_limit_error")
        assert "3 requests at once" in error_of(response)["message"]
        assert response.header("retry-after") == "1"
    await keyed.upstream.received(3)
    held.released.set()
    statuses = sorted(response.status for response in await asyncio.gather(*asking))
    assert statuses == [200] * 3 + [429] * 5
    assert (await keyed.ask(key)).status == 200


@pytest.mark.parametrize(
    ("target", "limits"),
    [(MESSAGES, Limits(concurrency=2)), ("/v1/files", Limits(requests_per_minute=2))],
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


async def test_limits_of_a_key_do_not_apply_to_the_token(keyed: Keyed) -> None:
    keyed.create("token", Limits(("claude-haiku-*",), 1, 1, 1))
    await keyed.start()
    assert [(await keyed.ask(TEST_TOKEN)).status for _ in range(3)] == [200] * 3
