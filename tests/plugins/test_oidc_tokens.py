"""The plugin oidc: tokens of a provider as credentials."""

from __future__ import annotations

import asyncio
import base64
import functools
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from joserfc.jwk import RSAKey
from oidc_provider import AUDIENCE, KEYS, ScriptedProvider
from scene import Scene
from tornadoproxy_oidc import provider as provider_module

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    RawResponse,
    UpstreamExchange,
    json_response,
)

Start: TypeAlias = Callable[..., Awaitable[Proxy]]

MALFORMED = ("a.b.c", "..", "eyJhbGciOiJub25lIn0.e30.", "\xff.\xff.\xff", "W10.e30.AA", "e30.W10.A")


@pytest.fixture
def start(scene: Scene, provider: ScriptedProvider) -> Start:
    def start(**given: Any) -> Awaitable[Proxy]:
        return scene.start(OIDC_ISSUER=provider.url, **{"OIDC_AUDIENCES": AUDIENCE, **given})

    return start


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load keys for each unknown one."""
    monkeypatch.setattr(provider_module, "RETRY", 0.0)


def message_of(response: RawResponse) -> str:
    text: str = json.loads(response.body)["error"]["message"]
    return text


async def get(scene: Scene, token: str | None, **headers: str) -> RawResponse:
    return await scene.ask("/v1/models", token=token, headers=headers)


async def test_token_has_name_and_groups_of_the_person(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start(OIDC_NAME_CLAIM="email", OIDC_GROUPS_CLAIM="roles")
    token = provider.token(email="ada@acme.example", roles=["staff", "lab"], aud=["x", AUDIENCE])
    assert (await get(scene, token)).status == 200
    record = await scene.records.finished()
    assert (record.principal, record.groups) == ("ada@acme.example", ("staff", "lab"))
    assert scene.upstream.requests[0].header("authorization") is None


@pytest.mark.parametrize("place", ["authorization", "x-api-key", "both"])
async def test_token_is_accepted_in_either_header_and_both(
    place: str, scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start()
    token = provider.token()
    key = {} if place == "authorization" else {"X-Api-Key": token}
    response = await get(scene, None if place == "x-api-key" else token, **key)
    assert response.status == 200

    expired = provider.token(exp=1_700_000_000)
    key = {} if place == "authorization" else {"X-Api-Key": expired}
    response = await get(scene, None if place == "x-api-key" else expired, **key)
    assert (response.status, "expired" in message_of(response)) == (401, True)
    # a key helper, which sends both, gets a new token after a 401 that may be retried
    assert response.header("x-should-retry") == (None if place == "both" else "false")
    assert len(scene.upstream.requests) == 1


async def test_malformed_token_is_rejected(scene: Scene, start: Start) -> None:
    await start()
    for credential in MALFORMED:
        assert (await get(scene, credential)).status == 401, credential
    assert scene.upstream.requests == []


INVALID: tuple[tuple[dict[str, Any], str], ...] = (
    ({"exp": 1}, "expired"),
    ({"exp": None}, "not valid"),
    ({"exp": "9999999999"}, "not valid"),
    ({"nbf": 9_999_999_999}, "not valid"),
    ({"iat": 9_999_999_999}, "not valid"),
    ({"aud": "something-else"}, "another service"),
    ({"aud": None}, "not valid"),
    ({"aud": [AUDIENCE, 5]}, "not valid"),
    ({"iss": "https://evil.example"}, "not known here"),
    ({"iss": None}, "not known here"),
    ({"iss": ["x"]}, "not known here"),
    ({"sub": None}, "not valid"),
    ({"sub": ""}, "not valid"),
    ({"sub": 5}, "not valid"),
    ({"sub": "a\nb"}, "not a name"),
    ({"sub": "x" * 201}, "not a name"),
    ({"sub": "token"}, "uses itself"),
    ({"sub": "token-2"}, "uses itself"),
    ({"groups": "staff"}, "not a list"),
    ({"groups": ["staff", None]}, "not a list"),
    ({"email": ["ada@acme.example"]}, "not text"),
)


async def test_token_with_an_invalid_claim_is_rejected(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start()
    for claims, said in INVALID:
        response = await get(scene, provider.token(**claims))
        assert (response.status, said in message_of(response)) == (401, True), (
            claims,
            response.body,
        )
    assert scene.upstream.requests == []
    assert (await get(scene, provider.token())).status == 200


ADDRESSES: tuple[tuple[dict[str, Any], int], ...] = (
    ({"email": "ada@acme.example"}, 200),
    ({"email": "ada@ACME.example", "email_verified": True}, 200),
    ({"email": "ada@acme.example", "email_verified": "true"}, 200),
    ({"email": "ada@acme.example", "email_verified": False}, 403),
    ({"email": "ada@acme.example", "email_verified": "false"}, 403),
    ({"email": "ada@acme.example.evil.example"}, 403),
    ({"email": "ada@evil.example@x"}, 403),
    ({}, 401),
)


async def test_only_verified_addresses_of_the_domains_are_accepted(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start(OIDC_EMAIL_DOMAINS="acme.example")
    for claims, status in ADDRESSES:
        assert (await get(scene, provider.token(**claims))).status == status, claims


async def test_workload_has_the_group_of_its_audience_alone(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start(OIDC_WORKLOADS="ci=builds", OIDC_EMAIL_DOMAINS="acme.example")
    token = provider.token(aud="ci", sub="repo:acme/web", groups=["admins"])
    assert (await get(scene, token)).status == 200
    record = await scene.records.finished()
    assert (record.principal, record.groups) == ("repo:acme/web", ("builds",))


async def test_clocks_may_differ_by_the_leeway(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start(OIDC_LEEWAY=40)
    for late, status in ((20, 200), (60, 401)):
        token = provider.token(exp=int(time.time()) - late)
        assert (await get(scene, token)).status == status, late


@functools.cache
def stranger() -> RSAKey:
    """Return an attacker's key, whose id is that of a key of the provider."""
    return RSAKey.generate_key(2048, {"kid": "first"})


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def with_head(provider: ScriptedProvider, **head: Any) -> str:
    """Return the token with another header, and the signature that it had."""
    _, claims, signature = provider.token().split(".")
    return f"{b64(json.dumps({'kid': 'first', **head}).encode())}.{claims}.{signature}"


