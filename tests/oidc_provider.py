"""A scripted OpenID Connect provider, whose keys and responses a test chooses."""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey
from tornado.ioloop import IOLoop

from tornadoproxy.testing import (
    ReceivedRequest,
    ScriptedServer,
    UpstreamExchange,
    json_response,
)

AUDIENCE = "claude-code"
CLIENT = "tornadoproxy"
CLIENT_SECRET = "secret-of-the-proxy-at-the-provider"
KEYS: dict[str, Key] = {
    "first": RSAKey.generate_key(2048, {"kid": "first", "use": "sig"}),
    "second": ECKey.generate_key("P-256", {"kid": "second", "use": "sig"}),
}


class ScriptedProvider(ScriptedServer):
    """A provider that publishes `keys` and its metadata.

    :ivar keys: the published keys; the first signs.
    :ivar changed: metadata that differ.
    :ivar person: the claims of whoever signs in.
    :ivar id_claims: claims of its next ID tokens that differ.
    :ivar forge: changes its next ID tokens.
    :ivar left_out: the names of tokens that its responses do not have.
    :ivar userinfo: what its endpoint ``/userinfo`` tells.
    :ivar disabled: whether the person may no longer.
    :ivar refreshes: how often a refresh token was used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Key] = [KEYS["first"]]
        self.changed: dict[str, Any] = {}
        self.person: dict[str, Any] = {"sub": "ada", "email": "ada@acme.example", "groups": ["lab"]}
        self.id_claims: dict[str, Any] = {}
        self.forge: Callable[[str], str] = str
        self.left_out: set[str] = set()
        self.userinfo: dict[str, Any] = {}
        self.disabled = False
        self.refreshes = 0
        self._codes: dict[str, dict[str, str]] = {}
        self._numbers = itertools.count()
        self._refresh_token = "refresh-0"

    async def default_response(self, exchange: UpstreamExchange) -> None:
        if exchange.request.path == "/jwks":
            document: Any = {"keys": [key.as_dict(private=False) for key in self.keys]}
        elif exchange.request.path == "/userinfo":
            document = self.userinfo
        elif exchange.request.path == "/token":
            await exchange.read_all()
            await json_response(*self._redeem(exchange.request))(exchange)
            return
        else:
            document = {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/jwks",
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "authorization_response_iss_parameter_supported": True,
                **self.changed,
            }
        await json_response(document)(exchange)

    def authorize(self, url: str) -> str:
        """Do what a browser does at `url`; return the query of the URL that it is sent back to."""
        asked = {name: value for name, (value,) in parse_qs(urlsplit(url).query).items()}
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{next(self._numbers)}"
        self._codes[code] = asked
        return urlencode({"code": code, "state": asked["state"], "iss": self.url})

    def _redeem(self, request: ReceivedRequest) -> tuple[dict[str, Any], int]:
        form = {name: value for name, (value,) in parse_qs(request.body.decode()).items()}
        basic = base64.b64encode(f"{CLIENT}:{CLIENT_SECRET}".encode()).decode()
        assert request.header("authorization") == f"Basic {basic}"
        nonce = None
        if form["grant_type"] == "refresh_token":
            self.refreshes += 1
            if self.disabled or form["refresh_token"] != self._refresh_token:
                return {"error": "invalid_grant"}, 400
        else:
            asked = self._codes.pop(form["code"], None)
            verifier = hashlib.sha256(form["code_verifier"].encode()).digest()
            challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
            if asked is None or asked["code_challenge"] != challenge:
                return {"error": "invalid_grant"}, 400
            nonce = asked["nonce"]
        self._refresh_token = f"refresh-{self.refreshes}"
        claims = {"aud": CLIENT, "iat": int(time.time()), "nonce": nonce, **self.person}
        id_token = self.token(self.keys[0], **{**claims, **self.id_claims})
        tokens = {
            "access_token": "x",
            "token_type": "Bearer",
            "id_token": self.forge(id_token),
            "refresh_token": self._refresh_token,
        }
        return {name: each for name, each in tokens.items() if name not in self.left_out}, 200

    @property
    def loads(self) -> int:
        """How often its keys were requested."""
        return sum(request.path == "/jwks" for request in self.requests)

    def token(
        self,
        key: Key = KEYS["first"],
        *,
        algorithm: str | None = None,
        header: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Return a token for Ada, without the claims that are ``None``."""
        now = int(time.time())
        given = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "exp": now + 600, **claims}
        given = {name: value for name, value in given.items() if value is not None}
        algorithm = algorithm or {"RSA": "RS256", "EC": "ES256", "oct": "HS256"}[key.key_type]
        head = {"alg": algorithm, "kid": key.kid, **(header or {})}
        return jwt.encode(head, given, key, algorithms=[algorithm])


@pytest.fixture
def provider(io_loop: IOLoop) -> Iterator[ScriptedProvider]:
    provider = ScriptedProvider()
    io_loop.run_sync(provider.start)
    yield provider
    io_loop.run_sync(provider.stop)
    assert provider.failures == []
