"""From a token to the person that it names, or to the reason why it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt

from tornadoproxy import AuthenticationFailed, Identity, Secret

if TYPE_CHECKING:
    from tornadoproxy_jwt.keys import KeySet

_REFUSED = "This token is not valid here: get one of the right provider, for this service."


@dataclass(frozen=True, slots=True)
class TokenReader:
    """What a token must be. Verifying one takes some 50 µs, which the loop has."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    leeway: float
    groups_claim: str

    def tokens(self, candidates: Sequence[Secret]) -> list[tuple[Secret, str | None]]:
        """Those of `candidates` that are JWTs, with the id of the key each names."""
        found = []
        for candidate in candidates:
            try:
                header = jwt.get_unverified_header(candidate.reveal())
            except jwt.PyJWTError:
                continue
            found.append((candidate, header.get("kid")))
        return found

    async def identify(
        self, tokens: Sequence[tuple[Secret, str | None]], keys: KeySet
    ) -> Identity | None:
        """Whom the first token names that is right.

        :raises AuthenticationFailed: none is.
        :raises OSError: a key is not known, and the keys cannot be read now.
        """
        reason = _REFUSED
        for token, key_id in tokens:
            key = await keys.get(key_id)
            try:
                if key is not None:
                    return self._identity(token, key)
            except jwt.ExpiredSignatureError:
                reason = "This token has expired: get a new one."
            except jwt.PyJWTError:
                reason = _REFUSED
        raise AuthenticationFailed(reason)

    def _identity(self, token: Secret, key: jwt.PyJWK) -> Identity:
        claims: dict[str, Any] = jwt.decode(  # Any: a claim may be any JSON
            token.reveal(),
            key,
            algorithms=self.algorithms,  # the token's own header has no say
            audience=self.audience,
            issuer=self.issuer,
            leeway=self.leeway,
            options={"require": ["exp", "sub"]},
        )
        groups = claims.get(self.groups_claim, [])
        if not claims["sub"] or not isinstance(groups, list):
            raise jwt.InvalidTokenError
        if not all(isinstance(group, str) and group for group in groups):
            raise jwt.InvalidTokenError
        return Identity(principal=claims["sub"], groups=tuple(groups))
