"""Which installed plugins are loaded, refused and described, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from doubles import REQUEST, Authenticator, Plugin, Point, plugins_of, points_of

from tornadoproxy import ConfigurationError, Identity, hookimpl
from tornadoproxy.plugin.loading.discovery import find
from tornadoproxy.plugin.manager import Plugins


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


def test_interrupt_while_loading_is_no_fault() -> None:
    with pytest.raises(KeyboardInterrupt):
        plugins_of(a=KeyboardInterrupt())


def test_all_faults_are_reported_at_once() -> None:
    points = points_of(acme=Authenticator(), one=ValueError("first"), two=ValueError("second"))
    named, first, second = faults_of(points, "acne")
    assert named.startswith("DISABLED_PLUGINS names acne, but there is no such plugin")
    assert "did you mean acme?" in named
    assert "first" in first
    assert "second" in second


def test_two_plugins_of_one_name_are_refused() -> None:
    points: Any = [Point("acme", Authenticator(), installed_as(name)) for name in ("one", "two")]
    (fault,) = faults_of(points)
    assert "'acme' cannot be used: one 1.2 and two 1.2 each have" in fault
    assert [info.state for info in find((), points).described()] == ["broken", "broken"]


def test_no_entry_points_suggest_installing_checkout() -> None:
    (fault,) = faults_of([], "token")
    assert "pip install -e ." in fault


def test_no_authenticator_ends_start() -> None:
    (fault,) = faults_of(points_of(acme=Authenticator()), "acme")
    assert fault.startswith("No plugin authenticates")
    assert "from DISABLED_PLUGINS: acme, or install a package" in fault
    (fault,) = faults_of(points_of(observer=Plugin(request_finished=lambda record: None)))
    assert fault.startswith("No plugin authenticates")
    assert "DISABLED_PLUGINS" not in fault


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


def test_one_object_under_two_names_is_refused() -> None:
    plugin = Authenticator()
    (fault,) = faults_of(points_of(one=plugin, two=plugin))
    assert "'two'" in fault
    assert "same object" in fault


def takes(*arguments: str) -> Callable[..., None]:
    """Return a function with these arguments, as written."""
    names: dict[str, Any] = {}
    exec(f"def function({', '.join(arguments)}): ...", names)
    made: Callable[..., None] = names["function"]
    return made


async def asynchronous() -> None: ...


def generator() -> Callable[[], Iterator[None]]:
    def function() -> Iterator[None]:
        yield

    return function


async def asynchronous_generator() -> Any:
    yield


def marked(hook: str, function: Any, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(**{hook: hookimpl(function, **options)})


def module_with(**functions: Any) -> ModuleType:
    module = ModuleType("acme")
    vars(module).update(functions)
    return module


NO_HOOK = "it has no hook: let the entry point name a module or a class whose functions are marked"
OFFERS = "the hook offers request, identity, model_request"


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (SyntaxError("broken"), "loading it failed: SyntaxError: broken"),
        (RuntimeError("two\nlines"), "loading it failed: RuntimeError: two lines"),
        (SystemExit("a script"), "loading it failed: SystemExit: a script"),
        (7, NO_HOOK),
        (lambda: None, NO_HOOK),
        (Point, "its class must take no arguments, but it is missing a required argument: 'name'"),
        (lambda settings: settings, "its function must take no arguments"),
        (hookimpl(lambda request: None), "it is one hook: let the entry point name its module"),
        (
            module_with(authenticate_request=takes("request")),
            "nearly the hook authenticate: rename",
        ),
        (Plugin(authentcate=takes()), "no hook authentcate: did you mean authenticate?"),
        (Plugin(authorize=takes("request", "identity=None")), "not be given identity=None: take"),
        (Plugin(authorize=takes("*", "request")), "its authorize would not be given request"),
        (Plugin(authorize=takes("*arguments")), "its authorize would not be given *arguments"),
        (Plugin(authorize=takes("**others")), "its authorize would not be given **others"),
        (Plugin(authorize=takes("who")), f"its authorize takes who, but {OFFERS}"),
        (Plugin(shutdown=takes("settings")), "takes settings, but the hook offers no arguments"),
        (marked("authenticate", generator(), wrapper=True), "authenticate is a wrapper"),
        (marked("authenticate", generator(), hookwrapper=True), "authenticate is a wrapper"),
        (Plugin(request_finished=asynchronous), "request_finished is async"),
        (Plugin(configure=asynchronous), "configure is async"),
        (Plugin(declare_settings=asynchronous), "declare_settings is async"),
        (Plugin(price=asynchronous), "price is async"),
        (Plugin(request_finished=generator()), "request_finished is a generator"),
        (Plugin(authenticate=asynchronous_generator), "authenticate is a generator"),
    ],
    ids=lambda value: value if isinstance(value, str) else "plugin",
)
def test_plugin_with_a_mistake_is_refused(plugin: object, said: str) -> None:
    assert said in refusal(plugin)


NOT_MARKED = "is not marked: put @tornadoproxy.hookimpl above it"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("authorize", ["request"], f"its authorize {NOT_MARKED}"),
        ("request_finished", ["anything"], f"its request_finished {NOT_MARKED}"),
        ("authorise", ["request", "identity"], "its authorise is nearly the hook authorize"),
        ("authorise", [], "the hook authorize"),
        ("on_request_finished", ["record"], "the hook request_finished"),
        ("start", ["status"], "the hook startup"),
        ("start", [], None),  # startup, if it took an argument of it
        ("authenticate_request", ["request"], None),  # the hook itself is there
        ("authorise", ["token"], None),  # a helper takes what it needs
        ("admin", ["request"], None),  # short, so an ordinary word
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


def test_unknown_hook_that_is_optional_is_ignored() -> None:
    class FromTheFuture(Authenticator):
        @hookimpl(optionalhook=True)
        def levitate(self, height: float) -> None: ...

    (info,) = plugins_of(future=FromTheFuture()).describe()
    assert info.hooks == ("authenticate",)


def test_survey_describes_broken_plugins_too() -> None:
    points: Any = [
        Point("acme", Authenticator()),
        Point("bad", ValueError("reason"), installed_as("bad")),
        Point("off", ValueError("it is not even imported")),
    ]
    active, disabled, broken = find(["off"], points).described()
    assert (active.name, active.state, active.order) == ("acme", "active", 1)
    assert (disabled.name, disabled.state, disabled.order) == ("off", "disabled", None)
    assert (broken.name, broken.state, broken.version) == ("bad", "broken", "1.2")
    assert "ValueError: reason" in (broken.reason or "")


def test_tryfirst_and_trylast_order_each_hook_apart() -> None:
    asked: list[str] = []

    def authenticator(name: str, **options: Any) -> SimpleNamespace:
        return marked("authenticate", lambda: asked.append(name), **options)

    plugins = plugins_of(
        a=marked("request_finished", lambda: None, tryfirst=True),
        b=authenticator("b", trylast=True),
        c=authenticator("c"),
        d=authenticator("d", tryfirst=True),
        e=authenticator("e"),
        f=Authenticator(Identity("f")),
    )
    plugins.authenticate(REQUEST)
    assert asked == ["d", "c", "e"]
    described = [(info.order, info.name) for info in plugins.describe()]
    assert described == [(1, "d"), (2, "c"), (3, "e"), (4, "f"), (5, "b"), (6, "a")]
