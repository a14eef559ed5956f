"""The plugin in a real proxy, and a scripted identity provider."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tornadoproxy import ConfigurationError, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    Ask,
    Proxy,
    Records,
    ScriptedServer,
    ScriptedUpstream,
    StartProxy,
    UpstreamExchange,
    json_response,
)

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

ISSUER = "https://login.example.com/"
AUDIENCE = "claude"

Key: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Start: TypeAlias = Callable[..., Awaitable[Proxy]]


class Provider(ScriptedServer):
    """An identity provider that serves the public keys in `keys`."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, Key] = {}

    async def default_response(self, exchange: UpstreamExchange) -> None:
        document = {"keys": [public(key, kid) for kid, key in self.keys.items()]}
        await json_response(document)(exchange)


def public(key: Key, kid: str) -> dict[str, Any]:
    """Return the JWK of `key`."""
    if isinstance(key, rsa.RSAPrivateKey):
        jwk: dict[str, Any] = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**jwk, "kid": kid, "use": "sig"}


def token(key: Key | str, kid: str = "first", algorithm: str = "RS256", **claims: Any) -> str:
    """Return a token for Alice, without the claims that are ``None``."""
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, **claims}
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, key, algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def provider(io_loop: IOLoop, rsa_key: rsa.RSAPrivateKey) -> Iterator[Provider]:
    provider = Provider()
    provider.keys = {"first": rsa_key}
    io_loop.run_sync(provider.start)
    yield provider
    io_loop.run_sync(provider.stop)
    assert provider.failures == []


@pytest.fixture
def start(start_proxy: StartProxy, provider: Provider) -> Start:
    def start(**given: Any) -> Awaitable[Proxy]:  # Any: variables, and plugins
        defaults = {
            "JWT_JWKS_URL": f"{provider.url}/jwks.json",
            "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE,
            "JWT_RETRY_SECONDS": 0,
        }
        return start_proxy(**{**defaults, **given})

    return start


@pytest.fixture
def proxy(io_loop: IOLoop, start: Start) -> Proxy:
    started: Proxy = io_loop.run_sync(start)
    return started


async def test_token_has_the_name_and_groups_of_the_person(
    proxy: Proxy, ask: Ask, rsa_key: Key, records: Records, upstream: ScriptedUpstream
) -> None:
    response = await ask("/v1/models", token=token(rsa_key, groups=["staff", "research"]))

    assert response.status == 200
    record = await records.finished()
    assert (record.principal, record.groups) == ("alice", ("staff", "research"))
    assert len(upstream.requests) == 1


async def test_token_signed_by_an_elliptic_curve_is_accepted(
    proxy: Proxy, ask: Ask, provider: Provider, ec_key: Key
) -> None:
    provider.keys["curve"] = ec_key

    assert (await ask("/v1/models", token=token(ec_key, "curve", "ES256"))).status == 200


async def test_keys_are_loaded_once(
    proxy: Proxy, ask: Ask, provider: Provider, rsa_key: Key
) -> None:
    responses = await asyncio.gather(*(ask("/v1/models", token=token(rsa_key)) for _ in range(5)))
    responses.append(await ask("/v1/models", token=token(rsa_key)))

    assert [response.status for response in responses] == [200] * 6
    assert len(provider.requests) == 1


async def test_timed_out_request_does_not_cancel_the_load(
    start: Start, ask: Ask, provider: Provider, rsa_key: Key
) -> None:
    second_has_arrived = asyncio.Event()

    class Counter:
        seen = 0

        @hookimpl(tryfirst=True)
        def authenticate(self) -> None:
            self.seen += 1
            if self.seen == 2:
                second_has_arrived.set()

    async def slow(exchange: UpstreamExchange) -> None:
        await second_has_arrived.wait()
        await provider.default_response(exchange)

    await start(plugins=[Counter()], PLUGIN_TIMEOUT=0.3)
    provider.script(slow)

    assert (await ask("/v1/models", token=token(rsa_key))).status == 503
    assert (await ask("/v1/models", token=token(rsa_key))).status == 200, "the load continued"
    assert len(provider.requests) == 1


