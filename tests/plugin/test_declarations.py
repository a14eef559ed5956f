"""What plugins declare: settings, lines, inactivity, credential headers and pages."""

from __future__ import annotations

from typing import Any

import pytest
from doubles import CANARY, RECORD, REQUEST, Authenticator, Plugin, ask, plugins_of, points_of

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Identity,
    Page,
    PageResponse,
    Setting,
    Settings,
    SignInWay,
    Status,
    Usage,
    hookimpl,
    parsers,
)
from tornadoproxy.plugin.manager import Plugins

TEAM = Setting("TEAM", parsers.text, default="", help="The team.")
OTHER = Setting("OTHER", parsers.text, default="", help="Another.")
HOST = Setting("HOST", parsers.text, default="", help="Not the core's.")
DEFAULTS = Settings.defaults()


def faults_of(plugins: Plugins, settings: Settings = DEFAULTS) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        plugins.configure(settings)
    return caught.value.faults


def page(path: str, **fields: Any) -> Page:
    return Page(path, lambda request: PageResponse(b""), **fields)


def way(name: str) -> SignInWay:
    """Return a way to sign in that nobody takes."""
    unused: Any = None
    return SignInWay(name, "a title", unused, unused)


def fault_of(hook: str, result: Any) -> str:
    """Return the fault of the plugin ``b`` with this result, which ends a start or a command."""
    plugin = Plugin(**{hook: lambda: result})
    settings = Plugin(declare_settings=lambda: [TEAM])

    def start() -> None:
        plugins = plugins_of(a=settings, b=plugin, c=Authenticator())
        plugins.configure(DEFAULTS)
        plugins.databases()

    with pytest.raises(ConfigurationError) as caught:
        start()
    (fault,) = caught.value.faults
    assert fault.startswith("plugin 'b'")
    return fault


@pytest.mark.parametrize(
    ("hook", "result", "said"),
    [
        ("declare_settings", [HOST], "the name of its setting HOST is taken"),
        ("declare_settings", [OTHER, TEAM], "the name of its setting TEAM is taken"),
        ("declare_settings", ["TEAM"], "it declares a str"),
        ("declare_settings", None, "TypeError"),
        ("configure", 7, "configure must return one line of text, or None"),
        ("configure", "two\nlines", "configure must return one line of text, or None"),
        ("configure", "", "configure must return one line of text, or None"),
        ("credential_headers", ["X Badge"], "'X Badge' is not a header's name"),
        ("credential_headers", [b"X-Badge"], "b'X-Badge' is not a header's name"),
        ("credential_headers", ["content-length"], "is a header that the protocol needs"),
        ("credential_headers", "X-Badge", "must return a list of header names, not a str"),
        ("credential_headers", None, "plugin 'b' failed in credential_headers: TypeError"),
        ("pages", [page("metrics")], "the path of its page must begin with a slash"),
        ("pages", [page("/(")], "'/(' is not a regular expression"),
        ("pages", [page("/a", public="no")], "public of its page /a must be a bool"),
        ("pages", [page("/a", overrides=0)], "overrides of its page /a must be a bool"),
        ("pages", [page("/a", methods="GET")], "methods of its page /a must be a tuple"),
        ("pages", [page("/a", methods=("get",))], "methods of its page /a must be a tuple"),
        ("pages", [page("/a"), page("/a")], "are for the same path"),
        ("pages", ["/metrics"], "its str is not a Page"),
        ("pages", None, "plugin 'b' failed in pages: TypeError"),
        ("sign_in_ways", [page("/a")], "its Page is not a SignInWay"),
        ("sign_in_ways", [way("Door")], "the name 'Door' has other than a-z, 0-9 and dashes"),
        ("sign_in_ways", [way("")], "the name '' has other than a-z, 0-9 and dashes"),
        ("sign_in_ways", None, "plugin 'b' failed in sign_in_ways: TypeError"),
        ("databases", {TEAM: "file"}, "must return a dict: a declared setting, and a function"),
        ("databases", {OTHER: list}, "must return a dict: a declared setting, and a function"),
    ],
)
def test_invalid_declaration_ends_start(hook: str, result: Any, said: str) -> None:
    assert said in fault_of(hook, result)


def test_name_of_a_way_to_sign_in_is_unique() -> None:
    a, b = (Plugin(sign_in_ways=lambda: [way("door")]) for _ in range(2))
    (fault,) = faults_of(plugins_of(a=a, b=b, c=Authenticator()))
    assert fault == "there are several ways to sign in of the name 'door': rename one"


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


