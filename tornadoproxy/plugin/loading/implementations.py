"""A plugin's hook implementations, checked before pluggy registers them."""

from __future__ import annotations

import inspect
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import pluggy

from tornadoproxy.config.sources import nearest
from tornadoproxy.plugin import hookspecs
from tornadoproxy.plugin.failures import discard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    PluginCall = tuple[str, Callable[..., Any]]  # Any: a plugin's result is checked, never trusted
    """A plugin's name and its implementation of a hook, called with every argument of the hook."""

GENERATOR_HOOKS = (
    *("declare_settings", "commands", "credential_headers", "database_status", "pages"),
    "upstreams",
)
SYNC_HOOKS = (
    *GENERATOR_HOOKS,
    *("admin_api", "configure", "databases", "observe", "price", "request_finished"),
)

_ORDINARY = frozenset({"admit", "observe", "pages", "price", "respond"})

_MARK = f"{hookspecs.PROJECT}_impl"
_SPECIFIED = f"{hookspecs.PROJECT}_spec"
_MARKABLE = (FunctionType, MethodType, classmethod, staticmethod)
_STARS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_PASSED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class RefusedError(Exception):
    """A plugin cannot be used; the text says why."""


class _Marked:
    """The marked functions of a plugin, which pluggy registers in its place.

    It would look at all attributes of the plugin several times: a fiftieth of the start.
    """

    def __init__(self, functions: Mapping[str, Callable[..., object]]) -> None:
        vars(self).update(functions)

    def __dir__(self) -> Iterable[str]:
        return vars(self)


class _Manager(pluggy.PluginManager):
    """pluggy, which takes the marks of a plugin's functions from `marks`."""

    marks: Mapping[str, pluggy.HookimplOpts] = {}

    def parse_hookspec_opts(self, module_or_class: object, name: str) -> pluggy.HookspecOpts | None:
        return getattr(getattr(module_or_class, name), _SPECIFIED, None)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        return self.marks.get(name)


class Implementations:
    """The hooks, and which plugin implements which."""

    def __init__(self) -> None:
        self._plugins: list[object] = []
        self._calls: dict[str, list[PluginCall]] = {}
        self._manager = _Manager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        specified = vars(self._manager.hook)
        self._hooks = {
            name: specified[name].spec.argnames for name in vars(hookspecs) if name in specified
        }

    def calls(self, hook: str) -> list[PluginCall]:
        """Return the implementations of `hook` in the order asked."""
        if hook not in self._calls:
            found: list[pluggy.HookImpl] = getattr(self._manager.hook, hook).get_hookimpls()
            found.sort(key=lambda each: (not each.tryfirst, each.trylast, each.plugin_name))
            self._calls[hook] = [
                (each.plugin_name, _with_all_arguments(each, self._hooks[hook])) for each in found
            ]
        return self._calls[hook].copy()

    def register(self, plugin: object, plugin_name: str) -> tuple[str, ...]:
        """Check the hooks of `plugin` and register it; return the hooks that it implements.

        :raises RefusedError: a function of it would never be called as its author expects.
        """
        if any(each is plugin for each in self._plugins):
            raise RefusedError("it is the same object as another plugin")
        functions = dict(_functions(plugin))
        marks = {name: mark for name, (_, mark) in functions.items() if mark is not None}
        implemented = {mark.get("specname") or name for name, mark in marks.items()}
        for name, (function, mark) in functions.items():
            if mark is not None:
                self._check(mark.get("specname") or name, function, mark)
            elif not name.startswith("_"):
                self._refuse_near_miss(name, function, implemented)
        if not implemented:
            raise RefusedError(
                "it has no hook: let the entry point name a module or a class whose functions are "
                "marked with @tornadoproxy.hookimpl"
            )
        self._plugins.append(plugin)
        self._calls.clear()
        self._manager.marks = marks
        marked = {name: function for name, (function, _) in functions.items() if name in marks}
        self._manager.register(_Marked(marked), plugin_name)
        return tuple(hook for hook in self._hooks if hook in implemented)

    def _refuse_near_miss(
        self, name: str, function: Callable[..., object], implemented: Collection[str]
    ) -> None:
        """Refuse a function that its author probably takes for a hook: it is never called.

        It has a hook's name, or its name is similar to a hook that the plugin lacks and it takes
        only arguments of that hook: a helper seldom does both. Without arguments the name must be
        more similar. Hooks that resemble ordinary words are left out: admit, admin.
        """
        if name in self._hooks:
            raise RefusedError(
                f"its {name} is not marked: put @tornadoproxy.hookimpl above it, or rename it if "
                "it is not the hook"
            )
        lacking = [hook for hook in self._hooks if hook not in {*implemented, *_ORDINARY}]
        try:
            taken = set(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            return  # written in C, which no hook is
        candidates = [hook for hook in lacking if taken <= set(self._hooks[hook])]
        if not candidates:
            return
        import difflib  # few plugins have such a function

        cutoff = 0.75 if taken else 0.85
        for hook in difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff):
            raise RefusedError(
                f"its {name} is nearly the hook {hook}: rename it to {hook} and put "
                "@tornadoproxy.hookimpl above it, or begin its name with an underscore"
            )

    def _check(
        self, hook: str, function: Callable[..., object], mark: Mapping[str, object]
    ) -> None:
        if hook not in self._hooks:
            if not mark["optionalhook"]:
                raise RefusedError(f"there is no hook {hook}{nearest(hook, self._hooks)}")
            return
        if mark["wrapper"] or mark["hookwrapper"]:
            raise RefusedError(f"its {hook} is a wrapper: hooks cannot be wrapped here")
        flags = _code_flags(function)
        if flags & inspect.CO_ASYNC_GENERATOR or (
            flags & inspect.CO_GENERATOR and hook not in GENERATOR_HOOKS
        ):
            raise RefusedError(f"its {hook} is a generator: use return, not yield")
        if hook in SYNC_HOOKS and inspect.iscoroutinefunction(function):
            raise RefusedError(f"its {hook} is async: nothing awaits it, define it without async")
        offered = self._hooks[hook]
        if _takes_only(function, offered):
            return
        for argument in inspect.signature(function).parameters.values():
            if argument.default is not argument.empty or argument.kind not in _PASSED:
                raise RefusedError(
                    f"its {hook} would not be given {argument}: take it by its plain name, without "
                    f"a default and without a *; the hook offers {_listed(offered)}"
                )
            if argument.name not in offered:
                raise RefusedError(
                    f"its {hook} takes {argument.name}, but the hook offers {_listed(offered)}"
                )


