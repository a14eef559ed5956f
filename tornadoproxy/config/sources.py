"""Settings from flags, then the environment, then ``.env``, then their defaults.

The first source that has a variable wins. A fallback variable is read only if no source has the
setting's own. All faults are reported at once. No fault repeats the value of a secret setting or of
an unknown name.

A ``.env`` may be shared with other programs, so unknown names in it are ignored. A name that is
similar to a setting's is an error: one letter too many, too few or wrong, other case or
underscores, or a missing word.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tornadoproxy.config import parsers
from tornadoproxy.config.core_settings import TLS_KEY
from tornadoproxy.config.responses_settings import RESPONSES_STORE
from tornadoproxy.config.settings import Settings
from tornadoproxy.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tornadoproxy.config.env_file import EnvFile
    from tornadoproxy.config.setting import Setting

_ANTHROPIC_BASE_URL = "ANTHROPIC_BASE_URL"

# similar to HTTPS_PROXY, but read by other programs
_OTHERS_OWN = frozenset({"HTTPPROXY"})

# permission bits of a file for users other than the owner and the group
_OTHERS_READ = 0o004
_OTHERS_WRITE = 0o002

# the places of a `_Given` that are not files
_COMMAND_LINE = "on the command line"
_ENVIRONMENT = "in the environment"


class _Given(Struct, frozen=True):
    """The text of a setting, the variable that holds it, and the place where it is set."""

    variable: str
    text: str
    place: str

    __repr__ = object.__repr__  # a field may hold a credential


class Sources(Struct, frozen=True):
    """The places that set settings.

    :param flags: the texts of flags, by variable.
    :param environment: the process's environment.
    :param env_file: the ``.env`` file.
    """

    flags: Mapping[str, str]
    environment: Mapping[str, str]
    env_file: EnvFile

    __repr__ = object.__repr__  # a field may hold a credential

    def read(self, declared: Iterable[Setting[Any]]) -> Settings:
        """Return the values of the `declared` settings.

        :raises ConfigurationError: a line for each invalid value.
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
            # a plugin's parser may raise anything
            except Exception as error:
                place = "" if given.place == _ENVIRONMENT else f" ({given.place})"
                faults.append(f"{given.variable} {_complaint(setting, given, error)}{place}")
            variables[setting] = given.variable
        if faults:
            raise ConfigurationError(*faults)
        return Settings(values, variables, self._text_of)

    def misspelled(self, declared: Iterable[Setting[Any]]) -> tuple[str, ...]:
        """Return a fault for each name in ``.env`` that is similar to a declared setting's."""
        if not self.env_file.entries:
            return ()
        names = _Names(declared)
        return tuple(
            f"{self.env_file.path}, line {entry.line}: unknown setting {name}: "
            f"did you mean {meant}?"
            for name, entry in self.env_file.entries.items()
            if (meant := names.meant(name)) is not None
        )

    def warnings(self, declared: Iterable[Setting[Any]]) -> Iterator[str]:
        """Yield a line for each probable mistake."""
        declared = tuple(declared)
        names = _Names(declared)
        file = self.env_file
        for name in self.environment:
            meant = names.meant(name)
            if meant is not None:
                yield f"{name} in the environment is not read: did you mean {meant}?"
        ignored = [name for name in file.entries if name not in names.known]
        if ignored:
            count = f"{len(ignored)} name{'s that are' if len(ignored) > 1 else ' that is'}"
            yield f"{file.path}: {count} no setting of tornadoproxy: ignored"
        if _ANTHROPIC_BASE_URL in ignored:
            yield (
                f"{file.path}: {_ANTHROPIC_BASE_URL} is for clients, and leads to this proxy: "
                "set UPSTREAM_BASE_URL for another upstream"
            )
        if any(each.secret and each.name in file.entries for each in declared):
            yield from _too_open(file.path, file.path, _OTHERS_READ)
        for setting in declared:
            rights = _forbidden_rights(setting)
            given = self._given(setting) if rights else None
            if given is not None:
                title = f"{given.variable}={given.text}"
                yield from _too_open(title, given.text, rights)

    def origin(self, setting: Setting[Any]) -> tuple[str | None, str]:
        """Return the text of `setting` and the place that sets it; ``None`` if it is not set."""
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

    def _text_of(self, name: str) -> str | None:
        given = self._look_up(name)
        return None if given is None else given.text

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
    """Return the end of a fault about an unknown `name`: a suggestion if one is similar."""
    import difflib  # most starts have no fault

    found = difflib.get_close_matches(name, sorted(known), n=1)
    return f": did you mean {found[0]}?" if found else ""


