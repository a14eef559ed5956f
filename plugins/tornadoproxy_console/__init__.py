"""The web console at ``/console/``; inactive unless ``CONSOLE`` is set.

An administrator signs in with an admin key, and everybody else with their own credential. What is
shown and changed goes through the Admin API, in process, by the key that somebody signed in with.

- `tornadoproxy_console.site`: from a request to a view, and the headers of each response
- `tornadoproxy_console.sessions`: who is signed in
- `tornadoproxy_console.asking`: what a view asks the Admin API
- `tornadoproxy_console.rendering`: templates, and figures as text
- `tornadoproxy_console.charts`: charts
- `tornadoproxy_console.texts`: all texts
- `tornadoproxy_console.spending`: costs, summed for charts and tables
- the views: `me`, `spend`, `people`, `requests`, `health`, `plugin_pages`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import INACTIVE, Inactive, Page, Setting, Settings, Status, hookimpl, parsers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy import RunningProxy, admin
    from tornadoproxy_console.site import Site

CONSOLE: Setting[bool] = Setting(
    "CONSOLE",
    parsers.boolean,
    default=False,
    help="serve a web console at /console/, for administrators and for everybody with a credential",
    fixed=True,
)


class Console:
    """The plugin: it serves the console."""

    def __init__(self) -> None:
        self._site: Site | None = None
        self._settings: Settings | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[bool]]:
        return (CONSOLE,)

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        if not settings[CONSOLE]:
            return INACTIVE
        self._settings = settings
        return "a web console at /console/, for those who sign in with a key"

    @hookimpl
    def pages(
        self, admin_apis: Callable[[], Sequence[admin.Api]], proxy: RunningProxy
    ) -> tuple[Page, ...]:
        from tornadoproxy_console.site import Site  # most starts serve no console

        self._site = Site(admin_apis(), proxy, self._current_settings)
        return (Page("/console(/.*)?", self._site.serve, ("GET", "POST"), public=True),)

    @hookimpl
    def startup(self, status: Callable[[], Status]) -> None:
        assert self._site is not None, "pages() has been called"
        self._site.status = status

    def _current_settings(self) -> Settings:
        assert self._settings is not None, "configure() has returned that this plugin is active"
        return self._settings
