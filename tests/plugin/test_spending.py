"""Requests that cost nothing, and estimates of what a request cost."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import Dialect, IncomingRequest, ModelRequest, Outcome, Usage
from tornadoproxy.testing import request_record


def incoming(method: str, path: str) -> IncomingRequest:
    return IncomingRequest(method, path, HTTPHeaders(), "127.0.0.1", Dialect.ANTHROPIC)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/messages"),
        ("HEAD", "/v1/messages"),
        ("DELETE", "/v1/files/file_1"),
        ("OPTIONS", "/v1/complete"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/files"),
        ("POST", "/v1/messages/batches/msgbatch_-1/cancel"),
    ],
)
def test_request_known_to_cost_nothing(method: str, path: str) -> None:
    assert incoming(method, path).costs_nothing


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/messages"),
        ("PUT", "/v1/messages/batches"),
        ("PATCH", "/v1/messages"),
        ("QUERY", "/v1/complete"),
        ("get", "/v1/messages"),
        ("POST", "/v1/messages/batches/x;y/cancel"),
        ("POST", "/v1/messages/batches/%3Fx/cancel"),
        ("POST", "/v1/messages/batches/x/y/cancel"),
        ("POST", "/v1/messages/count_tokens/"),
        ("POST", "/v1/files/file_1"),
        ("POST", "/v1/of-the-future"),
    ],
)
def test_any_other_request_may_cost(method: str, path: str) -> None:
    assert not incoming(method, path).costs_nothing


@pytest.mark.parametrize(
    ("changes", "estimate"),
    [
        ({"upstream_time": None}, (0, 0)),
        ({"status": 400}, (0, 0)),
        ({"status": 399}, (100, 7)),
        ({"status": None, "time_to_first_byte": None}, (100, 0)),
        ({"outcome": Outcome.FAILED}, (100, 0)),
        ({"outcome": Outcome.DRAINED}, (100, 0)),
        ({"outcome": Outcome.ABANDONED}, (100, 7)),
        ({}, (100, 7)),
    ],
    ids=str,
)
def test_estimated_usage_of_a_response_that_reported_none(
    changes: dict[str, Any], estimate: tuple[int, int]
) -> None:
    asked = ModelRequest("opus", ("opus",), 7, False, 400, input_tokens=100)
    assert asked.estimated_usage(request_record(**changes)) == Usage(*estimate)


def test_cost_is_that_of_the_dearest_model() -> None:
    prices = {"opus": 5, "haiku": 1}

    def price(model: str | None, usage: Usage) -> int | None:
        each = prices.get(str(model))
        return None if each is None else each * (usage.input_tokens or 0)

    asked = ModelRequest("haiku", ("haiku", "opus"), 7, False, 400, price=price)
    assert asked.cost(Usage(input_tokens=3)) == 15
    unknown = ModelRequest("haiku", ("haiku", "new"), 7, False, 400, price=price)
    assert unknown.cost(Usage(input_tokens=3)) is None