def _parsed(setting: Setting[Any], given: _Given) -> object:
    if not given.text and not setting.blank:
        raise ValueError("is set but empty: give it a value or unset it")
    return setting.parse(given.text)


def _complaint(setting: Setting[Any], given: _Given, error: Exception) -> str:
    if not isinstance(error, ValueError):
        return (
            f"has a value that its parser cannot read ({type(error).__name__}): see `help settings`"
        )
    complaint = str(error)
    quiet = not setting.secret or setting.parse in parsers.NEVER_QUOTE
    if not quiet and _may_quote(complaint, given.text):
        return "has an invalid value, which is not shown here: see `help settings`"
    return complaint


def _may_quote(complaint: str, text: str) -> bool:
    """Return whether `complaint` may repeat `text`: a quotation, or four characters in any case.

    The parser of a secret may be any function, or a bare `int`, whose errors quote the text.
    """
    if "'" in complaint or '"' in complaint:
        return True
    complaint, text = complaint.casefold(), text.casefold()
    pieces = (text[at : at + 4] for at in range(max(len(text) - 3, 1)))
    return bool(text) and any(piece in complaint for piece in pieces)


class _Names:
    """The names of settings, and names that are similar to one.

    Two names are similar if they begin with the same letter, and are equal once each has lost at
    most one letter. Comparing an environment of hundreds of names takes a millisecond.
    """

    def __init__(self, declared: Iterable[Setting[Any]]) -> None:
        self.known = {name for each in declared for name in (each.name, *each.fallbacks)}
        self._near: dict[str, dict[str, str]] = {}  # by first letter

    def meant(self, name: str) -> str | None:
        """Return the setting whose name is similar to `name`; ``None`` if none is, or it is one."""
        if name in self.known:
            return None
        letters = _letters(name)
        if letters in _OTHERS_OWN:
            return None
        near = self._beginning_with(letters[:1])
        found = (near.get(each) for each in (letters, *_shortened(letters)))
        return next(filter(None, found), None)

    def _beginning_with(self, letter: str) -> Mapping[str, str]:
        """Return the settings that begin with `letter`, by the names that are similar to each."""
        if letter not in self._near:
            near = self._near[letter] = {}
            for name in sorted(each for each in self.known if each[0] == letter):
                first, *words = name.split("_")
                for at in range(len(words)) if len(words) > 1 else ():
                    near.setdefault("".join((first, *words[:at], *words[at + 1 :])), name)
                for short in _shortened(_letters(name)):
                    near.setdefault(short, name)
        return self._near[letter]


def _letters(name: str) -> str:
    return name.upper().replace("_", "").replace("-", "")


def _shortened(letters: str) -> Iterator[str]:
    """Yield `letters`, then `letters` without each one of them."""
    yield letters
    for at in range(len(letters)):
        yield letters[:at] + letters[at + 1 :]


def _forbidden_rights(setting: Setting[Any]) -> int:
    """Return the permission that other users must not have on the file of `setting`, or 0."""
    if setting.parse in (parsers.secret_file, parsers.secrets_file) or setting is TLS_KEY:
        return _OTHERS_READ
    if setting is RESPONSES_STORE:  # it holds prompts and responses
        return _OTHERS_READ
    # a plugin's database: a user who can write to it can add a key
    return _OTHERS_WRITE if setting.parse in (parsers.path, parsers.database) else 0


def _too_open(title: str, path: str, rights: int) -> Iterator[str]:
    try:
        open_to_others = os.stat(path).st_mode & rights
    except (OSError, ValueError):
        return  # reported where the file is opened
    if open_to_others:
        what, mend = ("read", "o-r") if rights == _OTHERS_READ else ("write", "o-w")
        yield f"{title}: every user of this machine can {what} it: chmod {mend} {path}"