def test_settings_and_lines_come_in_order() -> None:
    first = Plugin(declare_settings=lambda: [OTHER], configure=lambda: "first")
    second = Plugin(declare_settings=lambda: [TEAM], configure=lambda: "second")
    plugins = plugins_of(b=second, a=first, c=Configured())
    assert plugins.declared_settings() == (OTHER, TEAM)
    assert plugins.configure(team("x")) == (("a", "first"), ("b", "second"))


def test_configuration_errors_of_all_plugins_end_start() -> None:
    first = Configured(complaint=ConfigurationError("TEAM is bad", "and so is HOST"))
    second = Configured(complaint=ConfigurationError("TEAM is very bad"))
    plugins = plugins_of(a=first, b=second)
    for _ in range(2):
        assert faults_of(plugins, team("bad")) == (
            "TEAM is bad",
            "and so is HOST",
            "TEAM is very bad",
        )
    assert first.teams == ["bad", "bad"], "there are no earlier settings to restore"


@pytest.mark.parametrize("complaint", [KeyError(CANARY), ConfigurationError()])
def test_other_exception_ends_start_without_its_text(complaint: Exception) -> None:
    (fault,) = faults_of(plugins_of(a=Configured(complaint=complaint)), team("bad"))
    assert fault.startswith(f"plugin 'a' failed in configure: {type(complaint).__name__} in ")
    assert "test_declarations.py, line" in fault
    assert CANARY not in fault


def test_refused_reload_restores_settings_of_every_plugin() -> None:
    refusing = Configured(complaint=ConfigurationError("no"))
    configured = (Configured(), refusing, Configured())
    plugins = plugins_of(**dict(zip("abc", configured, strict=True)))
    plugins.configure(team("first"))
    plugins.configure(team("second"))
    assert faults_of(plugins, team("bad")) == ("no",)
    for plugin in configured:
        assert plugin.teams == ["first", "second", "bad", "second"]


@pytest.mark.parametrize("line", ["awake", INACTIVE])
def test_fixed_setting_of_active_plugin_cannot_change(line: object) -> None:
    path = Setting("PATH", parsers.text, default="a", help="A path.", fixed=True)
    plugin = Plugin(declare_settings=lambda: [path, TEAM], configure=lambda: line)
    plugins = plugins_of(a=plugin, z=Authenticator())
    started = Settings.defaults(path, TEAM)
    plugins.configure(started)
    plugins.configure(started.replace({TEAM: "other", path: "a"}))
    changed = started.replace({path: "b"})
    if line is INACTIVE:
        plugins.configure(changed)
    else:
        fault = "PATH cannot change while the proxy runs; restart to apply."
        assert faults_of(plugins, changed) == (fault,)


def test_plugin_that_refuses_earlier_settings_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Configured()
    plugins = plugins_of(a=stuck, b=Configured(complaint=ConfigurationError("no")))
    plugins.configure(team("good"))
    stuck.line = 7
    faults_of(plugins, team("bad"))
    assert "the earlier settings are refused as well: plugin 'a'" in caplog.text


# -- inactive plugins

RESULTS: dict[str, object] = {
    "pages": [Page("/sleeper", lambda request: PageResponse(b"{}"))],
    "startup": None,
    "authenticate": Identity("sleeper"),
    "price": 1,
    "request_finished": None,
    "shutdown": None,
}


def sleeper(called: list[str], *lines: object) -> Plugin:
    """Return a plugin that records which of its hooks are called.

    :param lines: what ``configure`` returns, one after the other.
    """

    def recorded(name: str) -> Any:
        def call() -> object:
            called.append(name)
            return RESULTS[name]

        return call

    left = list(lines)
    hooks = {name: recorded(name) for name in RESULTS}
    return Plugin(
        **hooks, configure=lambda: left.pop(0), admit=lambda: None, authorize=lambda: None
    )


async def go_through(plugins: Plugins) -> Identity:
    """Configure `plugins` and call every hook of `RESULTS`; return who authenticated."""
    plugins.configure(DEFAULTS)
    await plugins.startup(lambda: Status(0, 0, 0, 0, 0, 0, {}, {}, draining=False))
    identity = await ask(plugins)
    plugins.price("claude", Usage(input_tokens=1))
    plugins.request_finished(RECORD)
    await plugins.shutdown()
    return identity


