"""The token plugin: who may enter, with which settings, and what each mistake is told."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pytest
from tornado.httputil import HTTPHeaders
from tornadoproxy_token import ALLOW_ANONYMOUS, AUTH_TOKEN, AUTH_TOKEN_FILE, TokenAuthenticator

from tornadoproxy import (
    HOST,
    ConfigurationError,
    Dialect,
    Identity,
    IncomingRequest,
    Secret,
    Settings,
    hookimpl,
)
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "a-token-of-more-than-sixteen-characters"
OTHER = "another-token-of-that-length"


class CountingSecret(Secret):
    """A token that counts how often it is compared."""

    __slots__ = ("compared",)

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.compared = 0

    def matches(self, other: Secret) -> bool:
        self.compared += 1
        return super().matches(other)


def settings(
    tokens: tuple[Secret, ...] = (),
    in_file: tuple[Secret, ...] = (),
    host: str = "127.0.0.1",
    *,
    allow_anonymous: bool = False,
) -> Settings:
    return Settings.defaults(AUTH_TOKEN, AUTH_TOKEN_FILE, ALLOW_ANONYMOUS).replace(
        {
            AUTH_TOKEN: tokens,
            AUTH_TOKEN_FILE: in_file,
            ALLOW_ANONYMOUS: allow_anonymous,
            HOST: host,
        }
    )


def secrets(*tokens: str) -> tuple[Secret, ...]:
    return tuple(Secret(token) for token in tokens)


def configured(values: Settings) -> TokenAuthenticator:
    plugin = TokenAuthenticator()
    plugin.configure(values)
    return plugin


def line(values: Settings) -> str:
    """Who may enter, as it is shown at start."""
    return TokenAuthenticator().configure(values)


def faults(values: Settings) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        TokenAuthenticator().configure(values)
    return caught.value.faults


def request(*headers: tuple[str, str]) -> IncomingRequest:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    parsed = HTTPHeaders.parse(lines)
    return IncomingRequest("POST", "/v1/messages", parsed, "127.0.0.1", Dialect.ANTHROPIC)


def key(token: str) -> tuple[str, str]:
    return "X-Api-Key", token.encode().decode("latin-1")


def bearer(token: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {token}"


# Settings


def test_its_settings_are_read_from_their_texts(tmp_path: Path) -> None:
    assert AUTH_TOKEN.secret
    assert AUTH_TOKEN.parse(f"{TOKEN} {OTHER}") == secrets(TOKEN, OTHER)
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n{OTHER}\n")
    assert AUTH_TOKEN_FILE.parse(str(file)) == secrets(TOKEN, OTHER)
    assert ALLOW_ANONYMOUS.parse("1") is True
    with pytest.raises(ValueError, match="control characters"):
        AUTH_TOKEN.parse("a\x01b")


OTHERS = ("access_log", "prices", "keys", "ledger", "budgets", "metrics", "otel")


def test_it_declares_its_settings_through_the_entry_point() -> None:
    declared = Plugins.load(disabled=OTHERS).declared_settings()
    assert declared == (AUTH_TOKEN, AUTH_TOKEN_FILE, ALLOW_ANONYMOUS)


def test_the_line_says_who_may_enter() -> None:
    assert line(settings(secrets(TOKEN))) == "whoever has AUTH_TOKEN"
    assert line(settings(in_file=secrets(TOKEN))) == "whoever has AUTH_TOKEN_FILE"
    assert line(settings(secrets(TOKEN, OTHER))) == "whoever has one of 2 tokens"
    assert line(settings()) == "ANYONE on this machine, as anonymous: no AUTH_TOKEN is set"
    open_ = settings(host="0.0.0.0", allow_anonymous=True)
    assert line(open_) == "ANYONE who reaches it, as anonymous (ALLOW_ANONYMOUS)"


def test_a_short_token_is_remarked_upon_and_not_shown() -> None:
    short = line(settings(secrets(TOKEN, "fifteen-letters")))
    assert "shorter than 16 characters" in short
    assert "python -m tornadoproxy token" in short
    assert "fifteen-letters" not in short
    assert "shorter" not in line(settings(secrets("sixteen-letters-")))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_no_token_is_enough_on_the_loopback_interface(host: str) -> None:
    identity = configured(settings(host=host)).authenticate(request())
    assert identity == Identity("anonymous", anonymous=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost.example", "127.example"])
def test_no_token_elsewhere_names_both_ways_out(host: str) -> None:
    (fault,) = faults(settings(host=host))
    assert host in fault
    assert "AUTH_TOKEN" in fault
    assert "python -m tornadoproxy token" in fault
    assert "ALLOW_ANONYMOUS=yes" in fault
    assert "ANYONE who reaches it" in line(settings(host=host, allow_anonymous=True))
    assert "whoever has" in line(settings(secrets(TOKEN), host=host))


def test_settings_that_contradict_each_other_are_refused() -> None:
    (fault,) = faults(settings(secrets(TOKEN), secrets(OTHER)))
    assert "AUTH_TOKEN and AUTH_TOKEN_FILE are both set" in fault
    (fault,) = faults(settings(secrets(TOKEN), allow_anonymous=True))
    assert "ALLOW_ANONYMOUS contradicts" in fault
    (fault,) = faults(settings(in_file=secrets(TOKEN), allow_anonymous=True))
    assert "ALLOW_ANONYMOUS contradicts" in fault
    both = faults(settings(secrets(TOKEN), secrets(OTHER), allow_anonymous=True))
    assert len(both) == 2
    assert TOKEN not in str(both)


# Requests


@pytest.mark.parametrize(
    "presented", [key(TOKEN), bearer(TOKEN), ("authorization", f"bEARER  {TOKEN} ")]
)
def test_the_token_lets_in(presented: tuple[str, str]) -> None:
    plugin = configured(settings(secrets(TOKEN)))
    assert plugin.authenticate(request(presented)) == Identity("token")


def test_a_token_from_a_file_lets_in() -> None:
    plugin = configured(settings(in_file=secrets(TOKEN)))
    assert plugin.authenticate(request(key(TOKEN))) == Identity("token")


def test_each_of_several_tokens_has_a_principal_of_its_own() -> None:
    plugin = configured(settings(secrets(TOKEN, OTHER)))
    assert plugin.authenticate(request(bearer(TOKEN))) == Identity("token-1")
    assert plugin.authenticate(request(bearer(OTHER))) == Identity("token-2")


@pytest.mark.parametrize(
    "presented",
    [
        [key("wrong")],
        [bearer("wrong")],
        [key(TOKEN[:-1])],
        [key(TOKEN + "x")],
        [key(TOKEN.upper())],
        [key(f"{TOKEN},{TOKEN}")],
        [key("wrong"), bearer(TOKEN)],  # x-api-key goes first, even if it is wrong
        [key("tökén")],
        [],
        [key("")],
        [key("  ")],
        [("Authorization", "Basic dTpw")],
        [bearer("")],
    ],
)
def test_an_unknown_credential_is_left_to_the_manager(presented: list[tuple[str, str]]) -> None:
    assert configured(settings(secrets(TOKEN))).authenticate(request(*presented)) is None


def test_one_right_key_among_several_is_enough() -> None:
    plugin = configured(settings(secrets(TOKEN)))
    assert plugin.authenticate(request(key("dummy"), key(TOKEN))) == Identity("token")
    assert plugin.authenticate(request(key(TOKEN), key("dummy"))) == Identity("token")


def test_a_token_beyond_ascii_is_compared_as_bytes() -> None:
    plugin = configured(settings(secrets("pässwörd-of-enough-length")))
    assert plugin.authenticate(request(key("pässwörd-of-enough-length"))) == Identity("token")
    # as Latin-1
    assert plugin.authenticate(request(("X-Api-Key", "pässwörd-of-enough-length"))) is None


def test_every_candidate_is_compared_with_every_token() -> None:
    tokens = [CountingSecret(TOKEN), CountingSecret(OTHER), CountingSecret("a third one, unused")]
    plugin = configured(settings(tuple(tokens)))
    plugin.authenticate(request(key(TOKEN), key("dummy")))
    assert [token.compared for token in tokens] == [2, 2, 2]


def test_without_a_token_credentials_are_not_looked_at() -> None:
    plugin = configured(settings())
    # two that differ would be a 401, were they looked at
    everything = request(bearer("one"), bearer("two"))
    assert plugin.authenticate(everything) == Identity("anonymous", anonymous=True)


def test_nobody_enters_before_it_is_configured() -> None:
    plugin = TokenAuthenticator()
    assert plugin.authenticate(request(key(TOKEN))) is None


def test_new_settings_take_effect_for_the_next_request() -> None:
    plugin = configured(settings(secrets(TOKEN)))
    plugin.configure(settings(secrets(OTHER)))
    assert plugin.authenticate(request(key(OTHER))) == Identity("token")
    assert plugin.authenticate(request(key(TOKEN))) is None


def test_open_mode_ends_when_a_token_is_set() -> None:
    plugin = configured(settings())
    plugin.configure(settings(secrets(TOKEN)))
    assert plugin.authenticate(request()) is None


def test_a_token_that_is_gone_opens_nothing_unless_that_is_said() -> None:
    """A file that is being written may lack it when it is read again."""
    plugin = configured(settings(secrets(TOKEN)))
    with pytest.raises(ConfigurationError, match="AUTH_TOKEN is gone"):
        plugin.configure(settings())
    assert plugin.authenticate(request()) is None
    assert plugin.authenticate(request(key(TOKEN))) == Identity("token")
    plugin.configure(settings(allow_anonymous=True))
    assert plugin.authenticate(request()) == Identity("anonymous", anonymous=True)


def test_refused_settings_change_nothing() -> None:
    plugin = configured(settings(secrets(TOKEN)))
    with pytest.raises(ConfigurationError):
        plugin.configure(settings(host="0.0.0.0"))
    assert plugin.authenticate(request()) is None
    assert plugin.authenticate(request(key(TOKEN))) == Identity("token")


def test_it_is_asked_after_any_other_authenticator() -> None:
    class Other:
        @hookimpl
        def authenticate(self, request: IncomingRequest) -> Identity:
            return Identity("other")

    class Point:
        name = "zz_other"
        value = "at:hand"
        dist = None

        def load(self) -> object:
            return Other()

    own = entry_points(group="tornadoproxy", name="token")
    points: list[Any] = [Point(), *own]
    plugins = Plugins.load(entry_points=points)
    assert [info.name for info in plugins.describe()] == ["zz_other", "token"]
    plugins.configure(settings(secrets(TOKEN)))
    assert plugins.authenticate(request(key("wrong"))) == Identity("other")
