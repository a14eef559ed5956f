"""One setting: its name, how its text becomes a value, its default and its help.

Plugins declare theirs in the same way; see `tornadoproxy.plugin.hookspecs.declare_settings`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

T_co = TypeVar("T_co", covariant=True)


class Setting(Struct, Generic[T_co], frozen=True, eq=False):
    """One setting. Two are the same only if they are the same object.

    :param name: its environment variable, in capitals: ``UPSTREAM_BASE_URL``.
    :param parse: from text to value; raises ``ValueError("must be …")``, which is shown after the
        name. See `tornadoproxy.config.parsers`.
    :param default: its value if nobody sets it.
    :param help: what it does, in a sentence or two, with its unit.
    :param secret: whether its text is a credential, or may hold one: there is no flag for it,
        since everybody on a machine can read a process's arguments, and it is never shown.
    :param fallbacks: other variables that are asked when this one is absent; a blank one of them
        counts as absent.
    :param blank: whether it may be set to nothing, which then reaches `parse` as an empty text.
        For every other setting, set but blank is a mistake.
    """

    name: str
    parse: Callable[[str], T_co]
    default: T_co
    help: str
    secret: bool = False
    fallbacks: tuple[str, ...] = ()
    blank: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.name):
            raise ValueError(f"a setting's name is in capitals, like LOG_LEVEL, not {self.name!r}")
        if self.name in {"ENV_FILE", "HELP", "VERSION"}:
            raise ValueError(f"{self.name} would have a flag that is the program's own: rename it")

    @property
    def flag(self) -> str | None:
        """Its flag, ``--upstream-base-url``; ``None`` if it is secret."""
        return None if self.secret else "--" + self.name.lower().replace("_", "-")
