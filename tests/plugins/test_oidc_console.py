"""The plugin oidc: people sign in to the web console."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from oidc_console import SIGN_IN, Browser, start
from people import pause
from postgres import sqlite_only
from signing_in import BASE, SigningIn, document
from tornadoproxy_console.sessions import COOKIE
from tornadoproxy_oidc import browser_session, provider, relying_party, sessions, store

from tornadoproxy import Follower
from tornadoproxy.testing import silent_response

pytest_plugins = ("oidc_console",)


async def test_sign_in_page_offers_the_provider(browser: Browser, signing_in: SigningIn) -> None:
    await start(signing_in)
    await browser.get("/console/")
    assert f"Sign in with {urlsplit(signing_in.provider.url).netloc}" in browser.page
    without = dict.fromkeys(
        ("OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "OIDC_PUBLIC_URL", "OIDC_SIGNING_KEY")
    )
    await start(signing_in, **without)
    await browser.get("/console/")
    assert "Sign in with" not in browser.page
    assert (await browser.send(SIGN_IN, {})).status == 404


async def test_person_sees_me_and_an_administrator_all(
    browser: Browser, signing_in: SigningIn
) -> None:
    await start(signing_in, OIDC_ADMIN_READ_GROUPS='staff "Audit, internal"')
    role = '<span class="role"> · '
    for groups, path, shown in (
        (["lab"], "/console/me", "<span>ada</span>"),
        (["lab", "root"], "/console/health", f"<span>ada{role}administrator</span></span>"),
        (["Audit, internal"], "/console/health", f"<span>ada{role}read-only</span></span>"),
    ):
        signing_in.provider.person["groups"] = groups
        assert (await browser.sign_in()).status == 200
        assert shown in browser.page
        assert (await browser.get(path)).status == 200
    signing_in.provider.person["groups"] = ["lab"]
    await browser.sign_in()
    assert (await browser.get("/console/health")).status == 404


async def test_page_asked_for_follows_the_sign_in(browser: Browser, signing_in: SigningIn) -> None:
    await start(signing_in)
    signing_in.provider.person["groups"] = ["root"]
    assert (await browser.sign_in("/spend")).status == 200
    assert "<h1>Spend</h1>" in browser.page


async def test_sign_in_leads_to_no_other_site(browser: Browser, signing_in: SigningIn) -> None:
    """An open redirect."""
    await start(signing_in)
    for evil in ("//evil.example", "https://evil.example/", "/\\evil.example", "javascript:x"):
        query = await browser.to_provider(evil)
        await browser.send(f"/oauth/callback?{query}&{urlencode({'back': evil, 'next': evil})}")
        assert browser.target() == f"{SIGN_IN}?next=/"
        response = await browser.send(f"{SIGN_IN}?{urlencode({'next': evil})}")
        assert (response.status, response.header("location")) == (303, "/console/")


async def test_session_cookie_is_strict_and_new_with_each_sign_in(
    browser: Browser, signing_in: SigningIn
) -> None:
    """Session fixation: what the browser had before is worth nothing afterwards."""
    await start(signing_in)
    browser.cookies[COOKIE] = "fixed-by-somebody-else"
    await browser.sign_in()
    first = browser.cookies[COOKIE]
    assert browser.set[COOKIE].endswith("; Path=/console; Max-Age=43200; HttpOnly; SameSite=Strict")
    await browser.sign_in()
    assert browser.cookies[COOKIE] not in ("fixed-by-somebody-else", first)
    browser.cookies[COOKIE] = first
    await browser.get("/console/me")
    assert "<h1>Sign in</h1>" in browser.page
    assert len(live(signing_in)) == 1, "the first sign-in has ended with its session"


async def test_cookies_are_secure_where_the_browser_uses_tls(signing_in: SigningIn) -> None:
    await start(signing_in, OIDC_PUBLIC_URL="https://gw.acme.example", TRUSTED_PROXIES="127.0.0.1")
    tls = {"X-Forwarded-Proto": "https", "Origin": "https://gw.acme.example"}
    browser = Browser(signing_in, "gw.acme.example")
    await browser.send(SIGN_IN, {}, headers=tls)
    (name,) = browser.cookies
    assert name.startswith("__Host-")
    assert browser.set[name].endswith("; Path=/; HttpOnly; SameSite=Lax; Secure")
    query = signing_in.provider.authorize(browser.target())
    await browser.send(f"/oauth/callback?{query}", headers=tls)
    await browser.send(browser.target(), headers=tls)
    assert browser.set[COOKIE].endswith("; HttpOnly; SameSite=Strict; Secure")


# Attacks


async def test_sign_in_begins_from_this_site_alone(browser: Browser, signing_in: SigningIn) -> None:
    await start(signing_in)
    for origin in ("https://evil.example", "null"):
        response = await browser.send(SIGN_IN, {"next": "/"}, {"Origin": origin})
        assert (response.status, browser.cookies) == (403, {})
    assert (await browser.send("/console/sign-in/other", {})).status == 404


async def test_sign_in_ends_in_the_browser_that_began_it(
    browser: Browser, signing_in: SigningIn
) -> None:
    """Login CSRF: an attacker cannot sign a victim in as the attacker, nor take a victim's."""
    await start(signing_in)
    victim = Browser(signing_in)
    query = await browser.to_provider()
    for cookies in ({}, {"tp-device": "made-up"}):
        victim.cookies = dict(cookies)
        assert (await victim.send(f"/oauth/callback?{query}")).status == 400
        assert "Not begun here" in victim.page
        assert (await victim.send(SIGN_IN)).status == 401
        assert "was not begun in this browser" in victim.page
        assert COOKIE not in victim.cookies
    # nor before the provider has sent the attacker's own browser back
    assert (await browser.send(SIGN_IN)).status == 401
    await victim.to_provider()
    assert (await victim.send(f"/oauth/callback?{query}")).status == 400, "another one's state"
    assert (await browser.send(f"/oauth/callback?{query}")).status == 200
    assert (await browser.send(SIGN_IN)).status == 303
    replayed = Browser(signing_in)
    replayed.cookies = {"tp-device": browser.cookies["tp-device"]}
    assert (await replayed.send(SIGN_IN)).status == 401, "it is finished once"


