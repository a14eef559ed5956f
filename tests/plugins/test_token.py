"""The plugin token: accepted credentials, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    Setting,
    Settings,
    hookimpl,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import Ask, Records, StartProxy

TOKEN = "a-token-of-more-than-sixteen-characters"
OTHER = "another-token-of-that-length"
ANONYMOUS = Identity("anonymous", anonymous=True)
KEYS_DB: Setting[str] = Setting("KEYS_DB", str, default="", help="As the plugin keys declares it.")


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
    *tokens: str | Secret,
    in_file: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    allow_anonymous: bool = False,
) -> Settings:
    given = {ALLOW_ANONYMOUS: allow_anonymous, HOST: host}
    secrets = tuple(each if isinstance(each, Secret) else Secret(each) for each in tokens)
    files = tuple(map(Secret, in_file))
    return Settings.defaults(AUTH_TOKEN, AUTH_TOKEN_FILE, ALLOW_ANONYMOUS).replace(
        {AUTH_TOKEN: secrets, AUTH_TOKEN_FILE: files, **given}
    )


def configured(values: Settings) -> TokenAuthenticator:
    plugin = TokenAuthenticator()
    plugin.configure(values)
    return plugin


def line(values: Settings) -> str:
    """Return the line at start that says which clients are accepted."""
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


def test_line_says_which_clients_are_accepted() -> None:
    assert line(settings(TOKEN)) == "clients with AUTH_TOKEN"
    assert line(settings(in_file=(TOKEN,))) == "clients with AUTH_TOKEN_FILE"
    assert line(settings(TOKEN, OTHER)) == "clients with one of 2 tokens"
    assert line(settings()) == "ANYONE on this machine, as anonymous: no AUTH_TOKEN is set"
    assert line(settings(host="unix:/run/x")).startswith("ANYONE on this machine")
    open_ = settings(host="0.0.0.0", allow_anonymous=True)
    assert line(open_) == "ANYONE who reaches the proxy, as anonymous (ALLOW_ANONYMOUS)"
    keyed = settings(host="0.0.0.0").replace({KEYS_DB: "keys.db"})
    assert line(keyed) == "nobody: no AUTH_TOKEN is set"


def test_line_warns_of_a_short_token_without_showing_it() -> None:
    short = line(settings(TOKEN, "fifteen-letters"))
    assert "shorter than 16 characters" in short
    assert "python -m tornadoproxy token" in short
    assert "fifteen-letters" not in short
    assert "shorter" not in line(settings("sixteen-letters-"))


@pytest.mark.parametrize("host", ["127.9.9.9", "::1", "localhost"])
def test_without_a_token_loopback_is_anonymous(host: str) -> None:
    assert configured(settings(host=host)).authenticate(request()) == ANONYMOUS


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.example"])
def test_without_a_token_other_addresses_are_refused(host: str) -> None:
    (fault,) = faults(settings(host=host))
    for part in (host, "AUTH_TOKEN", "python -m tornadoproxy token", "ALLOW_ANONYMOUS=yes"):
        assert part in fault
    assert "ANYONE" in line(settings(host=host, allow_anonymous=True))
    assert "clients with" in line(settings(TOKEN, host=host))


def test_contradicting_settings_are_refused() -> None:
    both = "AUTH_TOKEN and AUTH_TOKEN_FILE are both set"
    anonymous = "ALLOW_ANONYMOUS contradicts"
    for values, starts in (
        (settings(TOKEN, in_file=(OTHER,)), [both]),
        (settings(TOKEN, allow_anonymous=True), [anonymous]),
        (settings(in_file=(TOKEN,), allow_anonymous=True), [anonymous]),
        (settings(TOKEN, in_file=(OTHER,), allow_anonymous=True), [both, anonymous]),
    ):
        found = faults(values)
        assert len(found) == len(starts)
        for fault, start in zip(found, starts, strict=True):
            assert fault.startswith(start)
            assert TOKEN not in fault


# Requests


@pytest.mark.parametrize("presented", [key(TOKEN), bearer(TOKEN)])
def test_token_is_accepted_in_either_header(presented: tuple[str, str]) -> None:
    for values in (settings(TOKEN), settings(in_file=(TOKEN,))):
        assert configured(values).authenticate(request(presented)) == Identity("token")


def test_each_token_has_its_own_principal() -> None:
    plugin = configured(settings(TOKEN, OTHER))
    assert plugin.authenticate(request(bearer(TOKEN))) == Identity("token-1")
    assert plugin.authenticate(request(bearer(OTHER))) == Identity("token-2")


@pytest.mark.parametrize(
    "presented",
    [
        [key(TOKEN[:-1])],
        [key(TOKEN + "x")],
        [key(TOKEN.upper())],
        [key("wrong"), bearer(TOKEN)],  # x-api-key takes precedence
        [key("tökén")],
        [],
    ],
)
def test_unknown_credential_is_left_to_others(presented: list[tuple[str, str]]) -> None:
    assert configured(settings(TOKEN)).authenticate(request(*presented)) is None
    assert TokenAuthenticator().authenticate(request(*presented)) is None, "not configured yet"


def test_one_valid_key_among_several_suffices() -> None:
    tokens = [CountingSecret(TOKEN), CountingSecret(OTHER), CountingSecret("a third one, unused")]
    plugin = configured(settings(*tokens))
    for keys in ((key("dummy"), key(TOKEN)), (key(TOKEN), key("dummy"))):
        assert plugin.authenticate(request(*keys)) == Identity("token-1")
    # every candidate is compared with every token
    assert [token.compared for token in tokens] == [4, 4, 4]


def test_without_a_token_credentials_are_ignored() -> None:
    # two that differ would be a 401
    everything = request(bearer("one"), bearer("two"))
    assert configured(settings()).authenticate(everything) == ANONYMOUS


# Reloads


def test_reload_applies_to_the_next_request() -> None:
    plugin = configured(settings())
    plugin.configure(settings(TOKEN))
    assert plugin.authenticate(request()) is None
    plugin.configure(settings(OTHER))
    assert plugin.authenticate(request(key(OTHER))) == Identity("token")
    assert plugin.authenticate(request(key(TOKEN))) is None


def test_refused_reload_changes_nothing() -> None:
    plugin = configured(settings(TOKEN))
    # a file may lack the token while it is written
    with pytest.raises(ConfigurationError, match="AUTH_TOKEN is gone"):
        plugin.configure(settings())
    with pytest.raises(ConfigurationError, match=r"HOST is 0\.0\.0\.0"):
        plugin.configure(settings(host="0.0.0.0"))
    assert plugin.authenticate(request()) is None
    assert plugin.authenticate(request(key(TOKEN))) == Identity("token")
    plugin.configure(settings(allow_anonymous=True))
    assert plugin.authenticate(request()) == ANONYMOUS


async def test_plugin_is_asked_after_other_authenticators(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    class Other:
        @hookimpl
        def authenticate(self, request: IncomingRequest) -> Identity:
            return Identity("other")

    proxy = await start_proxy(plugins={"zz_other": Other()}, AUTH_TOKEN=TOKEN)
    names = [info.name for info in proxy.plugins.describe()]
    assert names.index("zz_other") < names.index("token")
    assert (await ask("/v1/models", token=TOKEN)).status == 200
    assert (await records.finished()).principal == "other"
