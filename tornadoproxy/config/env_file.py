"""The ``.env`` file, read into entries and faults.

The format is python-dotenv's: ``NAME=value``, perhaps after ``export``; ``#`` begins a comment;
quotes around a value; backslash escapes within double quotes. There are two differences:
``${NAME}`` is not expanded, because a credential may contain it, and a value over several lines is
an error, because it comes from a quote that was not closed.

A fault names the file and the line, never the content, which may be a credential.
"""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dotenv.parser import Binding

_LARGEST = 64 * 1024  # bytes
_LINE_END = r"\r\n|\r|\n"  # compiled when it is used: most starts have no file


class Entry(Struct, frozen=True):
    """A value and its line number."""

    value: str
    line: int

    __repr__ = object.__repr__  # a field may hold a credential


class EnvFile(Struct, frozen=True):
    """The content of a ``.env`` file.

    :param entries: by name; the last of several with the same name.
    :param faults: what is wrong with the file, a line each.
    """

    path: str
    entries: Mapping[str, Entry]
    faults: tuple[str, ...] = ()

    __repr__ = object.__repr__  # an entry may be a credential


def read(path: str, *, required: bool) -> EnvFile:
    """Read the file at `path`.

    :param required: a missing file is a fault.
    """
    try:
        # a pipe blocks, and cannot be reloaded on SIGHUP
        if os.path.exists(path) and not (os.path.isfile(path) or path == os.devnull):
            return EnvFile(path, {}, (f"{path} is not a regular file: replace or remove it",))
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            # a log or an archive: each line would become a fault
            return EnvFile(path, {}, (f"{path} is larger than 64 kB: shorten or remove it",))
        content = data.decode("utf-8-sig")
    except FileNotFoundError:
        # a dangling link is a mistake even where the file is optional
        if required or os.path.islink(path):
            return EnvFile(path, {}, (f"{path} does not exist: create it or name another",))
        return EnvFile(path, {})
    except OSError as error:
        return EnvFile(path, {}, (f"{path} cannot be read ({error.strerror}): fix or remove it",))
    except UnicodeDecodeError:
        return EnvFile(path, {}, (f"{path} is not UTF-8 text: fix or remove it",))
    if "\0" in content:
        return EnvFile(path, {}, (f"{path} is binary: replace or remove it",))
    return _parsed(path, content)


def _parsed(path: str, content: str) -> EnvFile:
    from dotenv.parser import parse_stream  # most starts have no file

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
        elif re.search(_LINE_END, binding.original.string.strip()):
            faults.append(f"{path}, line {line}: a quote is not closed on its line: close it")
        else:
            entries[binding.key] = Entry(binding.value, line)
    return EnvFile(path, entries, tuple(faults))


def _line(binding: Binding) -> int:
    """Return the line number of `binding`, which includes the blank lines before it."""
    text = binding.original.string
    blank = text[: len(text) - len(text.lstrip())]
    return binding.original.line + len(re.findall(_LINE_END, blank))