async def test_sign_in_of_a_browser_gives_no_device_tokens(
    browser: Browser, signing_in: SigningIn
) -> None:
    """Nor does the approval of a device sign its browser in to the console."""
    await start(signing_in)
    query = await browser.to_provider()
    await browser.send(f"/oauth/callback?{query}")
    sealed = browser.cookies["tp-device"]
    assert document(await signing_in.poll({"device_code": sealed}))["error"] == "expired_token"

    begun = await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(begun)
    browser.cookies = {"tp-device": cookie.partition("=")[2]}
    await browser.send(f"/oauth/callback?{query}")
    assert "Return to your device" in browser.page
    browser.cookies = {"tp-device": cookie.partition("=")[2]}
    assert (await browser.send(SIGN_IN)).status == 401
    assert (await signing_in.poll(begun)).status == 200


async def test_code_of_a_browser_cannot_be_typed(browser: Browser, signing_in: SigningIn) -> None:
    await start(signing_in)
    query = await browser.to_provider()
    with store.database(signing_in.where).reading() as connection:
        ((code,),) = connection.execute("SELECT user_code FROM oidc_grant").fetchall()
    page = await signing_in.submit(code)
    assert b"not recognized" in page.body
    assert (await browser.send(f"/oauth/callback?{query}")).status == 200


async def test_response_of_another_issuer_is_refused(
    browser: Browser, signing_in: SigningIn
) -> None:
    """A mix-up."""
    await start(signing_in)
    fields = {name: value for name, (value,) in parse_qs(await browser.to_provider()).items()}
    evil = urlencode({**fields, "iss": "https://evil.example"})
    assert (await browser.send(f"/oauth/callback?{evil}")).status == 400
    assert (await browser.send(SIGN_IN)).status == 401


async def test_other_host_than_the_public_one_is_refused(signing_in: SigningIn) -> None:
    await start(signing_in)
    browser = Browser(signing_in, "127.0.0.1:9")
    response = await browser.send(SIGN_IN, {"next": "/"})
    assert (response.status, browser.cookies) == (400, {})
    assert f"This way to sign in is at {BASE} only" in browser.page


