"""Writes the text of ``--help``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from tornadoproxy import parsers
from tornadoproxy.arguments import COMMANDS
from tornadoproxy.settings import CORE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tornadoproxy.plugin_finder import PluginInfo
    from tornadoproxy.settings import Setting

_WIDTH = 88
_HEAD = """\
usage: python -m tornadoproxy [command] [flags]

A proxy between Claude and everyone who uses it.

Commands:
{described}

Flags:
  --env-file PATH  read this file instead of .env in the current directory
  --version        print the version
  -h, --help       print this; after a plugin's command, print that command's own arguments

Each setting below is taken from its flag, else from the environment, else from .env, else it has
its default. In .env, ${{NAME}} is not replaced, and a value stands on one line. On SIGHUP, secrets
and the settings of plugins are read again."""


def help_text(plugins: Iterable[PluginInfo]) -> str:
    """The whole text, with the commands and settings of `plugins`."""
    plugins = tuple(plugins)
    commands = COMMANDS | {each.name: each.help for info in plugins for each in info.commands}
    width = max(map(len, commands))
    lines = [
        _HEAD.format(
            described="\n".join(f"  {name:<{width}}  {what}" for name, what in commands.items())
        ),
        *_group("Settings:", CORE_SETTINGS),
    ]
    for info in plugins:
        if info.settings:
            lines += _group(f"Of the plugin {info.name}:", info.settings)
    return "\n".join(lines)


def default_text(setting: Setting[Any]) -> str:
    """The default of `setting`, as one would write it."""
    default = setting.default
    if default is None or default in ((), {}):
        return "none"
    if setting.parse is parsers.size:
        return _size_text(default)
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, tuple):
        return " ".join(str(each) for each in default)
    return str(default)


def _group(title: str, settings: Iterable[Setting[Any]]) -> Iterator[str]:
    yield "\n" + title
    for setting in settings:
        names = " or ".join((setting.name, *setting.fallbacks))
        where = (
            f"{names} (environment or .env only; default: {default_text(setting)})"
            if setting.flag is None
            else f"{setting.flag}, {names} (default: {default_text(setting)})"
        )
        yield "  " + where
        yield textwrap.fill(setting.help, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _size_text(size: int) -> str:
    unit = 0
    while size % 1024 == 0 and unit < 4:
        size //= 1024
        unit += 1
    return f"{size}{('', 'kB', 'MB', 'GB', 'TB')[unit]}"
