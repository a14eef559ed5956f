"""People and workloads authenticated by the JSON Web Tokens of an OpenID Connect provider.

With ``OIDC_ISSUER``, a token of that provider whose audience is in ``OIDC_AUDIENCES`` or
``OIDC_WORKLOADS`` is a credential of the proxy. A token of another issuer, and every credential
that is no JSON Web Token, is left to the other authenticators.

- `tornadoproxy_oidc.provider`: what the provider publishes
- `tornadoproxy_oidc.tokens`: the validation of its tokens
- `tornadoproxy_oidc.people`: the identity that follows from claims

The plugin needs Authlib, joserfc and httpx2, which ``pip install 'tornadoproxy[oidc]'`` installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Identity,
    Inactive,
    IncomingRequest,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from tornadoproxy_oidc.provider import Provider
    from tornadoproxy_oidc.tokens import TokenReader

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _issuer(value: str) -> str:
    """Parse the URL of an issuer, which is kept as it is: it is compared byte for byte."""
    url = parsers.base_url(value)
    if url.scheme != "https" and url.host not in LOOPBACK:
        raise ValueError("must begin with https://; http:// is for loopback only")
    return value


def _algorithms(value: str) -> tuple[str, ...]:
    """Parse the names of asymmetric signature algorithms."""
    found = parsers.words(value)
    for name in found:
        # an HMAC would take the provider's public key as its secret
        if name not in SIGNATURES:
            raise ValueError(f"must be out of {', '.join(SIGNATURES)}, not {name!r}")
    return found


SIGNATURES = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)

OIDC_ISSUER: Setting[str | None] = Setting(
    "OIDC_ISSUER",
    _issuer,
    default=None,
    help="issuer URL of the OpenID Connect provider whose tokens are credentials of the proxy",
    fixed=True,
)
OIDC_AUDIENCES: Setting[tuple[str, ...]] = Setting(
    "OIDC_AUDIENCES",
    parsers.words,
    default=(),
    help="audiences, separated by spaces, of the tokens that people may send as a credential",
)
OIDC_WORKLOADS: Setting[Mapping[str, str] | None] = Setting(
    "OIDC_WORKLOADS",
    parsers.pairs,
    default=None,
    help=(
        "audience=group pairs, separated by spaces, of the tokens that workloads may send: such a "
        "token needs no e-mail address, and its only group is that one"
    ),
)
OIDC_ALGORITHMS: Setting[tuple[str, ...]] = Setting(
    "OIDC_ALGORITHMS",
    _algorithms,
    default=("RS256", "PS256", "ES256", "EdDSA", "Ed25519"),
    help="algorithms that the provider may sign with; all are asymmetric",
)
OIDC_NAME_CLAIM: Setting[str] = Setting(
    "OIDC_NAME_CLAIM",
    parsers.text,
    default="sub",
    help=(
        "claim that is a person's name in logs, limits and budgets. It must be unique, and no "
        "person may choose it"
    ),
)
OIDC_EMAIL_CLAIM: Setting[str] = Setting(
    "OIDC_EMAIL_CLAIM", parsers.text, default="email", help="claim with the e-mail address"
)
OIDC_GROUPS_CLAIM: Setting[str] = Setting(
    "OIDC_GROUPS_CLAIM", parsers.text, default="groups", help="claim that lists the groups"
)
OIDC_EMAIL_DOMAINS: Setting[tuple[str, ...]] = Setting(
    "OIDC_EMAIL_DOMAINS",
    parsers.hosts,
    default=(),
    help="domains of the e-mail addresses that are accepted; without any, an address is optional",
)
OIDC_LEEWAY: Setting[int] = Setting(
    "OIDC_LEEWAY",
    parsers.integer(0, 300),
    default=30,
    help="seconds that the provider's clock may differ from the proxy's",
)


class OpenIDConnect:
    """The plugin: it accepts the tokens of one provider."""

    def __init__(self) -> None:
        self._provider: Provider | None = None
        self._tokens: TokenReader | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: values of several types
        return (
            *(OIDC_ISSUER, OIDC_AUDIENCES, OIDC_WORKLOADS, OIDC_ALGORITHMS, OIDC_LEEWAY),
            *(OIDC_NAME_CLAIM, OIDC_EMAIL_CLAIM, OIDC_GROUPS_CLAIM, OIDC_EMAIL_DOMAINS),
        )

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the provider, and what its tokens must be.

        :raises ConfigurationError: a setting or a library is missing.
        """
        issuer = settings[OIDC_ISSUER]
        if issuer is None:
            return INACTIVE
        audiences, workloads = settings[OIDC_AUDIENCES], settings[OIDC_WORKLOADS] or {}
        if not (audiences or workloads):
            raise ConfigurationError(
                "OIDC_ISSUER is set, but no token of it is accepted: set OIDC_AUDIENCES to the "
                "audience of the tokens that people send."
            )
        if both := sorted(workloads.keys() & set(audiences)):
            raise ConfigurationError(
                f"OIDC_WORKLOADS: {both[0]} is in OIDC_AUDIENCES as well; remove it from one."
            )
        try:
            from tornadoproxy_oidc.people import Claims
            from tornadoproxy_oidc.provider import Provider
            from tornadoproxy_oidc.tokens import TokenReader
        except ImportError:
            raise ConfigurationError(
                "OIDC_ISSUER needs Authlib and httpx2; install them with "
                "`pip install 'tornadoproxy[oidc]'`, or remove OIDC_ISSUER."
            ) from None
        if self._provider is None:
            self._provider = Provider(issuer)
        claims = Claims(
            name=settings[OIDC_NAME_CLAIM],
            email=settings[OIDC_EMAIL_CLAIM],
            groups=settings[OIDC_GROUPS_CLAIM],
            domains=settings[OIDC_EMAIL_DOMAINS],
        )
        self._tokens = TokenReader(
            self._provider,
            claims,
            audiences=audiences,
            workloads=workloads,
            algorithms=settings[OIDC_ALGORITHMS],
            leeway=settings[OIDC_LEEWAY],
        )
        return f"clients with a token of {issuer}"

    @hookimpl
    def startup(self) -> None:
        assert self._provider is not None, "configure() has returned that this plugin is active"
        self._provider.start()

    @hookimpl
    async def shutdown(self) -> None:
        assert self._provider is not None, "configure() has returned that this plugin is active"
        await self._provider.close()

    @hookimpl
    def authenticate(
        self, request: IncomingRequest
    ) -> Identity | Coroutine[None, None, Identity | None] | None:
        assert self._tokens is not None, "configure() has returned that this plugin is active"
        return self._tokens.authenticate(request)
