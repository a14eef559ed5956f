"""The values of all settings, read once: ``settings[PORT]`` is an ``int``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tornadoproxy.config.core_settings import CORE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tornadoproxy.config.setting import Setting

T = TypeVar("T")


class Settings(dict["Setting[Any]", Any]):
    """The values of all settings; they never change, see `replace`.

    It is a dictionary, since requests look up a handful of them each: a method of our own for that
    takes twenty times as long.

    :param values: the value of each declared setting.
    :param variables: for each setting that was set, the variable that set it: its own name or one
        of its fallbacks.
    :param environment: returns the text of any variable; ``None`` if it is not set.
    """

    __slots__ = ("_made", "_variables", "environment")

    def __init__(
        self,
        values: Mapping[Setting[Any], Any],  # Any: each value has its setting's own type
        variables: Mapping[Setting[Any], str] | None = None,
        environment: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        super().__init__(values)
        self._variables = dict(variables or {})
        self._made: dict[Callable[[Settings], Any], Any] = {}  # Any: what each function returns
        self.environment = environment

    if TYPE_CHECKING:

        def __getitem__(self, setting: Setting[T]) -> T:
            """Return the value of `setting`.

            :raises KeyError: it is not declared.
            """

    def __missing__(self, setting: Setting[Any]) -> NoReturn:
        raise KeyError(f"{setting.name} is not declared: return it from the hook declare_settings")

    def __setitem__(self, setting: Setting[Any], value: object) -> NoReturn:
        raise TypeError("settings cannot be changed: see replace")

    @classmethod
    def defaults(cls, *declared: Setting[Any]) -> Settings:
        """Return the defaults of the core's settings and of those of a plugin."""
        return cls({setting: setting.default for setting in (*CORE_SETTINGS, *declared)})

    def variable(self, setting: Setting[Any]) -> str | None:
        """Return the variable that set `setting`, its own or a fallback; ``None`` if not set."""
        return self._variables.get(setting)

    def is_set(self, name: str) -> bool:
        """Return whether the setting `name` is set, by its own variable or by a fallback.

        It does not matter which plugin declares it; the name of a fallback is accepted as well.
        """
        return any(name in (setting.name, by) for setting, by in self._variables.items())

    def replace(self, values: Mapping[Setting[Any], Any]) -> Settings:
        """Return settings with `values` in place of, or besides, these."""
        variables = {setting: setting.name for setting in values}
        return Settings({**self, **values}, {**self._variables, **variables}, self.environment)

    def keeping(self, before: Settings, kept: Iterable[Setting[Any]]) -> Settings:
        """Return these settings, with the values of `kept` as they are in `before`."""
        values = {setting: before[setting] for setting in kept}
        variables = {
            setting: variable
            for settings in (self, before)
            for setting, variable in settings._variables.items()
            if (setting in values) is (settings is before)
        }
        return Settings({**self, **values}, variables, self.environment)

    def once(self, make: Callable[[Settings], T]) -> T:
        """Return what `make` makes of these settings: it is called once, and plugins share it."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def changed(self, other: Settings) -> tuple[Setting[Any], ...]:
        """Return the settings whose values differ between these and `other`."""
        return tuple(each for each in self if self[each] != other[each])

    def __repr__(self) -> str:
        shown = (
            f"{setting.name}={'***' if setting.secret and value else repr(value)}"
            for setting, value in self.items()
        )
        return f"Settings({', '.join(shown)})"
