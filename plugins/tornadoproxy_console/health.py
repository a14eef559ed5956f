"""The view Health: plugins, settings, versions, warnings and stores. It shows no secret."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tornado

from tornadoproxy import Setting, __version__
from tornadoproxy_console import texts

if TYPE_CHECKING:
    from tornadoproxy import PageResponse
    from tornadoproxy_console.site import Visit


async def show(visit: Visit) -> PageResponse:
    """Show the state of the proxy."""
    site = visit.site
    status = site.live.status()
    settings = site.settings()
    return visit.page(
        "health.html",
        texts.HEALTH,
        versions=(
            ("tornadoproxy", __version__),
            ("Python", platform.python_version()),
            ("Tornado", tornado.version),
        ),
        proxy_status=status,
        plugins=site.proxy.plugins(),
        warnings=site.proxy.warnings(),
        stores=[(owner, each) for owner, all_ in status.databases.items() for each in all_],
        settings=[
            sorted(
                (setting.name, _shown(setting, value))
                for setting, value in settings.items()
                if (settings.variable(setting) is not None) == is_set
            )
            for is_set in (True, False)
        ],
    )


def _shown(setting: Setting[Any], value: object) -> str:
    """Return a setting's value as text, as little of a secret as nothing."""
    if value is None or value in ("", ()):
        return texts.NONE
    if setting.secret:
        return texts.SECRET
    if isinstance(value, bool):
        return texts.YES if value else texts.NO
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, (tuple, frozenset)):
        return ", ".join(map(str, value))
    return str(value)
