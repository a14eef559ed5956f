"""What usage costs: the hook ``price``, estimates, requests that cost nothing, and US dollars."""

from __future__ import annotations

import time
from typing import Any

import pytest
from doubles import CANARY, Authenticator, Plugin, plugins_of, with_timeout
from tornado.httputil import HTTPHeaders

from tornadoproxy import Dialect, IncomingRequest, ModelRequest, ModelUsage, Outcome, Usage, usd
from tornadoproxy.plugin.manager import Plugins
from tornadoproxy.testing import request_record

USAGE = Usage(input_tokens=3, output_tokens=0)


def pricing(**costs: object) -> Plugins:
    """Return plugins that each say this, or raise it, for any model."""

    def priced(cost: object) -> Plugin:
        def price() -> object:
            if isinstance(cost, Exception):
                raise cost
            return cost

        return Plugin(price=price)

    return plugins_of(z=Authenticator(), **{name: priced(cost) for name, cost in costs.items()})


def test_first_price_counts() -> None:
    plugins = pricing(a=None, b=0, c=8)
    assert plugins.price("claude", USAGE) == 0
    assert plugins.price("claude", Usage()) is None, "no usage"
    assert plugins.price(None, USAGE) is None, "no model"
    assert pricing(a=None).price("claude", USAGE) is None


@pytest.mark.parametrize("invalid", [KeyError(CANARY), -1, True, "7"])
def test_invalid_price_is_logged_and_next_is_asked(
    invalid: object, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = pricing(a=invalid, b=7)
    assert plugins.price("claude", USAGE) == 7
    assert plugins.failures == {"a": 1}
    assert "plugin 'a' failed in price (1 so far): " in caplog.text
    assert CANARY not in caplog.text


def test_price_that_blocks_does_not_count() -> None:
    def price() -> int:
        time.sleep(0.03)
        return 7

    plugins = with_timeout(plugins_of(a=Plugin(price=price), z=Authenticator()), 0.02)
    assert plugins.price("claude", USAGE) is None
    assert plugins.failures == {"a": 1}


@pytest.mark.parametrize(
    ("others", "costs", "total"),
    [
        (["dear", "dear", "cheap"], [100, 100, 1], 202),
        (["dearest"], [2**63], 2**63 - 1),
        (["dear", "unheard-of"], [100, None], None),
        ([None], [None], None),
    ],
)
def test_price_of_several_models_is_their_sum_or_unknown(
    others: list[str | None], costs: list[int | None], total: int | None
) -> None:
    def price(model: str, usage: Usage) -> int | None:
        assert not usage.others, "each model is priced by itself"
        return {"cheap": 1, "dear": 100, "dearest": 2**63}.get(model)

    plugins = plugins_of(a=Plugin(price=price), z=Authenticator())
    usage = Usage(1, 1, others=tuple(ModelUsage(model, USAGE) for model in others))
    priced = plugins.priced(usage)
    assert [other.cost for other in priced.others] == costs
    assert plugins.price("cheap", priced) == total
    assert plugins.price("cheap", usage) is None, "what is not priced is not free"


@pytest.mark.parametrize(
    ("line", "free"),
    [
        ("GET /v1/messages", True),
        ("HEAD /v1/messages", True),
        ("DELETE /v1/files/file_1", True),
        ("OPTIONS /v1/complete", True),
        ("POST /v1/messages/count_tokens", True),
        ("POST /v1/files", True),
        ("POST /openai/v1/responses/input_tokens", True),
        ("POST /v1/messages/batches/msgbatch_-1/cancel", True),
        ("POST /openai/v1/responses/resp_1/cancel", True),
        ("POST /v1/messages", False),
        ("PUT /v1/messages/batches", False),
        ("get /v1/messages", False),
        ("POST /v1/messages/batches/%3Fx/cancel", False),
        ("POST /v1/messages/batches/x/y/cancel", False),
        ("POST /v1/messages/count_tokens/", False),
        ("POST /v1/of-the-future", False),
        ("POST /openai/v1/responses", False),
        ("POST /openai/v1/responses/cancel", False),
        ("POST /openai/v1/responses/x/y/cancel", False),
        ("POST /v1/responses/resp_1/cancel", False),
    ],
)
def test_request_that_may_cost_is_told_from_one_that_cannot(line: str, *, free: bool) -> None:
    method, path = line.split()
    request = IncomingRequest(method, path, HTTPHeaders(), "127.0.0.1", Dialect.ANTHROPIC)
    assert request.costs_nothing is free


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
    ],
    ids=str,
)
def test_estimated_usage_of_a_response_that_reported_none(
    changes: dict[str, Any], estimate: tuple[int, int]
) -> None:
    asked = ModelRequest("opus", ("opus",), 7, False, 400, input_tokens=100)
    assert asked.estimated_usage(request_record(**changes)) == Usage(*estimate)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (500_000_000, "0.50"),
        (12_500_000_000, "12.50"),
        (2**63 - 1, "9223372036.854775807"),
        (-1_500_000_001, "-1.500000001"),
    ],
)
def test_usd_shows_every_digit_and_two_decimals(nanos: int, text: str) -> None:
    assert usd(nanos) == text
