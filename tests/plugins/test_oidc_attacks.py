"""Attacks on the sign-in of the plugin oidc, each of which fails."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from oidc_provider import KEYS
from signing_in import BASE, SIGNING_KEY, SigningIn, document
from tornadoproxy_oidc import sealing, sessions, store

from tornadoproxy import Secret

LETTERS = "[BCDFGHJKLMNPQRSTVWXZ]"
PENDING = "authorization_pending"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": BASE}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": BASE}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/device", "/device/deny"])
async def test_form_of_another_site_is_refused(
    path: str, headers: dict[str, str], status: int, signing_in: SigningIn
) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    page = await signing_in.submit(begun["user_code"], path, headers)
    assert (page.status, page.header("set-cookie") is None) == (
        status,
        status == 403 or path == "/device/deny",
    )
    waits = document(await signing_in.poll(begun))["error"]
    assert waits == ("access_denied" if (status, path) == (200, "/device/deny") else PENDING)


async def test_link_alone_approves_nothing_and_warns(signing_in: SigningIn) -> None:
    """Device-code phishing: an attacker sends the link with the code of the attacker's device."""
    await signing_in.start(TRUSTED_PROXIES="127.0.0.1")
    begun = await signing_in.begin()
    target = begun["verification_uri_complete"].removeprefix(BASE)
    page = await signing_in.scene.ask(
        target, token=None, headers={"X-Forwarded-For": "203.0.113.9"}
    )
    text = page.body.decode()
    assert begun["user_code"] in text
    assert "It asked from 127.0.0.1" in text
    assert "This browser has another address, 203.0.113.9" in text
    assert "Whoever sent you a link or a code gets to use your account" in text
    assert "http-equiv" not in text
    assert page.header("set-cookie") is None
    policy = page.header("content-security-policy") or ""
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script" not in text
    assert document(await signing_in.poll(begun))["error"] == PENDING


async def test_codes_cannot_be_guessed(signing_in: SigningIn) -> None:
    await signing_in.start()
    codes = {(await signing_in.begin())["user_code"] for _ in range(20)}
    assert len(codes) == 20
    assert all(
        re.fullmatch("[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}", c) for c in codes
    )
    pages = [await signing_in.submit("BBBB-BBBB") for _ in range(6)]
    pages += [
        await signing_in.scene.ask("/device?user_code=BBBB-BBBC", token=None) for _ in range(5)
    ]
    assert [page.status for page in pages] == [200] * 10 + [429]
    assert all(b"not recognized" in page.body for page in pages[:10])
    assert (await signing_in.submit(codes.pop())).status == 429


async def test_address_can_begin_few_sign_ins_at_all_proxies(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_BEGUN", 3)
    a, b = await signing_in.start(), await signing_in.start()
    for to in (a, b, a):
        await signing_in.begin(to)
    response = await signing_in.post("/oauth/device_authorization", b)
    assert (response.status, document(response)["error"]) == (429, "slow_down")


async def test_text_in_the_address_is_no_html(signing_in: SigningIn) -> None:
    await signing_in.start()
    for text in ("<script>alert(1)</script>", '"><b>', "BBBB-BBBB<b>"):
        page = await signing_in.scene.ask(f"/device?{urlencode({'user_code': text})}", token=None)
        assert (page.status, b"<b>" in page.body, b"<script" in page.body) == (200, False, False)


# The way back from the provider


async def test_call_back_in_another_browser_is_refused(signing_in: SigningIn) -> None:
    """An attacker who begins a sign-in cannot make a victim end it, or the other way round."""
    await signing_in.start()
    begun, other = await signing_in.begin(), await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(begun)
    other_query, other_cookie = await signing_in.go_to_provider(other)
    state = parse_qs(query)["state"][0]
    for given, jar in (
        (query, None),
        (query, other_cookie),
        (other_query, cookie),
        (query, "tp-device=made-up"),
        (query, "tp-device=e30.e30.e30.e30.e30"),
        (query.replace(state, "x"), cookie),
        (f"{query}&state={state}", cookie),
        ("", cookie),
    ):
        page = await signing_in.call_back(given, jar)
        assert (page.status, b"Not begun here" in page.body) == (400, True)
    for each in (begun, other):
        assert document(await signing_in.poll(each))["error"] == PENDING
    assert (await signing_in.call_back(query, cookie)).status == 200


async def test_call_back_that_is_replayed_is_refused(signing_in: SigningIn) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(begun)
    first = await signing_in.call_back(query, cookie)
    assert "Max-Age=0" in (first.header("set-cookie") or "")
    assert (await signing_in.call_back(query, cookie)).status == 400
    assert (await signing_in.poll(begun)).status == 200


async def test_cookie_is_bound_to_host_and_time(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start(OIDC_PUBLIC_URL="https://gw.acme.example")
    begun = await signing_in.begin()
    left = await signing_in.submit(begun["user_code"])
    cookie = left.header("set-cookie") or ""
    assert cookie.startswith("__Host-tp-device=")
    assert cookie.endswith("; Max-Age=600; Path=/; HttpOnly; SameSite=Lax; Secure")
    clock = time.time() + 601
    query, jar = await signing_in.go_to_provider(begun)
    monkeypatch.setattr(time, "time", lambda: clock)
    assert (await signing_in.call_back(query, jar)).status == 400


@pytest.mark.parametrize("issuer", ["https://evil.example", None])
async def test_response_of_another_issuer_is_refused(
    issuer: str | None, signing_in: SigningIn
) -> None:
    """A mix-up: the code of another provider would be sent to this one, or the reverse."""
    await signing_in.start()
    begun = await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(begun)
    fields = {name: value for name, (value,) in parse_qs(query).items() if name != "iss"}
    if issuer is not None:
        fields["iss"] = issuer
    page = await signing_in.call_back(urlencode(fields), cookie)
    assert (page.status, b"response is not valid" in page.body) == (400, True)
    assert [each.path for each in signing_in.provider.requests].count("/token") == 0


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another-client"},
        {"aud": ["tornadoproxy", "other"]},  # without azp
        {"azp": "other"},
        {"iss": "https://evil.example"},
        {"exp": 1_700_000_000},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"at_hash": "AAAA"},
    ],
    ids=str,
)
async def test_id_token_that_is_not_valid_is_refused(
    claims: dict[str, Any], signing_in: SigningIn
) -> None:
    await signing_in.start()
    signing_in.provider.id_claims = claims
    begun = await signing_in.begin()
    page = await signing_in.approve(begun)
    assert (page.status, b"response is not valid" in page.body) == (400, True)
    assert document(await signing_in.poll(begun))["error"] == PENDING


