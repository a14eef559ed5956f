"""The audit trail: the events of all plugins' trails, the newest first.

A cursor holds the last event shown of each trail, so that a page continues exactly where the
previous one ended, whatever is recorded meanwhile.
"""

from __future__ import annotations

import heapq
import json
from typing import TYPE_CHECKING

from tornadoproxy import InvalidRequest, admin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_LIMIT = 100  # events of a page


class AuditEvents:
    """The resource ``audit_events``.

    :param apis: whose trails it shows.
    """

    def __init__(self, apis: Sequence[admin.Api]) -> None:
        self._trails = {
            f"{api.name}.{name}": trail for api in apis for name, trail in api.trails.items()
        }

    async def list(self, request: admin.Request) -> admin.Document:
        """Return the page of events that a query asks for."""
        limit = request.query.limit(DEFAULT_LIMIT)
        shown = self._shown(request.query.value("page"))
        found = [
            # one more than the page shows, to know whether another page follows
            [(name, event) for event in await trail(limit + 1, shown.get(name))]
            for name, trail in self._trails.items()
        ]
        events = list(heapq.merge(*found, key=lambda each: each[1].time, reverse=True))
        for name, event in events[:limit]:
            shown[name] = event.id
        has_more = len(events) > limit
        return admin.list_document(
            [_document(name, event) for name, event in events[:limit]],
            has_more=has_more,
            next_page=admin.cursor(json.dumps(shown)) if has_more else None,
        )

    def _shown(self, page: str | None) -> dict[str, int]:
        if page is None:
            return {}
        (text,) = admin.cursor_key(page, str)
        try:
            shown = json.loads(text)
        except ValueError:
            shown = None
        if not isinstance(shown, dict) or not _are_positions(shown):
            raise InvalidRequest("page: must be next_page of the previous response.")
        return shown


def _are_positions(shown: Mapping[str, object]) -> bool:
    return all(type(each) is int and 0 <= each < 1 << 62 for each in shown.values())


def _document(trail: str, event: admin.Event) -> admin.Document:
    return {
        "type": "audit_event",
        "id": f"{trail}.{event.id}",
        "created_at": admin.timestamp(event.time),
        "actor": event.actor,
        "action": event.action,
        "resource": {"type": event.type, "id": event.subject},
        "before": event.before,
        "after": event.after,
    }
