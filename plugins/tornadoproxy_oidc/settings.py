"""The settings of the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import Setting, parsers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy import BaseURL, DatabaseLocation, Secret
    from tornadoproxy_oidc.policies import Policies

MAX_BEARER = 86_400
"""The highest `OIDC_BEARER_SECONDS`."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _issuer(value: str) -> str:
    """Parse the URL of an issuer, which is kept as it is: it is compared byte for byte."""
    url = parsers.base_url(value)
    if url.scheme != "https" and url.host not in LOOPBACK:
        raise ValueError("must begin with https://; http:// is for loopback only")
    return value


def _public_url(value: str) -> BaseURL:
    url = parsers.base_url(value)
    if url.scheme != "https" and url.host not in LOOPBACK:
        raise ValueError("must begin with https://; http:// is for loopback only")
    return url


def _signing_keys(value: str) -> tuple[Secret, ...]:
    found = parsers.secrets(value)
    if any(len(each.reveal()) < 32 for each in found):
        raise ValueError(
            "must contain only keys of at least 32 characters; `tornadoproxy token` prints one"
        )
    return found


def _notice(value: str) -> str:
    if len(value) > 500 or not value.isprintable():
        raise ValueError("must be at most 500 printable characters")
    return value


def _policies(value: str) -> Policies:
    """Read the policy file at a path."""
    from tornadoproxy_oidc.policies import Policies  # most starts have none

    file = parsers.toml_file(value)
    try:
        return Policies(file.document, file.path.parent)
    except ValueError as error:
        raise ValueError(f"must name a valid file, but in '{value}' {error}") from None


def _groups(value: str) -> tuple[str, ...]:
    """Parse names separated by spaces, of which those that contain one are in quotation marks."""
    import shlex  # most starts have none

    try:
        found = shlex.split(value)
    except ValueError:
        raise ValueError("has a quotation mark without its counterpart") from None
    if not all(found):
        raise ValueError("must not contain an empty name")
    return tuple(found)


def _scopes(value: str) -> tuple[str, ...]:
    found = parsers.words(value)
    if "openid" not in found:
        raise ValueError("must contain openid, without which the provider sends no ID token")
    return found


