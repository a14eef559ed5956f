"""A scripted OpenID Connect provider, whose keys and responses a test chooses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey
from tornado.ioloop import IOLoop

from tornadoproxy.testing import ScriptedServer, UpstreamExchange, json_response

AUDIENCE = "claude-code"
KEYS: dict[str, Key] = {
    "first": RSAKey.generate_key(2048, {"kid": "first", "use": "sig"}),
    "second": ECKey.generate_key("P-256", {"kid": "second", "use": "sig"}),
}


class ScriptedProvider(ScriptedServer):
    """A provider that publishes `keys` and its metadata.

    :ivar keys: the published keys.
    :ivar changed: metadata that differ.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Key] = [KEYS["first"]]
        self.changed: dict[str, Any] = {}

    async def default_response(self, exchange: UpstreamExchange) -> None:
        if exchange.request.path == "/jwks":
            document: Any = {"keys": [key.as_dict(private=False) for key in self.keys]}
        else:
            document = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks", **self.changed}
        await json_response(document)(exchange)

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