def instantiate(named: object) -> object:
    """Return the plugin: the result of a class or factory, or the object itself."""
    if not (inspect.isclass(named) or inspect.isroutine(named)):
        return named
    kind = "class" if inspect.isclass(named) else "function"
    if hasattr(named, _MARK):
        raise RefusedError("it is one hook: let the entry point name its module or class")
    try:
        made = named()
    except TypeError:
        _require_no_arguments(named, kind)
        raise
    discard(made)
    return made


def _require_no_arguments(named: Callable[..., object], kind: str) -> None:
    try:
        inspect.signature(named).bind()
    except TypeError as error:
        raise RefusedError(
            f"its {kind} must take no arguments, but it is {one_line(error)}: give that a default"
        ) from None


def one_line(error: BaseException) -> str:
    """Return the text of `error` without line breaks."""
    return " ".join(str(error).split())


def _functions(
    plugin: object,
) -> Iterator[tuple[str, tuple[Callable[..., object], pluggy.HookimplOpts | None]]]:
    """Yield the functions and methods of `plugin` by name, without running its properties.

    With each comes the mark that `pluggy.HookimplMarker` sets on it, or on the `classmethod` or
    `staticmethod` around it; ``None`` without one, or where pluggy reads none.
    """
    for name, value in sorted(_attributes(plugin).items()):
        if name.startswith("__") or value is hookspecs.hookimpl:
            continue
        if not (isinstance(value, classmethod) or (callable(value) and not inspect.isclass(value))):
            continue
        function, mark = getattr(plugin, name), None
        if isinstance(value, _MARKABLE):
            mark = getattr(value, _MARK, None) or getattr(function, _MARK, None)
        yield name, (function, mark)


def _attributes(plugin: object) -> dict[str, object]:
    """Return what `inspect.getattr_static` returns for each attribute of `plugin`.

    To call that for each of them takes a hundredth of the start.
    """
    owners = plugin.__mro__ if isinstance(plugin, type) else (plugin, *type(plugin).__mro__)
    found: dict[str, object] = {}
    for owner in reversed(owners):
        if owner is not object:
            found |= getattr(owner, "__dict__", {})
    return found


def _code_flags(function: Callable[..., object]) -> int:
    """Return the flags of the code of `function`; 0 if that is not in Python."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return 0 if code is None else int(code.co_flags)


def _takes_only(function: Callable[..., object], offered: Collection[str]) -> bool:
    """Return whether `function` takes nothing but some of `offered`, without a default or a star.

    ``False`` also for what only `inspect.signature` can tell: that takes twenty times as long.
    """
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__wrapped__") or function.__defaults__:
        return False
    if code.co_kwonlyargcount or code.co_flags & _STARS:
        return False
    taken = code.co_varnames[inspect.ismethod(function) : code.co_argcount]
    return set(taken) <= set(offered)


def _listed(arguments: tuple[str, ...]) -> str:
    return ", ".join(arguments) or "no arguments"


def _with_all_arguments(
    implementation: pluggy.HookImpl, arguments: tuple[str, ...]
) -> Callable[..., Any]:
    """Return a function that takes every argument of the hook, and passes on those it needs."""
    function = implementation.function
    if tuple(implementation.argnames) == arguments:
        return function
    taken = [arguments.index(name) for name in implementation.argnames]
    return lambda *given: function(*(given[at] for at in taken))
