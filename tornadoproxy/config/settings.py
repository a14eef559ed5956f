"""The values of all settings, read once: ``settings[PORT]`` is an ``int``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy.config.core_settings import CORE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy.config.setting import Setting

T = TypeVar("T")


class Settings:
    """The values of all settings, read once; nothing changes them. See `replace`.

    :param values: a value for each declared setting.
    :param variables: for each that was not left to its default, the variable that it came from:
        its own name, or one of its fallbacks.
    """

    __slots__ = ("_values", "_variables")

    def __init__(
        self,
        values: Mapping[Setting[Any], Any],  # Any: each value has its setting's own type
        variables: Mapping[Setting[Any], str] | None = None,
    ) -> None:
        self._values = dict(values)
        self._variables = dict(variables or {})

    @classmethod
    def defaults(cls, *declared: Setting[Any]) -> Settings:
        """The defaults of the core's settings and of a plugin's own."""
        return cls({setting: setting.default for setting in (*CORE_SETTINGS, *declared)})

    def __getitem__(self, setting: Setting[T]) -> T:
        """The value of `setting`.

        :raises KeyError: nobody declared it.
        """
        try:
            value: T = self._values[setting]
        except KeyError:
            raise KeyError(
                f"{setting.name} is not declared: return it from the hook declare_settings"
            ) from None
        return value

    def variable(self, setting: Setting[Any]) -> str | None:
        """The variable that `setting` came from, its own or a fallback; ``None`` if defaulted."""
        return self._variables.get(setting)

    def is_set(self, name: str) -> bool:
        """Whether somebody set the variable `name`, whichever plugin declares it."""
        return name in self._variables.values()

    def replace(self, values: Mapping[Setting[Any], Any]) -> Settings:
        """Settings with `values` in place of, or besides, the present ones."""
        variables = {setting: setting.name for setting in values}
        return Settings({**self._values, **values}, {**self._variables, **variables})

    def changed(self, other: Settings) -> tuple[Setting[Any], ...]:
        """The settings whose values differ between these and `other`."""
        return tuple(each for each in self._values if self[each] != other[each])

    def __repr__(self) -> str:
        shown = (
            f"{setting.name}={'***' if setting.secret and value else repr(value)}"
            for setting, value in self._values.items()
        )
        return f"Settings({', '.join(shown)})"
