"""The plugin manager: what is loaded and what is refused, who is asked, and who is told."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import textwrap
import time
import traceback
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distributions
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from msgspec.structs import replace
from tornado.httputil import HTTPHeaders

from tornadoproxy import (
    INACTIVE,
    AuthenticationFailed,
    ConfigurationError,
    Denied,
    Dialect,
    Identity,
    IncomingRequest,
    ModelUsage,
    Outcome,
    Page,
    PageRequest,
    PageResponse,
    Permit,
    RequestRecord,
    Setting,
    Settings,
    Status,
    Usage,
    hookimpl,
    parsers,
)
from tornadoproxy.config.core_settings import PLUGIN_TIMEOUT
from tornadoproxy.errors import ClientError, Overloaded, PluginFailed
from tornadoproxy.plugin.authorization import Permits
from tornadoproxy.plugin.discovery import PluginInfo
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from importlib.metadata import EntryPoint
    from pathlib import Path

CANARY = "sk-canary-0123456789"
HEADERS = HTTPHeaders({"X-Api-Key": CANARY})
REQUEST = IncomingRequest("POST", "/v1/messages", HEADERS, "127.0.0.1", Dialect.ANTHROPIC)
RECORD = RequestRecord(
    time=1_796_000_000.0,
    request_id="req_1",
    principal="token",
    groups=(),
    method="POST",
    route="/v1/messages",
    dialect="anthropic",
    remote_ip="127.0.0.1",
    status=200,
    outcome=Outcome.COMPLETED,
    error=None,
    model=None,
    usage=Usage(),
    cost=None,
    stop_reason=None,
    bytes_in=0,
    bytes_out=0,
    duration=0.1,
    time_to_first_byte=None,
    time_to_first_token=None,
    upstream_time=None,
    session_id=None,
    agent_id=None,
    parent_agent_id=None,
    traceparent=None,
    tracestate=None,
)

NOTHING_GOES_ON = Status(0, 0, 0, 0, 0, 0, {}, {}, draining=False)

AUTHENTICATOR = """
    from tornadoproxy import Identity, hookimpl

    @hookimpl
    def authenticate(request):
        return Identity("somebody")
