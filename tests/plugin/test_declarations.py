"""What plugins declare: settings, lines, inactivity, credential headers and pages."""

from __future__ import annotations

from typing import Any

import pytest
from doubles import (
    CANARY,
    RECORD,
    REQUEST,
    Authenticator,
    Plugin,
    ask,
    plugins_of,
    points_of,
    run,
    starting,
)

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Identity,
    Page,
    PageResponse,
    Setting,
    Settings,
    Usage,
    hookimpl,
    parsers,
)
from tornadoproxy.plugin.manager import Plugins

TEAM = Setting("TEAM", parsers.text, default="", help="The team.")
OTHER = Setting("OTHER", parsers.text, default="", help="Another.")
DEFAULTS = Settings.defaults()


def declares(*settings: object) -> Plugin:
    return Plugin(declare_settings=lambda: iter(settings))


def faults_of(plugins: Plugins, settings: Settings = DEFAULTS) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        plugins.configure(settings)
    return caught.value.faults


# -- settings


def test_declared_settings_come_in_order() -> None:
    plugins = plugins_of(b=declares(TEAM), a=declares(OTHER), c=Authenticator())
    assert plugins.declared_settings() == (OTHER, TEAM)


def fail() -> Any:
    raise LookupError("not here")


HOST = Setting("HOST", parsers.text, default="", help="Not the core's.")


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (declares(HOST), "the name of its setting HOST is taken"),
        (declares(OTHER, TEAM), "the name of its setting TEAM is taken"),
        (declares("TEAM"), "declares a str"),
        (Plugin(declare_settings=fail), "LookupError: not here"),
    ],
)
def test_invalid_declaration_of_settings_is_refused(plugin: Plugin, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plugins_of(a=declares(TEAM), b=plugin)
    (fault,) = caught.value.faults
    assert "'b'" in fault
    assert said in fault


# -- configure


class Configured(Authenticator):
    """Records the teams that it is configured with; raises `complaint` for the team ``bad``."""

    def __init__(self, line: object = None, complaint: Exception | None = None) -> None:
        super().__init__()
        self.line = line
        self.complaint = complaint
        self.teams: list[str] = []

    @hookimpl
    def configure(self, settings: Settings) -> Any:
        self.teams.append(settings[TEAM])
        if self.complaint and settings[TEAM] == "bad":
            raise self.complaint
        return self.line


def team(name: str) -> Settings:
    return DEFAULTS.replace({TEAM: name})


def test_configure_returns_lines_in_order() -> None:
    plugins = plugins_of(b=Configured("second"), a=Configured("first"), c=Configured())
    assert plugins.configure(team("x")) == (("a", "first"), ("b", "second"))


def test_configuration_errors_of_all_plugins_end_start() -> None:
    first = Configured(complaint=ConfigurationError("TEAM is bad", "and so is HOST"))
    second = Configured(complaint=ConfigurationError("TEAM is very bad"))
    faults = faults_of(plugins_of(a=first, b=second), team("bad"))
    assert faults == ("TEAM is bad", "and so is HOST", "TEAM is very bad")


@pytest.mark.parametrize("complaint", [KeyError(CANARY), ConfigurationError()])
def test_other_exception_ends_start_without_its_text(complaint: Exception) -> None:
    (fault,) = faults_of(plugins_of(a=Configured(complaint=complaint)), team("bad"))
    assert fault.startswith(f"plugin 'a' failed in configure: {type(complaint).__name__} in ")
    assert "test_declarations.py, line" in fault
    assert CANARY not in fault


@pytest.mark.parametrize("line", [7, "two\nlines", "", b"bytes"])
def test_anything_but_one_line_ends_start(line: object) -> None:
    (fault,) = faults_of(plugins_of(a=Configured(line)), team("x"))
    assert fault == "plugin 'a': configure must return one line of text, or None"


def test_refused_reload_restores_settings_of_every_plugin() -> None:
    refusing = Configured(complaint=ConfigurationError("no"))
    configured = (Configured(), refusing, Configured())
    plugins = plugins_of(**dict(zip("abc", configured, strict=True)))
    plugins.configure(team("first"))
    plugins.configure(team("second"))
    assert faults_of(plugins, team("bad")) == ("no",)
    for plugin in configured:
        assert plugin.teams == ["first", "second", "bad", "second"]


def test_refused_start_restores_nothing() -> None:
    plugin = Configured(complaint=ConfigurationError("no"))
    plugins = plugins_of(a=plugin)
    for _ in range(2):
        faults_of(plugins, team("bad"))
    assert plugin.teams == ["bad", "bad"]


def test_plugin_that_refuses_earlier_settings_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Configured()
    plugins = plugins_of(a=stuck, b=Configured(complaint=ConfigurationError("no")))
    plugins.configure(team("good"))
    stuck.line = 7
    faults_of(plugins, team("bad"))
    assert "the earlier settings are refused as well: plugin 'a'" in caplog.text


# -- inactive plugins

HOOKS: dict[str, Any] = {
    "pages": lambda: [Page("/sleeper", lambda request: PageResponse(b"{}"))],
    "startup": lambda: None,
    "authenticate": lambda: Identity("sleeper"),
    "admit": lambda: None,
    "authorize": lambda: None,
    "price": lambda: 1,
    "request_finished": lambda: None,
    "shutdown": lambda: None,
}


class Sleeper:
    """A plugin that is inactive as long as the settings say so, and records what is called."""

    def __init__(self, *, inactive: bool = True) -> None:
        self.inactive = inactive
        self.called: list[str] = []
        for name, function in HOOKS.items():
            setattr(self, name, self._recorded(name, function))

    def _recorded(self, name: str, function: Any) -> Any:
        @hookimpl(specname=name)
        def call() -> Any:
            self.called.append(name)
            return function()

        return call

    @hookimpl
    def configure(self) -> object:
        return INACTIVE if self.inactive else "awake"


def go_through(plugins: Plugins) -> None:
    """Call every hook that a configured plugin may have, but those that authorize."""
    run(starting(plugins))
    ask(plugins)
    plugins.price("claude", Usage(input_tokens=1))
    plugins.request_finished(RECORD)
    run(plugins.shutdown)


def test_inactive_plugin_is_never_called() -> None:
    sleeper = Sleeper()
    points = points_of(sleeper=sleeper, spare=Authenticator(), zed=Authenticator(Identity("zed")))
    plugins = Plugins.load(("spare",), points)
    plugins.configure(DEFAULTS)
    go_through(plugins)
    assert sleeper.called == []
    assert ask(plugins) == Identity("zed")
    assert (plugins.admits, plugins.authorizes, plugins.pages()) == (False, False, ())
    assert [(info.name, info.state, info.order) for info in plugins.describe()] == [
        ("zed", "active", 1),
        ("sleeper", "inactive", None),
        ("spare", "disabled", None),
    ]


def test_active_plugin_is_called_for_every_hook() -> None:
    sleeper = Sleeper(inactive=False)
    plugins = plugins_of(sleeper=sleeper)
    plugins.configure(DEFAULTS)
    go_through(plugins)
    assert sleeper.called == [name for name in HOOKS if name not in ("admit", "authorize")]
    assert (plugins.admits, plugins.authorizes) == (True, True)
    assert [(name, page.path) for name, page in plugins.pages()] == [("sleeper", "/sleeper")]
    (info,) = plugins.describe()
    assert [page.path for page in info.pages] == ["/sleeper"]


def test_inactive_authenticators_alone_end_start() -> None:
    (fault,) = faults_of(plugins_of(sleeper=Sleeper()))
    assert "every request would be rejected" in fault
    assert "set the settings of one of these plugins: sleeper" in fault


@pytest.mark.parametrize("inactive", [True, False])
def test_reload_that_turns_plugin_on_or_off_is_refused(*, inactive: bool) -> None:
    sleeper = Sleeper(inactive=inactive)
    plugins = plugins_of(sleeper=sleeper, zed=Authenticator(Identity("zed")))
    plugins.configure(DEFAULTS)
    sleeper.inactive = not inactive
    (fault,) = faults_of(plugins)
    assert fault == "plugin 'sleeper' cannot be turned on or off by a reload: restart to apply"
    assert plugins.authorizes is not inactive
    assert plugins.authenticate(REQUEST) == Identity("zed" if inactive else "sleeper")


# -- credential headers


class Badges(Authenticator):
    def __init__(self, names: Any) -> None:
        super().__init__()
        self.names = names

    @hookimpl
    def credential_headers(self) -> Any:
        return self.names


def test_credential_headers_are_those_ever_declared() -> None:
    badges = Badges(["x-badge", "X-OTHER"])
    plugins = plugins_of(a=badges, b=Badges(["X-Third"]))
    plugins.configure(DEFAULTS)
    assert plugins.credential_headers == {"X-Badge", "X-Other", "X-Third"}
    badges.names = ["x-new"]
    plugins.configure(DEFAULTS)
    assert plugins.credential_headers == {"X-Badge", "X-Other", "X-Third", "X-New"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["X Badge"], "'X Badge' is not a header's name"),
        ([""], "'' is not a header's name"),
        ([b"X-Badge"], "b'X-Badge' is not a header's name"),
        (["content-length"], "'content-length' is a header that the protocol needs"),
        (["traceparent"], "'traceparent' is a header that the protocol needs or that logs show"),
        ("X-Badge", "it must return a list of header names, not a str"),
        (None, "TypeError"),
    ],
)
def test_invalid_credential_header_ends_start(names: Any, said: str) -> None:
    (fault,) = faults_of(plugins_of(a=Badges(names)))
    assert fault.startswith(f"plugin 'a' failed in credential_headers: {said}")