async def test_address_that_begins_often_is_refused(
    browser: Browser, signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_BEGUN", 1)
    await start(signing_in)
    await browser.to_provider()
    assert (await browser.send(SIGN_IN, {})).status == 429
    assert "Too many sign-ins from your address" in browser.page


# The end of a session


def live(signing_in: SigningIn) -> list[store.Session]:
    with store.database(signing_in.where).reading() as connection:
        return store.live_sessions(connection, int(time.time()))


async def test_signing_out_ends_the_sign_in(browser: Browser, signing_in: SigningIn) -> None:
    await start(signing_in)
    await browser.sign_in()
    (session,) = live(signing_in)
    assert session.expires - session.created == 12 * 3600
    await browser.send("/console/sign-out", {})
    assert COOKIE not in browser.cookies
    assert live(signing_in) == []


async def test_session_ends_with_its_sign_in(
    browser: Browser, signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Follower, "INTERVAL", 0.02)
    await start(signing_in)
    await browser.sign_in()
    with store.database(signing_in.where) as database, database.transaction() as connection:
        store.revoke(connection, live(signing_in)[0].id, int(time.time()))
    async with asyncio.timeout(2):
        while "<h1>Sign in</h1>" not in browser.page:
            await pause()
            await browser.get("/console/me")


async def test_session_follows_what_the_provider_says(
    browser: Browser, signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(signing_in)
    signing_in.provider.person["groups"] = ["root"]
    await browser.sign_in()
    monkeypatch.setattr(browser_session, "RENEWAL", 3601)
    monkeypatch.setattr(sessions, "GRACE", -1)
    await browser.get("/console/health")
    assert signing_in.provider.refreshes == 1
    signing_in.provider.person["groups"] = ["lab"]
    assert (await browser.get("/console/health")).status == 404, "an administrator no more"
    await browser.get("/console/me")
    assert "<span>ada</span>" in browser.page
    signing_in.provider.disabled = True
    await browser.get("/console/me")
    assert "<h1>Sign in</h1>" in browser.page
    assert COOKIE not in browser.cookies


async def test_requests_at_once_renew_the_session_once(
    browser: Browser, signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(signing_in)
    await browser.sign_in()
    monkeypatch.setattr(sessions, "GRACE", -1)
    monkeypatch.setattr(browser_session, "RENEWAL", 3601)
    renewals = 0
    refresh = sessions.Sessions.refresh

    async def counted(self: Any, token: str) -> sessions.Tokens:
        nonlocal renewals
        renewals += 1
        tokens = await refresh(self, token)
        monkeypatch.setattr(browser_session, "RENEWAL", 0)
        return tokens

    monkeypatch.setattr(sessions.Sessions, "refresh", counted)
    responses = await asyncio.gather(*(browser.send("/console/me") for _ in range(10)))
    assert [response.status for response in responses] == [200] * 10
    assert (renewals, signing_in.provider.refreshes) == (1, 1)


async def test_provider_that_is_down_ends_no_session_before_its_bearer(
    browser: Browser, signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(signing_in)
    await browser.sign_in()
    monkeypatch.setattr(relying_party, "TIMEOUT", 0.05)
    monkeypatch.setattr(sessions, "GRACE", -1)
    clock = time.time() + 3500
    monkeypatch.setattr(time, "time", lambda: clock)
    signing_in.provider.script(silent_response())
    before = len(signing_in.provider.requests)
    for _ in range(2):
        assert (await browser.get("/console/me")).status == 200
    assert len(signing_in.provider.requests) == before + 1, "it is asked again after a while"
    clock += 200
    refused = await browser.get("/console/me")
    assert (refused.status, "Whether you are still signed in" in browser.page) == (503, True)
    monkeypatch.setattr(relying_party, "TIMEOUT", 10.0)
    at = time.monotonic() + provider.RETRY
    monkeypatch.setattr(time, "monotonic", lambda: at)
    assert (await browser.get("/console/me")).status == 200


async def test_session_without_a_refresh_token_ends_with_its_bearer(
    browser: Browser, signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(signing_in)
    signing_in.provider.left_out = {"refresh_token"}
    await browser.sign_in()
    assert "<span>ada</span>" in browser.page
    clock = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: clock)
    await browser.get("/console/me")
    assert "<h1>Sign in</h1>" in browser.page


async def test_provider_that_refuses_signs_nobody_in(
    browser: Browser, signing_in: SigningIn
) -> None:
    await start(signing_in, OIDC_EMAIL_DOMAINS="other.example")
    query = await browser.to_provider()
    assert (await browser.send(f"/oauth/callback?{query}")).status == 403
    assert "domain that is not accepted" in browser.page
    assert (await browser.send(SIGN_IN)).status == 401


@sqlite_only
async def test_database_that_is_down_is_reported(browser: Browser, signing_in: SigningIn) -> None:
    await start(signing_in)
    query = await browser.to_provider()
    assert (await browser.send(f"/oauth/callback?{query}")).status == 200
    assert isinstance(signing_in.where, Path)
    signing_in.where.rename(signing_in.where.with_name("away"))
    for fields in (None, {"next": "/"}):
        assert (await browser.send(SIGN_IN, fields)).status == 503
        assert "Sign-in is not possible at present" in browser.page
