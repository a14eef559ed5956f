"""The plugin token: accepted credentials, and its settings."""

from __future__ import annotations

import pytest
from scene import Scene
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

TOKEN = "a-token-of-more-than-sixteen-characters"
OTHER = "another-token-of-that-length"
ANONYMOUS = Identity("anonymous", anonymous=True)
KEYS_DB: Setting[str] = Setting("KEYS_DB", str, default="", help="As the plugin keys declares it.")
OIDC_ISSUER: Setting[str] = Setting("OIDC_ISSUER", str, default="", help="Likewise of oidc.")
IN_FILE = {AUTH_TOKEN_FILE: (Secret(TOKEN),)}
ALLOWED = {ALLOW_ANONYMOUS: True}
EVERYWHERE = {HOST: "0.0.0.0"}


def settings(*tokens: str) -> Settings:
    return Settings.defaults(AUTH_TOKEN, AUTH_TOKEN_FILE, ALLOW_ANONYMOUS).replace(
        {AUTH_TOKEN: tuple(map(Secret, tokens))}
    )


def configured(values: Settings) -> TokenAuthenticator:
    plugin = TokenAuthenticator()
    plugin.configure(values)
    return plugin


def line(values: Settings) -> str:
    return TokenAuthenticator().configure(values)


def faults(values: Settings) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        TokenAuthenticator().configure(values)
    return caught.value.faults


def request(*credentials: str) -> IncomingRequest:
    """A request with these lines of ``x-api-key``, or of ``Authorization`` for a bearer."""
    lines = "".join(
        f"{'Authorization' if each.startswith('Bearer ') else 'X-Api-Key'}: {each}\r\n"
        for each in credentials
    )
    headers = HTTPHeaders.parse(lines)
    return IncomingRequest("POST", "/v1/messages", headers, "127.0.0.1", Dialect.ANTHROPIC)


def test_line_says_which_clients_are_accepted() -> None:
    assert line(settings(TOKEN)) == "clients with AUTH_TOKEN"
    assert line(settings().replace(IN_FILE)) == "clients with AUTH_TOKEN_FILE"
    assert line(settings(TOKEN, OTHER)) == "clients with one of 2 tokens"
    assert line(settings()) == "ANYONE on this machine, as anonymous: no AUTH_TOKEN is set"
    assert line(settings().replace({HOST: "unix:/run/x"})).startswith("ANYONE on this machine")
    everybody = line(settings().replace(EVERYWHERE | ALLOWED))
    assert everybody == "ANYONE who reaches the proxy, as anonymous (ALLOW_ANONYMOUS)"
    for other in (KEYS_DB, OIDC_ISSUER):
        signed_in = settings().replace({**EVERYWHERE, other: "set"})
        assert line(signed_in) == "nobody: no AUTH_TOKEN is set"


def test_line_warns_of_a_short_token_without_showing_it() -> None:
    short = line(settings(TOKEN, "fifteen-letters"))
    assert "shorter than 16 characters" in short
    assert "python -m tornadoproxy token" in short
    assert "fifteen-letters" not in short
    assert "shorter" not in line(settings("sixteen-letters-"))


@pytest.mark.parametrize("host", ["127.9.9.9", "::1", "localhost"])
def test_without_a_token_loopback_is_anonymous(host: str) -> None:
    plugin = configured(settings().replace({HOST: host}))
    # two credentials that differ would be a 401
    assert plugin.authenticate(request("Bearer one", "Bearer two")) == ANONYMOUS


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.example"])
def test_without_a_token_other_addresses_are_refused(host: str) -> None:
    (fault,) = faults(settings().replace({HOST: host}))
    for part in (host, "AUTH_TOKEN", "python -m tornadoproxy token", "ALLOW_ANONYMOUS=yes"):
        assert part in fault
    assert "clients with" in line(settings(TOKEN).replace({HOST: host}))


def test_contradicting_settings_are_refused() -> None:
    both, contradicts = faults(settings(OTHER).replace(IN_FILE | ALLOWED))
    assert both.startswith("AUTH_TOKEN and AUTH_TOKEN_FILE are both set")
    assert contradicts.startswith("ALLOW_ANONYMOUS contradicts")
    assert OTHER not in both + contradicts


def test_every_key_is_compared_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def matches(token: Secret, candidate: Secret) -> bool:
        compared.append(token)
        return token.reveal() == candidate.reveal()

    monkeypatch.setattr(Secret, "matches", matches)
    plugin = configured(settings(TOKEN, OTHER))
    assert plugin.authenticate(request("dummy", TOKEN)) == Identity("token-1")
    assert plugin.authenticate(request(OTHER, "dummy")) == Identity("token-2")
    assert len(compared) == 8


def test_reload_applies_to_the_next_request() -> None:
    plugin = TokenAuthenticator()
    assert plugin.authenticate(request(TOKEN)) is None, "not configured yet"
    plugin.configure(settings())
    plugin.configure(settings(TOKEN))
    assert plugin.authenticate(request()) is None
    plugin.configure(settings(OTHER))
    assert plugin.authenticate(request(OTHER)) == Identity("token")
    assert plugin.authenticate(request(TOKEN)) is None


def test_refused_reload_changes_nothing() -> None:
    plugin = configured(settings(TOKEN))
    # a file may lack the token while it is written
    with pytest.raises(ConfigurationError, match="AUTH_TOKEN is gone"):
        plugin.configure(settings())
    with pytest.raises(ConfigurationError, match=r"HOST is 0\.0\.0\.0"):
        plugin.configure(settings().replace(EVERYWHERE))
    assert plugin.authenticate(request()) is None
    assert plugin.authenticate(request(TOKEN)) == Identity("token")
    plugin.configure(settings().replace(ALLOWED))
    assert plugin.authenticate(request()) == ANONYMOUS


async def test_plugin_is_asked_after_other_authenticators(scene: Scene) -> None:
    class Other:
        @hookimpl
        def authenticate(self) -> Identity:
            return Identity("other")

    proxy = await scene.start(plugins={"zz_other": Other()}, AUTH_TOKEN=TOKEN)
    names = [info.name for info in proxy.plugins.describe()]
    assert names.index("zz_other") < names.index("token")
    assert (await scene.ask("/v1/models", token=TOKEN)).status == 200
    assert (await scene.records.finished()).principal == "other"
