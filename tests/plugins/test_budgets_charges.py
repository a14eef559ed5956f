"""Charges of requests under a cap, however their responses end."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

import pytest
from budget_team import (
    ADMIN,
    CENT,
    EACH,
    LIMITS,
    TOGETHER,
    UNPRICED,
    Prices,
    Team,
    asking,
    costing,
    input_cost,
)
from people import CHAT, MESSAGES, MODEL, People, error_of

from tornadoproxy import hookimpl, usd
from tornadoproxy.testing import (
    Truncated,
    error_response,
    json_response,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy.testing import (
        Response,
        UpstreamExchange,
    )


pytest_plugins = ("budget_team",)


def iterated(*iterations: Mapping[str, object]) -> Mapping[str, object]:
    """A usage of 10 input tokens and 1 output token, and further calls."""
    return {"input_tokens": 10, "output_tokens": 1, "iterations": iterations}


DONE = {"type": "text", "text": "done"}
BESIDES = {"input_tokens": 200_000, "output_tokens": 5_000}
FALLBACK = {"type": "fallback", "from": {"model": "claude-fable-5-1"}, "to": {"model": MODEL}}


@pytest.mark.parametrize(
    ("route", "stream", "usage", "content", "dollars"),
    [
        # list prices for a million tokens: $2 and $10 of the model that responds, $4 and $20 of
        # the advisor, $10 and $50 of the model that declines
        (
            *(MESSAGES, True),
            iterated({"type": "advisor_message", "model": "claude-opus-5-5", **BESIDES}),
            *([DONE], "0.90003"),
        ),
        (
            *(CHAT, False),
            iterated(
                {"type": "message", "model": "claude-fable-5-1", **BESIDES},
                {"type": "fallback_message", "model": MODEL},
            ),
            *([DONE, FALLBACK, DONE], "2.25003"),
        ),
        (
            *(CHAT, True),
            iterated({"type": "compaction", **BESIDES, "output_tokens": 15_000}),
            *([DONE], "0.55003"),
        ),
    ],
    ids=["advisor", "fallback", "compaction"],
)
async def test_spending_on_other_models_counts(
    route: str,
    stream: bool,
    usage: Mapping[str, object],
    content: list[Mapping[str, object]],
    dollars: str,
    team: Team,
) -> None:
    team.cap(EACH, 50)
    await team.start_proxy(BUDGETS_DB=team.path)
    document = message_document(content=content, usage=usage)
    team.upstream.script(
        sse_response(message_events(document)) if stream else json_response(document)
    )
    first, second = [await team.request(route, asking(stream=stream)) for _ in range(2)]
    assert (first.status, second.status) == (200, 429)
    record = await team.records.finished()
    assert (record.model, usd(record.cost or 0)) == (MODEL, dollars)
    assert f"${dollars} of $0.50 is spent" in error_of(second)["message"]
    assert len(team.upstream.requests) == 1


def refusal(input_tokens: int, output_tokens: int) -> Response:
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return json_response(message_document("", stop_reason="refusal", usage=usage))


ADVICE = {"type": "advisor_message", "model": UNPRICED, "output_tokens": 1}


@pytest.mark.parametrize(
    ("response", "output_cents", "with_input"),
    [
        (error_response(429, "api_error", "no"), 0, False),
        (error_response(529, "api_error", "no"), 0, False),
        (json_response({"type": "message"}), 9, True),
        (refusal(4_000, 0), 0, False),
        (refusal(0, 2), 2, False),
        (json_response(message_document("done", usage=iterated(ADVICE))), 9, True),
    ],
    ids=["429", "529", "no usage", "refusal", "late refusal", "unpriced part"],
)
async def test_charge_of_a_whole_response(
    response: Response, output_cents: int, with_input: bool, team: Team
) -> None:
    team.cap(EACH, 50)
    await team.start()
    team.upstream.script(response)
    document = asking(9)
    await team.ask("ada", document)
    expected = output_cents * CENT + (input_cost(document) if with_input else 0)
    assert abs(await team.spent() - expected) < CENT // 100


# neither reports usage: a document without its end, and an unknown compression
BEGINNINGS: dict[str, dict[str, str]] = {
    "JSON": {"Content-Type": "application/json", "Content-Length": "1000"},
    "SSE": {
        "Content-Type": "text/event-stream",
        "Content-Encoding": "secret",
        "Content-Length": "1000",
    },
}


@pytest.mark.parametrize("reset", [True, False], ids=["cut by the upstream", "by the client"])
@pytest.mark.parametrize("kind", BEGINNINGS)
async def test_charge_of_a_response_cut_before_its_usage(
    kind: str, reset: bool, team: Team
) -> None:
    """A client that disconnects is charged for all that it may have read."""
    team.cap(EACH, 100)
    await team.start()

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, BEGINNINGS[kind])
        await exchange.send(b'{"type":"message","content":[{"type":"text","text":"All of it"}],')
        if reset:
            exchange.reset()
        else:
            await exchange.disconnected()

    team.upstream.script(response)
    document = asking(10, stream=kind == "SSE")
    connection = await team.send(document)
    if not reset:
        await connection.read_until(b"All of it")
        await connection.close()
    record = await team.records.finished()
    assert (record.outcome, record.cost) == ("failed" if reset else "abandoned", None)
    assert await team.spent() == input_cost(document) + (0 if reset else 10 * CENT)


async def test_disconnect_before_the_response_charges_the_input(team: Team) -> None:
    """A request for huge output reserves no more than the person has left, too."""
    team.cap(TOGETHER, 100_000)
    team.cap(EACH, 100)
    await team.start()
    # the first request is for the list of models, whose limits this one may exceed
    team.upstream.script(error_response(500, "api_error", "no"), silent_response())
    document = asking(10**12)
    connection = await team.send(document)
    await team.upstream.received(2)
    assert (await team.ask("bob")).status == 200
    await connection.close()
    assert (await team.records.finished(2)).outcome == "abandoned"
    assert await team.spent() == input_cost(document)


async def test_cut_stream_is_charged_what_it_reported(team: Team) -> None:
    await team.start()
    team.upstream.script(sse_response(message_events(message_document("Hello"))[:3], end="reset"))
    await team.send(asking(stream=True))
    record = await team.records.finished()
    assert record.outcome == "failed"
    assert record.cost
    assert await team.spent() == record.cost


async def test_huge_max_tokens_is_charged_and_saved(team: Team) -> None:
    proxy = await team.start()
    team.upstream.script(error_response(500, "api_error", "There is no list of models."))
    document = asking(10**30)
    for _ in range(3):
        team.upstream.script(json_response({"type": "message"}))
        assert (await team.ask("ada", document)).status == 200
    charged = 3 * (128_000 * CENT + input_cost(document))
    assert await team.spent() == charged
    await proxy.server.drain()
    await team.start()
    assert await team.spent() == charged


async def test_refusal_by_a_later_plugin_frees_the_reservation(team: Team) -> None:
    class Refuses:
        refusing = True

        @hookimpl(trylast=True)
        def authorize(self) -> None:
            if self.refusing:
                raise RuntimeError("no")

    team.cap(EACH, 5)
    refuses = Refuses()
    await team.start_proxy(plugins=[refuses, People(), Prices()], BUDGETS_DB=team.path)
    assert (await team.ask()).status == 503
    assert team.upstream.requests == []
    refuses.refusing = False
    assert (await team.ask()).status == 200


async def test_mixed_load_overspends_less_than_one_estimate(team: Team) -> None:
    """Sixty requests of four people, twelve at a time: completed, failed, cut and abandoned."""
    count = 60
    team.cap(TOGETHER, 80)
    await team.start()
    chance = random.Random(7)
    turns = asyncio.Semaphore(12)
    events = message_events(message_document("Hello you there"))
    document = asking(4, stream=True)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.body()
        await asyncio.sleep(chance.random() / 50)  # so that requests end in another order
        kind = chance.choice(("costing", "costing", "costing", "error", "cut", "silent"))
        if kind == "costing":
            await costing(chance.randint(1, 4))(exchange)
        elif kind == "error":
            await error_response(500, "api_error", "no")(exchange)
        elif kind == "cut":
            await sse_response(events[: chance.randint(0, len(events))], end="reset")(exchange)
        else:
            await silent_response()(exchange)

    async def client(number: int) -> None:
        async with turns:
            try:
                async with asyncio.timeout(0.3):
                    await team.ask("abcd"[number % 4], document)
            except (TimeoutError, ConnectionError, Truncated):
                pass

    team.upstream.script(*(response for _ in range(count)))
    await asyncio.gather(*(client(number) for number in range(count)))
    await team.records.finished(count)
    costs = {"a": 0, "b": 0, "c": 0, "d": 0}
    for record in team.records.all:
        assert record.principal is not None
        failed = record.status is not None and record.status >= 400
        sent = record.upstream_time is not None and not failed
        # a client that disconnects within a response is charged for all of it
        begun = record.outcome == "abandoned" and record.time_to_first_byte is not None
        estimate = input_cost(document) + (4 * CENT if begun else 0)
        untold = (estimate if sent else 0) if record.cost is None else record.cost
        costs[record.principal] += untold
    assert {who: await team.spent(who) for who in costs} == costs
    total = sum(costs.values())
    assert total < 80 * CENT + input_cost(document) + 4 * CENT
    # a cap with room for one more request, which a leaked reservation would fill
    cap = {"scope": {"type": "organization", "shared": True}, "period": "daily"}
    raised = await team.request(LIMITS, {**cap, "amount": str(total // CENT + 1)}, token=ADMIN)
    assert raised.status == 200
    went_up = len(team.upstream.requests)
    connection = await team.raw()
    body = json.dumps(asking(4)).encode()
    await connection.send(request_bytes("POST", MESSAGES, body=body, token="a"))
    await team.upstream.received(went_up + 1)
