"""Writes the generated parts of the documentation anew: ``python docs/generate.py``."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornadoproxy.cli.help_text import default_text
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.openai import chat_completions, responses
from tornadoproxy.openai.responses.output.events import EVENTS
from tornadoproxy.openai.responses.tool_choice import CHOICES
from tornadoproxy.openai.treatment import Table, Treatment
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy import Setting

DOCS = Path(__file__).parent
END = "<!-- end of generated -->"


def pages() -> dict[Path, str]:
    """Return the text of each page that has generated parts, with these as the code has them."""
    return {DOCS / name: _page(DOCS / name, parts) for name, parts in _parts().items()}


def _parts() -> dict[str, dict[str, str]]:
    """Return the generated parts of each page by their titles."""
    return {
        "settings.md": {
            "settings of the core": _table(CORE_SETTINGS),
            "settings of plugins": _plugin_tables(),
        },
        "openai.md": {"fields": _treatments("field", chat_completions.FIELDS)},
        "responses.md": {
            "fields": _treatments("field", responses.FIELDS),
            "items": _treatments("item", responses.ITEMS),
            "tools": _treatments("tool", responses.TOOLS),
            "choices of tools": _treatments("`tool_choice`", CHOICES),
            "events": _treatments("event", EVENTS),
        },
    }


def _page(path: Path, parts: dict[str, str]) -> str:
    page = path.read_text(encoding="utf-8")
    for title, text in parts.items():
        begin = f"<!-- generated: {title} -->\n"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(END)
        if not found:
            raise ValueError(f"{path} has no generated part {title!r}")
        page = f"{before}{begin}\n{text}\n{END}{after}"
    return page


def _treatments(title: str, named: Table) -> str:
    lines = [f"| {title} | treatment | what becomes of it |", "|---|---|---|"]
    for treatment in Treatment:
        lines += [
            f"| `{name}` | {treatment.value} | {note} |"
            for name, (each, note) in sorted(named.items())
            if each is treatment
        ]
    return "\n".join(lines) + "\n"


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
    for each, written in pages().items():
        each.write_text(written, encoding="utf-8")
