"""The validation of the provider's tokens as credentials of a request.

The key, the algorithms, issuer and audience are the proxy's choice and never the token's: a token
only names one of the provider's published keys.

Sources: RFC 7519, RFC 8725, https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, JoseError

from tornadoproxy import AuthenticationFailed, Denied
from tornadoproxy_oidc.people import InvalidClaims
from tornadoproxy_oidc.provider import RETRY, ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from joserfc.jwk import Key

    from tornadoproxy_oidc.people import Claims, Person
    from tornadoproxy_oidc.provider import Provider

EXPIRED = "This token has expired: sign in again, or let your key helper get a new one."
FOREIGN = "This token is for another service: get one for the audience of this proxy."
UNAVAILABLE = "Your token cannot be verified: the identity provider does not respond. Try again."
REFUSED = "This token is not valid here: get a new one from your company's identity provider."

# a token of another kind, such as logout+jwt, must not be taken for one of these (RFC 8725 §3.11)
TYPES = ("jwt", "at+jwt", "application/jwt", "application/at+jwt")


class Seen(NamedTuple):
    """What a token says of itself, which nothing has verified.

    :param key_id: of the key that it is signed with.
    :param issuer: its claim ``iss``.
    """

    token: bytes
    key_id: str | None
    issuer: object


class TokenReader:
    """The requirements of a token.

    :param audiences: those of people's tokens.
    :param workloads: the group of a workload's token by its audience.
    :param leeway: seconds that the provider's clock may differ.
    """

    def __init__(
        self,
        provider: Provider,
        claims: Claims,
        *,
        audiences: Sequence[str],
        workloads: Mapping[str, str],
        algorithms: Sequence[str],
        leeway: int,
    ) -> None:
        self._provider = provider
        self._claims = claims
        self._audiences = frozenset(audiences)
        self._workloads = workloads
        self._algorithms = algorithms
        self._registry = jwt.JWTClaimsRegistry(
            leeway=leeway,
            iss={"essential": True, "value": provider.issuer},
            aud={"essential": True},
            exp={"essential": True},
            sub={"essential": True},
        )

    def person(self, seen: Seen) -> Person | Coroutine[None, None, Person]:
        """Return the holder of a token of the provider.

        :raises AuthenticationFailed: the token is not valid.
        :raises Denied: its holder is not accepted, or the provider cannot be asked.
        """
        key = self._provider.key(seen.key_id)
        # a coroutine only where the provider has to be asked
        return self._wait(seen) if key is None else self._person(seen, key)

    async def _wait(self, seen: Seen) -> Person:
        try:
            key = await self._provider.new_key(seen.key_id)
        except ProviderUnavailable:
            raise Denied(UNAVAILABLE, status=503, retry_after=RETRY) from None
        if key is None:
            raise AuthenticationFailed(REFUSED)
        return self._person(seen, key)

    def _person(self, seen: Seen, key: Key) -> Person:
        try:
            token = jwt.decode(seen.token, key, algorithms=self._algorithms)
            if str(token.header.get("typ", "JWT")).lower() not in TYPES:
                raise AuthenticationFailed(REFUSED)
            self._registry.validate(token.claims)
            return self._identity(token.claims)
        except ExpiredTokenError:
            raise AuthenticationFailed(EXPIRED) from None
        except InvalidClaims as invalid:
            raise AuthenticationFailed(f"This token cannot be used here: {invalid}.") from None
        # ValueError: what joserfc does not expect in a key or a header
        except (JoseError, ValueError, TypeError):
            raise AuthenticationFailed(REFUSED) from None

    def _identity(self, claims: Mapping[str, Any]) -> Person:  # Any: a claim may be any JSON
        given = claims["aud"]
        audiences = {given} if isinstance(given, str) else set(given)
        if audiences & self._audiences:
            return self._claims.person(claims)
        for audience in sorted(audiences & self._workloads.keys()):
            return self._claims.workload(claims, self._workloads[audience])
        raise AuthenticationFailed(FOREIGN)


def unverified(value: bytes) -> Seen | None:
    """Return what a credential says of itself; ``None`` if it is no signed JSON Web Token."""
    if value.count(b".") != 2:
        return None
    try:
        parts = jws.extract_compact(value)
        claims = json.loads(parts.payload or b"")
    except (JoseError, ValueError, RecursionError):
        return None
    if not isinstance(claims, dict):
        return None
    key_id = parts.headers().get("kid")
    return Seen(value, key_id if isinstance(key_id, str) else None, claims.get("iss"))