"""


class Site:
    """A folder on ``sys.path`` where packages are installed, as pip would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(
        self, name: str, source: str, distribution: str = "acme-auth", value: str = ""
    ) -> None:
        """Install a distribution with one plugin `name`, a module with `source`."""
        module = f"installed_{distribution.replace('-', '_')}_{name}"
        (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[tornadoproxy]\n{name} = {value or module}\n")

    def points(self) -> list[EntryPoint]:
        found = distributions(path=[str(self.path)])
        return [point for dist in found for point in dist.entry_points]

    def fault(self, disabled: tuple[str, ...] = ()) -> str:
        """The only fault of what is installed."""
        (fault,) = faults_of(self.points(), disabled)
        return fault


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    yield Site(tmp_path)
    for name in [name for name in sys.modules if name.startswith("installed_")]:
        del sys.modules[name]


@dataclass
class Point:
    """An entry point that yields an object which is at hand."""

    name: str
    plugin: object
    value: str = "at:hand"
    dist: None = None

    def load(self) -> object:
        return self.plugin


def plugins_of(**named: object) -> Plugins:
    points: list[Any] = [Point(name, plugin) for name, plugin in named.items()]
    return Plugins.load(entry_points=points)


def faults_of(points: Any, disabled: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        Plugins.load(disabled, points)
    return caught.value.faults


def refusal(plugin: object) -> str:
    """Why a plugin is refused that stands beside one that is in order."""
    faults = faults_of([Point("good", Answers(None)), Point("bad", plugin)])
    assert len(faults) == 1
    assert "'bad'" in faults[0]
    assert "DISABLED_PLUGINS=bad" in faults[0]
    assert "\n" not in faults[0]
    return faults[0]


class Answers:
    """Authenticates with whatever it was given: raises it if it is an exception."""

    def __init__(self, result: object) -> None:
        self.result = result
        self.asked = 0

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Any:
        self.asked += 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class AnswersLater(Answers):
    @hookimpl
    async def authenticate(self, request: IncomingRequest) -> Any:
        await asyncio.sleep(0)
        return super().authenticate(request)


class Hangs:
    """Never answers; notes that it was cancelled."""

    def __init__(self, *, stubborn: bool = False, last_words: Exception | None = None) -> None:
        self.stubborn = stubborn
        self.last_words = last_words
        self.begun = False
        self.cancelled = False

    @hookimpl
    async def authenticate(self, request: IncomingRequest) -> Identity | None:
        self.begun = True
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled = True
            if self.last_words:
                raise self.last_words from None
            if not self.stubborn:
                raise
        return Identity("too late")


def ask(plugins: Plugins) -> Identity:
    async def main() -> Identity:
        result = plugins.authenticate(REQUEST)
        return result if isinstance(result, Identity) else await result

    return asyncio.run(main())


def with_timeout(plugins: Plugins, seconds: float) -> Plugins:
    plugins.configure(Settings.defaults().replace({PLUGIN_TIMEOUT: seconds}))
    return plugins


# Loading


def test_installed_plugins_are_found_through_their_entry_points(site: Site) -> None:
    site.install("acme", AUTHENTICATOR)
    ours = {info.name: "disabled" for info in Plugins.load().describe() if info.name != "acme"}
    assert {"token", "access_log"} <= ours.keys()
    plugins = Plugins.load(disabled=tuple(ours))
    active, *others = plugins.describe()
    module = "installed_acme_auth_acme"
    assert (active.distribution, active.version) == ("acme-auth", "1.2")
    assert active == PluginInfo(
        "acme", active.source, "active", ("authenticate",), 1, module=module
    )
    assert {info.name: info.state for info in others} == ours
    assert plugins.authenticate(REQUEST) == Identity("somebody")


def test_this_package_brings_its_own_plugins_in_the_same_way() -> None:
    active = {info.name: info for info in Plugins.load().describe()}
    assert active["token"].distribution == active["access_log"].distribution == "tornadoproxy"
    assert active["token"].hooks == ("declare_settings", "configure", "authenticate")
    assert active["access_log"].state == "active"


def test_each_load_has_plugins_of_its_own() -> None:
    ours = [info.name for info in Plugins.load().describe() if info.name != "token"]
    first, second = Plugins.load(ours), Plugins.load(ours)
    settings = Settings.defaults(*first.declared_settings())
    first.configure(settings)
    # the second one was given no settings, so it knows no token and is not open either
    assert first.authenticate(REQUEST) == Identity("anonymous", anonymous=True)
    with pytest.raises(AuthenticationFailed):
        second.authenticate(REQUEST)


def test_a_disabled_plugin_is_not_imported(site: Site) -> None:
    site.install("good", AUTHENTICATOR, "good")
    site.install("bad", "raise SystemExit('imported')", "bad")
    plugins = Plugins.load(["bad"], site.points())
    assert [info.name for info in plugins.describe()] == ["good", "bad"]
    bad = plugins.describe()[1]
    assert (bad.distribution, bad.version) == ("bad", "1.2")
    assert (bad.state, bad.module, bad.hooks) == ("disabled", "installed_bad_bad", ())
    assert not [name for name in sys.modules if name.startswith("installed_bad")]


def test_a_disabled_name_that_nobody_has_ends_the_start(site: Site) -> None:
    site.install("acme", AUTHENTICATOR)
    fault = site.fault(disabled=("acne",))
    assert "DISABLED_PLUGINS names acne" in fault
    assert "did you mean acme?" in fault


def test_two_plugins_of_one_name_end_the_start(site: Site) -> None:
    site.install("acme", AUTHENTICATOR, "first")
    site.install("acme", AUTHENTICATOR, "second")
    fault = site.fault()
    assert "'acme'" in fault
    assert "first 1.2" in fault
    assert "second 1.2" in fault
    assert [info.state for info in Plugins.survey((), site.points())] == ["broken", "broken"]


def test_no_entry_points_look_like_a_checkout_that_was_never_installed() -> None:
    (fault,) = faults_of([], disabled=("token",))
    assert "pip install -e ." in fault


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module"),
        ("def broken(:", "SyntaxError: "),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("raise SystemExit('a script')", "SystemExit: a script"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_ends_the_start(site: Site, source: str, said: str) -> None:
    site.install("good", AUTHENTICATOR, "good")
    site.install("bad", source, "bad-one")
    fault = site.fault()
    assert "'bad' of bad-one 1.2" in fault
    assert "DISABLED_PLUGINS=bad" in fault
    assert said in fault
    assert "\n" not in fault


def test_all_faults_are_told_at_once(site: Site) -> None:
    site.install("one", "raise ValueError('first')", "one")
    site.install("two", "raise ValueError('second')", "two")
    faults = faults_of(site.points(), disabled=("three",))
    assert len(faults) == 3
    assert "three" in faults[0]
    assert "first" in faults[1]
    assert "second" in faults[2]


def test_an_entry_point_that_names_nothing_ends_the_start(site: Site) -> None:
    site.install("acme", AUTHENTICATOR, value="installed_acme_auth_acme:plugin")
    assert "AttributeError" in site.fault()


def test_no_authenticator_ends_the_start(site: Site) -> None:
    site.install("acme", AUTHENTICATOR)
    fault = site.fault(disabled=("acme",))
    assert "No plugin authenticates" in fault
    assert "DISABLED_PLUGINS: acme" in fault


def test_no_authenticator_among_the_active_ends_the_start() -> None:
    class Observer:
        @hookimpl
        def request_finished(self, record: RequestRecord) -> None: ...

    (fault,) = faults_of([Point("observer", Observer())])
    assert "No plugin authenticates" in fault
    assert "install a package" in fault


@pytest.mark.parametrize("plugin", [None, lambda: None, 7])
def test_what_has_no_hook_is_refused(plugin: object) -> None:
    assert "module or a class whose functions are marked" in refusal(plugin)


def test_load_class_or_factory_makes_a_plugin_for_each_proxy() -> None:
    class Counts(Answers):
        made: ClassVar = 0

        def __init__(self, result: object = None) -> None:
            super().__init__(result)
            Counts.made += 1

    for _ in range(2):
        names = [info.name for info in plugins_of(a=Counts, b=lambda: Counts()).describe()]
        assert names == ["a", "b"]
    assert Counts.made == 4


def test_load_class_that_takes_arguments_is_refused() -> None:
    assert "its class must take no arguments, but it is missing" in refusal(Answers)
    assert "its function must take no arguments" in refusal(lambda settings: settings)


def test_load_one_hook_instead_of_its_module_is_refused() -> None:
    @hookimpl
    def authenticate() -> None: ...

    assert "it is one hook" in refusal(authenticate)


def takes(*arguments: str) -> Callable[..., None]:
    """A function whose signature is `arguments`, as written."""
    names: dict[str, Any] = {}
    exec(f"def function({', '.join(arguments)}): ...", names)
    made: Callable[..., None] = names["function"]
    return made


NOT_MARKED = "is not marked: put @tornadoproxy.hookimpl above it"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("authorize", ["request"], f"its authorize {NOT_MARKED}"),
        ("settings_finished", ["record"], None),
        ("request_finished", ["anything"], f"its request_finished {NOT_MARKED}"),
        ("authorise", ["request", "identity"], "its authorise is nearly the hook authorize"),
        ("authorise", [], "the hook authorize"),
        ("requests_finished", ["record"], "the hook request_finished"),
        ("on_request_finished", ["record"], "the hook request_finished"),
        ("start_up", [], "the hook startup"),
        ("shut_down", [], "the hook shutdown"),
        ("authenticate_request", ["request"], None),  # the hook itself is there
        ("authenticated", ["request"], None),
        ("authorise", ["token"], None),  # a helper takes what it needs
        ("page", ["request"], None),
        ("admin", ["request"], None),
        ("prices", [], None),
        ("start", [], None),
        ("stop", [], None),
        ("reload", ["settings"], None),
        ("_authorise", ["request"], None),
    ],
)
@pytest.mark.parametrize("kind", [ModuleType, SimpleNamespace], ids=["module", "object"])
def test_load_near_miss_of_a_hook_is_refused(
    name: str, arguments: list[str], said: str | None, kind: Any
) -> None:
    plugin: Any = kind("acme") if kind is ModuleType else kind()
    plugin.authenticate = hookimpl(takes("request"))
    setattr(plugin, name, takes(*arguments))
    if said is None:
        assert plugins_of(a=plugin).describe()[0].hooks == ("authenticate",)
    else:
        assert said in refusal(plugin)


def test_load_near_miss_is_refused_where_the_hook_is_missing() -> None:
    plugin = SimpleNamespace(
        authenticate_request=takes("request"), price=hookimpl(takes("model", "usage"))
    )
    assert "nearly the hook authenticate" in refusal(plugin)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["request", "identity=None"], "would not be given identity=None"),
        (["*", "request"], "would not be given request"),
        (["*arguments"], "would not be given *arguments"),
        (["request", "**others"], "would not be given **others"),
        (["incoming"], "takes incoming"),
    ],
)
def test_load_argument_that_the_hook_never_passes_is_refused(
    arguments: list[str], said: str
) -> None:
    fault = refusal(SimpleNamespace(authorize=hookimpl(takes(*arguments))))
    assert f"its authorize {said}" in fault
    assert "the hook offers request, identity, model_request" in fault


