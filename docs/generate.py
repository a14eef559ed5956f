"""Writes the generated parts of docs/settings.md anew: ``python docs/generate.py``."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornadoproxy.cli.help_text import default_text
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy import Setting

SETTINGS_PAGE = Path(__file__).with_name("settings.md")


def settings_page() -> str:
    """Return the text of docs/settings.md with its tables as the code has them."""
    page = SETTINGS_PAGE.read_text(encoding="utf-8")
    for title, text in {
        "settings of the core": _table(CORE_SETTINGS),
        "settings of plugins": _plugin_tables(),
    }.items():
        begin, end = f"<!-- generated: {title} -->\n", "<!-- end of generated -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"docs/settings.md has no generated part {title!r}")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def _plugin_tables() -> str:
    ours = importlib.metadata.distribution("tornadoproxy").entry_points
    plugins = Plugins.load(entry_points=ours.select(group="tornadoproxy"))
    settings = [(info.name, info.settings) for info in plugins.describe() if info.settings]
    return "\n".join(f"### {name}\n\n{_table(of)}" for name, of in settings)


def _table(settings: Iterable[Setting[Any]]) -> str:
    rows = ["| Variable | Default | Meaning |", "|---|---|---|", *map(_row, settings)]
    return "\n".join(rows) + "\n"


def _row(setting: Setting[Any]) -> str:
    names = " or ".join(f"`{name}`" for name in (setting.name, *setting.fallbacks))
    default = default_text(setting)
    shown = "" if default == "none" else f"`{default}`"
    no_flag = "" if setting.flag else " *No flag.*"
    text = setting.help.rstrip(".").replace("*", r"\*") + "."
    return f"| {names} | {shown} | {text}{no_flag} |"


if __name__ == "__main__":
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")
