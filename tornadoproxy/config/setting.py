"""A setting: its name, how its text is parsed, its default and its help text.

Plugins declare theirs in the hook `tornadoproxy.plugin.hookspecs.declare_settings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

T_co = TypeVar("T_co", covariant=True)


class Setting(Struct, Generic[T_co], frozen=True, eq=False):
    """One setting; two objects are two settings, whatever their names.

    :param name: the environment variable, in capitals: ``UPSTREAM_BASE_URL``.
    :param parse: turns the text into the value. It raises ``ValueError("must be …")``, which is
        shown after the name. See `tornadoproxy.config.parsers`.
    :param default: the value if the setting is not set.
    :param help: a phrase in lower case that says what the value is, with its unit; sentences may
        follow it.
    :param secret: the text is or may contain a credential: it is never shown, and there is no flag
        for it, because every user of a machine can read a process's arguments.
    :param fallbacks: other variables that are read when this one is not set; a blank one counts as
        not set.
    :param blank: the setting may be set to nothing, and `parse` gets an empty text then. Otherwise
        set but blank is an error.
    :param no_flag: there is no flag for it, since a command has an option of that name.
    :param fixed: only a restart applies a change: a reload that changes the setting of an active
        plugin is refused.
    """

    name: str
    parse: Callable[[str], T_co]
    default: T_co
    help: str
    secret: bool = False
    fallbacks: tuple[str, ...] = ()
    blank: bool = False
    no_flag: bool = False
    fixed: bool = False

    def __post_init__(self) -> None:
        name = self.name
        # no pattern: compiling it takes a thousandth of the start
        if not (name.isascii() and name.isidentifier() and name.isupper()) or name[0] == "_":
            raise ValueError(
                f"a setting's name must be in capitals, such as LOG_LEVEL, not {self.name!r}"
            )
        if self.name in {"ENV_FILE", "HELP", "VERSION"}:
            raise ValueError(
                f"{self.name} would have the flag of the program's own option: rename it"
            )

    @property
    def flag(self) -> str | None:
        """The flag, such as ``--upstream-base-url``; ``None`` if there is none."""
        return None if self.secret or self.no_flag else flag_of(self.name)


def flag_of(name: str) -> str:
    """Return the flag that belongs to the variable `name`."""
    return "--" + name.lower().replace("_", "-")
