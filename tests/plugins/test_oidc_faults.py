"""The plugin oidc while its provider or another proxy fails."""

from __future__ import annotations

import asyncio
import time

import pytest
from oidc_console import SIGN_IN, Browser, start
from signing_in import SigningIn, document
from tornadoproxy_oidc import sessions, store

from tornadoproxy.testing import UpstreamExchange

pytest_plugins = ("oidc_console",)


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the provider asked at each refresh."""
    monkeypatch.setattr(sessions, "GRACE", -1)
    monkeypatch.setattr(sessions, "WAIT", 0.01)


async def test_provider_that_was_never_reached_signs_nobody_in(
    browser: Browser, signing_in: SigningIn
) -> None:
    signing_in.provider.changed = {"issuer": "https://other.example"}
    await start(signing_in)
    begun = await signing_in.begin()
    assert (await signing_in.submit(begun["user_code"])).status == 503
    response = await browser.send(SIGN_IN, {"next": "/"})
    assert (response.status, browser.cookies) == (503, {})
    assert "Sign-in is not possible at present" in browser.page
    signing_in.provider.changed = {}
    assert (await signing_in.approve(begun)).status == 200
    assert (await browser.sign_in()).status == 200


async def test_sign_in_that_ends_too_late_is_refused(signing_in: SigningIn) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(begun)
    with store.database(signing_in.where) as database, database.transaction() as connection:
        connection.execute("UPDATE oidc_grant SET expires = ?", (int(time.time()) - 1,))
    page = await signing_in.call_back(query, cookie)
    assert (page.status, b"took too long" in page.body) == (400, True)
    assert document(await signing_in.poll(begun))["error"] == "expired_token"


async def test_response_without_an_id_token_signs_nobody_in(signing_in: SigningIn) -> None:
    await signing_in.start()
    signing_in.provider.left_out = {"id_token"}
    begun = await signing_in.begin()
    assert (await signing_in.approve(begun)).status == 400
    assert document(await signing_in.poll(begun))["error"] == "authorization_pending"


async def test_refresh_without_an_id_token_keeps_the_person(
    signing_in: SigningIn, due: None
) -> None:
    """OpenID Connect Core §12.2: the response might not contain one."""
    await signing_in.start()
    tokens = await signing_in.sign_in()
    signing_in.provider.left_out = {"id_token"}
    response = await signing_in.refresh(tokens["refresh_token"])
    assert response.status == 200
    assert (await signing_in.get(document(response)["access_token"])).status == 200
    assert signing_in.provider.refreshes == 1


async def test_refresh_without_an_id_token_refuses_a_removed_domain(
    signing_in: SigningIn, due: None
) -> None:
    proxy = await signing_in.start(OIDC_EMAIL_DOMAINS="acme.example")
    tokens = await signing_in.sign_in()
    signing_in.provider.left_out = {"id_token"}
    token = document(await signing_in.refresh(tokens["refresh_token"]))["refresh_token"]
    proxy.reload(OIDC_EMAIL_DOMAINS="other.example")
    assert (await signing_in.refresh(token)).status == 401


async def test_revocation_during_a_refresh_wins(signing_in: SigningIn, due: None) -> None:
    await signing_in.start()
    tokens = await signing_in.sign_in()
    go_on = asyncio.Event()

    async def slow(exchange: UpstreamExchange) -> None:
        await go_on.wait()
        await signing_in.provider.default_response(exchange)

    signing_in.provider.script(slow)
    before = len(signing_in.provider.requests)
    refreshing = asyncio.ensure_future(signing_in.refresh(tokens["refresh_token"]))
    await signing_in.provider.received(before + 1)
    await signing_in.post("/oauth/revoke", token=tokens["access_token"])
    go_on.set()
    assert (await refreshing).status == 401
    assert (await signing_in.get(tokens["access_token"])).status == 401


async def test_proxy_that_dies_while_it_asks_delays_a_refresh(
    signing_in: SigningIn, due: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start()
    token = (await signing_in.sign_in())["refresh_token"]
    now = int(time.time())
    with store.database(signing_in.where) as database, database.transaction() as connection:
        connection.execute("UPDATE oidc_session SET checking = ?", (now,))
    monkeypatch.setattr(sessions, "MAX_WAIT", 0.05)
    assert (await signing_in.refresh(token)).status == 503
    monkeypatch.setattr(time, "time", lambda: now + sessions.LEASE + 1.0)
    assert (await signing_in.refresh(token)).status == 200
    assert signing_in.provider.refreshes == 1