def test_load_argument_of_a_hook_without_any_is_refused() -> None:
    fault = refusal(SimpleNamespace(pages=hookimpl(takes("settings"))))
    assert "the hook offers no arguments" in fault


def test_one_object_under_two_names_is_refused() -> None:
    plugin = Answers(None)
    (fault,) = faults_of([Point("one", plugin), Point("two", plugin)])
    assert "'two'" in fault
    assert "same object" in fault


def test_a_hook_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    class Misspelt:
        @hookimpl
        def authentcate(self, request: IncomingRequest) -> None: ...

    assert "no hook authentcate: did you mean authenticate?" in refusal(Misspelt())


def test_a_hook_that_may_not_exist_is_allowed_if_it_says_so() -> None:
    class FromTheFuture(Answers):
        @hookimpl(optionalhook=True)
        def levitate(self, height: float) -> None: ...

    (info,) = plugins_of(future=FromTheFuture(None)).describe()
    assert info.hooks == ("authenticate",)


def test_wrappers_are_refused() -> None:
    class NewWrapper:
        @hookimpl(wrapper=True)
        def authenticate(self, request: IncomingRequest) -> Any:
            return (yield)

    class OldWrapper:
        @hookimpl(hookwrapper=True)
        def authenticate(self, request: IncomingRequest) -> Any:
            yield

    assert "authenticate is a wrapper" in refusal(NewWrapper())
    assert "authenticate is a wrapper" in refusal(OldWrapper())


def test_async_functions_that_nobody_would_await_are_refused() -> None:
    class AsyncObserver:
        @hookimpl
        async def request_finished(self, record: RequestRecord) -> None: ...

    class AsyncConfigure:
        @hookimpl
        async def configure(self, settings: Settings) -> None: ...

    class AsyncDeclaration:
        @hookimpl
        async def declare_settings(self) -> tuple[Setting[Any], ...]:
            return ()

    assert "request_finished is async" in refusal(AsyncObserver())
    assert "configure is async" in refusal(AsyncConfigure())
    assert "declare_settings is async" in refusal(AsyncDeclaration())


def test_generators_that_would_never_run_are_refused() -> None:
    class Generator:
        @hookimpl
        def request_finished(self, record: RequestRecord) -> Any:
            yield

    class AsyncGenerator:
        @hookimpl
        async def authenticate(self, request: IncomingRequest) -> Any:
            yield

    assert "request_finished is a generator" in refusal(Generator())
    assert "authenticate is a generator" in refusal(AsyncGenerator())


def test_a_survey_describes_the_broken_ones_too(site: Site) -> None:
    site.install("acme", AUTHENTICATOR)
    site.install("bad", "raise ValueError('reason')", "bad")
    site.install("off", AUTHENTICATOR, "off")
    active, disabled, broken = Plugins.survey(["off"], site.points())
    assert (active.name, active.state, active.order) == ("acme", "active", 1)
    assert (disabled.name, disabled.state, disabled.order) == ("off", "disabled", None)
    assert (broken.name, broken.state, broken.version) == ("bad", "broken", "1.2")
    assert broken.reason is not None
    assert "ValueError: reason" in broken.reason


def test_plugins_are_described_in_the_order_asked() -> None:
    class Observer:
        @hookimpl(tryfirst=True)
        def request_finished(self, record: RequestRecord) -> None: ...

    plugins = plugins_of(a=Observer(), b=Last(), c=Answers(None), d=First())
    described = [(info.order, info.name) for info in plugins.describe()]
    assert described == [(1, "d"), (2, "c"), (3, "b"), (4, "a")]


class First(Answers):
    def __init__(self, result: object = None) -> None:
        super().__init__(result)

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Any:
        return super().authenticate(request)


class Last(First):
    @hookimpl(trylast=True)
    def authenticate(self, request: IncomingRequest) -> Any:
        return super().authenticate(request)


# Settings


TEAM = Setting("TEAM", parsers.text, default="", help="The team.")


class Configured(Answers):
    """Notes the settings that it is given; raises what it is told to for the team ``bad``."""

    def __init__(self, line: object = None, complaint: Exception | None = None) -> None:
        super().__init__(None)
        self.line = line
        self.complaint = complaint
        self.teams: list[str] = []

    @hookimpl
    def configure(self, settings: Settings) -> Any:
        self.teams.append(settings[TEAM])
        if self.complaint and settings[TEAM] == "bad":
            raise self.complaint
        return self.line


class Declares:
    def __init__(self, *settings: object) -> None:
        self.settings = settings

    @hookimpl
    def declare_settings(self) -> Any:
        yield from self.settings


def team(name: str) -> Settings:
    return Settings.defaults().replace({TEAM: name})


def test_declared_settings_come_in_order() -> None:
    other = Setting("OTHER", parsers.text, default="", help="Another.")
    plugins = plugins_of(b=Declares(TEAM), a=Declares(other), c=Answers(None))
    assert plugins.declared_settings() == (other, TEAM)


def test_a_setting_whose_name_is_taken_is_refused() -> None:
    host = Setting("HOST", parsers.text, default="", help="Not the core's.")
    assert "HOST is taken" in refusal(Declares(host))
    faults = faults_of([Point("a", Declares(TEAM)), Point("b", Declares(replace(TEAM)))])
    assert len(faults) == 1
    assert "'b'" in faults[0]
    assert "TEAM is taken" in faults[0]


