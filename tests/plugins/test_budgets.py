"""The plugin budgets in a running proxy: refusals, charges, and an unusable database."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from budget_team import ADA, ADMIN, CENT, EACH, LIMITS, TOGETHER, UNPRICED, Team, asking, costing
from people import (
    CHAT,
    MESSAGES,
    MODEL,
    RESPONSES,
    Held,
    error_of,
    locked,
    message,
    pause,
    response,
)
from postgres import sqlite_only
from tornadoproxy_budgets import keeper, storage, sync
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_budgets.state import Batch, Subject

from tornadoproxy import (
    ConfigurationError,
    DatabaseConnection,
    DatabaseLocation,
    ModelRequest,
    Usage,
)
from tornadoproxy.testing import json_response, message_document, request_bytes, request_record

pytest_plugins = ("budget_team",)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check and load the database more often."""
    monkeypatch.setattr(sync, "TICK", 0.02)
    monkeypatch.setattr(sync, "SERVER_TICK", 0.02)
    monkeypatch.setattr(sync, "RELOAD", 0.1)


async def test_request_at_the_cap_does_not_go_upstream(team: Team) -> None:
    team.cap(EACH, 20)
    await team.start()
    team.upstream.script(costing(12), costing(13))
    statuses = [(await team.ask()).status for _ in range(2)]
    assert statuses == [200, 200]
    refused = await team.ask()
    assert (refused.status, error_of(refused)["type"]) == (429, "billing_error")
    text = error_of(refused)["message"]
    assert "· $0.25 of $0.20 is spent (daily; resets 20" in text
    assert refused.header("x-should-retry") == "false"
    assert 0 < int(refused.header("retry-after") or 0) <= 86_400
    assert len(team.upstream.requests) == 2
    assert await team.spent() == 25 * CENT
    assert (await team.ask("bob")).status == 200, "a person of their own"


async def test_request_at_the_cap_is_refused_before_its_body(team: Team) -> None:
    team.cap(EACH, 0)
    await team.start()
    connection = await team.raw()
    head = request_bytes("POST", CHAT, {"Content-Length": "1000000"}, token="ada")
    await connection.send(head + b"{")
    assert (await connection.response()).status == 429


async def test_response_of_openai_is_charged_and_refused(team: Team) -> None:
    team.cap(ADA, 20)
    await team.start()
    team.upstream.script(costing(25))
    assert (await team.request(RESPONSES, response(10), token="ada")).status == 200
    refused = await team.request(RESPONSES, response(10), token="ada")
    assert (refused.status, error_of(refused)["code"]) == (429, "insufficient_quota")
    assert await team.spent() == 25 * CENT
    assert (await team.request(f"{RESPONSES}/input_tokens", response(), token="ada")).status == 200


async def test_requests_in_flight_reserve_their_estimate(team: Team) -> None:
    team.cap(TOGETHER, 20)
    await team.start()
    held = Held(costing(1))
    team.upstream.script(held)
    open_request = asyncio.create_task(team.ask("ada", asking(50)))
    await team.upstream.received()
    refused = await team.ask("bob")
    assert (refused.status, error_of(refused)["type"]) == (429, "billing_error")
    assert (refused.header("retry-after"), refused.header("x-should-retry")) == ("5", "true")
    assert re.search(
        r"\(daily; resets .*\$0\.00 of \$0\.20 for everyone together is spent, and requests",
        error_of(refused)["message"],
    )
    held.released.set()
    assert (await open_request).status == 200
    assert (await team.ask("bob")).status == 200


async def test_request_that_costs_nothing_passes_the_cap(team: Team) -> None:
    team.cap(EACH, 0)
    await team.start()
    counting = {"model": MODEL, "messages": message()["messages"]}
    target = f"{MESSAGES}/count_tokens?beta=true"
    assert (await team.request(target, counting, token="ada")).status == 200
    assert await team.spent() == 0


async def test_request_whose_cost_is_uncounted_needs_no_cap(team: Team) -> None:
    team.cap(ADA, 100)
    await team.start()
    batches = f"{MESSAGES}/batches"
    refused = await team.request(batches, {}, token="ada")
    assert (refused.status, error_of(refused)["type"]) == (403, "permission_error")
    assert f"the cost of POST {batches} cannot be counted" in error_of(refused)["message"]
    assert team.upstream.requests == []
    team.upstream.script(json_response({}))
    assert (await team.request(batches, {}, token="bob")).status == 200
    assert (await team.request(batches, token="ada")).status == 200


