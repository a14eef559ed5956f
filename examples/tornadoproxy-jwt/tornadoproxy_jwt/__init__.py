"""An authenticator by JSON Web Tokens of an identity provider.

A credential that is not a JWT is left to the next plugin. A JWT must be signed with a key of the
provider's JWKS, by one of the configured algorithms, for this audience, by this issuer, and must
not have expired. While the keys cannot be loaded, tokens of unknown keys are rejected with 503;
tokens of keys that are loaded are still accepted.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Identity,
    Inactive,
    IncomingRequest,
    Secret,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    from tornadoproxy_jwt.keys import KeySet
    from tornadoproxy_jwt.tokens import TokenReader

MAX_LINES = 8  # of JWT_HEADER in one request, as of x-api-key

# only asymmetric ones, because an HMAC key that validates tokens could also sign them
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")


def _keys_url(value: str) -> str:
    """Return the URL of a JWKS, which must use TLS unless it is on this machine."""
    if value.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        return parsers.text(value)
    raise ValueError("must begin with https://, because a changed key would accept forged tokens")


def _algorithms(value: str) -> tuple[str, ...]:
    names = parsers.words(value)
    if unknown := [name for name in names if name not in ALGORITHMS]:
        raise ValueError(f"must be some of {', '.join(ALGORITHMS)}, not {unknown[0]!r}")
    return names


JWKS_URL: Setting[str] = Setting(
    "JWT_JWKS_URL",
    _keys_url,
    default="",
    help="URL of the identity provider's public keys: https://login.example.com/jwks.json",
)
ISSUER: Setting[str] = Setting(
    "JWT_ISSUER", parsers.text, default="", help="required issuer of a token: its claim iss"
)
AUDIENCE: Setting[str] = Setting(
    "JWT_AUDIENCE", parsers.text, default="", help="required audience of a token: its claim aud"
)
SIGNED_BY: Setting[tuple[str, ...]] = Setting(
    "JWT_ALGORITHMS",
    _algorithms,
    default=("RS256", "ES256"),
    help="algorithms that a token may be signed with",
)
LEEWAY: Setting[float] = Setting(
    "JWT_LEEWAY",
    parsers.seconds(maximum=300),
    default=10.0,
    help="seconds that the provider's clock and this one may differ",
)
GROUPS_CLAIM: Setting[str] = Setting(
    "JWT_GROUPS_CLAIM",
    parsers.text,
    default="groups",
    help="claim that lists the groups of the person",
)
HEADER: Setting[str] = Setting(
    "JWT_HEADER",
    parsers.text,
    default="",
    help=(
        "header that carries the token, such as X-Goog-IAP-JWT-Assertion behind an identity-aware "
        "proxy; without it, x-api-key or Authorization"
    ),
)
KEYS_SECONDS: Setting[float] = Setting(
    "JWT_KEYS_SECONDS",
    parsers.seconds(),
    default=600.0,
    help="seconds after which the keys are reloaded",
)
RETRY_SECONDS: Setting[float] = Setting(
    "JWT_RETRY_SECONDS",
    parsers.seconds(),
    default=10.0,
    help="seconds between two reloads caused by unknown keys",
)


class JWTAuthenticator:
    """The plugin: it accepts the tokens of the identity provider."""

    def __init__(self) -> None:
        self._keys: KeySet | None = None
        self._reader: TokenReader | None = None
        self._header = HEADER.default

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        return (
            JWKS_URL,
            ISSUER,
            AUDIENCE,
            SIGNED_BY,
            LEEWAY,
            GROUPS_CLAIM,
            HEADER,
            KEYS_SECONDS,
            RETRY_SECONDS,
        )

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        if not settings[JWKS_URL]:
            return INACTIVE
        # imported when it is used, because importing cryptography is slow
        from tornadoproxy_jwt.keys import KeySet
        from tornadoproxy_jwt.tokens import TokenReader

        missing = [each.name for each in (ISSUER, AUDIENCE) if not settings[each]]
        if missing:
            faults = (f"{name} is not set but JWT_JWKS_URL is; set both." for name in missing)
            raise ConfigurationError(*faults)
        if self._keys is None or self._keys.url != settings[JWKS_URL]:
            self._keys = KeySet(settings[JWKS_URL])
        self._header = settings[HEADER]
        self._keys.lifetime = settings[KEYS_SECONDS]
        self._keys.retry = settings[RETRY_SECONDS]
        self._reader = TokenReader(
            issuer=settings[ISSUER],
            audience=settings[AUDIENCE],
            algorithms=settings[SIGNED_BY],
            leeway=settings[LEEWAY],
            groups_claim=settings[GROUPS_CLAIM],
        )
        return f"clients with a token of {settings[ISSUER]}"

    @hookimpl
    def credential_headers(self) -> tuple[str, ...]:
        return (self._header,) if self._header else ()

    @hookimpl
    def authenticate(
        self, request: IncomingRequest
    ) -> Coroutine[None, None, Identity | None] | None:
        assert self._keys is not None, "configured"
        assert self._reader is not None, "configured"
        tokens = self._reader.tokens(self._candidates(request))
        if not tokens:
            return None  # left to the next plugin, without the cost of a coroutine
        return self._reader.identify(tokens, self._keys)

    def _candidates(self, request: IncomingRequest) -> tuple[Secret, ...]:
        if not self._header:
            return request.candidates()
        lines = request.headers.get_list(self._header)[:MAX_LINES]
        return tuple(Secret(line.encode("latin-1")) for line in lines)

    @hookimpl
    async def shutdown(self) -> None:
        if self._keys is not None:
            await self._keys.close()
