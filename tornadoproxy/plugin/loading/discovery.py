"""The installed plugins, and why some cannot be used.

An entry point with any mistake is a fault that ends the start: it may be the plugin that was to
keep people out.

The order is the same everywhere: ``tryfirst``, then the others, then ``trylast``, each by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.config.setting import Setting
from tornadoproxy.config.sources import nearest
from tornadoproxy.plugin import hookspecs
from tornadoproxy.plugin.command.commands import Command
from tornadoproxy.plugin.failures import discard
from tornadoproxy.plugin.loading.entry_points import installed
from tornadoproxy.plugin.loading.implementations import (
    Implementations,
    RefusedError,
    instantiate,
    one_line,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tornadoproxy.plugin.loading.entry_points import Point
    from tornadoproxy.plugin.loading.implementations import PluginCall
    from tornadoproxy.plugin.web.pages import Page


class PluginInfo(Struct, frozen=True):
    """The description of one entry point.

    :param name: the entry point's name, as ``DISABLED_PLUGINS`` takes it.
    :param point: the entry point itself.
    :param state: ``inactive``: not used by the settings, known after ``configure``.
        ``broken``: refused, so that the proxy does not start.
    :param hooks: the hooks that it implements; empty if it is disabled or broken.
    :param order: its position, from one: authenticating plugins in the order asked, then the rest
        by name; ``None`` unless it is active.
    :param reason: what is wrong with a broken one.
    :param module: the entry point's value, as in ``package.module:object``.
    :param settings: the settings that it declares.
    :param commands: the commands that it declares.
    :param pages: the pages that it serves, known after ``configure``.
    """

    name: str
    point: Point
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
        """The installed package that it comes from, if known."""
        return self.point.dist.name if self.point.dist else None

    @property
    def version(self) -> str | None:
        """The version of that package."""
        return self.point.dist.version if self.point.dist else None


class FoundPlugins:
    """The result of a pass over the entry points: plugins, their settings, and faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.settings: list[Setting[Any]] = []  # Any: each has a type of its own
        self._active: list[PluginInfo] = []
        self._disabled: list[PluginInfo] = []
        self._broken: list[PluginInfo] = []
        self._implementations = Implementations()

    def calls(self, hook: str) -> list[PluginCall]:
        """Return the implementations of `hook` in the order asked."""
        return self._implementations.calls(hook)

    def described(self) -> tuple[PluginInfo, ...]:
        """Return the active plugins in the order asked, then the disabled, then the broken ones."""
        asked = [plugin for plugin, _ in self.calls("authenticate")]

        def place(info: PluginInfo) -> tuple[int, str]:
            return asked.index(info.name) if info.name in asked else len(asked), info.name

        return in_order([*sorted(self._active, key=place), *self._disabled, *self._broken])

    def leave_out(self, point: Point) -> None:
        """Record a disabled plugin without importing it."""
        self._disabled.append(_info(point, "disabled"))

    def refuse_all(self, points: list[Point]) -> None:
        """Refuse several plugins of one name, since the name does not say which is meant."""
        whose = " and ".join(_source(point) for point in points)
        reason = f"{whose} each have a plugin of this name: uninstall all but one"
        self._broken += [_info(point, "broken", reason=reason) for point in points]
        self.faults.append(f"plugin {points[0].name!r} cannot be used: {reason}")

    def load(self, point: Point) -> None:
        """Load and register one plugin; every mistake in it becomes a fault."""
        try:
            hooks = self._implementations.register(instantiate(point.load()), point.name)
            settings = self._declared_by(point.name) if "declare_settings" in hooks else []
            commands = self._offered_by(point.name) if "commands" in hooks else []
        except RefusedError as refused:
            reason = str(refused)
        except KeyboardInterrupt:
            raise
        # including SystemExit, which an entry point that names a script raises
        except BaseException as error:
            reason = f"loading it failed: {type(error).__name__}: {one_line(error)}"
        else:
            self.settings += settings
            info = _info(point, "active", hooks=hooks)
            self._active.append(replace(info, settings=tuple(settings), commands=tuple(commands)))
            return
        self._broken.append(_info(point, "broken", reason=reason))
        self.faults.append(
            f"plugin {point.name!r} of {_source(point)} cannot be used (fix it, or disable it "
            f"with DISABLED_PLUGINS={point.name}): {reason}"
        )

    def require_authenticator(self) -> None:
        """Require a plugin that authenticates, unless an earlier fault may be the reason."""
        if self.faults or self.calls("authenticate"):
            return
        names = " ".join(info.name for info in self._disabled)
        self.faults.append(
            "No plugin authenticates requests, so every request would be rejected: "
            + (f"remove one of these from DISABLED_PLUGINS: {names}, or " if names else "")
            + "install a package with such a plugin"
        )

    def _declared_by(self, plugin: str) -> list[Setting[Any]]:
        declared: list[Setting[Any]] = self._declared("declare_settings", plugin)
        taken = {setting.name for setting in (*CORE_SETTINGS, *self.settings)}
        for setting in declared:
            if not isinstance(setting, Setting):
                raise RefusedError(
                    f"it declares a {type(setting).__name__}, which is not a Setting"
                )
            if setting.name in taken:
                raise RefusedError(f"the name of its setting {setting.name} is taken: rename it")
            taken.add(setting.name)
        return declared

    def _offered_by(self, plugin: str) -> list[Command]:
        offered: list[Command] = self._declared("commands", plugin)
        taken = {command.name: info.name for info in self._active for command in info.commands}
        taken |= dict.fromkeys(COMMANDS, "the proxy itself")
        for command in offered:
            if not isinstance(command, Command):
                raise RefusedError(f"it offers a {type(command).__name__}, which is not a Command")
            if command.name in taken:
                raise RefusedError(
                    f"the name of its command {command.name} is taken by {taken[command.name]}: "
                    "rename it"
                )
            taken[command.name] = "itself"
        return offered

    def _declared(self, hook: str, plugin: str) -> list[Any]:  # Any: not validated yet
        """Return the results of `plugin` for a declaring `hook`."""
        declared: list[Any] = []
        for name, ask in self.calls(hook):
            if name == plugin:
                result = ask()
                discard(result)
                declared += result
        return declared


def find(disabled: Collection[str], entry_points: Iterable[Point] | None = None) -> FoundPlugins:
    """Load the plugins of `entry_points`, or of the installed ones; see `Plugins.load`."""
    if entry_points is None:
        entry_points = installed(hookspecs.PROJECT)
    found = FoundPlugins()
    named: dict[str, list[Point]] = {}
    for point in sorted(entry_points, key=lambda each: each.name):
        named.setdefault(point.name, []).append(point)
    if not named:
        found.faults.append(
            "No plugin is installed, not even this package's own, so every request would be "
            "rejected: this looks like a checkout that was never installed: run "
            "`pip install -e .` in it"
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
    """Return `infos` with the active ones first and numbered."""
    infos = list(infos)
    active = [info for info in infos if info.state == "active"]
    others = [replace(info, order=None) for info in infos if info.state != "active"]
    return (*(replace(info, order=order) for order, info in enumerate(active, start=1)), *others)


def _info(
    point: Point,
    state: Literal["active", "disabled", "broken"],
    hooks: tuple[str, ...] = (),
    reason: str | None = None,
) -> PluginInfo:
    return PluginInfo(
        name=point.name,
        point=point,
        state=state,
        hooks=hooks,
        reason=reason,
        module=point.value,
    )


def _source(point: Point) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else f"({point.value})"
