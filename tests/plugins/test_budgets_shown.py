"""The plugin budgets: what Claude Code shows of a person's spend."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from budget_team import ADA, EACH, TOGETHER, Team, costing
from people import CHAT, MESSAGES, error_of, message
from tornadoproxy_budgets import spend_headers
from tornadoproxy_budgets.caps import Cap, Scope
from tornadoproxy_budgets.engine import Fullest
from tornadoproxy_budgets.periods import Period

from tornadoproxy import Permit
from tornadoproxy.testing import RawResponse, json_response, message_document, sse_response
from tornadoproxy.testing import message_events as events

pytest_plugins = ("budget_team",)

UNIFIED = "anthropic-ratelimit-unified-"
MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"


def unified(response: RawResponse) -> dict[str, str]:
    return {
        name.lower().removeprefix(UNIFIED): value
        for name, value in response.headers
        if name.lower().startswith(UNIFIED)
    }


# spent, status, utilization, threshold; amounts and words are those measured with Claude Code
SHOWN = [
    (0, "allowed", "0", None),
    (500, "allowed", "0.5", None),
    (740, "allowed", "0.74", None),
    (749, "allowed", "0.75", None),
    (750, "allowed_warning", "0.75", "0.75"),
    (949, "allowed_warning", "0.95", "0.75"),
    (950, "allowed_warning", "0.95", "0.95"),
    (999, "allowed_warning", "0.99", "0.95"),
]


@pytest.mark.parametrize(("spent", "status", "utilization", "threshold"), SHOWN)
def test_headers_of_a_response_follow_from_the_spend(
    spent: int, status: str, utilization: str, threshold: str | None
) -> None:
    cap = Cap("spl_1", EACH, "daily", 1, 0.0, 0.0)
    found = spend_headers.of_success(Fullest(cap, spent, 1000), 20_000)
    reset = str(20_001 * 86_400)
    expected = {
        "Status": status,
        "Overage-Status": status,
        "Representative-Claim": "overage",
        "Reset": reset,
        "Overage-Reset": reset,
        "Overage-Utilization": utilization,
    }
    if threshold is not None:
        expected["Overage-Surpassed-Threshold"] = threshold
    assert found == {spend_headers.PREFIX + name: value for name, value in expected.items()}
    Permit(added_headers=found)


async def test_spend_is_shown_with_each_response_and_at_the_cap(team: Team) -> None:
    team.cap(EACH, 100)
    team.cap(ADA, 1000, "monthly")
    await team.start()
    own = {"Anthropic-Ratelimit-Unified-Status": "the upstream's"}
    usage = {"input_tokens": 0, "output_tokens": 80}
    team.upstream.script(
        json_response(message_document("done", usage=usage), headers=own),
        sse_response(events(message_document("done", usage={**usage, "output_tokens": 30}))),
    )
    first = unified(await team.ask())
    assert (first["status"], first["overage-utilization"]) == ("allowed", "0")
    assert "overage-surpassed-threshold" not in first
    second = unified(await team.request(MESSAGES, message(10, stream=True), token="ada"))
    # the fullest of both caps, as it was before the request
    assert (second["status"], second["overage-utilization"]) == ("allowed_warning", "0.8")
    assert second["overage-surpassed-threshold"] == "0.75"
    assert second["reset"] == second["overage-reset"]
    assert int(second["reset"]) % 86_400 == 0

    refused = await team.ask()
    assert refused.status == 429
    assert unified(refused) == {
        "status": "rejected",
        "reset": second["reset"],
        "overage-reset": second["reset"],
        "overage-utilization": "1.1",
        "overage-surpassed-threshold": "1",
        "overage-period": "daily",
        "overage-disabled-reason": "org_spend_cap_reached",
    }
    error = error_of(refused)
    assert error["type"] == "billing_error"
    reset = datetime.fromtimestamp(int(second["reset"])).astimezone()
    assert error["message"].startswith(f"spend limit reached · resets {reset:%b} {reset.day} · ")


async def test_zero_cap_names_no_reset(team: Team) -> None:
    team.cap(ADA, 0)
    await team.start(BUDGETS_MESSAGE="Ask at /console/.")
    refused = await team.ask()
    message = error_of(refused)["message"]
    assert message.startswith("spend limit reached · $0.00 of $0.00")
    assert message.endswith(" UTC). Ask at /console/.")
    assert unified(refused)["overage-utilization"] == "1"


@pytest.mark.parametrize("who", ["ada", "bob"])
async def test_spend_headers_need_a_cap_and_a_message(who: str, team: Team) -> None:
    team.cap(ADA, 1000)
    await team.start()
    team.upstream.script(costing(1), costing(1))
    for target, document in (
        (CHAT, message()),
        (f"{MESSAGES}/count_tokens", {"model": "claude-sonnet-5-5", "messages": []}),
    ):
        assert unified(await team.request(target, document, token=who)) == {}
    assert bool(unified(await team.ask(who))) == (who == "ada")


async def test_errors_of_the_upstream_show_no_spend(team: Team) -> None:
    team.cap(ADA, 1000)
    await team.start()
    own = {"Anthropic-Ratelimit-Unified-Status": "rejected"}
    team.upstream.script(json_response({"type": "error"}, 429, own))
    response = await team.ask()
    assert (response.status, unified(response)) == (429, {})


async def usage(team: Team, who: str = "ada") -> dict[str, Any]:
    response = await team.request("/api/oauth/usage", token=who)
    assert response.status == 200
    found: dict[str, Any] = json.loads(response.body)
    return found


PERIODS: tuple[Period, ...] = ("daily", "weekly", "monthly")
SEVERITIES = {10: "normal", 80: "warning", 96: "critical", 120: "critical"}


async def test_usage_of_a_person_with_a_cap(team: Team, subtests: pytest.Subtests) -> None:
    for period in PERIODS:
        for cents in SEVERITIES:
            team.cap(Scope("user", f"{period}-{cents}"), 100, period)
    await team.start()
    for period in PERIODS:
        for cents, severity in SEVERITIES.items():
            with subtests.test(period=period, cents=cents):
                await check_usage(team, f"{period}-{cents}", period, cents, severity)


async def check_usage(team: Team, who: str, period: Period, cents: int, severity: str) -> None:
    """Check what is shown of a person who spends `cents` of 100 cents."""
    team.upstream.script(costing(cents))
    shown = unified(await team.ask(who))
    found = await usage(team, who)
    assert found["extra_usage"] == {
        "is_enabled": True,
        "monthly_limit": 100,
        "used_credits": cents,
        "utilization": cents,
        "currency": "USD",
    }
    (limit,) = found["limits"]
    resets = datetime.fromisoformat(limit.pop("resets_at")).timestamp()
    assert int(resets) == int(shown["overage-reset"])
    assert limit == {
        "kind": "spend",
        "group": period,
        "percent": cents,
        "severity": severity,
        "is_active": True,
    }


async def test_usage_of_a_person_without_a_cap(team: Team) -> None:
    await team.start()
    team.upstream.script(costing(7))
    await team.ask()
    nothing = {"limit": None, "used_credits": 7, "utilization": None}
    assert await usage(team) == {
        "extra_usage": {
            "is_enabled": True,
            "monthly_limit": None,
            "used_credits": 7,
            "utilization": None,
            "currency": "USD",
            "daily": nothing,
            "weekly": nothing,
        },
        "limits": [],
    }


async def test_usage_under_a_shared_cap_is_that_of_everyone(team: Team) -> None:
    team.cap(TOGETHER, 100)
    await team.start()
    team.upstream.script(costing(30), costing(20))
    await team.ask("ada")
    await team.ask("bob")
    assert (await usage(team))["extra_usage"]["used_credits"] == 50


@pytest.mark.parametrize(
    "headers",
    [{"x-lower": "a"}, {"X-A": "a\nb"}, {"X-A": "\x7f"}, {"X-A": "ä"}, {"": "a"}, {"X-Ä": "a"}],
)
def test_invalid_header_is_refused_by_the_permit(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="added_headers"):
        Permit(added_headers=headers)