async def test_model_without_a_price_is_refused_under_a_cap(team: Team) -> None:
    team.cap(ADA, 100)
    await team.start()
    refused = await team.ask("ada", asking(model=UNPRICED))
    assert refused.status == 503
    assert f"price of the model '{UNPRICED}' is unknown" in error_of(refused)["message"]
    assert refused.header("x-should-retry") == "false"
    long = await team.ask("ada", asking(model=UNPRICED + "x" * 100_000))
    assert len(error_of(long)["message"]) < 500
    assert (await team.request(MESSAGES, {"max_tokens": 1}, token="ada")).status == 400
    fallbacks = [{"model": MODEL}, {"model": UNPRICED}]
    for route, document in ((MESSAGES, asking), (CHAT, asking), (RESPONSES, response)):
        other = await team.request(route, document(fallbacks=fallbacks), token="ada")
        assert (other.status, UNPRICED in error_of(other)["message"]) == (503, True)
    assert team.upstream.requests == []
    assert (await team.ask("bob", asking(model=UNPRICED))).status == 200


async def test_upstreams_shared_quota_is_withheld_under_a_cap(team: Team) -> None:
    team.cap(Scope("rbac_group", "team"), 100)
    await team.start()
    unified, tokens = "anthropic-ratelimit-unified-5h-status", "anthropic-ratelimit-tokens-limit"
    for who, withheld in (("ada+team", True), ("bob", False)):
        for target in (MESSAGES, f"{MESSAGES}/count_tokens"):
            headers = {unified: "allowed", tokens: "9"}
            team.upstream.script(json_response(message_document("Hi"), headers=headers))
            response = await team.request(target, asking(), token=who)
            assert response.header(tokens) == "9"
            assert (response.header(unified) is None) == withheld


def test_charge_is_the_cost_or_that_of_the_estimate() -> None:
    def price(model: str | None, usage: Usage) -> int | None:
        return None if model == UNPRICED else (usage.input_tokens or 0) + (usage.output_tokens or 0)

    def charge(model: str = MODEL, max_tokens: int = 7, **changes: Any) -> int:  # of a record
        asked = ModelRequest(model, (model,), max_tokens, False, 1, 100, price=price)
        return keeper.charge(request_record(**changes), asked)

    assert charge(cost=0) == 0
    assert charge(cost=5) == 5
    assert charge() == 107
    assert charge(UNPRICED) == 0
    assert charge(cost=10**15) == charge(cost=10**15 + 1) == 10**15


@pytest.mark.parametrize("interval", ["short", pytest.param("real", marks=pytest.mark.long)])
async def test_cap_set_by_a_command_applies_within_seconds(
    interval: str, request: pytest.FixtureRequest, team: Team
) -> None:
    if interval == "short":
        request.getfixturevalue("quick")
    await team.start()
    assert (await team.ask()).status == 200
    team.cap(EACH, 0)
    await team.until(429)
    team.cap(EACH, None)
    await team.until(200)


@pytest.mark.usefixtures("quick")
async def test_spending_at_another_proxy_counts(team: Team) -> None:
    team.cap(EACH, 30)
    one, two = await team.start(), await team.start()
    team.upstream.script(costing(20), costing(20))
    for here, there, cents in ((one, two, 20), (two, one, 40)):
        assert (await team.ask(to=here)).status == 200
        async with asyncio.timeout(10):
            while await team.spent(to=there) != cents * CENT:
                await pause()
    assert (await team.ask(to=one)).status == 429


async def test_saves_of_many_processes_add_up(where: DatabaseLocation) -> None:
    names = [f"user-{number}" for number in range(20)]
    databases = [storage.database(where) for _ in range(6)]
    for each in databases:
        await each.start(statement_timeout=10)

    def save(process: int) -> Callable[[DatabaseConnection], None]:
        # in another order in each process
        shuffled = names[process:] + names[:process]
        spent: dict[tuple[int, Subject], int] = {(1, ("user", name)): 1 for name in shuffled}
        return lambda connection: storage.save(connection, Batch(spent))

    saves = [
        each.run(save(process), exclusive=False)
        for _ in range(10)
        for process, each in enumerate(databases)
    ]
    await asyncio.gather(*saves)
    state = await databases[0].run(lambda connection: storage.load(connection, 1))
    for each in databases:
        await each.close()
    assert state.spent["daily"] == {("user", name): 60 for name in names}


