"""The installed entry points of a group.

`importlib.metadata` finds the same, but takes a twelfth of the start for it: it imports archives,
e-mail and temporary files, and parses the entry points of every installed package. Here the folders
with metadata are only looked into. Where there is anything else, such as a zip file or a finder of
its own, `importlib.metadata` is asked.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import reduce
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.metadata import Distribution


class Point(Protocol):
    """What is needed of an entry point: `importlib.metadata.EntryPoint` offers it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def value(self) -> str:
        """What it names: ``package.module:object``."""

    @property
    def dist(self) -> Distribution | None:
        """The installed package that it comes from, if known."""

    def load(self) -> Any:  # Any: an entry point may name anything
        """Import what it names."""


class _InstalledPoint(Struct, frozen=True):
    """An entry point in a folder with the metadata of a package."""

    name: str
    value: str
    folder: str

    @property
    def dist(self) -> Distribution:
        """See `Point`."""
        from importlib.metadata import Distribution  # asked for faults and listings only

        return Distribution.at(self.folder)

    def load(self) -> Any:
        """See `Point`."""
        module, _, attributes = self.value.partition("[")[0].partition(":")
        names = filter(None, attributes.strip().split("."))
        return reduce(getattr, names, importlib.import_module(module.strip()))


def installed(group: str) -> Iterable[Point]:
    """Return the entry points of `group` in all installed packages."""
    folders = _metadata_folders()
    if folders is None:
        from importlib.metadata import entry_points  # see the module's docstring

        return entry_points(group=group)
    return [point for folder in folders for point in _points(folder, group)]


def _metadata_folders() -> Iterable[str] | None:
    """Return the folder with each package's metadata; ``None`` if there may be other places.

    Of a package that is installed twice, the first one on `sys.path` counts.
    """
    if any(hasattr(each, "find_distributions") for each in sys.meta_path if each is not PathFinder):
        return None
    found: dict[str, str] = {}
    for path in sys.path:
        try:
            names = os.listdir(path or ".")
        except FileNotFoundError:
            continue
        except OSError:  # a zip file
            return None
        if path.lower().endswith(".egg"):
            return None
        beginning = os.path.join(path, "")
        for name in names:
            lower = name.lower()
            if lower.endswith((".dist-info", ".egg-info")):
                # the same package may be spelled with a point, or with several underscores
                words = lower.rpartition(".")[0].partition("-")[0].replace(".", "_").split("_")
                found.setdefault("_".join(filter(None, words)), beginning + name)
    return found.values()


def _points(folder: str, group: str) -> Iterator[_InstalledPoint]:
    """Yield the entry points of `group` in a folder with the metadata of a package."""
    # a file object takes twice as long
    try:
        file = os.open(f"{folder}/entry_points.txt", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        content = os.read(file, os.fstat(file).st_size)
    finally:
        os.close(file)
    section = ""
    lines = content.decode().splitlines() if group.encode() in content else []
    for line in map(str.strip, lines):
        if line.startswith("[") and line.endswith("]"):
            section = line.strip("[]")
        elif section == group and line and not line.startswith("#"):
            name, _, value = map(str.strip, line.partition("="))
            yield _InstalledPoint(name, value, folder)