def test_a_declaration_that_is_no_setting_or_fails_is_refused() -> None:
    assert "declares a str" in refusal(Declares("TEAM"))

    class Fails:
        @hookimpl
        def declare_settings(self) -> Any:
            raise LookupError("not here")

    assert "LookupError: not here" in refusal(Fails())


def test_configure_collects_the_lines() -> None:
    plugins = plugins_of(b=Configured("second"), a=Configured("first"), c=Configured(None))
    assert plugins.configure(team("x")) == (("a", "first"), ("b", "second"))


def test_a_plugins_own_complaints_end_the_start_as_they_are() -> None:
    first = Configured(complaint=ConfigurationError("TEAM is bad", "and so is HOST"))
    second = Configured(complaint=ConfigurationError("TEAM is very bad"))
    with pytest.raises(ConfigurationError) as caught:
        plugins_of(a=first, b=second).configure(team("bad"))
    assert caught.value.faults == ("TEAM is bad", "and so is HOST", "TEAM is very bad")


@pytest.mark.parametrize("complaint", [KeyError(CANARY), ConfigurationError()])
def test_any_other_exception_ends_the_start_without_its_text(complaint: Exception) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plugins_of(a=Configured(complaint=complaint)).configure(team("bad"))
    (fault,) = caught.value.faults
    assert "'a'" in fault
    assert type(complaint).__name__ in fault
    assert "test_pluginmanager.py, line" in fault
    assert CANARY not in fault


@pytest.mark.parametrize("line", [7, "two\nlines", "", b"bytes"])
def test_anything_but_one_line_ends_the_start(line: object) -> None:
    with pytest.raises(ConfigurationError, match=r"'a'.* one line of text, or None"):
        plugins_of(a=Configured(line)).configure(team("x"))


def test_a_refused_reload_gives_everybody_the_settings_before() -> None:
    earlier, refuses, later = (
        Configured(),
        Configured(complaint=ConfigurationError("no")),
        Configured(),
    )
    plugins = plugins_of(a=earlier, b=refuses, c=later)
    plugins.configure(team("first"))
    plugins.configure(team("second"))
    with pytest.raises(ConfigurationError, match="no"):
        plugins.configure(team("bad"))
    for plugin in (earlier, refuses, later):
        assert plugin.teams == ["first", "second", "bad", "second"]


def test_a_refused_start_is_not_gone_back_from() -> None:
    plugin = Configured(complaint=ConfigurationError("no"))
    plugins = plugins_of(a=plugin)
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            plugins.configure(team("bad"))
    assert plugin.teams == ["bad", "bad"]


def test_a_plugin_that_does_not_take_the_settings_before_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stuck = Configured()
    plugins = plugins_of(a=stuck, b=Configured(complaint=ConfigurationError("no")))
    plugins.configure(team("good"))
    stuck.line = 7
    with pytest.raises(ConfigurationError):
        plugins.configure(team("bad"))
    assert "'a'" in caplog.text


# Asking


class Badges(Answers):
    """Declares these headers to carry credentials."""

    def __init__(self, *names: object) -> None:
        super().__init__(None)
        self.names: Any = names

    @hookimpl
    def credential_headers(self) -> Any:
        return self.names


def test_credential_headers_are_those_of_all_plugins_ever_named() -> None:
    badges = Badges("x-badge", "X-OTHER")
    plugins = plugins_of(a=badges, b=Badges("X-Third"))
    plugins.configure(Settings.defaults())
    assert plugins.credential_headers == {"X-Badge", "X-Other", "X-Third"}
    badges.names = ("x-new",)
    plugins.configure(Settings.defaults())
    assert plugins.credential_headers == {"X-Badge", "X-Other", "X-Third", "X-New"}


