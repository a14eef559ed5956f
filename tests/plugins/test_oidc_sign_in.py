"""The plugin oidc: people sign in from a device, and stay signed in."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest
from people import follower_intervals, until
from postgres import sqlite_only
from scene import Scene
from signing_in import BASE, SIGNING_KEY, SigningIn, claims_of, document
from tornadoproxy_oidc import relying_party, sessions, store

from tornadoproxy import ConfigurationError, Follower
from tornadoproxy.testing import UpstreamExchange, json_response, silent_response


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow revocations often, and take every refresh token for an old one."""
    monkeypatch.setattr(Follower, "INTERVAL", 0.02)
    monkeypatch.setattr(sessions, "GRACE", -1)
    monkeypatch.setattr(sessions, "WAIT", 0.01)


def rows(signing_in: SigningIn) -> dict[str, int]:
    """Return the number of rows of each table."""
    tables = ("oidc_grant", "oidc_session", "oidc_refresh", "oidc_revocation")
    with store.database(signing_in.where).reading() as connection:
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in tables
        }


async def test_person_signs_in_and_has_name_and_groups(signing_in: SigningIn) -> None:
    await signing_in.start()
    signing_in.provider.person["name"] = "Ada Lovelace"
    tokens = await signing_in.sign_in()
    claims = claims_of(tokens["access_token"])
    assert {name: claims[name] for name in ("sub", "email", "name", "groups", "aud", "iss")} == {
        "sub": "ada",
        "email": "ada@acme.example",
        "name": "Ada Lovelace",
        "groups": ["lab"],
        "aud": BASE,
        "iss": BASE,
    }
    assert claims["exp"] - claims["iat"] == tokens["expires_in"] == 3600
    assert "email" not in tokens
    assert (await signing_in.get(tokens["access_token"])).status == 200
    record = next(each for each in signing_in.scene.records.all if each.principal)
    assert (record.principal, record.groups) == ("ada", ("lab",))
    (request,) = signing_in.scene.upstream.requests
    assert request.header("authorization") is None


async def test_start_line_names_what_claude_code_needs(signing_in: SigningIn) -> None:
    proxy = await signing_in.start()
    said = f"from Claude Code by /login with {BASE} as forceLoginGatewayUrl"
    assert [line for name, line in proxy.lines if name == "oidc" and said in line]


async def test_discovery_has_what_claude_code_reads(signing_in: SigningIn) -> None:
    await signing_in.start(OIDC_PUBLIC_URL=f"{BASE}/gw", OIDC_LOGIN_NOTICE="For Acme only.")
    path = "/.well-known/oauth-authorization-server"
    found = document(await signing_in.scene.ask(path, token=None))
    for name, path in (
        ("device_authorization_endpoint", "/oauth/device_authorization"),
        ("token_endpoint", "/oauth/token"),
        ("revocation_endpoint", "/oauth/revoke"),
    ):
        assert found[name] == f"{BASE}/gw{path}"
    begun = await signing_in.begin()
    code = begun["user_code"]
    assert begun["verification_uri"] == f"{BASE}/gw/device"
    assert begun["verification_uri_complete"] == f"{BASE}/gw/device?user_code={code}"
    assert (begun["expires_in"], begun["interval"]) == (600, 5)
    assert begun["login_notice"] == "For Acme only."
    assert len(begun["device_code"]) >= 43