async def test_token_header_is_not_relayed(
    start: Start,
    ask: Ask,
    upstream: ScriptedUpstream,
    rsa_key: rsa.RSAPrivateKey,
    records: Records,
) -> None:
    await start(JWT_HEADER="x-goog-iap-jwt-assertion")
    headers = {"X-Goog-IAP-JWT-Assertion": token(rsa_key)}

    assert (await ask("/v1/models", headers=headers, token=None)).status == 200
    assert (await records.finished()).principal == "alice"
    assert upstream.requests[0].header("x-goog-iap-jwt-assertion") is None


async def test_other_credential_is_left_to_the_next_plugin(
    proxy: Proxy, ask: Ask, records: Records, provider: Provider
) -> None:
    assert (await ask("/v1/models", token=TEST_TOKEN)).status == 200
    assert (await records.finished()).principal == "token"
    assert provider.requests == []


@pytest.mark.parametrize(
    "credential",
    [
        "a.b.c",
        "..",
        "eyJhbGciOiJub25lIn0.e30.",
        "\xff.\xff.\xff",
        "eyJ9.e30.AA",
        "W10.e30.AA",
    ],
)
async def test_malformed_token_is_rejected(
    proxy: Proxy, ask: Ask, upstream: ScriptedUpstream, credential: str
) -> None:
    assert (await ask("/v1/models", token=credential)).status == 401
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": None}, "not valid here"),
        ({"nbf": 9_999_999_999}, "not valid here"),
        ({"aud": "something-else"}, "not valid here"),
        ({"aud": None}, "not valid here"),
        ({"iss": "https://evil.example/"}, "not valid here"),
        ({"iss": None}, "not valid here"),
        ({"sub": None}, "not valid here"),
        ({"sub": ""}, "not valid here"),
        ({"sub": 5}, "not valid here"),
        ({"groups": "staff"}, "not valid here"),
        ({"groups": ["staff", None]}, "not valid here"),
    ],
    ids=str,
)
async def test_token_with_an_invalid_claim_is_rejected(
    proxy: Proxy,
    ask: Ask,
    rsa_key: Key,
    upstream: ScriptedUpstream,
    claims: dict[str, Any],
    said: str,
) -> None:
    response = await ask("/v1/models", token=token(rsa_key, **claims))

    error = json.loads(response.body)["error"]
    assert (response.status, error["type"]) == (401, "authentication_error")
    assert said in error["message"]
    assert upstream.requests == []


async def test_clocks_may_differ_by_the_leeway(start: Start, ask: Ask, rsa_key: Key) -> None:
    await start(JWT_LEEWAY=300)

    assert (await ask("/v1/models", token=token(rsa_key, exp=int(time.time()) - 100))).status == 200


async def test_token_signed_with_the_public_key_is_rejected(
    proxy: Proxy, ask: Ask, rsa_key: rsa.RSAPrivateKey, upstream: ScriptedUpstream
) -> None:
    """An HMAC with the public key as its secret is a known attack."""
    from cryptography.hazmat.primitives import hashes, hmac
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"first","typ":"JWT"}').rstrip(b"=")
    signed = head + b"." + token(rsa_key).split(".")[1].encode()
    code = hmac.HMAC(pem, hashes.SHA256())
    code.update(signed)
    forged = signed + b"." + base64.urlsafe_b64encode(code.finalize()).rstrip(b"=")

    assert (await ask("/v1/models", token=forged.decode())).status == 401
    assert upstream.requests == []


async def test_token_without_a_signature_is_rejected(proxy: Proxy, ask: Ask, rsa_key: Key) -> None:
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"first"}').rstrip(b"=").decode()

    assert (await ask("/v1/models", token=f"{head}.{token(rsa_key).split('.')[1]}.")).status == 401


async def test_token_of_another_key_with_the_same_id_is_rejected(proxy: Proxy, ask: Ask) -> None:
    stranger = rsa.generate_private_key(65537, 2048)

    assert (await ask("/v1/models", token=token(stranger))).status == 401


