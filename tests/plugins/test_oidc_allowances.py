"""Caps and limits of groups in the policy file, as the plugins budgets and keys apply them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from budget_team import ADMIN, LIMITS, Prices
from people import pause, until
from postgres import sqlite_only
from redis_server import RedisServer
from signing_in import MESSAGE, SigningIn, document
from test_budgets_shown import unified
from tornadoproxy_budgets import storage, sync
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_budgets.engine import Engine
from tornadoproxy_budgets.state import Batch, Seen
from tornadoproxy_keys.live_key import MANY, People
from tornadoproxy_oidc.policies import Policies

from tornadoproxy import Allowance, ConfigurationError, Identity, hookimpl
from tornadoproxy.testing import (
    Proxy,
    RawResponse,
    json_response,
    message_document,
    silent_response,
)

CAPPED = """
[[policy]]
groups = ["left", "lab"]
caps = {daily = 0.50, monthly = 3}

[[policy]]
caps = {weekly = 0}
"""


class Group:
    """Somebody of the group lab, behind a proxy with a policy file."""

    def __init__(self, signing_in: SigningIn, file: Path) -> None:
        self.signing_in = signing_in
        self.file = file
        self.proxies: list[Proxy] = []
        self.bearer = ""

    async def start(self, policies: str, **given: Any) -> Proxy:
        self.file.write_text(policies)
        where = self.signing_in.where
        settings = {"BUDGETS_DB": where, "KEYS_DB": where, "DISABLED_PLUGINS": "prices"}
        proxy = await self.signing_in.start(
            **{**settings, "OIDC_POLICY_FILE": self.file, "ADMIN_KEY": f"ops={ADMIN}", **given},
            plugins=[Prices()],
        )
        self.proxies.append(proxy)
        if not self.bearer:
            self.bearer = (await self.signing_in.sign_in())["access_token"]
        return proxy

    async def ask(self, to: Proxy | None = None, token: str | None = None) -> RawResponse:
        return await self.signing_in.scene.ask(
            "/v1/messages", MESSAGE, token=token or self.bearer, to=to
        )

    async def spend(self, cents: int) -> RawResponse:
        usage = {"input_tokens": 0, "output_tokens": cents}
        self.signing_in.scene.upstream.script(json_response(message_document("x", usage=usage)))
        response = await self.ask()
        assert response.status == 200, response.body
        return response

    async def admin(self, path: str, given: Any = None) -> Any:
        response = await self.signing_in.scene.ask(LIMITS + path, given, token=ADMIN)
        assert response.status == 200, response.body
        return document(response)

    async def rows(self) -> dict[str, Any]:
        """Return what the Admin API says of the caps, by period."""
        rows = (await self.admin("/effective?user_ids[]=ada"))["data"]
        return {row["period"]: row for row in rows}

    async def effective(self) -> dict[str, tuple[str | None, Any, bool]]:
        """Return amount and source of each period's cap, and whether it is a spend limit."""
        return {
            period: (row["amount"], row["source"], row["spend_limit_id"] is not None)
            for period, row in (await self.rows()).items()
        }


@pytest.fixture
def group(signing_in: SigningIn, tmp_path: Path) -> Group:
    return Group(signing_in, tmp_path / "policies.toml")


async def test_cap_of_a_group_is_shown_and_reached(group: Group) -> None:
    await group.start(CAPPED)
    assert unified(await group.spend(40))["overage-utilization"] == "0"
    warned = unified(await group.spend(10))
    assert (warned["overage-utilization"], warned["overage-surpassed-threshold"]) == ("0.8", "0.75")
    refused = await group.ask()
    assert refused.status == 429
    headers = unified(refused)
    assert (headers["overage-period"], headers["overage-disabled-reason"]) == (
        "daily",
        "org_spend_cap_reached",
    )
    assert refused.header("x-should-retry") == "false"
    said = document(refused)["error"]["message"]
    assert said.startswith("spend limit reached · resets ")
    assert "$0.50 of $0.50 is spent (daily" in said

    usage = document(await group.signing_in.scene.ask("/api/oauth/usage", token=group.bearer))
    assert usage["extra_usage"]["monthly_limit"] == 50
    assert usage["limits"][0]["group"] == "daily"


async def test_cap_is_of_each_person_and_of_provider_tokens(group: Group) -> None:
    await group.start(CAPPED, OIDC_WORKLOADS="ci=lab")
    await group.spend(50)
    token = group.signing_in.provider.token
    assert (await group.ask(token=token(sub="ada", groups=["lab"]))).status == 429
    assert (await group.ask(token=token(sub="kim", groups=["lab"]))).status == 200
    assert (await group.ask(token=token(sub="job", aud="ci"))).status == 200
    assert (await group.ask(token=token(sub="eve", groups=[]))).status == 429


