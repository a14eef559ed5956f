"""The plugin oidc: people of admin groups are administrators."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from budget_team import ADMIN
from oidc_console import Browser, start
from signing_in import SigningIn, document

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import RawResponse

pytest_plugins = ("oidc_console",)

LIMIT = {"scope": {"type": "organization"}, "amount": "100"}
LIMITS = "/v1/organizations/spend_limits"


async def admin_api(
    signing_in: SigningIn, bearer: str, path: str = LIMITS, **given: Any
) -> RawResponse:
    body = json.dumps(given["document"]).encode() if "document" in given else b""
    return await signing_in.scene.ask(
        path, token=bearer, method="POST" if body else "GET", body=body
    )


async def test_bearer_of_an_administrator_opens_the_admin_api(signing_in: SigningIn) -> None:
    await start(signing_in, OIDC_ADMIN_READ_GROUPS="staff")
    statuses = []
    for groups in (["root", "staff"], ["staff"], ["lab"], []):
        signing_in.provider.person["groups"] = groups
        bearer = (await signing_in.sign_in())["access_token"]
        plain = signing_in.provider.token(groups=groups)
        for each in (bearer, plain):
            read = await admin_api(signing_in, each)
            changed = await admin_api(signing_in, each, document=LIMIT)
            statuses.append((read.status, changed.status))
    assert statuses == [(200, 200)] * 2 + [(200, 403)] * 2 + [(401, 401)] * 4
    me = document(
        await admin_api(
            signing_in, signing_in.provider.token(groups=["root"]), "/v1/organizations/me"
        )
    )
    assert (me["actor"], me["may_change"]) == ("user:ada", True)


async def test_audit_trail_names_the_person(browser: Browser, signing_in: SigningIn) -> None:
    await start(signing_in)
    signing_in.provider.person["groups"] = ["root"]
    bearer = (await signing_in.sign_in())["access_token"]
    await admin_api(signing_in, bearer, document=LIMIT)
    signing_in.provider.person["sub"] = "bob"
    await browser.sign_in()
    await browser.get("/console/spend")
    cap = {"type": "user", "name": "eve", "period": "daily", "amount": "5"}
    cap["if_match"] = unescape(re.findall(r'name="if_match" value="([^"]+)"', browser.page)[-1])
    assert (await browser.send("/console/spend", cap)).status == 303, browser.page
    trail = document(await admin_api(signing_in, bearer, "/v1/organizations/audit_events"))
    assert [event["actor"] for event in trail["data"]] == ["user:bob", "user:ada"]


async def test_group_of_another_plugin_administers_nothing(signing_in: SigningIn) -> None:
    """A workload's group, and the groups of keys, are other names than the provider's."""
    await start(signing_in, OIDC_WORKLOADS="ci=root", ADMIN_KEY=ADMIN, KEYS_DB=signing_in.where)
    token = signing_in.provider.token(aud="ci", groups=["root"])
    made = await admin_api(
        signing_in, ADMIN, "/v1/organizations/api_keys", document={"name": "x", "groups": ["root"]}
    )
    for credential in (token, document(made)["key"]):
        assert (await signing_in.get(credential)).status == 200
        assert (await admin_api(signing_in, credential)).status == 401


async def test_repeated_creation_by_a_person_gives_the_same_key(signing_in: SigningIn) -> None:
    await start(signing_in, KEYS_DB=signing_in.where)
    keys: list[str] = []
    for sub in ("ada", "ada", "bob"):
        bearer = signing_in.provider.token(groups=["root"], sub=sub, jti=str(len(keys)))
        response = await signing_in.scene.ask(
            "/v1/organizations/api_keys",
            token=bearer,
            method="POST",
            headers={"Idempotency-Key": "once"},
            body=json.dumps({"name": f"of {sub}"}).encode(),
        )
        keys.append(document(response)["key"])
    assert keys[0] == keys[1] != keys[2]


async def test_reload_changes_who_administers(signing_in: SigningIn) -> None:
    proxy = await start(signing_in)
    signing_in.provider.person["groups"] = ["lab"]
    bearer = (await signing_in.sign_in())["access_token"]
    assert (await admin_api(signing_in, bearer)).status == 401
    proxy.reload(OIDC_ADMIN_GROUPS="lab")
    assert (await admin_api(signing_in, bearer)).status == 200


async def test_invalid_admin_groups_end_the_start(signing_in: SigningIn) -> None:
    for given, said in (
        ({"OIDC_ADMIN_GROUPS": '"root'}, "without its counterpart"),
        ({"OIDC_ADMIN_GROUPS": "''"}, "empty name"),
        ({"OIDC_ISSUER": None, "ADMIN_KEY": ADMIN}, "OIDC_ADMIN_GROUPS is set but OIDC_ISSUER"),
        ({"BUDGETS_DB": None}, "nothing to administer"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            await start(signing_in, **given)
