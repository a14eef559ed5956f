"""Bearers and sealed texts, made with keys that follow from ``OIDC_SIGNING_KEY``. Without I/O.

The key that signs changes each day at 00:00 UTC. It is derived from the setting, so that every
replica has it, no store holds it, and bearer tokens can be verified while every store is down. With
two values of the setting the first signs, and both verify, so that it can be rotated too.

A refresh token names its session, and is authenticated (HMAC, RFC 2104): one that was replaced long
ago is known as such after the database has forgotten it.

A sealed text (a JWE, RFC 7516) is readable for this proxy alone: the cookie of a browser that signs
in, and the provider's refresh tokens in the database.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from joserfc import jwe, jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tornadoproxy import Secret

DAY = 86_400  # seconds
SESSION_ID = 22  # characters
LEEWAY = 10
"""Seconds that the clocks of replicas may differ."""

_SEALING = ("dir", "A256GCM")


class Sealer:
    """The keys of one proxy and its replicas.

    :param secrets: the values of ``OIDC_SIGNING_KEY``.
    :param issuer: the issuer and audience of the bearer tokens: the public URL.
    :param lifetime: the seconds for which a bearer is valid.
    """

    def __init__(self, secrets: Sequence[Secret], issuer: str, lifetime: int) -> None:
        self._by_id = {_derived(secret, "id")[:4].hex(): secret for secret in secrets}
        self._first = next(iter(self._by_id))
        self.issuer = issuer
        self.lifetime = lifetime
        self._registry = jwt.JWTClaimsRegistry(
            leeway=LEEWAY,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": issuer},
            exp={"essential": True},
            sub={"essential": True},
            sid={"essential": True},
        )

    def bearer(self, claims: dict[str, Any]) -> str:  # Any: JSON
        """Return a signed bearer with these claims and those of its life."""
        now = int(time.time())
        own = {"iss": self.issuer, "aud": self.issuer, "iat": now, "exp": now + self.lifetime}
        day = now // DAY
        head = {"alg": "HS256", "kid": f"{self._first}.{day}"}
        key = self._key(self._by_id[self._first], f"bearer {day}")
        return jwt.encode(head, {**claims, **own}, key, algorithms=["HS256"])

    def claims(self, bearer: bytes, key_id: str | None) -> dict[str, Any]:
        """Return the claims of a bearer.

        :param key_id: of its key, from its header.
        :raises JoseError: it is not a bearer of this proxy, or has expired.
        """
        found = re.fullmatch(r"([0-9a-f]{8})\.([0-9]{1,6})", key_id or "")
        secret = self._by_id.get(found[1]) if found else None
        if found is None or secret is None:
            raise JoseError
        # the key of a day on which no valid bearer was signed must not be derived and kept
        age = int(time.time()) // DAY - int(found[2])
        if not -1 <= age <= self.lifetime // DAY + 1:
            raise JoseError
        key = self._key(secret, f"bearer {found[2]}")
        token = jwt.decode(bearer, key, algorithms=["HS256"])
        self._registry.validate(token.claims)
        return token.claims

    def refresh_token(self, session_id: str) -> str:
        """Return a new refresh token of a session."""
        body = session_id + secrets.token_urlsafe(32)
        return f"{body}.{_mac(self._by_id[self._first], body)}"

    def session_of(self, refresh_token: str) -> str | None:
        """Return the id of the session that was given a refresh token; ``None`` if none was."""
        body, _, mac = refresh_token.partition(".")
        for secret in self._by_id.values():
            if hmac.compare_digest(_mac(secret, body).encode(), mac.encode()):
                return body[:SESSION_ID]
        return None

    def seal(self, purpose: str, document: dict[str, Any]) -> str:
        """Return `document` as a text that only `opened` with the same purpose can read."""
        head = {"alg": "dir", "enc": "A256GCM", "kid": self._first}
        key = self._key(self._by_id[self._first], purpose)
        registry = jwe.JWERegistry(algorithms=_SEALING)
        return jwt.encode(head, document, key, registry=registry)

    def opened(self, purpose: str, text: str) -> dict[str, Any] | None:
        """Return the sealed document; ``None`` if it is none, or of a removed key."""
        registry = jwe.JWERegistry(algorithms=_SEALING)
        for secret in self._by_id.values():
            try:
                token = jwt.decode(text, self._key(secret, purpose), registry=registry)
            except (JoseError, ValueError):
                continue
            return token.claims
        return None

    @staticmethod
    @lru_cache(maxsize=64)
    def _key(secret: Secret, purpose: str) -> OctKey:
        return OctKey.import_key(_derived(secret, purpose))


def _mac(secret: Secret, body: str) -> str:
    return hmac.digest(_derived(secret, "refresh"), body.encode(), "sha256").hex()


def _derived(secret: Secret, purpose: str) -> bytes:
    # the expansion of HKDF (RFC 5869 §2.3) for one block; the secret is uniformly random
    return hmac.digest(secret.reveal(), f"tornadoproxy oidc {purpose}\x01".encode(), "sha256")
