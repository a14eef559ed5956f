"""The output of the command ``plugins``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from tornadoproxy.cli.help_text import default_text
from tornadoproxy.plugin.command import tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.sources import Sources
    from tornadoproxy.plugin.loading.discovery import PluginInfo
    from tornadoproxy.plugin.web.pages import Page

_WIDTH = 80
_INDENT = 12
_LONGEST_VALUE = 36  # characters

_PAGE = ("path", "methods", "access")
_SETTING = ("name", "value", "from")
_COLUMNS = {name: name for name in ("order", "name", "distribution", "version", "state")}


def listing(
    infos: Sequence[PluginInfo], sources: Sources | None, form: str, *, configured: bool
) -> str:
    """Return a table of the plugins, with details of each in text and JSON.

    :param sources: where the settings are set; ``None`` if they cannot be read.
    :param form: one of `tables.FORMATS`.
    :param configured: the plugins have accepted their settings, so that it is known which are
        active.
    """
    rows = [
        (
            info.order,
            info.name,
            info.distribution,
            info.version,
            "loaded" if info.state == "active" and not configured else info.state,
        )
        for info in infos
    ]
    if form == "csv":
        return tables.csv_text(_COLUMNS, rows)
    if form == "json":
        return tables.json_text(
            [
                dict(zip(_COLUMNS, row, strict=True)) | _document(info, sources)
                for row, info in zip(rows, infos, strict=True)
            ]
        )
    lines = [*tables.text_lines(tuple(_COLUMNS), rows)]
    for info in infos:
        lines += ["", f"{info.name} ({info.module})", *_details(info, sources)]
    return "\n".join(lines) + "\n"


def _document(info: PluginInfo, sources: Sources | None) -> dict[str, object]:
    return {
        "module": info.module,
        "reason": info.reason,
        "hooks": info.hooks,
        "commands": [each.name for each in info.commands],
        "pages": [dict(zip(_PAGE, row, strict=True)) for row in _pages(info)],
        "settings": [dict(zip(_SETTING, row, strict=False)) for row in _settings(info, sources)],
    }


def _details(info: PluginInfo, sources: Sources | None) -> Iterable[str]:
    width = _WIDTH - _INDENT
    if info.reason:
        yield from _labelled("refused", textwrap.wrap(info.reason, width))
    if info.hooks:
        yield from _labelled("hooks", textwrap.wrap(", ".join(info.hooks), width))
    if info.commands:
        yield from _labelled("commands", [each.name for each in info.commands])
    if info.pages:
        yield from _labelled("pages", tables.text_lines(_PAGE, _pages(info), width))
    if info.settings:
        rows = _settings(info, sources)
        titles = _SETTING[: len(rows[0])]
        yield from _labelled("settings", tables.text_lines(titles, rows, width))


def _pages(info: PluginInfo) -> list[tuple[str, ...]]:
    return [(page.path, " ".join(page.methods), _access(page)) for page in info.pages]


def _settings(info: PluginInfo, sources: Sources | None) -> list[tuple[str, ...]]:
    return [(setting.name, *_value(setting, sources)) for setting in info.settings]


def _access(page: Page) -> str:
    return "public" if page.public else "authenticated"


def _value(setting: Setting[Any], sources: Sources | None) -> tuple[str, ...]:
    """Return the value of `setting`, unless it is secret, and the place that sets it."""
    if sources is None:
        return ()
    text, place = sources.origin(setting)
    if setting.secret:
        return ("not set" if text is None else "set", place)
    shown = default_text(setting) if text is None else " ".join(text.split())
    if len(shown) > _LONGEST_VALUE:
        shown = shown[: _LONGEST_VALUE - 1] + "…"
    return shown, place


def _labelled(label: str, lines: Iterable[str]) -> Iterable[str]:
    """Yield the `lines`, indented, with the `label` before the first."""
    for line in lines:
        yield f"  {label:<{_INDENT - 2}}{line}"
        label = ""