@pytest.mark.parametrize(
    ("named", "said"),
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
def test_credential_headers_that_cannot_be_are_refused(named: Any, said: str) -> None:
    badges = Badges()
    badges.names = named
    with pytest.raises(ConfigurationError) as caught:
        plugins_of(a=badges).configure(Settings.defaults())
    (fault,) = caught.value.faults
    assert fault.startswith("plugin 'a' failed in credential_headers: ")
    assert said in fault


class Sleeper:
    """Has every hook, and is inactive as long as the settings say so."""

    def __init__(self, *, inactive: bool = True) -> None:
        self.inactive = inactive
        self.called: list[str] = []

    @hookimpl
    def configure(self) -> object:
        return INACTIVE if self.inactive else "awake"

    @hookimpl
    def pages(self) -> list[Page]:
        self.called.append("pages")
        return [Page("/sleeper", lambda request: PageResponse(b"{}"))]

    @hookimpl
    def startup(self) -> None:
        self.called.append("startup")

    @hookimpl
    def shutdown(self) -> None:
        self.called.append("shutdown")

    @hookimpl
    def authenticate(self) -> Identity:
        self.called.append("authenticate")
        return Identity("sleeper")

    @hookimpl
    def authorize(self) -> None:
        self.called.append("authorize")

    @hookimpl
    def price(self) -> int:
        self.called.append("price")
        return 1

    @hookimpl
    def request_finished(self) -> None:
        self.called.append("request_finished")


def go_through(plugins: Plugins) -> None:
    """Everything that happens to plugins once they are configured."""
    run(started(plugins))
    ask(plugins)
    plugins.price("claude", Usage(input_tokens=1))
    plugins.request_finished(RECORD)
    run(plugins.shutdown)


def test_a_plugin_that_is_inactive_is_left_alone() -> None:
    sleeper = Sleeper()
    plugins = plugins_of(sleeper=sleeper, zed=Answers(Identity("zed")))
    plugins.configure(Settings.defaults())

    go_through(plugins)

    assert sleeper.called == []
    assert ask(plugins) == Identity("zed")
    assert not plugins.authorizes
    assert plugins.pages() == ()
    assert [(info.name, info.state, info.order) for info in plugins.describe()] == [
        ("zed", "active", 1),
        ("sleeper", "inactive", None),
    ]


def test_the_inactive_are_described_before_the_disabled() -> None:
    points: list[Any] = [
        Point("sleeper", Sleeper()),
        Point("spare", Answers(None)),
        Point("zed", Answers(Identity("zed"))),
    ]
    plugins = Plugins.load(("spare",), points)
    plugins.configure(Settings.defaults())
    assert [info.name for info in plugins.describe()] == ["zed", "sleeper", "spare"]


def test_a_plugin_that_is_active_is_called() -> None:
    sleeper = Sleeper(inactive=False)
    plugins = plugins_of(sleeper=sleeper)
    plugins.configure(Settings.defaults())

    go_through(plugins)

    assert sleeper.called == [
        "pages",
        "startup",
        "authenticate",
        "price",
        "request_finished",
        "shutdown",
    ]
    assert plugins.authorizes
    assert [(name, page.path) for name, page in plugins.pages()] == [("sleeper", "/sleeper")]
    (info,) = plugins.describe()
    assert [page.path for page in info.pages] == ["/sleeper"]


def test_nobody_is_let_in_if_all_who_authenticate_are_inactive() -> None:
    plugins = plugins_of(sleeper=Sleeper())
    with pytest.raises(ConfigurationError) as caught:
        plugins.configure(Settings.defaults())
    (fault,) = caught.value.faults
    assert "every request would be rejected" in fault
    assert "sleeper" in fault


@pytest.mark.parametrize("inactive", [True, False])
def test_only_a_start_turns_a_plugin_on_or_off(*, inactive: bool) -> None:
    sleeper = Sleeper(inactive=inactive)
    plugins = plugins_of(sleeper=sleeper, zed=Answers(Identity("zed")))
    plugins.configure(Settings.defaults())
    sleeper.inactive = not inactive

    with pytest.raises(ConfigurationError) as caught:
        plugins.configure(Settings.defaults())

    (fault,) = caught.value.faults
    assert "'sleeper' cannot be turned on or off by a reload" in fault
    assert plugins.authorizes is not inactive


class Prices(Answers):
    def __init__(self, result: object) -> None:
        super().__init__(None)
        self.cost = result

    @hookimpl
    def price(self, model: str, usage: Usage) -> Any:
        if isinstance(self.cost, Exception):
            raise self.cost
        return self.cost


TOLD = Usage(input_tokens=3, output_tokens=0)


def test_the_first_price_counts() -> None:
    plugins = plugins_of(a=Prices(None), b=Prices(7), c=Prices(8))
    assert plugins.price("claude", TOLD) == 7


class PricePerModel(Answers):
    @hookimpl
    def price(self, model: str, usage: Usage) -> int | None:
        assert not usage.others, "each is asked about by itself"
        return {"cheap": 1, "dear": 100, "dearest": 2**63}.get(model)


@pytest.mark.parametrize(
    ("others", "costs", "total"),
    [
        (["dear", "dear", "cheap"], [100, 100, 1], 202),
        (["dearest"], [2**63], 2**63 - 1),
        (["dear", "unheard-of"], [100, None], None),
        ([None], [None], None),
    ],
)
def test_price_of_several_models_is_the_sum_of_all_or_unknown(
    others: list[str | None], costs: list[int | None], total: int | None
) -> None:
    plugins = plugins_of(a=PricePerModel(None))
    usage = Usage(1, 1, others=tuple(ModelUsage(model, TOLD) for model in others))
    priced = plugins.priced(usage)
    assert [other.cost for other in priced.others] == costs
    assert plugins.price("cheap", priced) == total
    assert plugins.price("cheap", usage) is None, "what has not been priced is not free"


def test_what_nobody_prices_has_no_price() -> None:
    assert plugins_of(a=Answers(None)).price("claude", TOLD) is None
    assert plugins_of(a=Prices(None)).price("claude", TOLD) is None


def test_nothing_told_has_no_price() -> None:
    plugins = plugins_of(a=Prices(7))
    assert plugins.price("claude", Usage()) is None
    assert plugins.price(None, TOLD) is None


@pytest.mark.parametrize("rubbish", [KeyError(CANARY), -1, 1.5, True, "7"])
def test_a_price_that_is_none_is_logged_and_the_next_is_asked(
    rubbish: object, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = plugins_of(a=Prices(rubbish), b=Prices(7))
    assert plugins.price("claude", TOLD) == 7
    assert plugins.failures == {"a": 1}
    assert "'a' failed in price" in caplog.text
    assert CANARY not in caplog.text


def answer_nothing(_: PageRequest) -> PageResponse:
    return PageResponse(b"")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([Page("metrics", answer_nothing)], "must begin with a slash"),
        ([Page("/(", answer_nothing)], "is not a regular expression"),
        ([Page("/a", answer_nothing, public="no")], "public of its page /a must be a bool"),  # type: ignore[arg-type]  # what a careless plugin may offer
        ([Page("/a", answer_nothing, overrides=0)], "overrides of its page /a must be a bool"),  # type: ignore[arg-type]  # likewise
        ([Page("/a", answer_nothing, "GET")], "methods of its page /a must be a tuple"),  # type: ignore[arg-type]  # likewise
        ([Page("/a", answer_nothing, ("get",))], "methods of its page /a must be a tuple"),
        (["/metrics"], "its str is not a Page"),
        (None, "TypeError"),
    ],
)
def test_pages_that_cannot_be_served_end_the_start(made: Any, said: str) -> None:
    class Offers(Answers):
        @hookimpl
        def pages(self) -> Any:
            return made

    with pytest.raises(ConfigurationError) as caught:
        plugins_of(a=Offers(None)).configure(Settings.defaults())
    (fault,) = caught.value.faults
    assert "'a' failed in pages" in fault
    assert said in fault


def test_the_first_answer_counts_and_nobody_else_is_asked() -> None:
    decliner, answerer, other = (
        Answers(None),
        Answers(Identity("me", groups=("x",))),
        Answers(Identity("other")),
    )
    plugins = plugins_of(a=decliner, b=answerer, c=other)
    assert plugins.authenticate(REQUEST) == Identity("me", groups=("x",))
    assert (decliner.asked, answerer.asked, other.asked) == (1, 1, 0)


