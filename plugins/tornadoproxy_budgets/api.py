"""The spend limits API at ``/v1/organizations/spend_limits``."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy import DatabaseUnavailable, Denied, InvalidRequest, Page, PageResponse
from tornadoproxy_budgets import storage, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy import DatabaseConnection, IncomingRequest, PageRequest
    from tornadoproxy_budgets.admin_keys import AdminKeys
    from tornadoproxy_budgets.caps import Cap
    from tornadoproxy_budgets.periods import Period
    from tornadoproxy_budgets.sync import Sync
    from tornadoproxy_budgets.wire import Document, Query

T = TypeVar("T")

PATH = "/v1/organizations/spend_limits"

MAX_AGE = 1.0  # seconds since which the sums shown may have been loaded

_AUDIT_LIMIT = 100  # items of a page without the query field limit


class SpendLimitsApi:
    """The pages that show and change the caps, for clients with an admin key.

    :param sync: the caps and sums, and their database.
    :ivar keys: the admin keys.
    """

    def __init__(self, sync: Sync, keys: AdminKeys) -> None:
        self._sync = sync
        self.keys = keys

    def pages(self) -> tuple[Page, ...]:
        """Return the pages, whose requests only the admin keys authenticate."""
        # at the paths of Anthropic's own gateway, so that its clients find them
        page = partial(Page, public=True, overrides=True, admit=self._admit)
        return (
            page(PATH, self._serve_all, ("GET", "POST")),
            page(f"{PATH}/effective", self._serve_effective),
            page(f"{PATH}/audit", self._serve_audit),
            page(f"{PATH}/([^/]+)", self._serve_one, ("GET", "DELETE")),
        )

    def _admit(self, request: IncomingRequest) -> None:
        self._key_name(request)

    def _key_name(self, request: IncomingRequest) -> str:
        """Return the name of the admin key of a request; see `AdminKeys.admit`."""
        return self.keys.admit(request, to_change=request.method in ("POST", "DELETE"))

    async def _serve_all(self, request: PageRequest) -> PageResponse:
        if request.incoming.method != "POST":
            await self._refresh()
            return _response(self._list(wire.Query(request.query)))
        name = self._key_name(request.incoming)
        scope, period, cents = wire.wanted(request.body)
        set_cap = partial(
            storage.set_cap,
            scope=scope,
            period=period,
            cents=cents,
            actor=f"admin-key:{name}",
            now=time.time(),
        )
        return _response(self._cap_document(await self._change(set_cap)))

    async def _serve_one(self, request: PageRequest) -> PageResponse:
        (cap_id,) = request.arguments
        if request.incoming.method != "DELETE":
            await self._refresh()
            found = next((cap for cap in self._sync.engine.caps if cap.id == cap_id), None)
            return _response(self._cap_document(_existing(found)))
        name = self._key_name(request.incoming)
        remove = partial(
            storage.remove_cap, cap_id=cap_id, actor=f"admin-key:{name}", now=time.time()
        )
        removed = _existing(await self._change(remove))
        return _response({"type": "spend_limit_deleted", "id": removed.id})

    async def _serve_effective(self, request: PageRequest) -> PageResponse:
        await self._refresh()
        return _response(self._effective(wire.Query(request.query)))

    async def _serve_audit(self, request: PageRequest) -> PageResponse:
        query = wire.Query(request.query)
        limit = query.limit(_AUDIT_LIMIT)
        after = query.value("after_id")
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
            raise InvalidRequest("after_id: must be the number of an event.")
        # one more than the page shows, to know whether another page follows
        read = partial(
            storage.read_changes,
            limit=limit + 1,
            after=None if after is None else int(after),
        )
        changes = await self._change(read)
        events = [wire.change_document(change) for change in changes[:limit]]
        return _response(wire.list_document(events, has_more=len(changes) > limit))

    def _list(self, query: Query) -> Document:
        types = query.scope_types()
        caps = [cap for cap in self._sync.engine.caps if cap.scope.type in types]
        limit = query.limit()
        after, before, page = (query.value(name) for name in ("after_id", "before_id", "page"))
        if sum(each is not None for each in (after, before, page)) > 1:
            raise InvalidRequest(
                "after_id, before_id and page exclude each other; send one of them."
            )
        if page is not None:
            (after,) = wire.cursor_key(page, str)
        if before is not None:
            caps = caps[: _position(caps, "before_id", before)]
            shown, has_more = caps[-limit:], len(caps) > limit
        else:
            if after is not None:
                caps = caps[_position(caps, "after_id", after) + 1 :]
            shown, has_more = caps[:limit], len(caps) > limit
        document = wire.list_document([self._cap_document(cap) for cap in shown], has_more=has_more)
        continues = has_more and before is None
        return {**document, "next_page": wire.cursor(shown[-1].id) if continues else None}

    def _effective(self, query: Query) -> Document:
        periods = query.periods()
        limit = query.limit()
        order = query.value("sort")
        if order not in (None, "spend_desc"):
            raise InvalidRequest("sort: must be spend_desc.")
        if order is not None and len(query.values("period")) != 1:
            raise InvalidRequest("sort=spend_desc: name exactly one period[] with it.")
        part = (query.value("q") or "").casefold()
        names = [
            name
            for name in query.user_ids() or self._sync.engine.principals()
            if part in name.casefold()
        ]
        by_spend = periods[0] if order else None
        keys = sorted(self._row_key(name, by_spend) for name in names)
        page = query.value("page")
        if page is not None:
            after = tuple(wire.cursor_key(page, *((int, str) if order else (str,))))
            keys = [key for key in keys if key > after]
        shown = keys[:limit]
        rows = [self._summary(str(key[-1]), period) for key in shown for period in periods]
        next_page = wire.cursor(*shown[-1]) if len(keys) > limit else None
        return {"data": rows, "next_page": next_page}

    def _row_key(self, name: str, by_spend: Period | None) -> tuple[Any, ...]:  # Any: str or int
        """Return the key that orders the rows, and at which a page continues."""
        if by_spend is None:
            return (name,)
        return (-self._sync.engine.spent(("user", name), by_spend, time.time()), name)

    def _summary(self, principal: str, period: Period) -> Document:
        engine = self._sync.engine
        groups = engine.groups(principal)
        cap = engine.personal(principal, groups, period)
        spent = engine.spent(("user", principal), period, time.time())
        return wire.summary_document(principal, groups, period, cap, spent)

    def _cap_document(self, cap: Cap) -> Document:
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

    async def _change(self, work: Callable[[DatabaseConnection], T]) -> T:
        try:
            return await self._sync.change(work)
        except DatabaseUnavailable:
            raise Denied(
                "The budgets database is temporarily unavailable; nothing was changed. The "
                "proxy's log says what is wrong.",
                status=503,
                retry_after=5,
            ) from None


def _response(document: Document) -> PageResponse:
    return PageResponse(json.dumps(document, separators=(",", ":")).encode())


def _existing(cap: Cap | None) -> Cap:
    if cap is None:
        raise Denied("There is no spend limit with this id.", status=404)
    return cap


def _position(caps: list[Cap], field: str, cap_id: str) -> int:
    for position, cap in enumerate(caps):
        if cap.id == cap_id:
            return position
    raise InvalidRequest(f"{field}: there is no spend limit with this id.")