def with_public_key_as_secret(provider: ScriptedProvider) -> str:
    """Return a token with an HMAC by hand, since libraries refuse to make it."""
    assert isinstance(KEYS["first"], RSAKey)
    signed = with_head(provider, alg="HS256").rpartition(".")[0]
    digest = hmac.digest(KEYS["first"].as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{b64(digest)}"


ATTACKS: dict[str, Callable[[ScriptedProvider], str]] = {
    "no signature": lambda provider: with_head(provider, alg="none").rpartition(".")[0] + ".",
    "an empty signature": lambda provider: provider.token().rpartition(".")[0] + ".",
    "HMAC with the public key": with_public_key_as_secret,
    "another key of the same id": lambda provider: provider.token(stranger()),
    "an algorithm that is not allowed": lambda provider: provider.token(algorithm="RS512"),
    "the attacker's key in the header": lambda provider: provider.token(
        stranger(), header={"jwk": stranger().as_dict(private=False)}
    ),
    "a URL of the attacker's keys": lambda provider: provider.token(
        stranger(), header={"jku": f"{provider.url}/evil"}
    ),
    "an id that is a path": lambda provider: provider.token(
        KEYS["first"], header={"kid": "../../dev/null"}
    ),
    "an id that is SQL": lambda provider: provider.token(header={"kid": "x' OR '1'='1"}),
    "an unknown critical header": lambda provider: with_head(provider, alg="RS256", crit=["x"]),
    "a token of another type": lambda provider: provider.token(header={"typ": "logout+jwt"}),
}


async def test_forged_token_is_rejected(
    scene: Scene, start: Start, provider: ScriptedProvider, at_once: None
) -> None:
    await start()
    assert (await get(scene, provider.token())).status == 200
    for attack, forged in ATTACKS.items():
        assert (await get(scene, forged(provider))).status == 401, attack
    assert len(scene.upstream.requests) == 1
    assert (await get(scene, provider.token())).status == 200
    assert {request.path for request in provider.requests} <= {
        "/.well-known/openid-configuration",
        "/jwks",
    }


async def test_other_credential_is_left_to_the_next_plugin(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start()
    assert (await get(scene, TEST_TOKEN)).status == 200
    assert (await scene.records.finished()).principal == "token"


# The provider's keys


async def test_rotated_keys_apply_without_a_restart(
    scene: Scene, start: Start, provider: ScriptedProvider, at_once: None
) -> None:
    await start()
    assert (await get(scene, provider.token())).status == 200
    provider.keys = [KEYS["second"]]
    assert (await get(scene, provider.token(KEYS["second"]))).status == 200
    assert (await get(scene, provider.token())).status == 401
    assert len(scene.upstream.requests) == 2


async def test_keys_are_loaded_once_for_all_who_wait(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    arrived = asyncio.Event()

    async def slow(exchange: UpstreamExchange) -> None:
        await arrived.wait()
        await provider.default_response(exchange)

    provider.script(slow)
    await start()
    asked = [asyncio.ensure_future(get(scene, provider.token())) for _ in range(5)]
    await provider.received()
    arrived.set()
    assert [response.status for response in await asyncio.gather(*asked)] == [200] * 5
    assert provider.loads == 1


async def test_unknown_key_ids_do_not_cause_a_load_each(
    scene: Scene, start: Start, provider: ScriptedProvider
) -> None:
    await start()
    assert (await get(scene, provider.token())).status == 200
    for kid in ("a", "b", "c"):
        assert (await get(scene, provider.token(header={"kid": kid}))).status == 401
    assert provider.loads == 1


async def test_provider_that_is_down_rejects_only_unknown_keys(
    scene: Scene, start: Start, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start()
    assert (await get(scene, provider.token())).status == 200
    monkeypatch.setattr(provider_module, "RETRY", 0.0)
    monkeypatch.setattr(provider_module, "LIFETIME", 0.0)
    port = provider.port
    await provider.stop()
    assert (await get(scene, provider.token())).status == 200
    refused = await get(scene, provider.token(KEYS["second"]))
    assert (refused.status, "does not respond" in message_of(refused)) == (503, True)
    assert (await get(scene, TEST_TOKEN)).status == 200

    provider.keys.append(KEYS["second"])
    await provider.start(port=port)
    assert (await get(scene, provider.token(KEYS["second"]))).status == 200


UNUSABLE: tuple[tuple[dict[str, Any], Any, str], ...] = (
    ({"issuer": "https://evil.example"}, None, "another issuer"),
    ({"jwks_uri": None}, None, "no valid jwks_uri"),
    ({"jwks_uri": "file:///etc/passwd"}, None, "no valid jwks_uri"),
    ({}, json_response({"keys": []}), "no keys"),
    ({}, json_response({"keys": [{"kty": "oct", "k": "AAAA", "kid": "first"}]}), "no keys"),
    ({}, json_response({"keys": [5, None]}), "no keys"),
    ({}, json_response([]), "no keys"),
    ({}, json_response({"error": "gone"}, 500), "responds 500"),
    ({}, json_response({}, 302, {"Location": "/jwks"}), "responds 302"),
    ({}, json_response({"keys": "x" * 1024 * 1024}), "more than 1 MiB"),
)


async def test_unusable_provider_is_logged_and_rejects_its_tokens(
    scene: Scene,
    start: Start,
    provider: ScriptedProvider,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.changed = {"issuer": "https://other.example"}
    await start()
    assert (await get(scene, provider.token())).status == 503, "it was never loaded"
    monkeypatch.setattr(provider_module, "RETRY", 0.0)
    provider.changed = {}
    assert (await get(scene, provider.token())).status == 200
    for changed, keys, said in UNUSABLE:
        caplog.clear()
        provider.changed = changed
        if keys is not None:
            provider.script(provider.default_response, keys)
        loads = provider.loads
        with caplog.at_level(logging.WARNING):
            response = await get(scene, provider.token(KEYS["second"]))
        assert (response.status, provider.loads - loads) == (503, int(keys is not None)), said
        assert said in caplog.text


# Settings


async def test_setting_that_is_wrong_or_missing_ends_the_start(scene: Scene) -> None:
    issuer = "https://login.example"
    for given, said in (
        ({"OIDC_ISSUER": issuer}, "set OIDC_AUDIENCES"),
        ({"OIDC_ISSUER": "http://login.example", "OIDC_AUDIENCES": "x"}, "https://"),
        ({"OIDC_ISSUER": issuer, "OIDC_AUDIENCES": "x", "OIDC_ALGORITHMS": "HS256"}, "only RS"),
        ({"OIDC_ISSUER": issuer, "OIDC_AUDIENCES": "x", "OIDC_WORKLOADS": "x=y"}, "from one"),
        ({"OIDC_ISSUER": issuer, "OIDC_WORKLOADS": "x=y x=z"}, "one value for x, not several"),
        ({"OIDC_ISSUER": issuer, "OIDC_SCOPES": "profile"}, "must contain openid"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            await scene.start(**given)
