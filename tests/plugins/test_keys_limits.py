"""The limits and the usage of keys, without I/O."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from people import MESSAGES
from tornado.httputil import HTTPHeaders
from tornadoproxy_keys.live_key import LiveKey, Window
from tornadoproxy_keys.store import KeyRow, Limits
from tornadoproxy_keys.usage_count import UsageCount

from tornadoproxy import (
    UNKNOWN_MODEL,
    Denied,
    Dialect,
    IncomingRequest,
    ModelRequest,
    ModelUsage,
    Usage,
)
from tornadoproxy.testing import request_record


def live_key(limits: Limits) -> LiveKey:
    return LiveKey(KeyRow("k-1", "ada", (), limits, 0, None, None))


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


def test_window_counts_each_second_together() -> None:
    window = Window()
    for now in (0.0, 0.5, 1.0):
        window.add(1, now)
    assert [window.wait(2, now) for now in (60.25, 60.5)] == [0.25, 0]


def check(*models: str, method: str = "POST", path: str = MESSAGES) -> str:
    """Return the error for a request for `models`, or for a request of which none is known."""
    patterns = ("claude-sonnet-*", "claude-haiku-5")
    allowed = live_key(Limits(models=patterns)).models
    assert allowed is not None
    request = IncomingRequest(method, path, HTTPHeaders(), "127.0.0.1", Dialect.ANTHROPIC)
    asked = ModelRequest(models[0] or None, models, 1, False, 1) if models else None
    try:
        allowed.check(request, asked)
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
    assert accepted or "claude-haiku-5: this path cannot be used" in error


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
    with pytest.raises(Denied, match=rf"limit of {tokens} tokens a minute: try again in \d\d s"):
        full.admit(time.monotonic())


@pytest.mark.parametrize(
    ("usage", "unpriced"),
    [(Usage(), 0), (Usage(partial=True), 1), (Usage(1), 1), (Usage(None, 2, 3, 4), 1)],
)
def test_usage_without_a_price_is_counted(usage: Usage, unpriced: int) -> None:
    count = UsageCount()
    count.add("k", request_record(usage=usage, time=86_400.0))
    count.add("k", request_record(usage=Usage(1), cost=7, time=86_399.0))
    today, before = count.take()
    assert (today.day, today.requests, today.unpriced) == ("1970-01-02", 1, unpriced)
    assert (today.input_tokens, today.output_tokens, today.cache_creation_input_tokens) == (
        *(usage.input_tokens or 0, usage.output_tokens or 0),
        usage.cache_creation_input_tokens or 0,
    )
    assert today.cache_read_input_tokens == (usage.cache_read_input_tokens or 0)
    assert (before.day, before.cost, before.unpriced) == ("1970-01-01", 7, 0)
    assert before.last_used == 86_340
    assert count.take() == []
