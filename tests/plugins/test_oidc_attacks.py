"""Attacks on the sign-in of the plugin oidc, each of which fails."""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
from joserfc.jwk import RSAKey
from oidc_provider import KEYS
from signing_in import BASE, SigningIn, document
from tornadoproxy_oidc import browser_pages, relying_party, sessions

from tornadoproxy.testing import json_response, silent_response

LETTERS = "[BCDFGHJKLMNPQRSTVWXZ]"
PENDING = "authorization_pending"


SITES: tuple[tuple[dict[str, str], int], ...] = (
    ({}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "none"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": BASE}, 403),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": BASE}, 200),
    ({"Sec-Fetch-Site": "same-origin"}, 200),
)


@pytest.mark.parametrize("path", ["/device", "/device/deny"])
async def test_form_of_another_site_is_refused(path: str, signing_in: SigningIn) -> None:
    await signing_in.start()
    for headers, status in SITES:
        begun = await signing_in.begin()
        page = await signing_in.submit(begun["user_code"], path, headers)
        no_cookie = status == 403 or path == "/device/deny"
        assert (page.status, page.header("set-cookie") is None) == (status, no_cookie), headers
        waits = document(await signing_in.poll(begun))["error"]
        denied = (status, path) == (200, "/device/deny")
        assert waits == ("access_denied" if denied else PENDING), headers


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


async def test_addresses_of_one_ipv6_network_count_as_one(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_BEGUN", 3)
    await signing_in.start(TRUSTED_PROXIES="127.0.0.1")
    statuses = []
    for number in range(12):
        address = {"X-Forwarded-For": f"2001:db8::{number:x}"}
        ask = signing_in.scene.ask
        begun = await ask("/oauth/device_authorization", method="POST", headers=address, token=None)
        guess = await ask("/device?user_code=BBBB-BBBB", headers=address, token=None)
        statuses.append((begun.status, guess.status))
    assert statuses == [(200, 200)] * 3 + [(429, 200)] * 7 + [(429, 429)] * 2


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


async def test_response_of_another_issuer_is_refused(signing_in: SigningIn) -> None:
    """A mix-up: the code of another provider would be sent to this one, or the reverse."""
    await signing_in.start()
    for issuer in ({"iss": "https://evil.example"}, {}):
        begun = await signing_in.begin()
        query, cookie = await signing_in.go_to_provider(begun)
        fields = {name: value for name, (value,) in parse_qs(query).items() if name != "iss"}
        page = await signing_in.call_back(urlencode({**fields, **issuer}), cookie)
        assert (page.status, b"response is not valid" in page.body) == (400, True), issuer
    assert [each.path for each in signing_in.provider.requests].count("/token") == 0


async def check_approval_is_refused(signing_in: SigningIn, what: object) -> None:
    """Check that the provider's ID token signs nobody in; `what` is wrong with it."""
    begun = await signing_in.begin()
    page = await signing_in.approve(begun)
    assert (page.status, b"response is not valid" in page.body) == (400, True), what
    assert document(await signing_in.poll(begun))["error"] == PENDING, what


INVALID: tuple[dict[str, Any], ...] = (
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
)


async def test_id_token_that_is_not_valid_is_refused(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_pages, "MAX_CODES", len(INVALID) + 1)  # of one address
    await signing_in.start()
    for claims in INVALID:
        signing_in.provider.id_claims = claims
        await check_approval_is_refused(signing_in, claims)
    signing_in.provider.id_claims = {}
    assert (await signing_in.approve(await signing_in.begin())).status == 200


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def with_head(id_token: str, **head: Any) -> str:
    """Return a token with another header, and the signature that it had."""
    _, claims, signature = id_token.split(".")
    return f"{b64(json.dumps(head).encode())}.{claims}.{signature}"


def with_public_key_as_secret(id_token: str) -> str:
    """Return a token with an HMAC by hand, since libraries refuse to make it."""
    assert isinstance(KEYS["first"], RSAKey)
    signed = with_head(id_token, alg="HS256", kid="first").rpartition(".")[0]
    digest = hmac.digest(KEYS["first"].as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{b64(digest)}"


FORGERIES: dict[str, Callable[[str], str]] = {
    "no signature": lambda token: with_head(token, alg="none").rpartition(".")[0] + ".",
    "an empty signature": lambda token: token.rpartition(".")[0] + ".",
    "HMAC with the public key": with_public_key_as_secret,
    "an id that is a path": lambda token: with_head(token, alg="RS256", kid="../../dev/null"),
    "an id that is SQL": lambda token: with_head(token, alg="RS256", kid="x' OR '1'='1"),
    "another algorithm": lambda token: with_head(token, alg="PS256", kid="first"),
    "another text": lambda _: "no token",
}


async def test_forged_id_token_is_refused(signing_in: SigningIn) -> None:
    await signing_in.start()
    for forgery, forge in FORGERIES.items():
        signing_in.provider.forge = forge
        await check_approval_is_refused(signing_in, forgery)
    signing_in.provider.forge = str
    assert (await signing_in.approve(await signing_in.begin())).status == 200


async def test_clock_of_the_provider_may_differ_by_the_leeway(signing_in: SigningIn) -> None:
    await signing_in.start(OIDC_LEEWAY=40)
    for late, status in ((20, 200), (60, 400)):
        signing_in.provider.id_claims = {"exp": int(time.time()) - late}
        assert (await signing_in.approve(await signing_in.begin())).status == status, late


async def test_claims_of_another_person_are_refused(signing_in: SigningIn) -> None:
    """The userinfo endpoint's response is not signed (OIDC Core §5.3.2)."""
    url = signing_in.provider.url
    signing_in.provider.changed = {"userinfo_endpoint": f"{url}/userinfo"}
    signing_in.provider.person = {"sub": "ada", "email": "ada@acme.example"}
    await signing_in.start()
    for sub, status in (({"sub": "ada"}, 200), ({"sub": "mallory"}, 400), ({}, 400)):
        signing_in.provider.userinfo = {"groups": ["root"], **sub}
        page = await signing_in.approve(await signing_in.begin())
        assert page.status == status, sub


async def test_code_that_the_provider_redeemed_before_is_refused(signing_in: SigningIn) -> None:
    await signing_in.start()
    first, second = await signing_in.begin(), await signing_in.begin()
    query, cookie = await signing_in.go_to_provider(first)
    assert (await signing_in.call_back(query, cookie)).status == 200
    other, jar = await signing_in.go_to_provider(second)
    state = parse_qs(other)["state"][0]
    fields = {name: value for name, (value,) in parse_qs(query).items()}
    page = await signing_in.call_back(urlencode({**fields, "state": state}), jar)
    assert (page.status, b"response is not valid" in page.body) == (400, True)
    assert document(await signing_in.poll(second))["error"] == PENDING


async def test_provider_that_fails_signs_nobody_in_and_loses_no_device(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start()
    for name, fault, timeout in (
        ("silent", silent_response(), 0.1),
        ("500", json_response({}, 500), 10.0),
        ("no object", json_response([], 200), 10.0),
    ):
        begun = await signing_in.begin()
        query, cookie = await signing_in.go_to_provider(begun)
        signing_in.provider.script(fault)
        with monkeypatch.context() as patch:
            patch.setattr(relying_party, "TIMEOUT", timeout)
            page = await signing_in.call_back(query, cookie)
        assert page.status in (400, 503), name
        assert document(await signing_in.poll(begun))["error"] == PENDING, name
        assert (await signing_in.approve(begun)).status == 200, name


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
