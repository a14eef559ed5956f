"""Which installed plugins are loaded, refused and described, and in which order."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from doubles import REQUEST, Authenticator, Plugin, Point, plugins_of, points_of
from program import install

from tornadoproxy import (
    AuthenticationFailed,
    ConfigurationError,
    Identity,
    Settings,
    hookimpl,
)
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

INSTALLED = """
from tornadoproxy import Identity, hookimpl

@hookimpl
def authenticate(request):
    return Identity("somebody")
"""


def faults_of(points: Any, *disabled: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        Plugins.load(disabled, points)
    return caught.value.faults


def refusal(plugin: object) -> str:
    """Return why a plugin is refused that is loaded beside a valid one."""
    (fault,) = faults_of(points_of(good=Authenticator(), bad=plugin))
    assert fault.startswith("plugin 'bad' of (at:hand) cannot be used")
    assert "DISABLED_PLUGINS=bad" in fault
    assert "\n" not in fault
    return fault


def installed_as(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, version="1.2")


# -- loading


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the installed packages ``acme`` and ``bad``, which cannot be imported."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    install(tmp_path, "acme", INSTALLED)
    install(tmp_path, "bad", "import a_module_that_is_missing")
    yield tmp_path / "site"
    sys.modules.pop("acme", None)


def test_installed_plugin_is_loaded_unless_it_is_disabled(site: Path) -> None:
    points = [point for dist in distributions(path=[str(site)]) for point in dist.entry_points]
    plugins = Plugins.load(["bad"], points)
    acme, bad = plugins.describe()
    assert (acme.name, acme.distribution, acme.version) == ("acme", "acme", "1.5")
    assert (acme.state, acme.hooks, acme.order) == ("active", ("authenticate",), 1)
    assert (bad.state, bad.hooks, bad.order, bad.module) == ("disabled", (), None, "bad")
    assert plugins.authenticate(REQUEST) == Identity("somebody")
    (fault,) = faults_of(points)
    assert "'bad' of bad 1.5" in fault
    assert "ModuleNotFoundError: No module named 'a_module_that_is_missing'" in fault


def test_plugins_of_this_package_are_entry_points() -> None:
    active = {info.name: info for info in Plugins.load().describe()}
    assert active["token"].distribution == active["access_log"].distribution == "tornadoproxy"
    assert active["token"].hooks == ("declare_settings", "configure", "authenticate")
    assert active["access_log"].state == "active"


def test_load_makes_plugins_of_its_own_each_time() -> None:
    ours = [info.name for info in Plugins.load().describe() if info.name != "token"]
    first, second = Plugins.load(ours), Plugins.load(ours)
    first.configure(Settings.defaults(*first.declared_settings()))
    assert first.authenticate(REQUEST) == Identity("anonymous", anonymous=True)
    with pytest.raises(AuthenticationFailed):
        second.authenticate(REQUEST)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SyntaxError("broken"), "SyntaxError: broken"),
        (AttributeError("no attribute 'plugin'"), "AttributeError: no attribute"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
        (SystemExit("a script"), "SystemExit: a script"),
    ],
)
def test_plugin_that_cannot_be_loaded_ends_start(error: BaseException, said: str) -> None:
    assert f"loading it failed: {said}" in refusal(error)


def test_interrupt_while_loading_is_no_fault() -> None:
    with pytest.raises(KeyboardInterrupt):
        plugins_of(a=KeyboardInterrupt())


def test_all_faults_are_reported_at_once() -> None:
    faults = faults_of(points_of(one=ValueError("first"), two=ValueError("second")), "acne")
    assert len(faults) == 3
    assert "DISABLED_PLUGINS names acne, but there is no such plugin" in faults[0]
    assert "first" in faults[1]
    assert "second" in faults[2]


def test_disabled_name_that_does_not_exist_names_nearest() -> None:
    (fault,) = faults_of(points_of(acme=Authenticator()), "acne")
    assert "DISABLED_PLUGINS names acne" in fault
    assert "did you mean acme?" in fault


def test_two_plugins_of_one_name_are_refused() -> None:
    points: Any = [Point("acme", Authenticator(), installed_as(name)) for name in ("one", "two")]
    (fault,) = faults_of(points)
    assert "'acme' cannot be used: one 1.2 and two 1.2 each have" in fault
    assert [info.state for info in Plugins.survey((), points)] == ["broken", "broken"]


def test_no_entry_points_suggest_installing_checkout() -> None:
    (fault,) = faults_of([], "token")
    assert "pip install -e ." in fault


def test_no_authenticator_ends_start() -> None:
    (fault,) = faults_of(points_of(acme=Authenticator()), "acme")
    assert "No plugin authenticates" in fault
    assert "from DISABLED_PLUGINS: acme" in fault
    (fault,) = faults_of(points_of(observer=Plugin(request_finished=lambda record: None)))
    assert "No plugin authenticates" in fault
    assert "DISABLED_PLUGINS" not in fault
    assert "install a package" in fault


# -- what can be a plugin


@pytest.mark.parametrize("plugin", [None, lambda: None, 7])
def test_object_without_hooks_is_refused(plugin: object) -> None:
    assert "module or a class whose functions are marked" in refusal(plugin)


def test_class_or_factory_makes_plugin_for_each_proxy() -> None:
    class Counts(Authenticator):
        made: ClassVar = 0

        def __init__(self) -> None:
            super().__init__()
            Counts.made += 1

    for _ in range(2):
        names = [info.name for info in plugins_of(a=Counts, b=lambda: Counts()).describe()]
        assert names == ["a", "b"]
    assert Counts.made == 4


def test_class_or_factory_with_arguments_is_refused() -> None:
    assert "its class must take no arguments, but it is missing" in refusal(Point)
    assert "its function must take no arguments" in refusal(lambda settings: settings)


def test_one_hook_instead_of_its_module_is_refused() -> None:
    assert "it is one hook" in refusal(hookimpl(lambda request: None))


def test_one_object_under_two_names_is_refused() -> None:
    plugin = Authenticator()
    (fault,) = faults_of(points_of(one=plugin, two=plugin))
    assert "'two'" in fault
    assert "same object" in fault


# -- what can be a hook


def takes(*arguments: str) -> Callable[..., None]:
    """Return a function with these arguments, as written."""
    names: dict[str, Any] = {}
    exec(f"def function({', '.join(arguments)}): ...", names)
    made: Callable[..., None] = names["function"]
    return made


NOT_MARKED = "is not marked: put @tornadoproxy.hookimpl above it"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("authorize", ["request"], f"its authorize {NOT_MARKED}"),
        ("request_finished", ["anything"], f"its request_finished {NOT_MARKED}"),
        ("authorise", ["request", "identity"], "its authorise is nearly the hook authorize"),
        ("authorise", [], "the hook authorize"),
        ("on_request_finished", ["record"], "the hook request_finished"),
        ("start_up", [], "the hook startup"),
        ("settings_finished", ["record"], None),
        ("authenticate_request", ["request"], None),  # the hook itself is there
        ("authorise", ["token"], None),  # a helper takes what it needs
        ("admin", ["request"], None),  # short, so an ordinary word
        ("prices", [], None),
        ("start", [], None),  # startup, if it took an argument of it
        ("start", ["status"], "the hook startup"),
        ("reload", ["settings"], None),
        ("_authorise", ["request"], None),
    ],
)
def test_near_miss_of_hook_is_refused(name: str, arguments: list[str], said: str | None) -> None:
    plugin: Any = Authenticator()
    setattr(plugin, name, takes(*arguments))
    if said is None:
        assert plugins_of(a=plugin).describe()[0].hooks == ("authenticate",)
    else:
        assert said in refusal(plugin)


def test_near_miss_in_module_without_the_hook_is_refused() -> None:
    plugin: Any = ModuleType("acme")
    plugin.authenticate_request = takes("request")
    plugin.price = hookimpl(takes("model", "usage"))
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
def test_argument_that_hook_never_passes_is_refused(arguments: list[str], said: str) -> None:
    fault = refusal(Plugin(authorize=takes(*arguments)))
    assert f"its authorize {said}" in fault
    assert "the hook offers request, identity, model_request" in fault


def test_argument_of_hook_without_any_is_refused() -> None:
    assert "the hook offers no arguments" in refusal(Plugin(pages=takes("settings")))


def test_unknown_hook_is_refused_unless_optional() -> None:
    assert "no hook authentcate: did you mean authenticate?" in refusal(
        Plugin(authentcate=takes("request"))
    )

    class FromTheFuture(Authenticator):
        @hookimpl(optionalhook=True)
        def levitate(self, height: float) -> None: ...

    (info,) = plugins_of(future=FromTheFuture()).describe()
    assert info.hooks == ("authenticate",)


@pytest.mark.parametrize("new", [True, False])
def test_wrapper_is_refused(*, new: bool) -> None:
    def authenticate(request: object) -> Any:
        return (yield)

    marked = hookimpl(authenticate, wrapper=new, hookwrapper=not new)
    assert "authenticate is a wrapper" in refusal(SimpleNamespace(authenticate=marked))


async def asynchronous() -> None: ...


def generator() -> Iterator[None]:
    yield


async def asynchronous_generator() -> Any:
    yield


@pytest.mark.parametrize(
    ("hook", "function", "said"),
    [
        ("request_finished", asynchronous, "request_finished is async"),
        ("configure", asynchronous, "configure is async"),
        ("declare_settings", asynchronous, "declare_settings is async"),
        ("price", asynchronous, "price is async"),
        ("request_finished", generator, "request_finished is a generator"),
        ("authenticate", asynchronous_generator, "authenticate is a generator"),
    ],
)
def test_function_that_would_never_run_is_refused(hook: str, function: Any, said: str) -> None:
    assert said in refusal(SimpleNamespace(**{hook: hookimpl(function)}))


# -- descriptions


def test_survey_describes_broken_plugins_too() -> None:
    points: Any = [
        Point("acme", Authenticator()),
        Point("bad", ValueError("reason"), installed_as("bad")),
        Point("off", Authenticator()),
    ]
    active, disabled, broken = Plugins.survey(["off"], points)
    assert (active.name, active.state, active.order) == ("acme", "active", 1)
    assert (disabled.name, disabled.state, disabled.order) == ("off", "disabled", None)
    assert (broken.name, broken.state, broken.version) == ("bad", "broken", "1.2")
    assert "ValueError: reason" in (broken.reason or "")


class First(Authenticator):
    @hookimpl(tryfirst=True)
    def authenticate(self, request: Any) -> Any:
        return super().authenticate(request)


class Last(Authenticator):
    @hookimpl(trylast=True)
    def authenticate(self, request: Any) -> Any:
        return super().authenticate(request)


def test_tryfirst_and_trylast_order_each_hook_apart() -> None:
    class Observer:
        @hookimpl(tryfirst=True)
        def request_finished(self, record: object) -> None: ...

    first, middle, last = First(), Authenticator(), Last(Identity("last"))
    plugins = plugins_of(a=Observer(), b=last, c=middle, d=first)
    described = [(info.order, info.name) for info in plugins.describe()]
    assert described == [(1, "d"), (2, "c"), (3, "b"), (4, "a")]
    assert plugins.authenticate(REQUEST) == Identity("last")
    middle.result = Identity("middle")
    assert plugins.authenticate(REQUEST) == Identity("middle")
    first.result = Identity("first")
    assert plugins.authenticate(REQUEST) == Identity("first")