@pytest.mark.parametrize("is_active", [False, True])
async def test_hooks_of_active_plugins_alone_are_called(*, is_active: bool) -> None:
    called: list[str] = []
    asleep = sleeper(called, "awake" if is_active else INACTIVE)
    points = points_of(sleeper=asleep, spare=Authenticator(), zed=Authenticator(Identity("zed")))
    plugins = Plugins.load(("spare",), points)
    assert await go_through(plugins) == Identity("sleeper" if is_active else "zed")
    assert called == ([*RESULTS] if is_active else [])
    assert (plugins.admits, plugins.authorizes) == (is_active, is_active)
    pages = [("sleeper", "/sleeper")] if is_active else []
    assert [(name, page.path) for name, page in plugins.pages()] == pages
    described = plugins.describe()
    assert [(each.name, page.path) for each in described for page in each.pages] == pages
    assert [(each.name, each.state, each.order) for each in described] == (
        [("sleeper", "active", 1), ("zed", "active", 2), ("spare", "disabled", None)]
        if is_active
        else [("zed", "active", 1), ("sleeper", "inactive", None), ("spare", "disabled", None)]
    )


def test_inactive_authenticators_alone_end_start() -> None:
    (fault,) = faults_of(plugins_of(sleeper=sleeper([], INACTIVE)))
    assert "every request would be rejected" in fault
    assert "set the settings of one of these plugins: sleeper" in fault


@pytest.mark.parametrize(
    ("first", "second", "who"), [(INACTIVE, "awake", "zed"), ("awake", INACTIVE, "sleeper")]
)
def test_reload_that_turns_plugin_on_or_off_is_refused(
    first: object, second: object, who: str
) -> None:
    zed = Authenticator(Identity("zed"))
    plugins = plugins_of(sleeper=sleeper([], first, second, first), zed=zed)
    plugins.configure(DEFAULTS)
    (fault,) = faults_of(plugins)
    assert fault == "plugin 'sleeper' cannot be turned on or off by a reload: restart to apply"
    assert plugins.authorizes is (who == "sleeper")
    assert plugins.authenticate(REQUEST) == Identity(who)


# -- credential headers


def test_credential_headers_are_those_ever_declared() -> None:
    names = ["x-badge", "X-OTHER"]
    plugins = plugins_of(
        a=Plugin(credential_headers=lambda: names),
        b=Plugin(credential_headers=lambda: ["X-Third"]),
        c=Authenticator(),
    )
    plugins.configure(DEFAULTS)
    assert plugins.credential_headers == {"X-Badge", "X-Other", "X-Third"}
    names[:] = ["x-new"]
    plugins.configure(DEFAULTS)
    assert plugins.credential_headers == {"X-Badge", "X-Other", "X-Third", "X-New"}


# -- pages


@pytest.mark.parametrize("path", ["/health", "/v1/unheard/of", "/openai/models", "/(health|x)"])
def test_page_that_hides_the_proxys_own_ends_start(path: str) -> None:
    fault = fault_of("pages", [page(path)])
    assert f"its page {path} hides a path of the proxy's own" in fault
    bold = Plugin(pages=lambda: [page(path, overrides=True)])
    plugins_of(a=Authenticator(), bold=bold).configure(DEFAULTS)


@pytest.mark.parametrize(
    "paths", [("/figures", "/figures"), ("/fig.*", "/figures"), ("/figures", "/fig.*")]
)
def test_page_of_two_plugins_is_refused_unless_one_overrides(paths: tuple[str, str]) -> None:
    def configured(*overrides: bool) -> Plugins:
        pages = [page(path, overrides=mode) for path, mode in zip(paths, overrides, strict=True)]
        one, two = Plugin(pages=lambda: pages[:1]), Plugin(pages=lambda: pages[1:])
        plugins = plugins_of(a=one, b=two, c=Authenticator())
        plugins.configure(DEFAULTS)
        return plugins

    for both in (False, True):
        with pytest.raises(ConfigurationError, match="of 'a' are for the same path"):
            configured(both, both)
    assert [name for name, _ in configured(False, True).pages()] == ["b", "a"]


def test_page_within_pattern_of_its_own_plugin_is_allowed() -> None:
    pages = [page("/people/([^/]+)"), page("/people/me")]
    plugins_of(a=Authenticator(), b=Plugin(pages=lambda: pages)).configure(DEFAULTS)