async def test_first_policy_of_several_groups_counts(group: Group) -> None:
    await group.start(
        '[[policy]]\ngroups=["b"]\ncaps={daily=7}\n[[policy]]\ngroups=["a"]\ncaps={daily=5}\n'
        '[[policy]]\ngroups=["a", "b"]\ncaps={weekly=1}'
    )
    token = group.signing_in.provider.token(groups=["a", "b"])
    assert (await group.ask(token=token)).status == 200
    assert await group.effective() == {
        "daily": ("700", {"type": "rbac_group", "rbac_group_id": "b"}, False),
        "weekly": (None, None, False),
        "monthly": (None, None, False),
    }


async def test_cap_of_the_admin_api_replaces_that_of_the_file(group: Group) -> None:
    await group.start(CAPPED)
    await group.spend(10)
    of_file = {"type": "rbac_group", "rbac_group_id": "lab"}
    everyone = {"type": "organization"}
    await group.admin("", {"scope": everyone, "amount": "1", "period": "daily"})
    await group.admin("", {"scope": everyone, "amount": "9", "period": "weekly"})
    assert await group.effective() == {
        "daily": ("50", of_file, False),
        "weekly": ("9", everyone, True),
        "monthly": ("300", of_file, False),
    }
    assert [each["amount"] for each in (await group.admin(""))["data"]] == ["1", "9"]
    await group.admin("", {"scope": {**everyone}, "amount": None, "period": "weekly"})

    await group.admin("", {"scope": of_file, "amount": "10", "period": "daily"})
    assert (await group.effective())["daily"] == ("10", of_file, True)
    assert (await group.ask()).status == 429
    ada = {"type": "user", "user_id": "ada"}
    await group.admin("", {"scope": ada, "amount": None, "period": "daily"})
    assert (await group.effective())["daily"] == (None, ada, True)
    assert (await group.ask()).status == 200


async def test_cap_is_known_to_other_proxies_and_changes_by_a_reload(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("TICK", "SERVER_TICK", "RELOAD"):
        monkeypatch.setattr(sync, interval, 0.02)
    await group.start(CAPPED)
    await group.spend(40)
    proxy = await group.start(CAPPED)  # it has not seen the person
    async with asyncio.timeout(10):  # the sums may be saved after the person
        while (daily := (await group.rows())["daily"])["period_to_date_spend"] != "40":
            await pause()
    assert daily["amount"] == "50"
    assert unified(await group.ask())["overage-utilization"] == "0.8"
    group.file.write_text(CAPPED.replace("0.50", "1.00"))
    proxy.reload()
    assert unified(await group.ask())["overage-utilization"] == "0.5"
    assert (await group.effective())["daily"][0] == "100"
    group.file.write_text("")
    proxy.reload()
    assert unified(await group.ask()) == {}
    assert (await group.effective())["daily"] == (None, None, False)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            "requests_per_minute = 2",
            "You have reached your limit of 2 requests a minute: try again",
        ),
        ("tokens_per_minute = 20", "You have reached your limit of 20 tokens a minute: try again"),
    ],
)
async def test_limit_of_a_group_is_that_of_each_person(
    group: Group, limits: str, said: str
) -> None:
    await group.start(f'[[policy]]\ngroups = ["lab"]\nlimits = {{{limits}}}')
    for _ in range(2):
        assert (await group.ask()).status == 200
    refused = await group.ask()
    assert (refused.status, said in document(refused)["error"]["message"]) == (429, True)
    assert 0 < int(refused.header("retry-after") or 0) <= 60
    token = group.signing_in.provider.token
    assert (await group.ask(token=token(sub="ada", groups=["lab"]))).status == 429
    assert (await group.ask(token=token(sub="kim", groups=["lab"]))).status == 200
    assert (await group.ask(token=token(sub="ada", groups=[]))).status == 200
    for page in ("/v1/metrics", "/v1/logs"):
        sent = await group.signing_in.scene.ask(page, {}, token=group.bearer)
        assert sent.status == 200


async def test_requests_in_flight_are_limited(group: Group) -> None:
    proxy = await group.start("[[policy]]\nlimits = {concurrency = 1}")
    group.signing_in.scene.upstream.script(silent_response())
    held = asyncio.ensure_future(group.ask())
    await group.signing_in.scene.upstream.received()
    refused = await group.ask()
    assert (refused.status, b"your limit of 1 requests at once" in refused.body) == (429, True)
    group.file.write_text("[[policy]]\nlimits = {concurrency = 2}")
    proxy.reload()
    assert (await group.ask()).status == 200
    group.file.write_text("[[policy]]\nlimits = {concurrency = 1}")
    proxy.reload()
    held.cancel()
    await until(200, group.ask)


