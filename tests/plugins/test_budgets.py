"""The budgets plugin in a running proxy: what it refuses, what it counts, and what it survives."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import AsyncAnthropic, RateLimitError
from openai import AsyncOpenAI
from openai import RateLimitError as OpenAIRateLimitError
from tornadoproxy_budgets import keeper, storage
from tornadoproxy_budgets.caps import Scope

from tornadoproxy import (
    AuthenticationFailed,
    ConfigurationError,
    Database,
    Identity,
    IncomingRequest,
    Usage,
    hookimpl,
    usd,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    Truncated,
    clean_environment,
    error_response,
    json_response,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

ADMIN = "an-admin-key-of-thirty-two-characters"
LIMITS = "/v1/organizations/spend_limits"
MODEL = "claude-sonnet-5-5"
UNPRICED = "claude-of-which-nobody-knows-the-price"
CENT = 10_000_000
EVERYONE = Scope("organization")
TOGETHER = Scope("organization", shared=True)
UNIFIED = {"anthropic-ratelimit-unified-status": "allowed", "anthropic-ratelimit-tokens-limit": "9"}


class People:
    """Whoever says a name is that person: ``ada``, or ``ada+team`` to be in a group as well."""

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Identity:
        for candidate in request.candidates():
            name, *groups = candidate.reveal().decode().split("+")
            return Identity(name, groups=tuple(groups))
        raise AuthenticationFailed("Who are you?")


class Prices:
    """A cent for a token that comes out, and a hundredth of it for one that goes in."""

    @hookimpl(tryfirst=True)
    def price(self, model: str, usage: Usage) -> int | None:
        if model.startswith(UNPRICED):
            return None
        return (usage.input_tokens or 0) * CENT // 100 + (usage.output_tokens or 0) * CENT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budgets.db"


def set_cap(path: Path, scope: Scope, cents: int | None, period: Any = "daily") -> None:
    """As a command does it."""
    with (
        Database(path, storage.SCHEMA, name="budgets") as database,
        database.transaction() as connection,
    ):
        storage.set_cap(connection, scope, period, cents, actor="test", now=1.0)


async def start(start_proxy: StartProxy, path: Path, **variables: object) -> Proxy:
    given = {"BUDGETS_DB": path, "BUDGETS_ADMIN_KEY": ADMIN, "DISABLED_PLUGINS": "prices"}
    return await start_proxy(plugins=[People(), Prices()], **{**given, **variables})


def message(max_tokens: int = 10, *, model: str = MODEL, stream: bool = False) -> bytes:
    """A request that may cost `max_tokens` cents, and one for its input."""
    document = {
        "model": model,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Hi" * 150}],
        "stream": stream,
    }
    return json.dumps(document).encode()


def told(output_tokens: int) -> Response:
    """An answer that costs so many cents."""
    usage = {"input_tokens": 0, "output_tokens": output_tokens}
    return json_response(message_document("done", usage=usage))


async def ask(
    raw: OpenRaw,
    body: bytes,
    *,
    who: str = "ada",
    to: Proxy | None = None,
    path: str = "/v1/messages",
    method: str = "POST",
) -> RawResponse:
    connection = await raw(to)
    headers = {"anthropic-version": "2023-06-01"}
    await connection.send(request_bytes(method, path, headers, body, token=who))
    return await connection.response()


async def spent(raw: OpenRaw, who: str = "ada", to: Proxy | None = None) -> int:
    """What a person has spent today, in nanos, by the Admin API."""
    target = f"{LIMITS}/effective?period[]=daily&user_ids[]={who}"
    connection = await raw(to)
    await connection.send(request_bytes("GET", target, token=ADMIN))
    (row,) = json.loads((await connection.response()).body)["data"]
    whole, _, thousandths = row["period_to_date_spend"].partition(".")
    return int(whole) * CENT + int(thousandths.ljust(3, "0")) * CENT // 1000


def error_of(response: RawResponse) -> dict[str, str]:
    error: dict[str, str] = json.loads(response.body)["error"]
    return error


# -- what is refused


async def test_at_the_cap_nothing_goes_upstream(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, EVERYONE, 20)
    await start(start_proxy, path)
    upstream.script(told(12), told(13))
    assert [(await ask(raw, message())).status for _ in range(2)] == [200, 200]
    refused = await ask(raw, message())
    assert refused.status == 429
    assert error_of(refused)["type"] == "billing_error"
    text = error_of(refused)["message"]
    assert text.startswith("spend limit reached (daily; resets 20")
    assert " 00:00 UTC)" in text
    assert "$0.25 of $0.20" in text
    assert refused.header("x-should-retry") == "false"
    assert 0 < int(refused.header("retry-after") or 0) <= 86_400
    assert len(upstream.requests) == 2
    assert await spent(raw) == 25 * CENT
    # another person has a cap of their own
    assert (await ask(raw, message(), who="bob")).status == 200


@pytest.mark.parametrize("route", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_at_the_cap_body_is_not_waited_for(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, route: str
) -> None:
    set_cap(path, EVERYONE, 0)
    await start(start_proxy, path)
    connection = await raw()
    await connection.send(
        request_bytes("POST", route, {"Content-Length": "1000000"}, token="ada") + b"{"
    )
    assert (await connection.response()).status == 429


def iterated(*iterations: Mapping[str, object]) -> Mapping[str, object]:
    """A usage of 10 tokens in and 1 out, and what was spent besides."""
    return {"input_tokens": 10, "output_tokens": 1, "iterations": iterations}


DONE = {"type": "text", "text": "done"}
BESIDES = {"input_tokens": 200_000, "output_tokens": 5_000}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("route", ["/v1/messages", "/openai/v1/chat/completions"])
@pytest.mark.parametrize(
    ("usage", "content", "dollars"),
    [
        # list prices of 2026-10-24, for a million tokens: $2 and $10 of the model that answers,
        # $4 and $20 of the advisor, $10 and $50 of the one that declines
        (
            iterated({"type": "advisor_message", "model": "claude-opus-5-5", **BESIDES}),
            [DONE],
            "0.90003",
        ),
        (
            iterated(
                {"type": "message", "model": "claude-fable-5-1", **BESIDES},
                {"type": "fallback_message", "model": MODEL},
            ),
            [
                DONE,
                {"type": "fallback", "from": {"model": "claude-fable-5-1"}, "to": {"model": MODEL}},
                DONE,
            ],
            "2.25003",
        ),
        (iterated({"type": "compaction", **BESIDES, "output_tokens": 15_000}), [DONE], "0.55003"),
    ],
    ids=["advisor", "fallback", "compaction"],
)
async def test_spend_on_other_models_counts_and_refuses_the_next(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    usage: Mapping[str, object],
    content: list[Mapping[str, object]],
    dollars: str,
    route: str,
    stream: bool,
) -> None:
    set_cap(path, EVERYONE, 50)
    await start_proxy(BUDGETS_DB=path)
    document = message_document(content=content, usage=usage)
    upstream.script(sse_response(message_events(document)) if stream else json_response(document))
    body = message(stream=stream)
    first, second = [await ask(raw, body, who=TEST_TOKEN, path=route) for _ in range(2)]
    assert (first.status, second.status) == (200, 429)
    record = await records.finished()
    assert (record.model, usd(record.cost or 0)) == (MODEL, dollars)
    if route == "/openai/v1/chat/completions":
        assert re.findall(rb'"model":"(.+?)"', first.body)[-1].decode() == MODEL
    assert f"${dollars} of $0.50 is spent" in error_of(second)["message"]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("output_tokens", "cents"), [(0, 0), (2, 2)])
async def test_refusal_before_any_output_costs_nothing(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    output_tokens: int,
    cents: int,
) -> None:
    set_cap(path, EVERYONE, 50)
    await start(start_proxy, path)
    usage = {"input_tokens": 0 if output_tokens else 4_000, "output_tokens": output_tokens}
    upstream.script(json_response(message_document("", stop_reason="refusal", usage=usage)))
    assert (await ask(raw, message())).status == 200
    assert await spent(raw) == cents * CENT


async def test_part_without_a_price_charges_the_estimate(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, EVERYONE, 50)
    await start(start_proxy, path)
    advice = {"type": "advisor_message", "model": UNPRICED, "output_tokens": 1}
    upstream.script(json_response(message_document("done", usage=iterated(advice))))
    body = message(max_tokens=9)
    assert (await ask(raw, body)).status == 200
    estimate = len(body) // 4 * CENT // 100 + 9 * CENT
    assert abs(await spent(raw) - estimate) < CENT // 10


async def test_the_sdks_raise_and_do_not_retry(
    start_proxy: StartProxy, path: Path, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    set_cap(path, EVERYONE, 0, "monthly")
    proxy = await start(start_proxy, path)
    anthropic = AsyncAnthropic(base_url=proxy.url, api_key="ada", max_retries=3)
    openai = AsyncOpenAI(base_url=f"{proxy.url}/openai/v1", api_key="ada", max_retries=3)
    async with anthropic, openai:
        with pytest.raises(RateLimitError) as caught:
            await anthropic.messages.create(
                model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
            )
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["error"]["type"] == "billing_error"
        assert "spend limit reached (monthly; resets " in caught.value.message
        with pytest.raises(OpenAIRateLimitError) as refused:
            await openai.chat.completions.create(
                model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
            )
        assert (refused.value.type, refused.value.code) == ("insufficient_quota",) * 2
        assert "spend limit reached (monthly; resets " in refused.value.message
    assert len(records.all) == 2, "each asked once"


async def test_requests_in_flight_hold_what_they_may_cost(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    set_cap(path, TOGETHER, 20)
    await start(start_proxy, path)
    go_on = asyncio.Event()

    async def late(exchange: UpstreamExchange) -> None:
        await exchange.body()
        await go_on.wait()
        await told(1)(exchange)

    upstream.script(late)
    connection = await raw()
    await connection.send(request_bytes("POST", "/v1/messages", body=message(50), token="ada"))
    await upstream.received()
    held = await ask(raw, message(), who="bob")
    assert (held.status, error_of(held)["type"]) == (429, "billing_error")
    assert held.header("x-should-retry") == "true"
    assert "$0.00 is spent" in error_of(held)["message"]
    assert "(daily; resets " in error_of(held)["message"]
    go_on.set()
    assert (await connection.response()).status == 200
    assert (await ask(raw, message(), who="bob")).status == 200


async def test_count_tokens_is_never_blocked_and_costs_nothing(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, EVERYONE, 0)
    await start(start_proxy, path)
    document = json.loads(message())
    del document["max_tokens"], document["stream"]
    body = json.dumps(document).encode()
    counted = await ask(raw, body, path="/v1/messages/count_tokens?beta=true")
    assert counted.status == 200
    assert (await ask(raw, b"", path="/v1/models", method="GET")).status == 200
    assert len(upstream.requests) == 2
    assert await spent(raw) == 0


@pytest.mark.parametrize("target", ["/v1/messages/batches", "/v1/complete", "/v1/sessions"])
async def test_a_capped_person_spends_on_no_path_that_is_not_counted(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream, target: str
) -> None:
    set_cap(path, Scope("user", "ada"), 100)
    await start(start_proxy, path)
    refused = await ask(raw, b"{}", path=target)
    assert (refused.status, error_of(refused)["type"]) == (403, "permission_error")
    assert f"POST {target}" in error_of(refused)["message"]
    assert upstream.requests == []
    upstream.script(json_response({}), json_response({}), json_response({}))
    assert (await ask(raw, b"{}", path=target, who="bob")).status == 200
    assert (await ask(raw, b"", path=target, method="GET")).status == 200
    cancel = "/v1/messages/batches/msgbatch_1/cancel"
    assert (await ask(raw, b"{}", path=cancel)).status == 200


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/v1/messages/batches"),
        ("PATCH", "/v1/messages"),
        ("QUERY", "/v1/complete"),
        ("POST", "/v1/messages/batches/x;y/cancel"),
        ("POST", "/v1/messages/batches/%3Fx/cancel"),
        ("POST", "/v1/messages/batches/x/y/cancel"),
        ("POST", "/v1/messages/count_tokens/"),
    ],
)
async def test_what_is_not_known_to_cost_nothing_is_refused(
    method: str,
    target: str,
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    set_cap(path, Scope("user", "ada"), 100)
    await start(start_proxy, path)
    assert (await ask(raw, b"{}", path=target, method=method)).status == 403
    assert upstream.requests == []


async def test_a_model_without_a_price_is_never_free(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, Scope("user", "ada"), 100)
    await start(start_proxy, path)
    refused = await ask(raw, message(model=UNPRICED))
    assert refused.status == 503
    assert "no plugin knows the price" in error_of(refused)["message"]
    assert refused.header("x-should-retry") == "false"
    long = await ask(raw, message(model=UNPRICED + "x" * 100_000))
    assert len(error_of(long)["message"]) < 500
    assert (await ask(raw, b'{"max_tokens":1}')).status == 400
    assert upstream.requests == []
    assert (await ask(raw, message(model=UNPRICED), who="bob")).status == 200


@pytest.mark.parametrize(
    ("page", "fields"),
    [
        ("/v1/messages", {"fallbacks": [{"model": MODEL}, {"model": UNPRICED}]}),
        ("/v1/messages", {"tools": [{"type": "advisor_20260301", "model": UNPRICED}]}),
        ("/openai/v1/chat/completions", {"fallbacks": [{"model": UNPRICED}]}),
    ],
)
async def test_other_model_without_a_price_is_refused(
    page: str,
    fields: dict[str, object],
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    set_cap(path, EVERYONE, 100)
    await start(start_proxy, path)
    body = json.dumps({**json.loads(message()), **fields}).encode()
    refused = await ask(raw, body, path=page)
    assert (refused.status, UNPRICED in error_of(refused)["message"]) == (503, True)
    assert upstream.requests == []


async def test_request_for_huge_output_leaves_the_shared_cap(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, TOGETHER, 100_000)
    set_cap(path, EVERYONE, 100)
    await start(start_proxy, path)
    upstream.script(silent_response())
    connection = await raw()
    await connection.send(request_bytes("POST", "/v1/messages", body=message(10**12), token="ada"))
    await upstream.received()
    assert (await ask(raw, message(), who="bob")).status == 200
    await connection.close()


async def test_the_upstreams_shared_quota_is_no_business_of_a_capped_person(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, Scope("rbac_group", "team"), 100)
    await start(start_proxy, path)
    for who, withheld in (("ada+team", True), ("bob", False)):
        for target in ("/v1/messages", "/v1/messages/count_tokens"):
            upstream.script(json_response(message_document("Hi"), headers=UNIFIED))
            response = await ask(raw, message(), who=who, path=target)
            assert response.header("anthropic-ratelimit-tokens-limit") == "9"
            assert (response.header("anthropic-ratelimit-unified-status") is None) == withheld


# -- what is counted


async def test_an_upstreams_error_costs_nothing(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, EVERYONE, 5)
    await start(start_proxy, path)
    for status in (400, 429, 500, 529):
        upstream.script(error_response(status, "api_error", "no"))
        assert (await ask(raw, message())).status == status
    assert await spent(raw) == 0
    assert (await ask(raw, message())).status == 200


async def test_what_another_plugin_refuses_is_given_back(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    class Refuses:
        refusing = True

        @hookimpl(trylast=True)
        def authorize(self) -> None:
            if self.refusing:
                raise RuntimeError("no")

    set_cap(path, EVERYONE, 5)
    refuses = Refuses()
    await start_proxy(
        plugins=[refuses, People(), Prices()], BUDGETS_DB=path, BUDGETS_ADMIN_KEY=ADMIN
    )
    assert (await ask(raw, message())).status == 503
    assert upstream.requests == []
    refuses.refusing = False
    assert (await ask(raw, message())).status == 200


async def test_an_answer_that_does_not_tell_is_never_free(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, EVERYONE, 100)
    await start(start_proxy, path)
    upstream.script(json_response({"type": "message"}))
    assert (await ask(raw, message(10))).status == 200
    assert await spent(raw) == 10 * CENT + len(message(10)) // 4 * CENT // 100


async def test_a_client_that_leaves_before_the_usage_pays_for_its_input(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    set_cap(path, EVERYONE, 100)
    await start(start_proxy, path)
    upstream.script(silent_response())
    connection = await raw()
    await connection.send(request_bytes("POST", "/v1/messages", body=message(), token="ada"))
    await upstream.received()
    await connection.close()
    assert (await records.finished()).outcome == "abandoned"
    assert await spent(raw) == len(message()) // 4 * CENT // 100


# what tells nothing: a document without its end, and a compression that nobody here knows
BEGINNINGS = {
    "JSON": {"Content-Type": "application/json", "Content-Length": "1000"},
    "SSE": {
        "Content-Type": "text/event-stream",
        "Content-Encoding": "secret",
        "Content-Length": "1000",
    },
}


def begun(headers: Mapping[str, str], *, breaks: bool) -> Response:
    """An answer that begins, and then breaks or waits."""

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, headers)
        await exchange.send(b'{"type":"message","content":[{"type":"text","text":"All of it"}],')
        if breaks:
            exchange.reset()
        else:
            await exchange.disconnected()

    return response


@pytest.mark.parametrize("kind", BEGINNINGS)
async def test_who_leaves_an_answer_that_has_not_told_pays_for_all_that_it_may_have_cost(
    kind: str,
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    """Otherwise all of an answer but its end would be had for the price of the question."""
    set_cap(path, EVERYONE, 100)
    await start(start_proxy, path)
    upstream.script(begun(BEGINNINGS[kind], breaks=False))
    connection = await raw()
    body = message(10, stream=kind == "SSE")
    await connection.send(request_bytes("POST", "/v1/messages", body=body, token="ada"))
    await connection.read_until(b"All of it")
    await connection.close()
    record = await records.finished()
    assert (record.outcome, record.cost) == ("abandoned", None)
    assert await spent(raw) == 10 * CENT + len(body) // 4 * CENT // 100


@pytest.mark.parametrize("kind", BEGINNINGS)
async def test_an_answer_that_the_upstream_breaks_off_costs_its_input(
    kind: str,
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    set_cap(path, EVERYONE, 100)
    await start(start_proxy, path)
    upstream.script(begun(BEGINNINGS[kind], breaks=True))
    body = message(10, stream=kind == "SSE")
    connection = await raw()
    await connection.send(request_bytes("POST", "/v1/messages", body=body, token="ada"))
    assert (await records.finished()).outcome == "failed"
    assert await spent(raw) == len(body) // 4 * CENT // 100


async def test_no_number_of_a_client_is_too_large_for_the_file(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    proxy = await start(start_proxy, path)
    upstream.script(error_response(500, "api_error", "There is no list of models."))
    for _ in range(3):
        upstream.script(json_response({"type": "message"}))
        assert (await ask(raw, message(10**30))).status == 200
    charged = 3 * (128_000 * CENT + len(message(10**30)) // 4 * CENT // 100)
    assert await spent(raw) == charged
    await proxy.server.drain()
    await start(start_proxy, path)
    assert await spent(raw) == charged


async def test_a_cut_stream_costs_what_it_told(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    set_cap(path, EVERYONE, 1000)
    await start(start_proxy, path)
    upstream.script(sse_response(message_events(message_document("Hello"))[:3], end="reset"))
    connection = await raw()
    body = message(stream=True)
    await connection.send(request_bytes("POST", "/v1/messages", body=body, token="ada"))
    record = await records.finished()
    assert record.outcome == "failed"
    assert record.cost is not None
    assert record.cost > 0
    assert await spent(raw) == record.cost


async def test_a_storm_overspends_by_less_than_one_estimate_and_leaks_nothing(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    """Eighty requests of four persons, twelve at a time, done, failed, cut and left."""
    set_cap(path, TOGETHER, 100)
    await start(start_proxy, path)
    chance = random.Random(7)
    turns = asyncio.Semaphore(12)
    events = message_events(message_document("Hello you there"))

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.body()
        await asyncio.sleep(chance.random() / 50)  # so that they end in another order
        kind = chance.choice(("told", "told", "told", "error", "cut", "silent"))
        if kind == "told":
            await told(chance.randint(1, 4))(exchange)
        elif kind == "error":
            await error_response(500, "api_error", "no")(exchange)
        elif kind == "cut":
            await sse_response(events[: chance.randint(0, len(events))], end="reset")(exchange)
        else:
            await silent_response()(exchange)

    async def client(number: int) -> None:
        async with turns:
            connection = await raw()
            body = message(4, stream=True)
            who = "abcd"[number % 4]
            await connection.send(request_bytes("POST", "/v1/messages", body=body, token=who))
            try:
                async with asyncio.timeout(0.3):
                    await connection.response()
            except (TimeoutError, ConnectionError, Truncated):
                pass
            await connection.close()

    upstream.script(*(response for _ in range(80)))
    await asyncio.gather(*(client(number) for number in range(80)))
    await records.finished(80)
    costs = {"a": 0, "b": 0, "c": 0, "d": 0}
    estimate = 4 * CENT + len(message(4, stream=True)) // 4 * CENT // 100
    for record in records.all:
        assert record.principal is not None
        failed = record.status is not None and record.status >= 400
        sent = record.upstream_time is not None and not failed
        untold = (estimate - 4 * CENT if sent else 0) if record.cost is None else record.cost
        costs[record.principal] += untold
    assert {who: await spent(raw, who) for who in costs} == costs
    total = sum(costs.values())
    # the input that is charged for a cut answer is less than its estimate
    assert total < 100 * CENT + estimate
    # room for less than one more: what was still held would take it
    room: dict[str, object] = {"scope": {"type": "organization", "shared": True}, "period": "daily"}
    room["amount"] = str(total // CENT + 1)
    raised = await ask(raw, json.dumps(room).encode(), path=LIMITS, who=ADMIN)
    assert raised.status == 200
    went_up = len(upstream.requests)
    connection = await raw()
    await connection.send(request_bytes("POST", "/v1/messages", body=message(4), token="a"))
    await upstream.received(went_up + 1)
    await connection.close()
    await records.finished(81)


# -- the file


async def test_a_cap_that_a_command_sets_takes_effect_while_the_proxy_runs(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    assert (await ask(raw, message())).status == 200
    set_cap(path, EVERYONE, 0)
    async with asyncio.timeout(10):
        while (await ask(raw, message())).status == 200:
            pass
    set_cap(path, EVERYONE, None)
    async with asyncio.timeout(10):
        while (await ask(raw, message())).status == 429:
            pass


async def test_two_proxies_see_what_is_spent_at_the_other(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    set_cap(path, EVERYONE, 30)
    one, two = await start(start_proxy, path), await start(start_proxy, path)
    upstream.script(told(20), told(20))
    assert (await ask(raw, message(), to=one)).status == 200
    async with asyncio.timeout(10):
        while await spent(raw, to=two) != 20 * CENT:
            pass
    assert (await ask(raw, message(), to=two)).status == 200
    async with asyncio.timeout(10):
        while await spent(raw, to=one) != 40 * CENT:
            pass
    assert (await ask(raw, message(), to=one)).status == 429


def saved(path: Path) -> dict[tuple[str, str], int]:
    """What the file says that each has spent."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT scope_type, scope_name, sum(nanos) FROM budgets_spent GROUP BY 1, 2"
        )
        return {(scope_type, name): nanos for scope_type, name, nanos in rows}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_a_locked_file_refuses_after_a_while_and_loses_nothing(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(keeper, "MAX_UNKNOWN", 0.5)
    set_cap(path, Scope("user", "ada"), 100)
    proxy = await start(start_proxy, path)
    upstream.script(told(7))
    counting = "/v1/messages/count_tokens"
    with locked(path):
        assert (await ask(raw, message())).status == 200, "it is not known for a moment only"
        async with asyncio.timeout(10):
            while (refused := await ask(raw, message(), who="bob")).status == 200:
                pass
        assert refused.status == 503
        assert "budgets cannot be known" in error_of(refused)["message"]
        async with asyncio.timeout(10):  # until it could not be saved once
            while "locked by another program" not in caplog.text:
                assert (await ask(raw, b"{}", path=counting)).status != 503
        report = await ask(raw, b"", path=f"{LIMITS}/effective", method="GET", who=ADMIN)
        assert report.status == 503
    async with asyncio.timeout(10):
        while (await ask(raw, message(), who="bob")).status == 503:
            pass
    assert await spent(raw) == 7 * CENT
    await proxy.server.drain()
    assert saved(path)["user", "ada"] == 7 * CENT


async def test_a_file_that_has_lost_a_table_refuses_and_is_logged(
    start_proxy: StartProxy,
    path: Path,
    raw: OpenRaw,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(keeper, "MAX_UNKNOWN", 0.2)
    await start(start_proxy, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("ALTER TABLE budgets_spent RENAME TO away")
        async with asyncio.timeout(10):
            while (await ask(raw, message())).status == 200:
                pass
        assert f"{path}: not saved, 1 times in a row" in caplog.text
        other.execute("ALTER TABLE away RENAME TO budgets_spent")
        async with asyncio.timeout(10):
            while (await ask(raw, message())).status == 503:
                pass


async def test_what_was_spent_is_saved_at_the_stop(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    proxy = await start(start_proxy, path)
    upstream.script(told(7))
    assert (await ask(raw, message(), who="ada+team")).status == 200
    await proxy.server.drain()
    assert saved(path) == {("rbac_group", "team"): 7 * CENT, ("user", "ada"): 7 * CENT}
    again = await start(start_proxy, path)
    assert await spent(raw, to=again) == 7 * CENT


PROGRAM = [sys.executable, "-m", "tornadoproxy"]


@asynccontextmanager
async def serving(
    upstream: ScriptedUpstream, path: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A proxy in a process of its own, which has `Prices` as an installed plugin, and its port."""
    installed = path.parent / "installed"
    information = installed / "cents-1.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: cents\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[tornadoproxy]\ncents = cents\n")
    (installed / "cents.py").write_text(
        "from tornadoproxy import hookimpl\n"
        "@hookimpl(tryfirst=True)\n"
        "def price(model, usage):\n"
        f"    return (usage.output_tokens or 0) * {CENT}\n"
    )
    python_path = os.pathsep.join((str(installed), os.environ.get("PYTHONPATH", "")))
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        "serve",
        cwd=path.parent,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": python_path.rstrip(os.pathsep),
            **{key: value for key, value in os.environ.items() if key.startswith("COVERAGE")},
            "PORT": "0",
            "ACCESS_LOG": "off",
            "AUTH_TOKEN": TEST_TOKEN,
            "BUDGETS_DB": str(path),
            "BUDGETS_ADMIN_KEY": ADMIN,
            "UPSTREAM_BASE_URL": upstream.url,
            "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        port = 0
        while not port:
            line = (await process.stdout.readline()).decode()
            assert line, "it ended"
            if "http://127.0.0.1:" in line:
                port = int("".join(filter(str.isdigit, line.rsplit(":", 1)[1])))
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def post(port: int, body: bytes) -> RawResponse:
    connection = await RawConnection.open(port)
    await connection.send(request_bytes("POST", "/v1/messages", body=body, token=TEST_TOKEN))
    response = await connection.response()
    await connection.close()
    return response


@pytest.mark.gen_test(timeout=60)
async def test_a_killed_process_leaves_no_reservation_and_what_was_settled(
    upstream: ScriptedUpstream, path: Path
) -> None:
    set_cap(path, EVERYONE, 30)
    upstream.script(told(20), silent_response())
    async with serving(upstream, path) as (process, port):
        assert (await post(port, message(100))).status == 200
        with closing(sqlite3.connect(path)) as connection:
            async with asyncio.timeout(10):
                while not connection.execute("SELECT 1 FROM budgets_spent").fetchone():
                    await asyncio.sleep(0.01)  # nothing tells of it from outside
        open_request = await RawConnection.open(port)
        await open_request.send(
            request_bytes("POST", "/v1/messages", body=message(100), token=TEST_TOKEN)
        )
        await upstream.received(2)
        assert (await post(port, message())).status == 429, "it is reserved"
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await open_request.close()
    upstream.script(told(20))
    async with serving(upstream, path) as (process, port):
        assert (await post(port, message())).status == 200
        refused = await post(port, message())
        assert refused.status == 429
        assert "$0.40 of $0.30" in error_of(refused)["message"]
        process.terminate()
        assert await process.wait() == 0


# -- how it is set up


async def test_it_is_inactive_unless_asked_for(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy()
    assert "budgets" not in dict(proxy.lines)
    upstream.script(json_response({}))
    response = await ask(raw, b"", path=LIMITS, method="GET", who=TEST_TOKEN)
    assert (response.status, len(upstream.requests)) == (200, 1), "it is relayed like any path"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"BUDGETS_DB": None}, "BUDGETS_ADMIN_KEY is set, and BUDGETS_DB is not"),
        ({"BUDGETS_DB": "."}, "directory"),
        ({"BUDGETS_ADMIN_KEY": "ops=short"}, "at least 32 characters"),
        ({"BUDGETS_ADMIN_KEY": f"a={ADMIN}1 a={ADMIN}2"}, "a name of its own"),
        ({"BUDGETS_ADMIN_READ_KEY": f"reader={ADMIN}"}, "a key in common"),
    ],
)
async def test_what_makes_no_sense_ends_the_start(
    start_proxy: StartProxy, path: Path, variables: dict[str, object], wanted: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await start(start_proxy, path, **variables)
    assert wanted in str(caught.value)
    assert ADMIN not in str(caught.value)
    assert not path.exists(), "nothing is written before the start"


async def test_a_file_that_is_no_database_ends_the_start(
    start_proxy: StartProxy, path: Path
) -> None:
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(ConfigurationError, match="not an SQLite database"):
        await start_proxy(BUDGETS_DB=path)


async def test_admin_keys_change_on_sighup_and_the_file_does_not(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, tmp_path: Path
) -> None:
    proxy = await start(start_proxy, path)
    proxy.reload(BUDGETS_ADMIN_KEY="x" * 32)
    refused = await ask(raw, b"", path=LIMITS, method="GET", who=ADMIN)
    assert refused.status == 401
    assert (await ask(raw, b"", path=LIMITS, method="GET", who="x" * 32)).status == 200
    with pytest.raises(ConfigurationError, match="BUDGETS_DB has changed"):
        proxy.reload(BUDGETS_DB=tmp_path / "another.db")
