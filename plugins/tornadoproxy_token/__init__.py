"""The default authenticator: whoever presents the token gets in.

It is asked last, so that any other authenticator goes before it; ``DISABLED_PLUGINS=token`` takes
it away. Without a token everybody gets in, as an anonymous principal: that is for the loopback
interface, and binding another address then takes ``ALLOW_ANONYMOUS``. With ``KEYS_DB`` nobody gets
in by this plugin then: keys are asked for.
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

STRONG_LENGTH = 16  # characters; a shorter token is remarked upon

AUTH_TOKEN: Setting[tuple[Secret, ...]] = Setting(
    "AUTH_TOKEN",
    parsers.secrets,
    default=(),
    help="The token that clients present; during a rotation several, separated by blanks.",
    secret=True,
)
AUTH_TOKEN_FILE: Setting[tuple[Secret, ...]] = Setting(
    "AUTH_TOKEN_FILE",
    parsers.secrets_file,
    default=(),
    help="A file that holds the token or tokens, instead of AUTH_TOKEN. Read again on SIGHUP.",
)
ALLOW_ANONYMOUS: Setting[bool] = Setting(
    "ALLOW_ANONYMOUS",
    parsers.boolean,
    default=False,
    help="Whether everybody may enter who reaches the proxy, without a token, on any address.",
)


class TokenAuthenticator:
    """Compares what a request presents with the tokens; lets everybody in if there are none."""

    def __init__(self) -> None:
        self._tokens: tuple[tuple[Secret, Identity], ...] = ()
        self._anonymous: Identity | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[tuple[Secret, ...]] | Setting[bool], ...]:
        return AUTH_TOKEN, AUTH_TOKEN_FILE, ALLOW_ANONYMOUS

    @hookimpl
    def configure(self, settings: Settings) -> str:
        """Take the tokens; the line says who may enter.

        :raises ConfigurationError: they contradict each other; nobody would be let in but by
            saying so; or they are gone, which may be a file that is being written.
        """
        tokens = _tokens(settings)
        if tokens:
            self._anonymous = None
            self._tokens = tuple(zip(tokens, _identities(len(tokens)), strict=True))
            return _who_has(settings) + _remark(tokens)
        keyed = settings.is_set("KEYS_DB")
        who = "nobody: no AUTH_TOKEN is set" if keyed else _anybody(settings)
        if self._tokens and not settings[ALLOW_ANONYMOUS]:
            raise ConfigurationError(
                "AUTH_TOKEN is gone: set it, or start again to let in everybody on this machine."
            )
        self._anonymous = None if keyed else Identity("anonymous", anonymous=True)
        self._tokens = ()
        return who

    @hookimpl(trylast=True)
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        """Compare every candidate with every token, so that the time tells nothing."""
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
        faults.append("AUTH_TOKEN and AUTH_TOKEN_FILE are both set: take one of them away.")
    if tokens and allow_anonymous:
        faults.append(
            "ALLOW_ANONYMOUS contradicts the token that is set: take ALLOW_ANONYMOUS away to let "
            "in only who has it, or the token to let in everybody."
        )
    if faults:
        raise ConfigurationError(*faults)
    return tokens


def _identities(count: int) -> list[Identity]:
    if count == 1:
        return [Identity("token")]
    return [Identity(f"token-{position}") for position in range(1, count + 1)]


def _who_has(settings: Settings) -> str:
    variable = "AUTH_TOKEN" if settings[AUTH_TOKEN] else "AUTH_TOKEN_FILE"
    count = len(settings[AUTH_TOKEN] or settings[AUTH_TOKEN_FILE])
    if count > 1:
        return f"whoever has one of {count} tokens"
    return f"whoever has {variable}"


def _remark(tokens: tuple[Secret, ...]) -> str:
    if all(len(token.reveal()) >= STRONG_LENGTH for token in tokens):
        return ""
    return (
        f" (shorter than {STRONG_LENGTH} characters, so it can be guessed: "
        "`python -m tornadoproxy token` makes a strong one)"
    )


def _anybody(settings: Settings) -> str:
    if settings[ALLOW_ANONYMOUS]:
        return "ANYONE who reaches it, as anonymous (ALLOW_ANONYMOUS)"
    if _is_local(settings[HOST]):
        return "ANYONE on this machine, as anonymous: no AUTH_TOKEN is set"
    raise ConfigurationError(
        f"HOST is {settings[HOST]} and no AUTH_TOKEN is set: set one "
        "(`python -m tornadoproxy token` makes one), or KEYS_DB for a key for each person, or say "
        "ALLOW_ANONYMOUS=yes to let in everybody who reaches it."
    )


def _is_local(host: str) -> bool:
    """Whether only clients on this machine reach `host`: loopback, or a Unix socket."""
    if host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