async def test_poll_says_how_the_sign_in_stands(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start(OIDC_CONFIRM_EMAIL="yes")
    begun = await signing_in.begin()
    pending = await signing_in.poll(begun)
    assert (pending.status, document(pending)["error"]) == (400, "authorization_pending")
    await signing_in.approve(begun)
    tokens = await signing_in.poll(begun)
    assert (tokens.status, tokens.header("cache-control")) == (200, "no-store")
    assert document(tokens)["email"] == "ada@acme.example"
    too_fast = await signing_in.poll(begun)
    assert (too_fast.status, document(too_fast)["error"]) == (429, "slow_down")

    monkeypatch.setattr(sessions, "GRANT_LIFE", -1)
    expired = await signing_in.begin()
    denied = await signing_in.begin()
    for each, error in (
        ({"device_code": "unknown"}, "expired_token"),
        (expired, "expired_token"),
        (denied, "expired_token"),
    ):
        response = await signing_in.poll(each)
        assert (response.status, document(response)["error"]) == (400, error)


async def test_device_code_is_redeemed_once(signing_in: SigningIn) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    await signing_in.approve(begun)
    responses = await asyncio.gather(*(signing_in.poll(begun) for _ in range(2)))
    assert sorted(response.status for response in responses) == [200, 400]


async def test_denied_sign_in_ends(signing_in: SigningIn) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    page = await signing_in.submit(begun["user_code"].lower().replace("-", " "), "/device/deny")
    assert b"<h1>Denied</h1>" in page.body
    response = await signing_in.poll(begun)
    assert (response.status, document(response)["error"]) == (400, "access_denied")


async def test_invalid_token_request_says_why(signing_in: SigningIn) -> None:
    await signing_in.start()
    requests: tuple[tuple[dict[str, str], str], ...] = (
        ({}, "invalid_request"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "password", "username": "ada"}, "unsupported_grant_type"),
    )
    for form, error in requests:
        response = await signing_in.post("/oauth/token", None, **form)
        assert (response.status, document(response)["error"]) == (400, error), form


async def test_person_who_is_not_accepted_is_told_and_the_device_too(
    signing_in: SigningIn,
) -> None:
    await signing_in.start(OIDC_EMAIL_DOMAINS="other.example")
    begun = await signing_in.begin()
    page = await signing_in.approve(begun)
    assert (page.status, b"domain that is not accepted" in page.body) == (403, True)
    assert document(await signing_in.poll(begun))["error"] == "access_denied"


# Refresh


async def test_refresh_asks_the_provider_and_takes_new_groups(
    signing_in: SigningIn, quick: None
) -> None:
    await signing_in.start()
    first = await signing_in.sign_in()
    signing_in.provider.person["groups"] = ["lab", "staff"]
    response = await signing_in.refresh(first["refresh_token"])
    assert response.status == 200
    second = document(response)
    assert claims_of(second["access_token"])["groups"] == ["lab", "staff"]
    assert second["refresh_token"] != first["refresh_token"]
    assert signing_in.provider.refreshes == 1
    assert (await signing_in.get(second["access_token"])).status == 200


