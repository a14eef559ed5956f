"""Reads a ``.env`` file into its entries and its faults.

The format is python-dotenv's: ``NAME=value``, perhaps after ``export``; ``#`` begins a comment;
quotes around a value; backslash escapes within double quotes. Two things are not done: ``${NAME}``
is not replaced, since a credential may contain it, and a value does not go over several lines,
since that is a quote that somebody forgot to close.

A fault names the file and the line, never what the line holds: it may be a credential.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dotenv.parser import Binding

_LARGEST = 64 * 1024  # bytes
_LINE_END = re.compile(r"\r\n|\r|\n")


class Entry(Struct, frozen=True):
    """One value, and the number of its line."""

    value: str
    line: int

    __repr__ = object.__repr__  # a field may hold a credential


class EnvFile(Struct, frozen=True):
    """What a file holds.

    :param path: the file.
    :param entries: by name; the last of several with the same name.
    :param faults: what is wrong with the file, a line each.
    """

    path: Path
    entries: Mapping[str, Entry]
    faults: tuple[str, ...] = ()


def read(path: Path, *, required: bool) -> EnvFile:
    """Read the file at `path`.

    :param required: whether it is a fault that there is no such file.
    """
    try:
        # a pipe cannot be read again on SIGHUP, and would be waited for
        if not (path.is_file() or path == Path(os.devnull)) and path.exists():
            return EnvFile(path, {}, (f"{path} is not a regular file: mend or remove it",))
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            # some log or archive: it would be told of line by line
            return EnvFile(path, {}, (f"{path} is larger than 64 kB: mend or remove it",))
        content = data.decode("utf-8-sig")
    except FileNotFoundError:
        # a link to nowhere was meant to lead to settings
        if required or path.is_symlink():
            return EnvFile(path, {}, (f"{path} does not exist: create it or name another",))
        return EnvFile(path, {})
    except OSError as error:
        return EnvFile(path, {}, (f"{path} cannot be read ({error.strerror}): mend or remove it",))
    except UnicodeDecodeError:
        return EnvFile(path, {}, (f"{path} is not text in UTF-8: mend or remove it",))
    if "\0" in content:
        return EnvFile(path, {}, (f"{path} is binary: mend or remove it",))
    return _parsed(path, content)


def _parsed(path: Path, content: str) -> EnvFile:
    from dotenv.parser import parse_stream  # most starts read no file

    entries: dict[str, Entry] = {}
    faults: list[str] = []
    for binding in parse_stream(io.StringIO(content)):
        line = _line(binding)
        if binding.error:
            faults.append(f"{path}, line {line}: cannot be parsed: write NAME=value")
        elif binding.key is None:
            continue  # comments, and the blank lines at the end
        elif binding.value is None:
            faults.append(f"{path}, line {line}: has no =: write NAME=value")
        elif _LINE_END.search(binding.original.string.strip()):
            faults.append(f"{path}, line {line}: a quote is not closed on its line: close it")
        else:
            entries[binding.key] = Entry(binding.value, line)
    return EnvFile(path, entries, tuple(faults))


def _line(binding: Binding) -> int:
    """The number of the line that `binding` stands on; blank lines before it belong to it."""
    text = binding.original.string
    blank = text[: len(text) - len(text.lstrip())]
    return binding.original.line + len(_LINE_END.findall(blank))
