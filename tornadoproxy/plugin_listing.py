"""Writes what ``python -m tornadoproxy plugins`` shows."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from tornadoproxy.helptext import default_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tornadoproxy.pages import Page
    from tornadoproxy.plugin_finder import PluginInfo
    from tornadoproxy.settings import Setting
    from tornadoproxy.sources import Sources

_WIDTH = 100
_INDENT = 12
_LONGEST_VALUE = 40  # characters


def listing(infos: Sequence[PluginInfo], sources: Sources | None, *, configured: bool) -> list[str]:
    """A table of the plugins, and then what is to be told of each.

    :param sources: where the settings have their values; ``None`` if they cannot be read.
    :param configured: whether the plugins have taken their settings, so that it is known which
        of them are active.
    """
    lines = _aligned(
        [
            ("order", "name", "distribution", "version", "state"),
            *(
                (
                    str(info.order or "-"),
                    info.name,
                    info.distribution or "-",
                    info.version or "-",
                    "loaded" if info.state == "active" and not configured else info.state,
                )
                for info in infos
            ),
        ]
    )
    for info in infos:
        lines += ["", f"{info.name} ({info.module})", *_details(info, sources)]
    return lines


def _details(info: PluginInfo, sources: Sources | None) -> Iterable[str]:
    if info.reason:
        yield from _labelled("refused", textwrap.wrap(info.reason, _WIDTH - _INDENT))
    if info.hooks:
        yield from _labelled("hooks", textwrap.wrap(", ".join(info.hooks), _WIDTH - _INDENT))
    if info.commands:
        yield from _labelled("commands", [each.name for each in info.commands])
    if info.pages:
        pages = [(page.path, " ".join(page.methods), _access(page)) for page in info.pages]
        yield from _labelled("pages", _aligned(pages))
    if info.settings:
        rows = [(setting.name, *_value(setting, sources)) for setting in info.settings]
        yield from _labelled("settings", _aligned(rows))


def _access(page: Page) -> str:
    return "public" if page.public else "authenticated"


def _value(setting: Setting[Any], sources: Sources | None) -> tuple[str, ...]:
    """The value of `setting`, unless it is secret, and where it comes from."""
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
    """The `lines`, indented, and the `label` before the first."""
    for line in lines:
        yield f"  {label:<{_INDENT - 2}}{line}"
        label = ""


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