async def test_processes_that_refresh_at_once_all_get_tokens(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider would take a second use of its own refresh token for a theft."""
    a, b = await signing_in.start(), await signing_in.start()
    token = (await signing_in.sign_in())["refresh_token"]
    monkeypatch.setattr(sessions, "GRACE", -1)
    first = document(await signing_in.refresh(token))["refresh_token"]
    monkeypatch.setattr(sessions, "GRACE", 60)
    assert signing_in.provider.refreshes == 1
    # what was checked within the grace is not checked again
    responses = await asyncio.gather(*(signing_in.refresh(first, to) for to in (a, b, a, b)))
    assert [response.status for response in responses] == [200] * 4
    assert len({document(response)["refresh_token"] for response in responses}) == 4
    assert signing_in.provider.refreshes == 1


async def test_only_one_replica_asks_the_provider(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await signing_in.start(), await signing_in.start()
    token = (await signing_in.sign_in())["refresh_token"]
    clock = time.time() + 600
    monkeypatch.setattr(time, "time", lambda: clock)
    monkeypatch.setattr(sessions, "WAIT", 0.01)
    arrived = asyncio.Event()

    async def slow(exchange: UpstreamExchange) -> None:
        await arrived.wait()
        await signing_in.provider.default_response(exchange)

    signing_in.provider.script(slow)
    before = len(signing_in.provider.requests)
    asked = [asyncio.ensure_future(signing_in.refresh(token, to)) for to in (a, b, a)]
    await signing_in.provider.received(before + 1)
    arrived.set()
    assert [response.status for response in await asyncio.gather(*asked)] == [200] * 3
    assert signing_in.provider.refreshes == 1


async def test_stolen_refresh_token_ends_the_session(signing_in: SigningIn, quick: None) -> None:
    await signing_in.start()
    stolen = (await signing_in.sign_in())["refresh_token"]
    current = document(await signing_in.refresh(stolen))
    response = await signing_in.refresh(stolen)
    assert (response.status, document(response)["error"]) == (401, "invalid_grant")
    assert (await signing_in.refresh(current["refresh_token"])).status == 401
    await until(401, lambda: signing_in.get(current["access_token"]))


async def test_token_stolen_long_ago_ends_the_session(signing_in: SigningIn, quick: None) -> None:
    """It is known as the session's although the database has forgotten it."""
    await signing_in.start()
    stolen = token = (await signing_in.sign_in())["refresh_token"]
    for _ in range(3):
        token = document(await signing_in.refresh(token))["refresh_token"]
    assert rows(signing_in)["oidc_refresh"] == 1
    assert (await signing_in.refresh(stolen)).status == 401
    assert (await signing_in.refresh(token)).status == 401


async def test_what_has_expired_is_deleted(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start(OIDC_SESSION_SECONDS=3600)
    for _ in range(3):
        token = (await signing_in.sign_in())["refresh_token"]
        await signing_in.refresh(token)
    await signing_in.post("/oauth/revoke", token=token)
    assert rows(signing_in) == {
        "oidc_grant": 3,
        "oidc_session": 2,
        "oidc_refresh": 4,
        "oidc_revocation": 1,
    }
    clock = time.time() + 2 * 86_400
    monkeypatch.setattr(time, "time", lambda: clock)
    tokens = await signing_in.sign_in()
    await signing_in.post("/oauth/revoke", token=tokens["refresh_token"])
    assert rows(signing_in) == {
        "oidc_grant": 1,
        "oidc_session": 0,
        "oidc_refresh": 0,
        "oidc_revocation": 1,
    }


async def test_person_disabled_at_the_provider_is_signed_out(
    signing_in: SigningIn, quick: None
) -> None:
    await signing_in.start()
    tokens = await signing_in.sign_in()
    signing_in.provider.disabled = True
    response = await signing_in.refresh(tokens["refresh_token"])
    assert (response.status, document(response)["error"]) == (401, "invalid_grant")
    refused = await signing_in.get(tokens["access_token"])
    assert (refused.status, b"run /login" in refused.body) == (401, True)


async def test_refresh_with_another_person_is_refused(signing_in: SigningIn, quick: None) -> None:
    await signing_in.start()
    tokens = await signing_in.sign_in()
    signing_in.provider.person["sub"] = "bob"
    assert (await signing_in.refresh(tokens["refresh_token"])).status == 401


async def test_provider_that_is_down_ends_no_session(
    signing_in: SigningIn, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start()
    tokens = await signing_in.sign_in()
    for name, fault, timeout in (
        ("silent", silent_response(), 0.1),
        ("500", json_response({"error": "server_error"}, 500), 10.0),
        ("unavailable", json_response({"error": "temporarily_unavailable"}, 400), 10.0),
    ):
        signing_in.provider.script(fault)
        with monkeypatch.context() as patch:
            patch.setattr(relying_party, "TIMEOUT", timeout)
            response = await signing_in.refresh(tokens["refresh_token"])
        said = document(response)["error"]
        assert (response.status, said) == (503, "temporarily_unavailable"), name
        assert (await signing_in.get(tokens["access_token"])).status == 200, name
        refreshed = await signing_in.refresh(tokens["refresh_token"])
        assert refreshed.status == 200, name
        tokens = document(refreshed)


async def test_provider_without_a_refresh_token_gives_bearers_alone(
    signing_in: SigningIn,
) -> None:
    await signing_in.start()
    signing_in.provider.left_out = {"refresh_token"}
    assert "refresh_token" not in await signing_in.sign_in()


async def test_session_ends_whatever_the_provider_says(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start(OIDC_SESSION_SECONDS=3600)
    token = (await signing_in.sign_in())["refresh_token"]
    clock = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: clock)
    assert (await signing_in.refresh(token)).status == 401
    assert signing_in.provider.refreshes == 0


# Revocation


@follower_intervals
async def test_revocation_reaches_every_replica(
    interval: float, signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Follower, "INTERVAL", interval)
    a, b = await signing_in.start(), await signing_in.start()
    sign_ins = {which: await signing_in.sign_in() for which in ("access_token", "refresh_token")}
    for tokens in sign_ins.values():
        for each in (a, b):
            assert (await signing_in.get(tokens["access_token"], each)).status == 200
    for which, tokens in sign_ins.items():
        assert (await signing_in.post("/oauth/revoke", a, token=tokens[which])).status == 200
        assert (await signing_in.get(tokens["access_token"], a)).status == 401
    async with asyncio.timeout(2):
        for tokens in sign_ins.values():
            await until(401, partial(signing_in.get, tokens["access_token"], b))
    for tokens in sign_ins.values():
        assert (await signing_in.refresh(tokens["refresh_token"], b)).status == 401


async def test_revocation_of_another_token_does_nothing(signing_in: SigningIn) -> None:
    await signing_in.start()
    tokens = await signing_in.sign_in()
    for token in ("unknown", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", ""):
        assert (await signing_in.post("/oauth/revoke", token=token)).status == 200, token
        assert (await signing_in.get(tokens["access_token"])).status == 200, token


# An unusable database


@sqlite_only
async def test_poll_never_returns_a_5xx(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    tokens = await signing_in.sign_in()
    assert isinstance(signing_in.where, Path)
    signing_in.where.rename(signing_in.where.with_name("away"))
    response = await signing_in.poll(begun)
    assert (response.status, document(response)["error"]) == (400, "authorization_pending")
    for response in (
        await signing_in.refresh(tokens["refresh_token"]),
        await signing_in.post("/oauth/device_authorization"),
        await signing_in.post("/oauth/revoke", token=tokens["refresh_token"]),
    ):
        assert (response.status, document(response)["error"]) == (503, "temporarily_unavailable")
    assert (await signing_in.submit(begun["user_code"])).status == 503
    # a bearer needs no database, until a revocation may have been missed for too long
    assert (await signing_in.get(tokens["access_token"])).status == 200
    monkeypatch.setattr(Follower, "MAX_UNVERIFIED", 0.0)
    assert (await signing_in.get(tokens["access_token"])).status == 503


# Settings


async def test_signing_keys_rotate_without_ending_sessions(
    signing_in: SigningIn, quick: None
) -> None:
    proxy = await signing_in.start()
    tokens = await signing_in.sign_in()
    proxy.reload(OIDC_SIGNING_KEY=f"{'n' * 40} {SIGNING_KEY}")
    assert (await signing_in.get(tokens["access_token"])).status == 200
    newer = document(await signing_in.refresh(tokens["refresh_token"]))
    proxy.reload(OIDC_SIGNING_KEY="n" * 40)
    assert (await signing_in.get(tokens["access_token"])).status == 401
    assert (await signing_in.get(newer["access_token"])).status == 200
    assert (await signing_in.refresh(newer["refresh_token"])).status == 200


async def test_incomplete_sign_in_ends_the_start(signing_in: SigningIn, scene: Scene) -> None:
    for given, said in (
        ({"OIDC_PUBLIC_URL": None}, "OIDC_PUBLIC_URL is not set"),
        ({"OIDC_SIGNING_KEY": None}, "OIDC_SIGNING_KEY is not set"),
        ({"OIDC_SIGNING_KEY": "short"}, "at least 32"),
        ({"OIDC_DB": None}, "OIDC_DB is not set"),
        ({"OIDC_CLIENT_ID": None}, "OIDC_CLIENT_ID is not"),
        ({"OIDC_PUBLIC_URL": "http://gw.example"}, "https://"),
        ({"OIDC_PUBLIC_URL": signing_in.provider.url}, "URL of this proxy"),
        ({"OIDC_LOGIN_NOTICE": "x" * 501}, "500"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            await signing_in.start(**given)
