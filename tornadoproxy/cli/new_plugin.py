"""The command ``plugins new NAME``, which creates a plugin package."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shlex
import tempfile
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.plugin.hookspecs import PROJECT
from tornadoproxy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TEMPLATES = Path(__file__).with_name("plugin_template")
_SUFFIX = ".template"  # without it, tools would collect them as modules and tests of this project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``plugins new``."""
    new = parser.add_subparsers().add_parser(
        "new",
        description="Create the package tornadoproxy-NAME, with tests that pass.",
    )
    new.add_argument("name", metavar="NAME", help="name of the plugin, such as team_budget")
    new.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="directory to create it in (default: the current one)",
    )


def generate(name: str, directory: Path) -> Path:
    """Create the package of a plugin `name`, completely or not at all.

    :param directory: where the package's directory, ``tornadoproxy-NAME``, is created.
    :return: the package's directory.
    :raises ConfigurationError: the name is invalid or taken, or the directory cannot be created.
    """
    words = _words(name)
    target = directory / words["distribution"]
    if os.path.lexists(target):
        raise ConfigurationError(f"{target.name} already exists: choose another name, or move it")
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=f".{target.name}-") as temporary:
            whole = Path(temporary, target.name)
            for path, text in _files(words):
                (whole / path).parent.mkdir(parents=True, exist_ok=True)
                (whole / path).write_text(text, encoding="utf-8")
            whole.rename(target)
    except OSError as error:
        raise ConfigurationError(
            f"{target.name} cannot be created ({error.strerror}): choose a writable directory "
            "with --directory"
        ) from None
    return target


def told(made: Path) -> list[str]:
    """Return the lines to print about the package at `made`: its files and the next steps."""
    files = sorted(path for path in made.rglob("*") if path.is_file())
    return [
        "created",
        *(f"  {path}" for path in files),
        "next",
        f"  cd {shlex.quote(str(made))}",
        "  python -m pip install -e '.[test]'",
        "  python -m pytest",
    ]


def _words(name: str) -> Mapping[str, str]:
    """Return the placeholders of the templates and their texts."""
    if len(name) > 40 or not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name):
        raise ConfigurationError(
            "the name must be at most 40 lower-case letters, digits, - and _, such as team_budget"
        )
    name = name.replace("-", "_")
    package, setting = f"{PROJECT}_{name}", f"{name.upper()}_MODELS"
    plugins = importlib.metadata.entry_points(group=PROJECT).names
    settings = {setting.name for setting in CORE_SETTINGS}
    if name in plugins or setting in settings or importlib.util.find_spec(package):
        raise ConfigurationError(f"the name {name} is taken: choose another")
    return {
        "name": name,
        "package": package,
        "distribution": package.replace("_", "-"),
        "setting": setting,
        "version": __version__,
    }


def _files(words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and content of each file in the package."""
    for template in sorted(_TEMPLATES.rglob(f"*{_SUFFIX}")):
        path = template.relative_to(_TEMPLATES).as_posix().removesuffix(_SUFFIX)
        path = path.replace("package/", f"{words['package']}/")
        path = path.replace("test_name", f"test_{words['name']}")
        yield path, Template(template.read_text(encoding="utf-8")).substitute(words)
