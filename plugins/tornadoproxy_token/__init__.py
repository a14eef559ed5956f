"""The default authenticator: a shared token.

It is asked last, after all other authenticators; ``DISABLED_PLUGINS=token`` removes it. Without a
token every request is accepted as an anonymous principal, which is meant for the loopback
interface; listening on another address then requires ``ALLOW_ANONYMOUS``. With ``KEYS_DB`` or
``OIDC_ISSUER``, and without a token, this plugin accepts no request: the others' credentials are
required.
"""

from __future__ import annotations

import ipaddress

from tornadoproxy import (
    HOST,
    ConfigurationError,
    Identity,
    IncomingRequest,
    Secret,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

CREDENTIALS_OF_OTHERS = ("KEYS_DB", "OIDC_ISSUER")
"""The settings with which other plugins give credentials, without which nobody is accepted then."""

STRONG_LENGTH = 16  # characters; the start line warns of a shorter token

AUTH_TOKEN: Setting[tuple[Secret, ...]] = Setting(
    "AUTH_TOKEN",
    parsers.secrets,
    default=(),
    help="token that clients present; several, separated by spaces, during a rotation",
    secret=True,
)
AUTH_TOKEN_FILE: Setting[tuple[Secret, ...]] = Setting(
    "AUTH_TOKEN_FILE",
    parsers.secrets_file,
    default=(),
    help="file that holds the token or tokens, instead of AUTH_TOKEN. Reloaded on SIGHUP.",
)
ALLOW_ANONYMOUS: Setting[bool] = Setting(
    "ALLOW_ANONYMOUS",
    parsers.boolean,
    default=False,
    help="accept every request without a token, on any address",
)


class TokenAuthenticator:
    """The plugin: it accepts the tokens, or every request if there are none."""

    def __init__(self) -> None:
        self._tokens: tuple[tuple[Secret, Identity], ...] = ()
        self._anonymous: Identity | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[tuple[Secret, ...]] | Setting[bool], ...]:
        return AUTH_TOKEN, AUTH_TOKEN_FILE, ALLOW_ANONYMOUS

    @hookimpl
    def configure(self, settings: Settings) -> str:
        """Take the tokens; the line says which clients are accepted.

        :raises ConfigurationError: the settings contradict each other; anonymous access is not
            allowed explicitly; or the tokens are gone, as in a file that is being written.
        """
        tokens = _tokens(settings)
        if tokens:
            self._anonymous = None
            self._tokens = tuple(zip(tokens, _identities(len(tokens)), strict=True))
            return _accepted(settings) + _warning(tokens)
        others = any(map(settings.is_set, CREDENTIALS_OF_OTHERS))
        who = "nobody: no AUTH_TOKEN is set" if others else _anybody(settings)
        if self._tokens and not settings[ALLOW_ANONYMOUS]:
            raise ConfigurationError(
                "AUTH_TOKEN is gone; set it, or restart to accept everybody on this machine."
            )
        self._anonymous = None if others else Identity("anonymous", anonymous=True)
        self._tokens = ()
        return who

    @hookimpl(trylast=True)
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        """Compare every candidate with every token, so that the duration reveals nothing."""
        if self._anonymous is not None:
            return self._anonymous
        user: Identity | None = None
        for candidate in request.candidates():
            for token, identity in self._tokens:
                if token.matches(candidate):
                    user = identity
        return user


def _tokens(settings: Settings) -> tuple[Secret, ...]:
    tokens = settings[AUTH_TOKEN] or settings[AUTH_TOKEN_FILE]
    allow_anonymous = settings[ALLOW_ANONYMOUS]
    faults = []
    if settings[AUTH_TOKEN] and settings[AUTH_TOKEN_FILE]:
        faults.append("AUTH_TOKEN and AUTH_TOKEN_FILE are both set; remove one of them.")
    if tokens and allow_anonymous:
        faults.append(
            "ALLOW_ANONYMOUS contradicts the token that is set; remove ALLOW_ANONYMOUS to require "
            "the token, or the token to accept everybody."
        )
    if faults:
        raise ConfigurationError(*faults)
    return tokens


def _identities(count: int) -> list[Identity]:
    if count == 1:
        return [Identity("token")]
    return [Identity(f"token-{position}") for position in range(1, count + 1)]


def _accepted(settings: Settings) -> str:
    variable = "AUTH_TOKEN" if settings[AUTH_TOKEN] else "AUTH_TOKEN_FILE"
    count = len(settings[AUTH_TOKEN] or settings[AUTH_TOKEN_FILE])
    if count > 1:
        return f"clients with one of {count} tokens"
    return f"clients with {variable}"


def _warning(tokens: tuple[Secret, ...]) -> str:
    if all(len(token.reveal()) >= STRONG_LENGTH for token in tokens):
        return ""
    return (
        f" (shorter than {STRONG_LENGTH} characters and therefore guessable; "
        "`python -m tornadoproxy token` creates a strong one)"
    )


def _anybody(settings: Settings) -> str:
    if settings[ALLOW_ANONYMOUS]:
        return "ANYONE who reaches the proxy, as anonymous (ALLOW_ANONYMOUS)"
    if _is_local(settings[HOST]):
        return "ANYONE on this machine, as anonymous: no AUTH_TOKEN is set"
    raise ConfigurationError(
        f"HOST is {settings[HOST]} and no AUTH_TOKEN is set; set one "
        "(`python -m tornadoproxy token` creates one), or KEYS_DB for a key for each person, or "
        "OIDC_ISSUER to let people sign in, or ALLOW_ANONYMOUS=yes to accept everybody who reaches "
        "the proxy."
    )


def _is_local(host: str) -> bool:
    """Return whether only this machine reaches `host`: loopback, or a Unix socket."""
    if host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