def test_trylast_and_tryfirst_move_a_plugin() -> None:
    plugins = plugins_of(
        a=Last(Identity("last")), b=Answers(Identity("middle")), c=First(Identity("first"))
    )
    assert plugins.authenticate(REQUEST) == Identity("first")
    plugins = plugins_of(a=Last(Identity("last")), b=Answers(Identity("middle")))
    assert plugins.authenticate(REQUEST) == Identity("middle")


def test_an_async_plugin_that_declines_does_not_win() -> None:
    plugins = plugins_of(a=AnswersLater(None), b=AnswersLater(None), c=Answers(Identity("me")))
    assert ask(plugins) == Identity("me")


def test_sync_and_async_plugins_are_asked_in_one_order() -> None:
    plugins = plugins_of(
        a=Answers(None), b=AnswersLater(None), c=Answers(None), d=AnswersLater(Identity("me"))
    )
    assert ask(plugins) == Identity("me")


def test_a_plugin_may_answer_a_future() -> None:
    class Pending:
        @hookimpl
        def authenticate(self, request: IncomingRequest) -> Awaitable[Identity]:
            future = asyncio.get_running_loop().create_future()
            future.get_loop().call_soon(future.set_result, Identity("me"))
            return future

    assert ask(plugins_of(a=Pending())) == Identity("me")


def test_a_plugin_may_leave_the_argument_out() -> None:
    class NoArgument:
        @hookimpl
        def authenticate(self) -> Identity:
            return Identity("me")

    assert plugins_of(a=NoArgument()).authenticate(REQUEST) == Identity("me")


@pytest.mark.parametrize("kind", [Answers, AnswersLater])
def test_request_that_no_plugin_knows_is_a_401(kind: type[Answers]) -> None:
    with pytest.raises(AuthenticationFailed, match="The credential sent is not known here"):
        ask(plugins_of(a=kind(None)))


@pytest.mark.parametrize("kind", [Answers, AnswersLater])
@pytest.mark.parametrize(
    "refused", [AuthenticationFailed("bad"), Denied("no"), Denied("quota", status=429)]
)
def test_a_plugins_refusal_ends_the_asking(kind: type[Answers], refused: ClientError) -> None:
    second = Answers(Identity("second"))
    with pytest.raises(type(refused)) as caught:
        ask(plugins_of(a=kind(refused), b=second))
    assert caught.value is refused
    assert second.asked == 0


RUBBISH = [
    True,
    "me",
    {"principal": "me"},
    Identity,
    Identity(""),
    Identity(None),  # type: ignore[arg-type]  # what a careless plugin may answer
    Identity(7),  # type: ignore[arg-type]  # likewise
    Identity("me", anonymous="no"),  # type: ignore[arg-type]  # likewise
    Identity("me", groups="interns"),  # type: ignore[arg-type]  # likewise
    Identity("me", groups=["interns"]),  # type: ignore[arg-type]  # likewise
    Identity("me", groups=("interns", 7)),  # type: ignore[arg-type]  # likewise
    Identity("me", groups=("interns", "")),
    AuthenticationFailed("forgot to raise it"),
]


@pytest.mark.parametrize("kind", [Answers, AnswersLater])
@pytest.mark.parametrize("rubbish", RUBBISH, ids=repr)
def test_rubbish_fails_closed(
    kind: type[Answers], rubbish: object, caplog: pytest.LogCaptureFixture
) -> None:
    class Rubbish(kind):  # type: ignore[misc, valid-type]  # one of two known classes
        @hookimpl
        def authenticate(self, request: IncomingRequest) -> Any:
            async def later() -> Any:
                return rubbish

            return rubbish if kind is Answers else later()

    second = Answers(Identity("second"))
    with pytest.raises(PluginFailed):
        ask(plugins_of(rubbish_plugin=Rubbish(None), z=second))
    assert second.asked == 0
    assert "'rubbish_plugin'" in caplog.text
    assert type(rubbish).__name__ in caplog.text


@pytest.mark.parametrize("kind", [Answers, AnswersLater])
@pytest.mark.parametrize(
    "error",
    [
        KeyError(CANARY),
        ValueError(f"no such token: {CANARY}"),
        TimeoutError(CANARY),
        Overloaded(CANARY),
        Denied(CANARY, status=200),
        asyncio.CancelledError(CANARY),
    ],
    ids=repr,
)
def test_an_exception_fails_closed_and_keeps_its_text_to_itself(
    kind: type[Answers], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    second = Answers(Identity("second"))
    with pytest.raises(PluginFailed) as caught:
        ask(plugins_of(faulty=kind(error), second=second))
    assert second.asked == 0
    failure = caught.value
    assert (failure.status, failure.retry_after) == (503, 1)
    for word in ("faulty", type(error).__name__, CANARY):
        assert word not in failure.message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "'faulty'" in record.getMessage()
    assert type(error).__name__ in record.getMessage()
    if not (kind is AnswersLater and isinstance(error, asyncio.CancelledError)):
        assert "raise self.result" in caplog.text  # where it was raised
    assert CANARY not in caplog.text
    assert CANARY not in "".join(traceback.format_exception(failure))
    assert failure.__context__ is None


def test_the_cause_of_an_exception_is_logged_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Chained:
        @hookimpl
        def authenticate(self, request: IncomingRequest) -> None:
            try:
                REQUEST.headers[CANARY]
            except KeyError as error:
                raise RuntimeError(CANARY) from error

    with pytest.raises(PluginFailed):
        ask(plugins_of(a=Chained()))
    assert "KeyError" in caplog.text
    assert "RuntimeError" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "plugin",
    [
        Hangs(),
        Hangs(stubborn=True),
        Hangs(last_words=ValueError(CANARY)),
        Hangs(last_words=AuthenticationFailed("late")),
    ],
    ids=["hangs", "swallows", "raises", "refuses"],
)
def test_a_late_answer_fails_closed_and_is_cancelled(
    plugin: Hangs, caplog: pytest.LogCaptureFixture
) -> None:
    second = Answers(Identity("second"))
    with pytest.raises(PluginFailed):
        ask(with_timeout(plugins_of(slow=plugin, z=second), 0.01))
    gc.collect()  # an exception that nobody looked at would be logged by now
    assert plugin.cancelled
    assert second.asked == 0
    assert "'slow'" in caplog.text
    assert "no result within" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        (Identity(CANARY, groups=CANARY), "groups must be a tuple of str, not a str"),  # type: ignore[arg-type]  # what a careless plugin may answer
        (Identity(CANARY, groups=(CANARY, 7)), "groups must be non-empty str"),  # type: ignore[arg-type]  # likewise
        (Identity(CANARY, anonymous=CANARY), "anonymous must be a bool, not a str"),  # type: ignore[arg-type]  # likewise
        (Identity(b""), "principal must be a non-empty str"),  # type: ignore[arg-type]  # likewise
    ],
)
def test_identity_with_a_wrong_field_is_logged_without_values(
    identity: Identity, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PluginFailed):
        ask(plugins_of(careless=Answers(identity)))
    (message,) = caplog.messages
    assert message.startswith("plugin 'careless' failed in authenticate")
    assert message.endswith(f": its Identity's {said}")


