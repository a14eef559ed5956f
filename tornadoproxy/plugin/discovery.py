"""Finds the installed plugins, and refuses those that cannot be used.

pluggy marks their hooks and keeps them; which can be used is examined here. An entry point that is
wrong in any way is a fault: it may be the one that was to keep people out.

The order is the same everywhere: ``tryfirst``, then the others, then ``trylast``, each by name.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pluggy
from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.config.setting import Setting
from tornadoproxy.config.sources import nearest
from tornadoproxy.plugin import hookspecs
from tornadoproxy.plugin.commands import Command
from tornadoproxy.plugin.failures import discard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from importlib.metadata import Distribution, EntryPoint

    from tornadoproxy.plugin.pages import Page

_DECLARING = ("declare_settings", "commands", "credential_headers", "pages")
_SYNC_HOOKS = (*_DECLARING, "configure", "price", "request_finished")
_PASSED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PluginInfo(Struct, frozen=True):
    """What is known of one entry point.

    :param name: the entry point's name, which ``DISABLED_PLUGINS`` takes.
    :param source: the installed package that it comes from, if known.
    :param state: ``inactive``: the settings ask nothing of it, known once it has been configured.
        ``broken`` is refused: with one of those the proxy does not start.
    :param hooks: the hooks that it implements; none if it is disabled or broken.
    :param order: its place, from one: those that authenticate as they are asked, then the rest by
        name; ``None`` unless it is active.
    :param reason: what is wrong with a broken one.
    :param module: what the entry point names, as in ``package.module:object``.
    :param settings: those that it declares.
    :param commands: those that it offers.
    :param pages: those that it serves, known once it has been configured.
    """

    name: str
    source: Distribution | None
    state: Literal["active", "inactive", "disabled", "broken"]
    hooks: tuple[str, ...] = ()
    order: int | None = None
    reason: str | None = None
    module: str = ""
    settings: tuple[Setting[Any], ...] = ()  # Any: each has a type of its own
    commands: tuple[Command, ...] = ()
    pages: tuple[Page, ...] = ()

    # read only where it is shown: a package's metadata holds its README as well

    @property
    def distribution(self) -> str | None:
        """The name of `source`."""
        return self.source.name if self.source else None

    @property
    def version(self) -> str | None:
        """The version of `source`."""
        return self.source.version if self.source else None


class PluginCall(NamedTuple):
    """One plugin's implementation of a hook, called with what the hook offers."""

    plugin: str
    function: Callable[..., Any]  # Any: what a plugin answers is looked at, never trusted


class _RefusedError(Exception):
    """A plugin cannot be used, and its text says why."""


