"""The pages that other plugins add to the navigation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tornadoproxy import Denied, Identity
from tornadoproxy_console import texts

if TYPE_CHECKING:
    from tornadoproxy import PageResponse
    from tornadoproxy_console.site import Visit


async def show(visit: Visit, path: str) -> PageResponse:
    """Show a page in the console's frame."""
    page = next(
        (page for _, page in visit.site.proxy.pages() if page.title and page.path == path), None
    )
    if page is None:
        raise Denied(texts.NOT_FOUND, status=404)
    incoming = replace(visit.request.incoming, path=path)
    identity = Identity(f"admin-key:{visit.actor.name}")
    response = await visit.site.proxy.ask(
        replace(visit.request, incoming=incoming, identity=identity)
    )
    return visit.page(
        "plugin_page.html", page.title, status=response.status, content=response.body.decode()
    )