# -- pages


def page(path: str, **fields: Any) -> Page:
    return Page(path, lambda request: PageResponse(b""), **fields)


def offers(*pages: Page) -> Plugin:
    return Plugin(pages=lambda: pages)


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ([page("metrics")], "the path of its page must begin with a slash"),
        ([page("/(")], "'/(' is not a regular expression"),
        ([page("/a", public="no")], "public of its page /a must be a bool"),
        ([page("/a", overrides=0)], "overrides of its page /a must be a bool"),
        ([page("/a", methods="GET")], "methods of its page /a must be a tuple"),
        ([page("/a", methods=("get",))], "methods of its page /a must be a tuple"),
        (["/metrics"], "its str is not a Page"),
        (None, "TypeError"),
    ],
)
def test_invalid_page_ends_start(pages: Any, said: str) -> None:
    (fault,) = faults_of(plugins_of(a=Authenticator(), b=Plugin(pages=lambda: pages)))
    assert fault.startswith(f"plugin 'b' failed in pages: {said}")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/health", "/ready", "/api/hello", "/v1/messages", "/v1/unheard/of"),
        *("/openai/v1/chat/completions", "/openai/models", "/.*", "/(health|figures)", "/v1/a/.+"),
    ],
)
def test_page_that_hides_the_proxys_own_ends_start(path: str) -> None:
    bold = offers(page(path))
    (fault,) = faults_of(plugins_of(a=Authenticator(), bold=bold))
    assert fault.startswith("plugin 'bold' failed in pages: ")
    assert f"its page {path} hides a path of the proxy's own" in fault
    bold = offers(page(path, overrides=True))
    plugins_of(a=Authenticator(), bold=bold).configure(DEFAULTS)


@pytest.mark.parametrize(
    "paths",
    [("/figures", "/figures"), ("/fig.*", "/figures"), ("/figures", "/fig.*"), ("/f.*", "/f.*")],
)
def test_page_of_two_plugins_is_refused_unless_one_overrides(paths: tuple[str, str]) -> None:
    def configured(*overrides: bool) -> Plugins:
        one, two = (
            offers(page(path, overrides=mode)) for path, mode in zip(paths, overrides, strict=True)
        )
        plugins = plugins_of(a=one, b=two, c=Authenticator())
        plugins.configure(DEFAULTS)
        return plugins

    for both in (False, True):
        with pytest.raises(ConfigurationError, match="of 'a' are for the same path"):
            configured(both, both)
    assert [name for name, _ in configured(False, True).pages()] == ["b", "a"]


def test_page_within_pattern_of_its_own_plugin_is_allowed() -> None:
    pages = [page("/people/([^/]+)"), page("/people/me")]
    plugins_of(a=Authenticator(), b=offers(*pages)).configure(DEFAULTS)
    (fault,) = faults_of(plugins_of(a=Authenticator(), b=offers(pages[1], pages[1])))
    assert "are for the same path" in fault
