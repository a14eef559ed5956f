"""The web console at ``/console/``; inactive unless ``CONSOLE`` is set.

Administrators sign in with an admin key, other people with their own credential, and everybody in
the ways that plugins offer. The console calls the Admin API in process, with the credential of the
session.

- `tornadoproxy_console.site`: from a request to a view, and the headers of each response
- `tornadoproxy_console.sessions`: who is signed in
- `tornadoproxy_console.asking`: what a view asks the Admin API
- `tornadoproxy_console.rendering`: templates, and figures as text
- `tornadoproxy_console.charts`: charts
- `tornadoproxy_console.texts`: all texts
- `tornadoproxy_console.spending`: costs, summed for charts and tables
- `tornadoproxy_console.live`: what happens at present
- the views: `me`, `now`, `spend`, `people`, `requests`, `health`, `plugin_pages`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import (
    INACTIVE,
    Inactive,
    Page,
    RequestRecord,
    Setting,
    Settings,
    Status,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy import RunningProxy, admin
    from tornadoproxy_console.live import Live

CONSOLE: Setting[bool] = Setting(
    "CONSOLE",
    parsers.boolean,
    default=False,
    help="serve a web console at /console/, for administrators and each person with a credential",
    fixed=True,
)


class Console:
    """The plugin: it serves the console."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._settings: Settings | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[bool]]:
        return (CONSOLE,)

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        if not settings[CONSOLE]:
            return INACTIVE
        self._settings = settings
        if self._live is None:
            from tornadoproxy_console.live import Live  # most starts serve no console

            self._live = Live()
        return "a web console at /console/"

    @hookimpl
    def pages(
        self, admin_apis: Callable[[], Sequence[admin.Api]], proxy: RunningProxy
    ) -> tuple[Page, ...]:
        from tornadoproxy_console.site import Site  # as above serve no console

        assert self._live is not None, "configure() has returned that this plugin is active"
        site = Site(admin_apis(), proxy, self._current_settings, self._live)
        return (Page("/console(/.*)?", site.serve, ("GET", "POST"), public=True),)

    @hookimpl
    def startup(self, status: Callable[[], Status]) -> None:
        assert self._live is not None, "configure() has returned that this plugin is active"
        self._live.status = status

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        if self._live is not None:
            self._live.finished(record)

    def _current_settings(self) -> Settings:
        assert self._settings is not None, "configure() has returned that this plugin is active"
        return self._settings
