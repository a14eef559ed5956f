"""The texts of ``help`` and ``help settings``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from tornadoproxy.config import parsers
from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.config.core_settings import CORE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.plugin.loading.discovery import PluginInfo

_WIDTH = 80
_COMMANDS = """\
usage: python -m tornadoproxy [COMMAND] [flags]

A proxy between Claude and its users.

Commands:
{described}

Flags of every command:
  --env-file PATH  read this file instead of .env in the current directory
  --help, -h       explain the command
  --SETTING VALUE  set any setting that is not secret

`python -m tornadoproxy help settings` lists the settings."""

_SETTINGS = """\
A setting is read from its flag, else from the environment, else from .env, else
it has its default. In .env, ${NAME} is not expanded, and a value takes one
line. SIGHUP reloads secrets and the settings of plugins."""


def commands_text(plugins: Iterable[PluginInfo]) -> str:
    """Return the text of ``--help``, with the commands of `plugins`."""
    commands = COMMANDS | {each.name: each.help for info in plugins for each in info.commands}
    width = max(map(len, commands))
    described = (
        textwrap.fill(
            f"  {name:<{width}}  {what[:1].lower()}{what[1:].rstrip('.')}",
            _WIDTH,
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for name, what in commands.items()
    )
    return _COMMANDS.format(described="\n".join(described))


def settings_text(plugins: Iterable[PluginInfo]) -> str:
    """Return the text of ``help settings``, with the settings of `plugins`."""
    lines = [_SETTINGS, *_group("Settings:", CORE_SETTINGS)]
    for info in plugins:
        if info.settings:
            lines += _group(f"Settings of the plugin {info.name}:", info.settings)
    return "\n".join(lines)


def default_text(setting: Setting[Any]) -> str:
    """Return the default of `setting`, as it would be written in ``.env``."""
    default = setting.default
    if default is None or default in ((), {}):
        return "none"
    if setting.parse is parsers.size:
        return _size_text(default)
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float):
        return f"{default:.15g}"
    if isinstance(default, tuple):
        return " ".join(str(each) for each in default)
    return str(default)


def _group(title: str, settings: Iterable[Setting[Any]]) -> Iterator[str]:
    yield "\n" + title
    for setting in settings:
        names = " or ".join((setting.name, *setting.fallbacks))
        where = (
            f"{names} (no flag; default: {default_text(setting)})"
            if setting.flag is None
            else f"{setting.flag}, {names} (default: {default_text(setting)})"
        )
        yield textwrap.fill(where, _WIDTH, initial_indent=" " * 2, subsequent_indent=" " * 4)
        yield textwrap.indent(textwrap.fill(setting.help, _WIDTH - 6), " " * 6)


def _size_text(size: int) -> str:
    unit = 0
    while size % 1024 == 0 and unit < 4:
        size //= 1024
        unit += 1
    return f"{size}{('', 'kB', 'MB', 'GB', 'TB')[unit]}"