@pytest.mark.parametrize("kind", [Answers, AnswersLater])
def test_identity_of_a_subclass_is_accepted_as_it_is(kind: type[Answers]) -> None:
    class Employee(Identity, frozen=True):
        desk: int = 0

    identity = Employee("me", desk=7)
    assert ask(plugins_of(a=kind(identity))) is identity


def test_deadline_is_each_plugins_own(caplog: pytest.LogCaptureFixture) -> None:
    class Slow:
        @hookimpl
        async def authenticate(self, request: IncomingRequest) -> None:
            await asyncio.sleep(0.1)

    with pytest.raises(PluginFailed):
        ask(with_timeout(plugins_of(a=Slow(), b=Hangs()), 0.3))
    assert "plugin 'b' failed in authenticate" in caplog.text
    assert caplog.text.endswith("no result within 0.3 s\n")


class Blocks:
    """Holds the event loop for longer than ``PLUGIN_TIMEOUT`` in every hook."""

    def __init__(self, result: object = None) -> None:
        self.result = result

    def _block(self) -> Any:
        time.sleep(0.03)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    @hookimpl
    def authenticate(self) -> Any:
        return self._block()

    @hookimpl
    def authorize(self) -> Any:
        return self._block()

    @hookimpl
    def price(self) -> Any:
        return self._block()

    @hookimpl
    def request_finished(self) -> Any:
        return self._block()