@sqlite_only
async def test_limits_and_caps_of_several_proxies_count_together(
    group: Group, redis_server: RedisServer
) -> None:
    policies = (
        '[[policy]]\ngroups = ["lab"]\ncaps = {daily = 0.2}\n'
        "[[policy]]\nlimits = {requests_per_minute = 3}"
    )
    first = await group.start(policies, SHARED_LIMITS=redis_server.url)
    second = await group.start(policies, SHARED_LIMITS=redis_server.url)
    await group.spend(20)
    for proxy in (first, second):
        assert b"spend limit reached" in (await group.ask(proxy)).body
    kim = group.signing_in.provider.token(sub="kim", groups=[])
    for proxy in (first, second, first):
        assert (await group.ask(proxy, kim)).status == 200
    assert b"your limit of 3 requests a minute" in (await group.ask(second, kim)).body


WRONG = (
    ("caps = 5", "policy 1: caps must be a table with daily, weekly, monthly"),
    ("caps = {}", "policy 1: caps must have at least one of daily, weekly, monthly"),
    ("caps = {yearly = 1}", "policy 1: caps has the unknown field yearly; known: daily"),
    *(
        (f"caps = {{daily = {wrong}}}", "policy 1: caps: daily must be an amount in US dollars")
        for wrong in ("-1", "1.005", "true", "'5'", "nan", "inf", "1e30")
    ),
    *(
        (
            f"limits = {{concurrency = {wrong}}}",
            "policy 1: limits: concurrency must be a whole number from 1 to 1000000000000",
        )
        for wrong in ("0", "1.5", "true", "'5'", "10_000_000_000_000")
    ),
    ("limits = {rpm = 1}", "policy 1: limits has the unknown field rpm; known: requests_per"),
)


async def test_wrong_cap_or_limit_ends_the_start(group: Group) -> None:
    for text, said in WRONG:
        with pytest.raises(ConfigurationError, match="OIDC_POLICY_FILE") as refused:
            await group.start(f"[[policy]]\n{text}")
        assert said in str(refused.value), text
        assert len(refused.value.faults) == 1, text


async def test_what_nothing_applies_ends_the_start(group: Group) -> None:
    for text, missing, what in (
        ("caps = {daily = 1}", "BUDGETS_DB", "caps"),
        ("limits = {concurrency = 1}", "KEYS_DB", "limits"),
    ):
        policies = f"[[policy]]\ngroups = ['left']\n[[policy]]\n{text}"
        with pytest.raises(ConfigurationError) as refused:
            await group.start(policies, **{missing: None})
        assert str(refused.value) == (
            f"OIDC_POLICY_FILE: policy 2 has {what}, which nothing applies without {missing}; set "
            f"{missing} or DATABASE_URL, or remove {what}."
        )


def test_amounts_are_whole_cents(tmp_path: Path) -> None:
    for dollars, cents in (
        (20, 2000),
        (12.55, 1255),
        (0.07, 7),
        (0, 0),
        (99_999.01, 9_999_901),
    ):
        policies = Policies({"policy": [{"caps": {"daily": dollars}}]}, tmp_path)
        assert policies.of(()).allowance(()) == Allowance(daily=cents)


@pytest.mark.parametrize(
    "given", [{"concurrency": 0}, {"daily": -1}, {"monthly": 1.5}, {"requests_per_minute": True}]
)
def test_wrong_allowance_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a whole number from"):
        Allowance(**given)


async def test_allowance_of_another_type_refuses_the_request(signing_in: SigningIn) -> None:
    class Wrong:
        @hookimpl(tryfirst=True)
        def authenticate(self) -> Identity:
            return Identity("ada", allowance={"daily": 1})  # type: ignore[arg-type]  # that is the fault

    await signing_in.scene.start(plugins=[Wrong()])
    assert (await signing_in.scene.ask("/v1/models")).status == 503


def test_idle_people_are_forgotten() -> None:
    people = People()
    limits = Allowance(requests_per_minute=1)
    busy = people.get("busy", limits, 0.0)
    busy.admit(0.0)
    for number in range(MANY - 1):
        people.get(f"idle-{number}", limits, 0.0)
    people.get("one more", limits, 1.0)
    assert people.get("busy", limits, 1.0) is busy
    assert len(people._people) == 2


def test_allowance_is_stored_whole(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    allowance = Allowance(daily=50, concurrency=3, group="lab")
    with storage.database(path) as database, database.transaction() as connection:
        storage.save(connection, Batch({}, {"ada": Seen(("lab",), allowance)}))
        engine = Engine(0.0)
        state = storage.load(connection, engine.day)
    assert state.seen == {"ada": Seen(("lab",), allowance)}
    assert engine.load(state)
    cap = engine.personal("ada", ("lab",), "daily", engine.seen("ada").allowance)
    assert cap is not None
    assert (cap.cents, cap.scope, cap.id) == (50, Scope("rbac_group", "lab"), "")
