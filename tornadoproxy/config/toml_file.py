"""A TOML file that a setting names, as it was read."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

MAX_SIZE = 1024 * 1024
"""The largest file, in bytes."""


class TomlFile(Struct, frozen=True):
    """A TOML file.

    :param document: its tables, whose fields are not validated. They may hold credentials.
    """

    path: Path
    text: str
    document: dict[str, Any]  # Any: TOML

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"TomlFile({self.path})"


def read(path: Path) -> TomlFile:
    """Read the file at `path`.

    :raises ValueError: it is too large, or not TOML; the message follows the setting's name.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ValueError(f"must name a file of at most {MAX_SIZE >> 20} MB")
    try:
        text = content.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError:
        raise ValueError(f"must name a TOML file, which is in UTF-8, not '{path}'") from None
    except tomllib.TOMLDecodeError as error:
        # the message quotes one character at most
        raise ValueError(
            f"must name a TOML file, but '{path}' is not valid TOML: {error}"
        ) from None
    return TomlFile(path, text, document)
