"""Reads settings from flags, then the environment, then ``.env``, then their defaults.

The first that has a variable wins. A fallback variable is asked only when none of them has the
setting's own. Every fault is collected: whoever mends one shall not meet the next at the next
start. No fault repeats what a secret setting, or a name nobody knows, was set to.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tornadoproxy.errors import ConfigurationError
from tornadoproxy.settings import Setting, Settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tornadoproxy.envfile import EnvFile

_ANTHROPIC_BASE_URL = "ANTHROPIC_BASE_URL"

# the places of a `_Given` that are no file
_COMMAND_LINE = "on the command line"
_ENVIRONMENT = "in the environment"


@dataclass(frozen=True, slots=True)
class _Given:
    """A text that somebody set, where it stood, and under which name."""

    variable: str
    text: str = field(repr=False)
    place: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Where settings come from.

    :param flags: texts by variable, as the command line gave them.
    :param environment: the process's environment. Names that nobody declared are ignored.
    :param env_file: the ``.env`` file. Names that nobody declared are faults.
    """

    flags: Mapping[str, str] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    env_file: EnvFile

    def read(self, declared: Iterable[Setting[Any]]) -> Settings:
        """The values of the `declared` settings.

        :raises ConfigurationError: with a line for each value that is wrong.
        """
        values: dict[Setting[Any], Any] = {}
        variables: dict[Setting[Any], str] = {}
        faults: list[str] = []
        for setting in declared:
            given = self._given(setting)
            if given is None:
                values[setting] = setting.default
                continue
            try:
                values[setting] = _parsed(setting, given)
            # a plugin's parser may fail in any way
            except Exception as error:
                place = "" if given.place == _ENVIRONMENT else f" ({given.place})"
                faults.append(f"{given.variable} {_complaint(setting, given, error)}{place}")
            variables[setting] = given.variable
        if faults:
            raise ConfigurationError(*faults)
        return Settings(values, variables)

    def unknown(
        self, declared: Collection[Setting[Any]], disabled: Collection[str]
    ) -> tuple[str, ...]:
        """A fault for each name in the ``.env`` file that no setting has.

        :param disabled: the names of the disabled plugins, whose settings nobody knows.
        """
        known = {name for setting in declared for name in (setting.name, *setting.fallbacks)}
        return tuple(
            f"{self.env_file.path}, line {entry.line}: {_unknown(name, known, disabled)}"
            for name, entry in self.env_file.entries.items()
            if name not in known
        )

    def origin(self, setting: Setting[Any]) -> tuple[str | None, str]:
        """The text that `setting` was given, and where; ``None`` if it is left to its default."""
        given = self._given(setting)
        if given is None:
            return None, "by default"
        if given.variable == setting.name:
            return given.text, given.place
        return given.text, f"as {given.variable} {given.place}"

    def _given(self, setting: Setting[Any]) -> _Given | None:
        own = self._look_up(setting.name)
        if own is not None:
            return own
        fallbacks = (self._look_up(name) for name in setting.fallbacks)
        return next((given for given in fallbacks if given and given.text), None)

    def _look_up(self, name: str) -> _Given | None:
        if name in self.flags:
            return _Given(name, self.flags[name].strip(), _COMMAND_LINE)
        if name in self.environment:
            return _Given(name, self.environment[name].strip(), _ENVIRONMENT)
        if name in self.env_file.entries:
            entry = self.env_file.entries[name]
            return _Given(name, entry.value.strip(), f"{self.env_file.path}, line {entry.line}")
        return None


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a fault about an unknown `name`: the one that is meant, if one is near."""
    found = difflib.get_close_matches(name, sorted(known), n=1)
    return f": did you mean {found[0]}?" if found else ""


def _parsed(setting: Setting[Any], given: _Given) -> object:
    if not given.text and not setting.blank:
        raise ValueError("is set but empty: give it a value or unset it")
    return setting.parse(given.text)


def _complaint(setting: Setting[Any], given: _Given, error: Exception) -> str:
    if not isinstance(error, ValueError):
        return f"has a value that its parser fails at ({type(error).__name__}): see --help"
    complaint = str(error)
    # a plugin's parser may be a bare int, whose errors repeat the text
    if setting.secret and given.text and given.text in complaint:
        return "has a wrong value, which is not repeated here: see --help"
    return complaint


def _unknown(name: str, known: Collection[str], disabled: Collection[str]) -> str:
    if name == _ANTHROPIC_BASE_URL:
        return (
            f"{_ANTHROPIC_BASE_URL} is not read, since a client's leads to this proxy: set "
            "UPSTREAM_BASE_URL"
        )
    if name.upper() in known:
        return f"unknown setting {name}: write {name.upper()}"
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{,63}", name):
        # what does not look like a variable may be a credential that ends in =
        return "does not begin with the name of a setting: write NAME=value"
    theirs = f" (or a setting of a disabled plugin: {', '.join(disabled)})" if disabled else ""
    return f"unknown setting {name}{nearest(name, known) or ': remove the line'}{theirs}"