async def test_rotated_keys_apply_without_a_restart(
    proxy: Proxy, ask: Ask, provider: Provider, rsa_key: Key, ec_key: Key
) -> None:
    assert (await ask("/v1/models", token=token(rsa_key))).status == 200
    provider.keys = {"second": ec_key}

    assert (await ask("/v1/models", token=token(ec_key, "second", "ES256"))).status == 200
    assert (await ask("/v1/models", token=token(rsa_key))).status == 401
    assert len(provider.requests) == 3


async def test_old_keys_are_loaded_again(
    start: Start, ask: Ask, provider: Provider, rsa_key: Key
) -> None:
    await start(JWT_KEYS_SECONDS=0)
    assert (await ask("/v1/models", token=token(rsa_key))).status == 200
    provider.keys = {"second": rsa_key}

    assert (await ask("/v1/models", token=token(rsa_key))).status == 401


async def test_unknown_key_ids_do_not_cause_a_load_each(
    start: Start, ask: Ask, provider: Provider, rsa_key: Key
) -> None:
    await start(JWT_RETRY_SECONDS=3600)
    assert (await ask("/v1/models", token=token(rsa_key))).status == 200

    assert (await ask("/v1/models", token=token(rsa_key, "unheard-of"))).status == 401
    assert (await ask("/v1/models", token=token(rsa_key, "unheard-of"))).status == 401
    assert len(provider.requests) == 1


async def test_missing_provider_rejects_only_unknown_keys(
    start: Start,
    ask: Ask,
    provider: Provider,
    rsa_key: Key,
    upstream: ScriptedUpstream,
) -> None:
    await start(JWT_KEYS_SECONDS=0)
    port = provider.port
    await provider.stop()
    refused = await ask("/v1/models", token=token(rsa_key))
    assert (refused.status, upstream.requests) == (503, [])
    assert json.loads(refused.body)["error"]["type"] == "overloaded_error"
    assert (await ask("/v1/models", token=TEST_TOKEN)).status == 200

    await provider.start(port=port)
    assert (await ask("/v1/models", token=token(rsa_key))).status == 200

    await provider.stop()
    assert (await ask("/v1/models", token=token(rsa_key))).status == 200
    assert (await ask("/v1/models", token=token(rsa_key, "unheard-of"))).status == 503


@pytest.mark.parametrize(
    "response",
    [
        json_response({"keys": []}),
        json_response([]),
        json_response({"error": "gone"}, 500),
        json_response({}, 302, {"Location": "/elsewhere"}),
    ],
)
async def test_response_without_keys_rejects_the_request(
    proxy: Proxy, ask: Ask, provider: Provider, rsa_key: Key, response: Any
) -> None:
    provider.script(response)

    assert (await ask("/v1/models", token=token(rsa_key))).status == 503


async def test_stop_waits_for_a_load(
    proxy: Proxy, ask: Ask, provider: Provider, rsa_key: Key
) -> None:
    go_on = asyncio.Event()

    async def slow(exchange: UpstreamExchange) -> None:
        await go_on.wait()
        await provider.default_response(exchange)

    provider.script(slow)
    asked = asyncio.ensure_future(ask("/v1/models", token=token(rsa_key)))
    await provider.received()
    stopped = asyncio.ensure_future(proxy.server.drain())
    assert (await asked).status == 503

    go_on.set()
    await stopped
    await provider.all_closed()


async def test_without_a_url_the_plugin_is_inactive(start: Start) -> None:
    proxy = await start(JWT_JWKS_URL=None, JWT_ISSUER=None, JWT_AUDIENCE=None)

    states = {info.name: info.state for info in proxy.plugins.describe()}
    assert states["jwt"] == "inactive"


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"JWT_ISSUER": None}, "JWT_ISSUER is not set"),
        ({"JWT_AUDIENCE": None}, "JWT_AUDIENCE is not set"),
        ({"JWT_JWKS_URL": "http://login.example.com/jwks"}, "JWT_JWKS_URL must begin with https"),
        ({"JWT_ALGORITHMS": "RS256 HS256"}, "JWT_ALGORITHMS must be some of .*'HS256'"),
        ({"JWT_ALGORITHMS": "none"}, "JWT_ALGORITHMS must be some of .*'none'"),
    ],
    ids=str,
)
async def test_unsafe_settings_are_refused(
    start: Start, variables: dict[str, object], fault: str
) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        await start(**variables)