class FoundPlugins:
    """What a pass over the entry points finds: plugins, their settings, and faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.settings: list[Setting[Any]] = []  # Any: each has a type of its own
        self._active: list[PluginInfo] = []
        self._disabled: list[PluginInfo] = []
        self._broken: list[PluginInfo] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._hooks = {
            name: tuple(inspect.signature(value).parameters)
            for name, value in vars(hookspecs).items()
            if self._manager.parse_hookspec_opts(hookspecs, name) is not None
        }

    def calls(self, hook: str) -> list[PluginCall]:
        """Return the implementations of `hook` in the order asked, called with all it offers."""
        implementations: list[pluggy.HookImpl] = getattr(self._manager.hook, hook).get_hookimpls()
        implementations.sort(key=lambda each: (not each.tryfirst, each.trylast, each.plugin_name))
        return [
            PluginCall(each.plugin_name, _callable(each, self._hooks[hook]))
            for each in implementations
        ]

    def described(self) -> tuple[PluginInfo, ...]:
        """The active plugins in the order asked, then the disabled, then the broken ones."""
        asked = [plugin for plugin, _ in self.calls("authenticate")]

        def place(info: PluginInfo) -> tuple[int, str]:
            return asked.index(info.name) if info.name in asked else len(asked), info.name

        return in_order([*sorted(self._active, key=place), *self._disabled, *self._broken])

    def leave_out(self, point: EntryPoint) -> None:
        """Note a disabled plugin, without importing it."""
        self._disabled.append(_info(point, "disabled"))

    def refuse_all(self, points: list[EntryPoint]) -> None:
        """Refuse several plugins of one name: which of them is meant cannot be known."""
        whose = " and ".join(_source(point) for point in points)
        reason = f"{whose} each have a plugin of this name: uninstall all but one"
        self._broken += [_info(point, "broken", reason=reason) for point in points]
        self.faults.append(f"plugin {points[0].name!r} cannot be used: {reason}")

    def load(self, point: EntryPoint) -> None:
        """Load and register one plugin; whatever is wrong with it becomes a fault."""
        try:
            hooks = self._register(_made(point.load()), point.name)
            settings = self._declared_by(point.name)
            commands = self._offered_by(point.name)
        except _RefusedError as refused:
            reason = str(refused)
        except KeyboardInterrupt:
            raise
        # SystemExit: somebody named a script
        except BaseException as error:
            reason = f"loading it failed: {type(error).__name__}: {_one_line(error)}"
        else:
            self.settings += settings
            info = _info(point, "active", hooks=hooks)
            self._active.append(replace(info, settings=tuple(settings), commands=tuple(commands)))
            return
        self._broken.append(_info(point, "broken", reason=reason))
        self.faults.append(
            f"plugin {point.name!r} of {_source(point)} cannot be used (mend it, or leave it out "
            f"with DISABLED_PLUGINS={point.name}): {reason}"
        )

    def require_authenticator(self) -> None:
        """See that somebody authenticates; a fault before may be all that is in the way."""
        if self.faults or self.calls("authenticate"):
            return
        names = " ".join(info.name for info in self._disabled)
        self.faults.append(
            "No plugin authenticates requests, so nobody may be let in: "
            + (f"take one of these out of DISABLED_PLUGINS: {names}, or " if names else "")
            + "install a package with a plugin that does"
        )

    def _register(self, plugin: object, name: str) -> tuple[str, ...]:
        """Examine the hooks of `plugin`, and have pluggy keep them.

        :return: the names of the hooks that it implements.
        """
        if self._manager.is_registered(plugin):
            raise _RefusedError("it is the same object as another plugin")
        functions = dict(_functions(plugin))
        marks = {each: self._manager.parse_hookimpl_opts(plugin, each) for each in functions}
        implemented = {
            mark.get("specname") or function for function, mark in marks.items() if mark is not None
        }
        for function, mark in marks.items():
            if mark is not None:
                self._examine(mark.get("specname") or function, functions[function], mark)
            elif not function.startswith("_"):
                self._refuse_near_miss(function, functions[function], implemented)
        if not implemented:
            raise _RefusedError(
                "it has no hook: let the entry point name a module or a class whose functions are "
                "marked with @tornadoproxy.hookimpl"
            )
        self._manager.register(plugin, name)
        return tuple(hook for hook in self._hooks if hook in implemented)

    def _refuse_near_miss(
        self, name: str, function: Callable[..., object], implemented: Collection[str]
    ) -> None:
        """Refuse a function that its author takes for a hook, and that would never be called.

        It has a hook's name, or it is called much like a hook that the plugin lacks and takes only
        what that hook offers: a helper seldom does both. One that takes nothing has to be named
        more alike. Short names are too near to ordinary words, as admit is to admin.
        """
        if name in self._hooks:
            raise _RefusedError(
                f"its {name} is not marked: put @tornadoproxy.hookimpl above it, or rename it if "
                "it is not the hook"
            )
        lacking = [hook for hook in self._hooks if hook not in implemented and len(hook) > 5]
        try:
            taken = set(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            return  # written in C, which no hook is
        cutoff = 0.75 if taken else 0.85
        for hook in difflib.get_close_matches(name, lacking, n=1, cutoff=cutoff):
            if taken <= set(self._hooks[hook]):
                raise _RefusedError(
                    f"its {name} is nearly the hook {hook}: rename it to {hook} and put "
                    "@tornadoproxy.hookimpl above it, or begin its name with an underscore"
                )

    def _examine(
        self, hook: str, function: Callable[..., object], mark: Mapping[str, object]
    ) -> None:
        if hook not in self._hooks:
            if not mark["optionalhook"]:
                raise _RefusedError(f"there is no hook {hook}{nearest(hook, self._hooks)}")
            return
        if mark["wrapper"] or mark["hookwrapper"]:
            raise _RefusedError(f"its {hook} is a wrapper: hooks are not wrapped here")
        if inspect.isasyncgenfunction(function) or (
            inspect.isgeneratorfunction(function) and hook not in _DECLARING
        ):
            raise _RefusedError(f"its {hook} is a generator: let it return, not yield")
        if hook in _SYNC_HOOKS and inspect.iscoroutinefunction(function):
            raise _RefusedError(f"its {hook} is async: nothing awaits it, define it without async")
        offered = self._hooks[hook]
        for argument in inspect.signature(function).parameters.values():
            if argument.default is not argument.empty or argument.kind not in _PASSED:
                raise _RefusedError(
                    f"its {hook} would not be given {argument}: take it by its plain name, without "
                    f"a default and without a *; the hook offers {_listed(offered)}"
                )
            if argument.name not in offered:
                raise _RefusedError(
                    f"its {hook} takes {argument.name}, but the hook offers {_listed(offered)}"
                )

    def _declared_by(self, plugin: str) -> list[Setting[Any]]:
        declared: list[Setting[Any]] = self._answered("declare_settings", plugin)
        taken = {setting.name for setting in (*CORE_SETTINGS, *self.settings)}
        for setting in declared:
            if not isinstance(setting, Setting):
                raise _RefusedError(
                    f"it declares a {type(setting).__name__}, which is not a Setting"
                )
            if setting.name in taken:
                raise _RefusedError(f"the name of its setting {setting.name} is taken: rename it")
            taken.add(setting.name)
        return declared

    def _offered_by(self, plugin: str) -> list[Command]:
        offered: list[Command] = self._answered("commands", plugin)
        taken = {command.name: info.name for info in self._active for command in info.commands}
        taken |= dict.fromkeys(COMMANDS, "the proxy itself")
        for command in offered:
            if not isinstance(command, Command):
                raise _RefusedError(f"it offers a {type(command).__name__}, which is not a Command")
            if command.name in taken:
                raise _RefusedError(
                    f"the name of its command {command.name} is taken by {taken[command.name]}: "
                    "rename it"
                )
            taken[command.name] = "itself"
        return offered

    def _answered(self, hook: str, plugin: str) -> list[Any]:  # Any: it is not looked at here
        """All that `plugin` answers to a declaring `hook`."""
        answered: list[Any] = []
        for name, ask in self.calls(hook):
            if name == plugin:
                result = ask()
                discard(result)
                answered += result
        return answered


def find(disabled: Collection[str], entry_points: Iterable[EntryPoint] | None) -> FoundPlugins:
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=hookspecs.PROJECT)
    found = FoundPlugins()
    named: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points, key=lambda each: each.name):
        named.setdefault(point.name, []).append(point)
    if not named:
        found.faults.append(
            "No plugin is installed, not even this package's own, so nobody may be let in: this "
            "looks like a checkout that was never installed: run `pip install -e .` in it"
        )
        return found
    found.faults += [
        f"DISABLED_PLUGINS names {name}, but there is no such plugin{nearest(name, named)}"
        for name in disabled
        if name not in named
    ]
    for name, points in named.items():
        if name in disabled:
            for point in points:
                found.leave_out(point)
        elif len(points) > 1:
            found.refuse_all(points)
        else:
            found.load(points[0])
    found.require_authenticator()
    return found


def in_order(infos: Iterable[PluginInfo]) -> tuple[PluginInfo, ...]:
    """`infos`, the active ones first and numbered, then the others as they come."""
    infos = list(infos)
    active = [info for info in infos if info.state == "active"]
    others = [replace(info, order=None) for info in infos if info.state != "active"]
    return (*(replace(info, order=order) for order, info in enumerate(active, start=1)), *others)


def _info(
    point: EntryPoint,
    state: Literal["active", "disabled", "broken"],
    hooks: tuple[str, ...] = (),
    reason: str | None = None,
) -> PluginInfo:
    return PluginInfo(
        name=point.name,
        source=point.dist,
        state=state,
        hooks=hooks,
        reason=reason,
        module=point.value,
    )


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else f"({point.value})"


def _made(named: object) -> object:
    """Return the plugin: what a class or a factory makes, else what the entry point names."""
    if not (inspect.isclass(named) or inspect.isroutine(named)):
        return named
    kind = "class" if inspect.isclass(named) else "function"
    if hasattr(named, f"{hookspecs.PROJECT}_impl"):
        raise _RefusedError("it is one hook: let the entry point name its module or class")
    try:
        inspect.signature(named).bind()
    except TypeError as error:
        raise _RefusedError(
            f"its {kind} must take no arguments, but it is {_one_line(error)}: give that a default"
        ) from None
    made = named()
    discard(made)
    return made


def _functions(plugin: object) -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield the functions and methods of `plugin` by name, without running its properties."""
    for name in dir(plugin):
        value = inspect.getattr_static(plugin, name, None)
        if isinstance(value, classmethod) or (callable(value) and not inspect.isclass(value)):
            yield name, getattr(plugin, name)


def _listed(arguments: tuple[str, ...]) -> str:
    return ", ".join(arguments) or "no arguments"


def _callable(implementation: pluggy.HookImpl, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """A function that takes all that the hook offers, also if the implementation does not."""
    function = implementation.function
    if tuple(implementation.argnames) == arguments:
        return function
    taken = [arguments.index(name) for name in implementation.argnames]
    return lambda *given: function(*(given[at] for at in taken))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
