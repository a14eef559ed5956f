"""Databases that an earlier version of a plugin has written, in a proxy of this version."""

from __future__ import annotations

import json
import time

import pytest
from budget_team import ADA, ADMIN, CENT, LIMITS, Team, costing
from signing_in import BASE, SIGNING_KEY, SigningIn, document
from tornadoproxy_budgets import storage
from tornadoproxy_budgets.periods import day_of
from tornadoproxy_oidc import sessions, store
from tornadoproxy_oidc.sealing import Sealer

from tornadoproxy import Database, DatabaseConnection, Secret
from tornadoproxy.testing import json_response, message_document

pytest_plugins = ("budget_team",)

ADA_AT_WORK = {
    "sub": "ada",
    "groups": ["lab"],
    "email": "ada@acme.example",
    "provider_sub": "ada",
}


class EarlierSignIns:
    """What the first schema of the sign-ins held, and the tokens of its people."""

    def __init__(self) -> None:
        self.now = int(time.time())
        self.sealer = Sealer((Secret(SIGNING_KEY),), BASE, 3600)

    def bearer(self, session_id: str) -> str:
        return self.sealer.bearer({**ADA_AT_WORK, "sid": session_id})

    def write(self, connection: DatabaseConnection) -> None:
        person, now = json.dumps(ADA_AT_WORK), self.now
        sealed = self.sealer.seal("provider", {"token": "refresh-0"})
        connection.executemany(
            "INSERT INTO oidc_grant VALUES (?, ?, '127.0.0.1', ?, ?, ?, ?, ?)",
            [
                (store.hashed("to-type"), "BCDF-GHJK", now, now + 600, "pending", None, None),
                (store.hashed("to-poll"), "ZZZZ-ZZZZ", now, now + 600, "approved", person, sealed),
            ],
        )
        connection.executemany(
            "INSERT INTO oidc_session VALUES (?, 'ada', ?, ?, ?, ?, ?, 0)",
            [(id_, person, sealed, now, now + 86_400, now) for id_ in ("open", "revoked")],
        )
        # a token did not name its session, and a session stayed when it was revoked
        connection.execute(
            "INSERT INTO oidc_refresh VALUES (?, 'open', NULL)", (store.hashed("earlier-token"),)
        )
        connection.execute("INSERT INTO oidc_revocation VALUES ('revoked', ?)", (now,))


@pytest.fixture
def earlier(signing_in: SigningIn) -> EarlierSignIns:
    earlier = EarlierSignIns()
    with (
        Database(signing_in.where, store.SCHEMA[:1], name="oidc") as database,
        database.transaction() as connection,
    ):
        earlier.write(connection)
    return earlier


async def test_earlier_sign_ins_are_finished(
    signing_in: SigningIn, earlier: EarlierSignIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "GRACE", -1)
    await signing_in.start()
    tokens = document(await signing_in.poll({"device_code": "to-poll"}))
    assert (await signing_in.get(tokens["access_token"])).status == 200
    renewed = await signing_in.refresh(tokens["refresh_token"])
    assert (renewed.status, signing_in.provider.refreshes) == (200, 1)

    page = await signing_in.approve({"user_code": "BCDF-GHJK"})
    assert page.status == 200, page.body
    assert (await signing_in.poll({"device_code": "to-type"})).status == 200


async def test_earlier_people_stay_signed_in_until_bearer_expires(
    signing_in: SigningIn, earlier: EarlierSignIns
) -> None:
    await signing_in.start()
    assert (await signing_in.get(earlier.bearer("open"))).status == 200
    assert (await signing_in.get(earlier.bearer("revoked"))).status == 401
    with store.database(signing_in.where).reading() as connection:
        listed = store.live_sessions(connection, earlier.now)
    assert [session.id for session in listed] == ["open"]

    refused = await signing_in.refresh("earlier-token")
    assert (refused.status, document(refused)["error"]) == (401, "invalid_grant")
    await signing_in.sign_in()
    await signing_in.post("/oauth/revoke", token=earlier.bearer("open"))
    assert (await signing_in.get(earlier.bearer("open"))).status == 401


async def test_earlier_budgets_hold(team: Team) -> None:
    spent = (day_of(time.time()), "user", "ada", 30 * CENT)
    with (
        Database(team.where, storage.SCHEMA[:2], name="budgets") as database,
        database.transaction() as connection,
    ):
        storage.set_cap(connection, ADA, "daily", 50, actor="earlier", now=1.0)
        connection.execute("INSERT INTO budgets_spent VALUES (?, ?, ?, ?)", spent)
        connection.execute("INSERT INTO budgets_seen VALUES ('ada', '[\"lab\"]')")

    await team.start()
    target = f"{LIMITS}/effective?period[]=daily&q=ada"
    (row,) = json.loads((await team.request(target, token=ADMIN)).body)["data"]
    assert (row["amount"], row["period_to_date_spend"], row["groups"]) == ("50", "30", ["lab"])
    team.upstream.script(costing(20), json_response(message_document("done")))
    assert (await team.ask()).status == 200
    assert await team.spent() == 50 * CENT
    assert (await team.ask()).status == 429
    assert (await team.ask("bob")).status == 200