@pytest.mark.parametrize("result", [Identity("me"), None, Denied("no")], ids=repr)
def test_authenticate_that_blocks_is_named_and_does_not_count(
    result: object, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = with_timeout(plugins_of(blocks=Blocks(result), z=Answers(Identity("me"))), 0.02)
    with pytest.raises(PluginFailed):
        ask(plugins)
    assert plugins.refusals == {"blocks": 1}
    assert "plugin 'blocks' failed in authenticate" in caplog.text
    assert caplog.text.endswith("s, PLUGIN_TIMEOUT is 0.02\n")


def test_async_authenticate_that_blocks_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    class BlocksLater:
        @hookimpl
        async def authenticate(self) -> Identity:
            time.sleep(0.03)  # noqa: ASYNC251  # that is the mistake
            return Identity("me")

    with pytest.raises(PluginFailed):
        ask(with_timeout(plugins_of(blocks=BlocksLater()), 0.02))
    assert "plugin 'blocks' failed in authenticate" in caplog.text


def test_answer_in_time_counts_though_another_held_the_loop() -> None:
    plugins = with_timeout(plugins_of(quick=AnswersLater(Identity("me"))), 0.02)

    async def main() -> Identity:
        asyncio.get_running_loop().call_soon(time.sleep, 0.03)
        result = plugins.authenticate(REQUEST)
        assert not isinstance(result, Identity)
        return await result

    assert asyncio.run(main()) == Identity("me")


def test_authorize_that_blocks_is_refused_and_its_permit_settled() -> None:
    settled: list[RequestRecord] = []
    plugins = plugins_of(blocks=Blocks(Permit(settle=settled.append)), z=Answers(None))
    permits = Permits(plugins.tell)
    with pytest.raises(PluginFailed):
        with_timeout(plugins, 0.02).authorize(REQUEST, Identity("me"), None, permits)
    permits.settle(RECORD)
    assert settled == [RECORD]


def test_price_and_observers_that_block_are_counted() -> None:
    plugins = with_timeout(plugins_of(blocks=Blocks(7)), 0.02)
    assert plugins.price("claude", Usage(input_tokens=1)) is None
    plugins.request_finished(RECORD)
    plugins.tell("other", "settle", lambda _: time.sleep(0.03), RECORD)
    assert plugins.failures == {"blocks": 2, "other": 1}


class Later:
    async def settle(self, record: RequestRecord) -> None: ...


async def _settle_later(record: RequestRecord) -> None: ...


@pytest.mark.parametrize(
    "settle", [_settle_later, partial(partial(_settle_later), RECORD), Later().settle]
)
def test_permit_with_an_async_settle_cannot_be_made(settle: Any) -> None:
    with pytest.raises(ValueError, match="settle must not be async"):
        Permit(settle=settle)


def test_settle_that_answers_an_awaitable_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    plugins = plugins_of(a=Answers(None))
    permits = Permits(plugins.tell)
    permits.add("careless", Permit(settle=lambda record: _settle_later(record)))  # type: ignore[arg-type]  # the mistake
    permits.settle(RECORD)
    gc.collect()  # a coroutine that is never awaited would warn by now
    assert "plugin 'careless' failed in settle" in caplog.text


def test_the_core_waits_as_long_as_the_setting_says() -> None:
    class Slow:
        @hookimpl
        async def authenticate(self, request: IncomingRequest) -> Identity:
            await asyncio.sleep(0.1)
            return Identity("me")

    plugins = with_timeout(plugins_of(a=Slow()), 0.01)
    with pytest.raises(PluginFailed):
        ask(plugins)
    assert ask(with_timeout(plugins, 30)) == Identity("me")


def test_whoever_stops_waiting_cancels_the_plugin() -> None:
    plugin = Hangs()
    plugins = plugins_of(a=plugin)

    async def main() -> None:
        result: Any = plugins.authenticate(REQUEST)
        waiting = asyncio.ensure_future(result)
        while not plugin.begun:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert plugin.cancelled


# Telling


class Observer(Answers):
    def __init__(self, tell: Callable[[RequestRecord], object]) -> None:
        super().__init__(None)
        self.tell = tell

    @hookimpl
    def request_finished(self, record: RequestRecord) -> Any:
        return self.tell(record)


def test_every_observer_is_told() -> None:
    told: list[RequestRecord] = []
    plugins = plugins_of(a=Observer(told.append), b=Observer(told.append))
    plugins.request_finished(RECORD)
    assert told == [RECORD, RECORD]
    assert told[0] is RECORD


@pytest.mark.parametrize("error", [KeyError(CANARY), asyncio.CancelledError(CANARY)], ids=repr)
def test_an_observer_that_fails_is_named_and_keeps_nobody_from_being_told(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: RequestRecord) -> None:
        raise error

    told: list[RequestRecord] = []
    plugins = plugins_of(faulty=Observer(fail), second=Observer(told.append))
    plugins.request_finished(RECORD)
    assert told == [RECORD]
    assert plugins.failures == {"faulty": 1}
    assert "'faulty'" in caplog.text
    assert type(error).__name__ in caplog.text
    assert CANARY not in caplog.text


def test_an_observer_that_always_fails_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugins = plugins_of(faulty=Observer(lambda _: 1 / 0))
    for _ in range(1_000):
        plugins.request_finished(RECORD)
    assert plugins.failures["faulty"] == 1_000
    assert len(caplog.records) == 10
    assert "512 so far" in caplog.records[-1].getMessage()


def test_an_observer_that_answers_a_coroutine_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def later() -> None: ...

    plugins = plugins_of(faulty=Observer(lambda _: later()))
    plugins.request_finished(RECORD)
    gc.collect()  # a coroutine that is never awaited would warn by now
    assert plugins.failures == {"faulty": 1}
    assert "'faulty'" in caplog.text


# Starting and stopping


class Lives(Answers):
    """Notes when it is started and shut down."""

    def __init__(
        self,
        name: str,
        events: list[str],
        start: Callable[[], object] = lambda: None,
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(None)
        self.name = name
        self.events = events
        self.start = start
        self.stop = stop

    @hookimpl
    def startup(self) -> Any:
        self.events.append(f"start {self.name}")
        return self.start()

    @hookimpl
    def shutdown(self) -> Any:
        self.events.append(f"stop {self.name}")
        return self.stop()


def fail() -> None:
    raise KeyError(CANARY)


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise KeyError(CANARY)


def started(plugins: Plugins) -> Callable[[], Coroutine[Any, Any, None]]:
    return lambda: plugins.startup(lambda: NOTHING_GOES_ON)


def run(*steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        for step in steps:
            await step()

    asyncio.run(main())


def test_plugins_start_in_order_and_stop_in_reverse_once() -> None:
    events: list[str] = []

    async def later() -> None:
        await asyncio.sleep(0)
        events.append("later")

    plugins = plugins_of(a=Lives("a", events, later, later), b=Lives("b", events))
    run(started(plugins), plugins.shutdown, plugins.shutdown)
    assert events == ["start a", "later", "start b", "stop b", "stop a", "later"]


@pytest.mark.parametrize("failing", [fail, fail_later])
def test_a_failing_startup_is_named_and_undoes_those_before(failing: Callable[[], object]) -> None:
    events: list[str] = []
    plugins = plugins_of(
        a=Lives("a", events), bad=Lives("b", events, failing), c=Lives("c", events)
    )
    with pytest.raises(ConfigurationError) as caught:
        run(started(plugins))
    (fault,) = caught.value.faults
    assert "'bad' failed in startup: KeyError" in fault
    assert CANARY not in fault
    assert events == ["start a", "start b", "stop a"]


def test_a_startup_that_hangs_is_named_and_undoes_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr("tornadoproxy.plugin.manager.STARTUP_TIMEOUT", 0.01)
    events: list[str] = []
    plugins = plugins_of(a=Lives("a", events), slow=Lives("b", events, hang))
    with pytest.raises(ConfigurationError) as caught:
        run(started(plugins))
    assert caught.value.faults == ("plugin 'slow' failed in startup: no result within 0.01 s",)
    assert events == ["start a", "start b", "stop a"]


def test_a_startup_that_blocks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tornadoproxy.plugin.manager.STARTUP_TIMEOUT", 0.01)
    with pytest.raises(ConfigurationError) as caught:
        run(started(plugins_of(slow=Lives("a", [], lambda: time.sleep(0.02)))))
    assert caught.value.faults == ("plugin 'slow' failed in startup: no result within 0.01 s",)


def test_a_startup_may_complain_in_its_own_words() -> None:
    def complain() -> None:
        raise ConfigurationError("LOG cannot be opened")

    with pytest.raises(ConfigurationError) as caught:
        run(started(plugins_of(a=Lives("a", [], complain))))
    assert caught.value.faults == ("LOG cannot be opened",)


@pytest.mark.parametrize("failing", [fail, fail_later])
def test_a_failing_shutdown_is_named_and_keeps_nobody_from_stopping(
    failing: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    plugins = plugins_of(a=Lives("a", events), bad=Lives("b", events, stop=failing))
    run(started(plugins), plugins.shutdown)
    assert events[-2:] == ["stop b", "stop a"]
    assert "'bad' failed in shutdown: KeyError" in caplog.text
    assert CANARY not in caplog.text


def test_a_shutdown_that_hangs_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr("tornadoproxy.plugin.manager.SHUTDOWN_TIMEOUT", 0.01)
    events: list[str] = []
    plugins = plugins_of(a=Lives("a", events), slow=Lives("b", events, stop=hang))
    run(started(plugins), plugins.shutdown)
    assert events[-1] == "stop a"
    assert "'slow' failed in shutdown: no result within" in caplog.text


def test_startup_is_given_the_figures_of_the_moment() -> None:
    given: list[object] = []

    class Looks(Answers):
        @hookimpl
        def startup(self, status: Callable[[], Status]) -> None:
            given.append(status())

    run(started(plugins_of(a=Looks(None))))
    assert given == [NOTHING_GOES_ON]


def test_a_plugin_with_nothing_to_start_is_shut_down_all_the_same() -> None:
    events: list[str] = []

    class StopsOnly(Answers):
        @hookimpl
        def shutdown(self) -> None:
            events.append("stop")

    run(plugins_of(a=StopsOnly(None)).shutdown)
    assert events == ["stop"]
