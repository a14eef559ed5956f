"""What all resources of the Admin API have in common: keys, errors, audit trail, concurrency.

Source: https://platform.claude.com/docs/en/api/admin.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from admin_api import ORGANIZATION, AdminApi, fault_of
from admin_sdk import Sdk
from anthropic import AuthenticationError, NotFoundError, PermissionDeniedError
from budget_team import ADMIN, READER
from people import Document
from scene import Scene
from tornadoproxy_admin import keys

from tornadoproxy import ConfigurationError, DatabaseLocation, hookimpl
from tornadoproxy.testing import TEST_TOKEN

pytest_plugins = ("admin_sdk",)

EVERYONE = {"type": "organization"}
LIMIT: Document = {"scope": EVERYONE, "amount": "1"}


@pytest.fixture
def api(scene: Scene, where: DatabaseLocation) -> AdminApi:
    return AdminApi(scene, where, "/spend_limits", BUDGETS_DB=where, ADMIN_READ_KEY=READER)


# -- admin keys


async def test_only_an_admin_key_is_accepted(api: AdminApi) -> None:
    await api.start()
    for key in (None, TEST_TOKEN, "ada"):
        for method, path in (("POST", "/spend_limits"), ("DELETE", "/x"), ("GET", "/nothing")):
            response = await api.send(method, path, key=key)
            status, kind, text = fault_of(response)
            assert (status, kind) == (401, "authentication_error")
            assert response.header("www-authenticate") == "Bearer"
            assert ADMIN not in text
            assert text.startswith("No credential was sent") == (key is None)
            assert "an admin key of this proxy's ADMIN_KEY" in text
    for key in (ADMIN[:-1], f"ops={ADMIN}"):
        assert (await api.send("GET", key=key)).status == 401
    assert api.upstream.requests == []


async def test_read_key_may_only_read(api: AdminApi) -> None:
    await api.start()
    made = await api.call("POST", document=LIMIT)
    one = f"/spend_limits/{made['id']}"
    for path in ("/spend_limits", one, "/spend_limits/effective", "/audit_events", "/me"):
        assert (await api.send("GET", path, key=READER)).status == 200
    for method, path, document in (("POST", "/spend_limits", LIMIT), ("DELETE", one, None)):
        refused = await api.send(method, path, document, key=READER)
        assert fault_of(refused)[:2] == (403, "permission_error")
    assert await api.call("GET", one) == made


async def test_without_an_admin_key_the_proxy_serves_no_admin_api(api: AdminApi) -> None:
    proxy = await api.start(ADMIN_KEY=None, ADMIN_READ_KEY=None)
    assert "admin" not in dict(proxy.lines)
    assert not any(page.path.startswith(ORGANIZATION) for _, page in proxy.plugins.pages())


async def test_earlier_settings_are_aliases(api: AdminApi) -> None:
    await api.start(
        ADMIN_KEY=None, ADMIN_READ_KEY=None, BUDGETS_ADMIN_KEY=ADMIN, BUDGETS_ADMIN_READ_KEY=READER
    )
    await api.call("POST", document=LIMIT)
    assert (await api.send("POST", document=LIMIT, key=READER)).status == 403


async def test_address_with_many_wrong_keys_is_refused(api: AdminApi) -> None:
    await api.start()
    for _ in range(20):
        assert (await api.send("GET", key=None)).status == 401, "no key is no guess"
    for number in range(10):
        assert (await api.send("GET", key=f"{ADMIN}{number}")).status == 401
    for key in ("another", ADMIN):
        refused = await api.send("GET", key=key)
        assert fault_of(refused)[:2] == (429, "rate_limit_error")
        assert 0 < int(refused.header("retry-after") or 0) <= 60


def test_name_of_an_admin_key_is_no_part_of_it() -> None:
    secrets = ["a" * 32, "=b" * 16, "c=d" * 11]
    words = [f"name-{position}={key}" for position, key in enumerate(secrets)]
    found = keys.parse_keys(" ".join(words))
    assert [key.name for key in found] == ["name-0", "name-1", "name-2"]
    assert [key.secret.reveal().decode() for key in found] == secrets
    assert not any(key in repr(found) for key in secrets)


@pytest.mark.parametrize("key", ["A" * 42 + "==", "0=" + "a" * 32, "-" * 32])
def test_admin_key_without_a_name_is_named_by_position(key: str) -> None:
    (found,) = keys.parse_keys(key)
    assert (found.name, found.secret.reveal().decode()) == ("1", key)


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"BUDGETS_DB": None}, "nothing to administer: set KEYS_DB, BUDGETS_DB"),
        ({"ADMIN_KEY": "ops=short"}, "at least 32 characters"),
        ({"ADMIN_KEY": f"a={ADMIN}1 a={ADMIN}2"}, "a different name"),
        ({"ADMIN_READ_KEY": f"reader={ADMIN}"}, "share a key"),
    ],
)
async def test_invalid_keys_end_the_start(
    variables: dict[str, object], fault: str, api: AdminApi
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await api.start(**variables)
    assert fault in str(caught.value)
    assert ADMIN not in str(caught.value)


async def test_reload_changes_admin_keys(api: AdminApi) -> None:
    proxy = await api.start()
    assert dict(proxy.lines)["admin"] == "the Admin API at /v1/organizations; admin keys: 2"
    proxy.reload(ADMIN_KEY="x" * 32)
    assert (await api.send("GET", key=ADMIN)).status == 401
    assert (await api.send("GET", key="x" * 32)).status == 200


class Part:
    """A plugin that declares something else than a part of the API."""

    @hookimpl
    def admin_api(self) -> Any:
        return "rooms"


async def test_invalid_part_of_the_api_ends_the_start(api: AdminApi) -> None:
    with pytest.raises(
        ConfigurationError, match=r"failed in admin_api: its str is not an admin\.Api"
    ):
        await api.start_proxy(plugins=[Part()], ADMIN_KEY=ADMIN)


# -- paths and methods


async def test_unknown_path_or_method_is_refused(api: AdminApi) -> None:
    await api.start()
    for path in ("", "/", "/workspaces", "/spend_limits/", "/spend_limits/a/b", "/me%2F"):
        status, kind, _ = fault_of(await api.send("GET", path))
        assert (status, kind) in ((404, "not_found_error"), (400, "invalid_request_error"))
    for method, path, allowed in (
        ("PUT", "/spend_limits", "GET, POST"),
        ("PATCH", "/spend_limits/x", "GET, DELETE"),
        ("POST", "/me", "GET"),
    ):
        refused = await api.send(method, path, {})
        assert fault_of(refused)[0] == 405
        assert refused.header("allow") == allowed
    assert (await api.send("HEAD", "/me")).status == 200
    assert api.upstream.requests == []


async def test_sdk_gets_the_organization(api: AdminApi, sdk: Sdk) -> None:
    proxy = await api.start()
    found = await sdk(proxy.url, lambda client: client.organization.retrieve())
    assert (found.type, found.name) == ("organization", "tornadoproxy")
    for key, error in ((ADMIN[1:], AuthenticationError), (READER, PermissionDeniedError)):
        with pytest.raises(error):
            await sdk(
                proxy.url,
                lambda client: client.beta.organization.spend_limits.delete("spl_1"),
                key=key,
            )
    with pytest.raises(NotFoundError, match="does not serve /v1/organizations/workspaces"):
        await sdk(proxy.url, lambda client: client.organization.workspaces.retrieve("wrkspc_1"))


# -- the audit trail


async def test_audit_trail_has_each_change(api: AdminApi) -> None:
    await api.start()
    first = await api.call("POST", document=LIMIT)
    second = await api.call("POST", document={**LIMIT, "amount": "2"})
    await api.call("DELETE", f"/spend_limits/{first['id']}")
    await api.send("DELETE", f"/spend_limits/{first['id']}")  # does not exist any more: no change
    events = (await api.call("GET", "/audit_events"))["data"]
    assert [(event["action"], event["before"], event["after"]) for event in events] == [
        ("delete", second, None),
        ("set", first, second),
        ("set", None, first),
    ]
    for event in events:
        assert event["type"] == "audit_event"
        assert re.fullmatch(r"budgets\.spend_limits\.[0-9]+", event["id"])
        assert event["actor"] == "admin-key:ops"
        assert event["resource"] == {"type": "spend_limit", "id": first["id"]}
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["created_at"])
    page = await api.call("GET", "/audit_events?limit=2")
    assert (page["data"], page["has_more"]) == (events[:2], True)
    rest = await api.call("GET", f"/audit_events?limit=2&page={page['next_page']}")
    assert (rest["data"], rest["has_more"], rest["next_page"]) == (events[2:], False, None)
    for cursor in ("page_WyJbXSJd", "page_WyJ7XCJhXCI6IFwieFwifSJd", "page_WyJ4Il0=", "x"):
        refused = await api.send("GET", f"/audit_events?page={cursor}")
        assert fault_of(refused)[:2] == (400, "invalid_request_error")


# -- optimistic concurrency


async def test_change_of_a_changed_resource_is_refused(api: AdminApi) -> None:
    await api.start()
    made = await api.send("POST", document=LIMIT)
    tag = made.header("etag") or ""
    one = f"/spend_limits/{json.loads(made.body)['id']}"
    assert (await api.send("GET", one)).header("etag") == tag
    changed = {**LIMIT, "amount": "2"}
    assert (await api.send("POST", document=changed, if_match=f'"x", {tag}')).status == 200
    for method, path, document in (("POST", "/spend_limits", LIMIT), ("DELETE", one, None)):
        refused = await api.send(method, path, document, if_match=tag)
        assert fault_of(refused)[:2] == (412, "invalid_request_error")
    assert (await api.call("GET", one))["amount"] == "2", "nothing was changed"
    assert (await api.send("DELETE", one, if_match="*")).status == 200
    assert (await api.send("POST", document=LIMIT, if_match=tag)).status == 412