def _algorithms(value: str) -> tuple[str, ...]:
    """Parse the names of asymmetric signature algorithms."""
    found = parsers.words(value)
    for name in found:
        # an HMAC would take the provider's public key as its secret
        if name not in SIGNATURES:
            raise ValueError(f"must contain only {', '.join(SIGNATURES)}, not {name!r}")
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
    help="accepted signature algorithms; all are asymmetric",
)
OIDC_NAME_CLAIM: Setting[str] = Setting(
    "OIDC_NAME_CLAIM",
    parsers.text,
    default="sub",
    help=(
        "claim that is a person's name in logs, limits and budgets. It must be unique, and people "
        "must not be able to choose it."
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
    help="accepted domains of e-mail addresses; without any, an address is optional",
)
OIDC_ADMIN_GROUPS: Setting[tuple[str, ...]] = Setting(
    "OIDC_ADMIN_GROUPS",
    _groups,
    default=(),
    help=(
        "groups of the provider, separated by spaces, whose people are administrators, in the "
        "Admin API and in the web console; a name that contains a space is in quotation marks"
    ),
)
OIDC_ADMIN_READ_GROUPS: Setting[tuple[str, ...]] = Setting(
    "OIDC_ADMIN_READ_GROUPS",
    _groups,
    default=(),
    help="the same for people who may see what administrators see, and change nothing",
)
OIDC_LEEWAY: Setting[int] = Setting(
    "OIDC_LEEWAY",
    parsers.integer(0, 300),
    default=30,
    help="seconds that the provider's clock may differ from the proxy's",
)
OIDC_POLICY_FILE: Setting[Policies | None] = Setting(
    "OIDC_POLICY_FILE",
    _policies,
    default=None,
    help=(
        "TOML file of policies for groups: models, caps, limits, denied access, and settings of "
        "Claude Code"
    ),
)

OIDC_CLIENT_ID: Setting[str | None] = Setting(
    "OIDC_CLIENT_ID",
    parsers.text,
    default=None,
    help="client id of the proxy at the provider; with it, people sign in from Claude Code",
    fixed=True,
)
OIDC_CLIENT_SECRET: Setting[Secret | None] = Setting(
    "OIDC_CLIENT_SECRET",
    parsers.secret,
    default=None,
    help="secret of OIDC_CLIENT_ID; a public client has none, and PKCE protects it",
    secret=True,
)
OIDC_SCOPES: Setting[tuple[str, ...]] = Setting(
    "OIDC_SCOPES",
    _scopes,
    default=("openid", "profile", "email", "offline_access"),
    help=(
        "scopes to request from the provider, separated by spaces. Without a refresh token of the "
        "provider, people sign in again when their bearer token expires."
    ),
)
OIDC_PARAMETERS: Setting[Mapping[str, str] | None] = Setting(
    "OIDC_PARAMETERS",
    parsers.pairs,
    default=None,
    help=(
        "name=value pairs, separated by spaces, to add to the authorization request, such as "
        "prompt=consent, without which some providers issue no refresh token"
    ),
)
OIDC_PUBLIC_URL: Setting[BaseURL | None] = Setting(
    "OIDC_PUBLIC_URL",
    _public_url,
    default=None,
    help="URL of the proxy for browsers and Claude Code: https, or http for loopback",
    fixed=True,
)
OIDC_DB: Setting[DatabaseLocation | None] = Setting(
    "OIDC_DB",
    parsers.database,
    default=None,
    help="SQLite file, created if missing, or postgresql:// URL for the sign-ins",
    fixed=True,
    fallbacks=("DATABASE_URL",),
)
OIDC_SIGNING_KEY: Setting[tuple[Secret, ...]] = Setting(
    "OIDC_SIGNING_KEY",
    _signing_keys,
    default=(),
    help=(
        "secret of at least 32 characters that signs bearer tokens, the same for all replicas. Of "
        "several, separated by spaces, the first signs and the others are accepted."
    ),
    secret=True,
)
OIDC_BEARER_SECONDS: Setting[int] = Setting(
    "OIDC_BEARER_SECONDS",
    parsers.integer(600, MAX_BEARER),
    default=3600,
    help="seconds until a bearer token expires; each refresh checks the person at the provider",
)
OIDC_SESSION_SECONDS: Setting[int] = Setting(
    "OIDC_SESSION_SECONDS",
    parsers.integer(3600),
    default=30 * 86_400,
    help="seconds until a person has to sign in again, whatever the provider says",
)
OIDC_LOGIN_NOTICE: Setting[str | None] = Setting(
    "OIDC_LOGIN_NOTICE",
    _notice,
    default=None,
    help="text of at most 500 characters that Claude Code shows during the sign-in",
    fixed=True,
)
OIDC_CONFIRM_EMAIL: Setting[bool] = Setting(
    "OIDC_CONFIRM_EMAIL",
    parsers.boolean,
    default=False,
    help="whether Claude Code shows the e-mail address and asks whether it is the right one",
    fixed=True,
)

OIDC_OTLP_ENDPOINT: Setting[BaseURL | None] = Setting(
    "OIDC_OTLP_ENDPOINT",
    parsers.base_url,
    default=None,
    help="base URL of the OpenTelemetry collector that gets the telemetry of clients over HTTP",
)

SETTINGS = (
    *(OIDC_ISSUER, OIDC_AUDIENCES, OIDC_WORKLOADS, OIDC_ALGORITHMS, OIDC_LEEWAY),
    *(OIDC_NAME_CLAIM, OIDC_EMAIL_CLAIM, OIDC_GROUPS_CLAIM, OIDC_EMAIL_DOMAINS),
    *(OIDC_ADMIN_GROUPS, OIDC_ADMIN_READ_GROUPS, OIDC_POLICY_FILE),
    *(OIDC_CLIENT_ID, OIDC_CLIENT_SECRET, OIDC_SCOPES, OIDC_PARAMETERS, OIDC_DB),
    *(OIDC_PUBLIC_URL, OIDC_SIGNING_KEY, OIDC_BEARER_SECONDS, OIDC_SESSION_SECONDS),
    *(OIDC_LOGIN_NOTICE, OIDC_CONFIRM_EMAIL, OIDC_OTLP_ENDPOINT),
)