@sqlite_only
@pytest.mark.usefixtures("quick", "short_locks")
async def test_locked_database_refuses_later_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, team: Team
) -> None:
    monkeypatch.setattr(sync, "MAX_UNKNOWN", 0.5)
    team.cap(ADA, 100)
    await team.start()
    team.upstream.script(costing(7))
    with locked(team.path):
        assert (await team.ask()).status == 200, "memory is recent"
        refused = await team.until(503, "bob")
        assert "budgets are temporarily unavailable" in error_of(refused)["message"]
        async with asyncio.timeout(10):  # until one attempt to save has failed
            while "locked by another program" not in caplog.text:
                counting = await team.request(f"{MESSAGES}/count_tokens", {}, token="ada")
                assert counting.status != 503
                await pause()
        for target in (f"{LIMITS}/effective", LIMITS, f"{LIMITS}/spl_x"):
            assert (await team.request(target, token=ADMIN)).status == 503
        cap = {"scope": {"type": "organization"}, "amount": "1"}
        unchanged = await team.request(LIMITS, cap, token=ADMIN)
        assert (unchanged.status, error_of(unchanged)["type"]) == (503, "overloaded_error")
        assert "nothing was changed" in error_of(unchanged)["message"]
    await team.until(200, "bob")
    assert await team.spent() == 7 * CENT


@sqlite_only
@pytest.mark.usefixtures("quick")
async def test_missing_table_refuses_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, team: Team
) -> None:
    monkeypatch.setattr(sync, "MAX_UNKNOWN", 0.2)
    await team.start()
    with closing(sqlite3.connect(team.path, isolation_level=None)) as other:
        other.execute("ALTER TABLE budgets_spent RENAME TO away")
        await team.until(503)
        assert f"{team.path}: budgets not saved, 1 failures in a row" in caplog.text
        other.execute("ALTER TABLE away RENAME TO budgets_spent")
        await team.until(200)


async def test_stop_saves_the_sums(team: Team) -> None:
    proxy = await team.start()
    team.upstream.script(costing(7))
    assert (await team.ask("ada+team")).status == 200
    await proxy.server.drain()
    await team.start()
    assert await team.spent() == 7 * CENT


@sqlite_only
@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"BUDGETS_DB": None}, "nothing to administer: set KEYS_DB, BUDGETS_DB"),
        ({"BUDGETS_DB": "."}, "directory"),
        ({"BUDGETS_ADMIN_KEY": "ops=short"}, "at least 32 characters"),
        ({"BUDGETS_ADMIN_KEY": f"a={ADMIN}1 a={ADMIN}2"}, "a different name"),
        ({"BUDGETS_ADMIN_READ_KEY": f"reader={ADMIN}"}, "share a key"),
    ],
)
async def test_invalid_settings_end_the_start(
    variables: dict[str, object], fault: str, team: Team
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await team.start(**variables)
    assert fault in str(caught.value)
    assert ADMIN not in str(caught.value)
    assert not team.path.exists(), "the check writes nothing"


@sqlite_only
async def test_reload_changes_admin_keys(team: Team) -> None:
    proxy = await team.start()
    assert dict(proxy.lines)["budgets"] == f"spending caps in {team.path}"
    proxy.reload(BUDGETS_ADMIN_KEY="x" * 32)
    assert (await team.request(LIMITS, token=ADMIN)).status == 401
    assert (await team.request(LIMITS, token="x" * 32)).status == 200


@sqlite_only
async def test_start_without_keys_warns(caplog: pytest.LogCaptureFixture, team: Team) -> None:
    await team.start_proxy(BUDGETS_DB=team.path, KEYS_DB=team.path)
    assert caplog.text == ""
    people = {"OIDC_ISSUER": "http://127.0.0.1:9", "OIDC_AUDIENCES": "x"}
    await team.start_proxy(BUDGETS_DB=team.path, **people)
    assert "BUDGETS_DB is set without KEYS_DB" not in caplog.text
    await team.start_proxy(BUDGETS_DB=team.path)
    assert "BUDGETS_DB is set without KEYS_DB" in caplog.text
