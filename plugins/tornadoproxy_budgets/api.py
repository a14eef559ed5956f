"""The resources ``spend_limits`` of the Admin API."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from tornadoproxy import Denied, InvalidRequest, admin
from tornadoproxy_budgets import storage, wire
from tornadoproxy_budgets.increases_api import IncreasesApi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tornadoproxy import DatabaseConnection
    from tornadoproxy_budgets.caps import Cap
    from tornadoproxy_budgets.periods import Period
    from tornadoproxy_budgets.sync import Sync

MAX_AGE = 1.0  # seconds since which the sums shown may have been loaded

_AUDIT_LIMIT = 100  # items of a page without the query field limit


class SpendLimitsApi:
    """The resources that show and change the caps.

    :param sync: the caps and sums, and their database.
    """

    def __init__(self, sync: Sync) -> None:
        self._sync = sync

    def api(self) -> admin.Api:
        """Return the plugin's part of the Admin API."""
        resource = admin.Resource
        increases = IncreasesApi(self._sync, self)
        return admin.Api(
            "budgets",
            (
                resource("spend_limits", {"GET": self._list, "POST": self._set}),
                resource("spend_limits/effective", {"GET": self._effective}),
                resource("spend_limits/audit", {"GET": self._audit}),
                resource("spend_limits/([^/]+)", {"GET": self._get, "DELETE": self._delete}),
                *increases.resources(),
            ),
            {"spend_limits": self._trail, "spend_limit_increase_requests": increases.trail},
            partial(self._sync.read, storage.read_people),
        )

    def summary(self, principal: str, period: Period) -> admin.Document | None:
        """Return a person's limit and spending in a period; ``None`` without a limit."""
        found = self._summary(principal, period)
        return None if found["source"] is None else found

    async def _list(self, request: admin.Request) -> admin.Document:
        await self._refresh()
        types = wire.scope_types(request.query)
        caps = {cap.id: cap for cap in self._sync.engine.caps if cap.scope.type in types}
        shown, has_more = request.query.shown(list(caps))
        continues = has_more and request.query.value("before_id") is None
        return admin.list_document(
            [self._cap_document(caps[each]) for each in shown],
            has_more=has_more,
            next_page=admin.cursor(shown[-1]) if continues else None,
        )

    async def _set(self, request: admin.Request) -> admin.Document:
        scope, period, cents = wire.wanted(request)

        def set_cap(connection: DatabaseConnection) -> Cap:
            if request.if_match is not None:
                existing = storage.find_cap(connection, scope, period)
                request.check_match({} if existing is None else wire.cap_document(existing))
            return storage.set_cap(
                connection, scope, period, cents, actor=request.actor, now=time.time()
            )

        return self._cap_document(await self._sync.change(set_cap))

    async def _get(self, request: admin.Request) -> admin.Document:
        await self._refresh()
        (cap_id,) = request.arguments
        found = next((cap for cap in self._sync.engine.caps if cap.id == cap_id), None)
        return self._cap_document(_existing(found))

    async def _delete(self, request: admin.Request) -> admin.Document:
        (cap_id,) = request.arguments

        def remove(connection: DatabaseConnection) -> Cap:
            removed = storage.remove_cap(connection, cap_id, actor=request.actor, now=time.time())
            request.check_match(wire.cap_document(_existing(removed)))
            return _existing(removed)

        removed = await self._sync.change(remove)
        return {"type": "spend_limit_deleted", "id": removed.id}

    async def _audit(self, request: admin.Request) -> admin.Document:
        limit = request.query.limit(_AUDIT_LIMIT)
        after = request.query.value("after_id")
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
            raise InvalidRequest("after_id: must be the number of an event.")
        # one more than the page shows, to know whether another page follows
        changes = await self._changes(limit + 1, None if after is None else int(after))
        events = [wire.change_document(change) for change in changes[:limit]]
        return admin.list_document(events, has_more=len(changes) > limit)

    async def _trail(self, limit: int, before: int | None) -> list[admin.Event]:
        return [wire.event(change) for change in await self._changes(limit, before)]

    async def _changes(self, limit: int, after: int | None) -> Sequence[storage.Change]:
        return await self._sync.read(partial(storage.read_changes, limit=limit, after=after))

    async def _effective(self, request: admin.Request) -> admin.Document:
        await self._refresh()
        query = request.query
        periods = wire.periods(query)
        limit = query.limit()
        order = query.value("sort")
        if order not in (None, "spend_desc"):
            raise InvalidRequest("sort: must be spend_desc.")
        if order is not None and len(query.values("period")) != 1:
            raise InvalidRequest("sort=spend_desc: name exactly one period[] with it.")
        part = (query.value("q") or "").casefold()
        names = [
            name
            for name in wire.user_ids(query) or self._sync.engine.principals()
            if part in name.casefold()
        ]
        by_spend = periods[0] if order else None
        keys = sorted(self._row_key(name, by_spend) for name in names)
        page = query.value("page")
        if page is not None:
            after = tuple(admin.cursor_key(page, *((int, str) if order else (str,))))
            keys = [key for key in keys if key > after]
        shown = keys[:limit]
        rows = [self._summary(str(key[-1]), period) for key in shown for period in periods]
        next_page = admin.cursor(*shown[-1]) if len(keys) > limit else None
        return {"data": rows, "next_page": next_page}

    def _row_key(self, name: str, by_spend: Period | None) -> tuple[Any, ...]:  # Any: str or int
        """Return the key that orders the rows, and at which a page continues."""
        if by_spend is None:
            return (name,)
        return (-self._sync.engine.spent(("user", name), by_spend, time.time()), name)

    def _summary(self, principal: str, period: Period) -> admin.Document:
        engine = self._sync.engine
        groups, allowance = engine.seen(principal)
        cap = engine.personal(principal, groups, period, allowance)
        spent = engine.spent(("user", principal), period, time.time())
        return wire.summary_document(principal, groups, period, cap, spent)

    def _cap_document(self, cap: Cap) -> admin.Document:
        scope = cap.scope
        if not scope.shared:
            return wire.cap_document(cap)
        subject = (scope.type, scope.name)
        return wire.cap_document(cap, self._sync.engine.spent(subject, cap.period, time.time()))

    async def _refresh(self) -> None:
        """Have the caps and sums of all proxies in memory.

        :raises Denied: the database has been unusable for too long.
        """
        await self._sync.load(since=time.monotonic() - MAX_AGE)
        self._sync.check_known()


def _existing(cap: Cap | None) -> Cap:
    if cap is None:
        raise Denied("There is no spend limit with this id.", status=404)
    return cap
