"""The views, by path, and the navigation to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import Denied
from tornadoproxy_console import health, me, now, people, plugin_pages, requests, spend, texts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornadoproxy import PageResponse
    from tornadoproxy_console.site import Visit


class View(NamedTuple):
    """One view.

    :param path: a regular expression for the whole path below the console's.
    :param title: in the navigation; empty if it is not there.
    :param change: serves its forms.
    """

    path: str
    for_admins: bool
    title: str
    serve: Callable[..., Awaitable[PageResponse]]
    change: Callable[..., Awaitable[PageResponse]] | None = None


VIEWS = (
    View("/me", False, texts.ME, me.show, me.ask_for_more),
    View("/now", True, texts.NOW, now.show),
    View("/now/events", True, "", now.events),
    View("/spend", True, texts.SPEND, spend.show, spend.change),
    View("/spend[.]csv", True, "", spend.csv),
    View("/spend/increases", True, "", spend.show, spend.resolve),
    View("/people", True, texts.PEOPLE, people.show, people.create),
    View("/people/person", True, "", people.person, people.change),
    View("/requests", True, texts.REQUESTS, requests.show),
    View("/requests/one", True, "", requests.one),
    View("/health", True, texts.HEALTH, health.show),
    View("/pages(/.*)", True, "", plugin_pages.show),
)


async def serve(visit: Visit) -> PageResponse:
    """Return the response of the view at the visit's path."""
    for view in VIEWS:
        matched = re.fullmatch(view.path, visit.path)
        if matched and view.for_admins == visit.actor.is_admin:
            serve_it = view.change if visit.is_post else view.serve
            if serve_it is not None:
                return await serve_it(visit, *matched.groups())
    if visit.path == "/me":
        return visit.redirect(next(each.path for each in VIEWS if each.for_admins))
    raise Denied(texts.NOT_FOUND, status=404)


def navigation(visit: Visit) -> list[tuple[str, str, bool]]:
    """Return the path and title of each page in the navigation, and whether it is the current."""
    actor = getattr(visit, "actor", None)
    if actor is None:
        return []
    shown = [
        (each.path, each.title)
        for each in VIEWS
        if each.title and each.for_admins == actor.is_admin
    ]
    if actor.is_admin:
        shown += [
            (f"/pages{page.path}", page.title)
            for _, page in visit.site.proxy.pages()
            if page.title and not page.is_pattern
        ]
    return [(path, title, f"{visit.path}/".startswith(f"{path}/")) for path, title in shown]