async def test_id_token_of_an_unknown_key_is_refused(signing_in: SigningIn) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(begun)
    signing_in.provider.keys = [KEYS["second"]]
    # the provider publishes it, but only what was loaded lately is known
    page = await signing_in.call_back(query, cookie)
    assert page.status == 400
    assert document(await signing_in.poll(begun))["error"] == PENDING


async def test_person_who_refuses_at_the_provider_denies_the_device(signing_in: SigningIn) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(begun)
    fields = {name: value for name, (value,) in parse_qs(query).items() if name != "code"}
    page = await signing_in.call_back(urlencode({**fields, "error": "access_denied"}), cookie)
    assert page.status == 403
    assert document(await signing_in.poll(begun))["error"] == "access_denied"


async def test_no_page_leads_anywhere_but_to_the_provider(signing_in: SigningIn) -> None:
    await signing_in.start()
    begun = await signing_in.begin()
    evil = urlencode({"redirect_uri": "https://evil.example", "next": "//evil.example"})
    query, cookie = await signing_in.go_to_provider(begun)
    pages = [
        await signing_in.scene.ask(f"/device?{evil}", token=None),
        await signing_in.submit(begun["user_code"], f"/device?{evil}"),
        await signing_in.call_back(f"{query}&{evil}", cookie),
    ]
    for page in pages:
        assert (page.status, page.header("location")) == (200, None)
        links = re.findall(rb'(?:href|url|action)="?=?([^"]+)', page.body)
        known = (signing_in.provider.url.encode(), b"/device")
        assert all(link.startswith(known) for link in links), links
        assert b"evil" not in page.body


# Bearers


def forged(claims: dict[str, Any], **head: Any) -> str:
    key = OctKey.import_key(b"x" * 32)
    return jwt.encode({"alg": "HS256", **head}, claims, key, algorithms=["HS256"])


async def test_forged_bearer_is_rejected(signing_in: SigningIn) -> None:
    await signing_in.start()
    bearer = (await signing_in.sign_in())["access_token"]
    head, body, signature = bearer.split(".")
    own = json.loads(base64.urlsafe_b64decode(head + "=="))
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    day = int(own["kid"].partition(".")[2])
    fingerprint = own["kid"].partition(".")[0]
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    root = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "root"}).encode()).decode()
    attacks = [
        f"{none}.{body}.",
        f"{head}.{root.rstrip('=')}.{signature}",
        forged(claims, kid=own["kid"]),
        forged(claims),
        forged(claims, kid=f"{fingerprint}.{day + 9}"),
        forged(claims, kid=f"{fingerprint}.{day - 9}"),
        forged(claims, kid=f"../../etc/passwd.{day}"),
        forged(claims, kid=f"{fingerprint}.{day}' OR 1=1"),
        signing_in.provider.token(iss=BASE, sub="root", sid=claims["sid"]),
    ]
    for attack in attacks:
        assert (await signing_in.get(attack)).status == 401
    assert (await signing_in.get(bearer)).status == 200


@pytest.mark.parametrize(
    "changed",
    [{"exp": 1_700_000_000}, {"aud": "other"}, {"iss": "other"}, {"sid": None}, {"sub": None}],
    ids=str,
)
async def test_bearer_with_an_invalid_claim_is_rejected(
    changed: dict[str, Any], signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start()
    sealer = sealing.Sealer([Secret(SIGNING_KEY)], BASE, 3600)
    given = {"sub": "ada", "groups": [], "sid": "s"}
    assert (await signing_in.get(sealer.bearer(given))).status == 200
    encode = jwt.encode

    def with_changed(head: Any, claims: Any, *rest: Any, **options: Any) -> str:
        return encode(head, {**claims, **changed}, *rest, **options)

    monkeypatch.setattr(jwt, "encode", with_changed)
    assert (await signing_in.get(sealer.bearer(given))).status == 401


async def test_nothing_secret_is_stored_or_logged(
    signing_in: SigningIn, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    await signing_in.start()
    tokens = await signing_in.sign_in()
    await signing_in.refresh(tokens["refresh_token"])
    with store.database(signing_in.where).reading() as connection:
        stored = ""
        for table in ("oidc_grant", "oidc_session", "oidc_refresh"):
            stored += str(connection.execute(f"SELECT * FROM {table}").fetchall())
    seen = stored + caplog.text + "".join(capsys.readouterr())
    for secret in (tokens["access_token"], tokens["refresh_token"], "refresh-0", "code-0"):
        assert secret not in seen
