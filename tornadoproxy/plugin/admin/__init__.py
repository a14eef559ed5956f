"""The Admin API: what the plugins that own data declare, and what they need for it.

A plugin returns an `Api` from the hook `admin_api`: its resources under ``/v1/organizations/``,
and the audit trail of their changes. The plugin that serves the Admin API authenticates requests,
finds the resource, and writes the responses::

    from tornadoproxy import admin, hookimpl

    class Rooms:
        def __init__(self):
            self._rooms = ["atrium", "attic", "cellar"]

        @hookimpl
        def admin_api(self):
            return admin.Api("rooms", (admin.Resource("rooms", {"GET": self._list}),))

        async def _list(self, request):
            shown, has_more = request.query.shown(self._rooms)
            documents = [{"type": "room", "id": name} for name in shown]
            return admin.list_document(documents, has_more=has_more)

The documents are those of Anthropic's Admin API where it has words for a resource
(https://platform.claude.com/docs/en/api/admin).
"""

from tornadoproxy.plugin.admin.api import (
    Api,
    Person,
    Request,
    Resource,
    Resources,
    Trail,
    entity_tag,
)
from tornadoproxy.plugin.admin.query import (
    Document,
    Query,
    cursor,
    cursor_key,
    list_document,
    one_of,
    only,
    parse_timestamp,
    timestamp,
)
from tornadoproxy.plugin.admin.trail import AuditTable, Event, Once, command_line_actor

__all__ = [
    "Api",
    "AuditTable",
    "Document",
    "Event",
    "Once",
    "Person",
    "Query",
    "Request",
    "Resource",
    "Resources",
    "Trail",
    "command_line_actor",
    "cursor",
    "cursor_key",
    "entity_tag",
    "list_document",
    "one_of",
    "only",
    "parse_timestamp",
    "timestamp",
]
