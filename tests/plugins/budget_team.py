"""A team behind a proxy with budgets, for the tests of the plugin budgets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from people import MESSAGES, Document, People, Served, message, until
from scene import Scene
from tornadoproxy_budgets import storage
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_budgets.periods import Period

from tornadoproxy import DatabaseLocation, Usage, hookimpl
from tornadoproxy.testing import Proxy, RawResponse, Response, json_response, message_document

ADMIN = "an-admin-key-of-thirty-two-characters"
READER = "an-admin-key-that-may-read-and-no-more"
LIMITS = "/v1/organizations/spend_limits"
UNPRICED = "claude-without-a-known-price"
CENT = 10_000_000
EACH = Scope("organization")
TOGETHER = Scope("organization", shared=True)
ADA = Scope("user", "ada")


class Prices:
    """A cent for each output token, and a hundredth of a cent for each input token."""

    @hookimpl(tryfirst=True)
    def price(self, model: str, usage: Usage) -> int | None:
        if model.startswith(UNPRICED):
            return None
        return (usage.input_tokens or 0) * CENT // 100 + (usage.output_tokens or 0) * CENT


class Team(Served):
    """People who spend through a proxy with budgets, and what surrounds it."""

    async def start(self, **variables: Any) -> Proxy:
        keys = {"BUDGETS_ADMIN_KEY": f"ops={ADMIN}", "BUDGETS_ADMIN_READ_KEY": READER}
        given = {"BUDGETS_DB": self.where, "DISABLED_PLUGINS": "prices", **keys, **variables}
        return await self.start_proxy(plugins=[People(), Prices()], **given)

    def cap(self, scope: Scope, cents: int | None, period: Period = "daily") -> None:
        """Set a cap in the way that the command does."""
        with storage.database(self.where) as database, database.transaction() as connection:
            storage.set_cap(connection, scope, period, cents, actor="test", now=1.0)

    async def ask(
        self, who: str = "ada", document: Document | None = None, to: Proxy | None = None
    ) -> RawResponse:
        return await self.request(MESSAGES, document or asking(), token=who, to=to)

    async def spent(self, who: str = "ada", to: Proxy | None = None) -> int:
        """Return a person's spending of this day in nanos, by the Admin API."""
        target = f"{LIMITS}/effective?period[]=daily&user_ids[]={who}"
        (row,) = json.loads((await self.request(target, token=ADMIN, to=to)).body)["data"]
        whole, _, thousandths = row["period_to_date_spend"].partition(".")
        return int(whole) * CENT + int(thousandths.ljust(3, "0")) * CENT // 1000

    async def until(self, status: int, who: str = "ada") -> RawResponse:
        return await until(status, lambda: self.ask(who))


@pytest.fixture
def team(scene: Scene, where: DatabaseLocation) -> Team:
    return Team(scene, where)


def asking(max_tokens: int = 10, **fields: object) -> Document:
    """A request that is charged at most a cent for its input and `max_tokens` cents."""
    return message(max_tokens, content="Hi" * 150, **fields)


def costing(cents: int) -> Response:
    usage = {"input_tokens": 0, "output_tokens": cents}
    return json_response(message_document("done", usage=usage))
