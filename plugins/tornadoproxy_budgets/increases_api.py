"""The requests for higher caps: people make them, and the Admin API resolves them.

https://platform.claude.com/docs/en/api/admin/spend_limits has all but the creation of a request,
which is an extension of this proxy: a person posts it to `PATH` with their own credential. The log
has a line for each new request and each decision.
"""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from tornadoproxy import DatabaseUnavailable, Denied, InvalidRequest, Page, PageResponse, admin
from tornadoproxy_budgets import increases, storage, wire
from tornadoproxy_budgets.caps import Cap, Scope

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection, PageRequest
    from tornadoproxy_budgets.api import SpendLimitsApi
    from tornadoproxy_budgets.increases import Increase
    from tornadoproxy_budgets.sync import Sync

PATH = "/v1/spend_limit_increase_requests"
"""Where people make requests, and see their own."""

RESOURCE = "spend_limit_increase_requests"

MAX_REASON = 1000  # characters

_logger = logging.getLogger(__name__)


class IncreasesApi:
    """The resources and the page.

    :param sync: the caps and sums, and their database.
    :param limits: shows caps and spending.
    """

    def __init__(self, sync: Sync, limits: SpendLimitsApi) -> None:
        self._sync = sync
        self._limits = limits

    def resources(self) -> tuple[admin.Resource, ...]:
        """Return the resources of the Admin API."""
        one = f"{RESOURCE}/([^/]+)"
        return (
            admin.Resource(RESOURCE, {"GET": self._list}),
            admin.Resource(one, {"GET": self._get}),
            admin.Resource(f"{one}/approve", {"POST": self._approve}),
            admin.Resource(f"{one}/deny", {"POST": self._deny}),
        )

    async def trail(self, limit: int, before: int | None) -> list[admin.Event]:
        """Return events of the audit trail; see `admin.Trail`."""
        return await self._sync.read(partial(increases.TRAIL.read, limit=limit, before=before))

    def page(self) -> Page:
        """Return the page on which people make requests."""
        return Page(PATH, self.serve, ("GET", "POST"), overrides=True)

    async def serve(self, request: PageRequest) -> PageResponse:
        """Serve the page of a person.

        :raises Denied: the request has no principal of its own.
        """
        identity = request.identity
        if identity is None or identity.anonymous:
            raise Denied("Requests for a higher limit need a credential of your own.")
        asked = admin.Request(
            request.incoming.method,
            f"user:{identity.principal}",
            admin.Query(request.query),
            body=request.body,
        )
        try:
            if asked.method == "POST":
                document = await self._create(asked, identity.principal)
            else:
                document = await self._page(asked, (), (identity.principal,))
        except DatabaseUnavailable:
            raise Denied(
                "The budgets database is temporarily unavailable. Try again.",
                status=503,
                retry_after=5,
            ) from None
        return PageResponse(json.dumps(document, separators=(",", ":")).encode())

    async def _create(self, request: admin.Request, principal: str) -> admin.Document:
        document = request.document("period", "requested_amount", "reason")
        period = wire.period(document)
        cents = None
        if document.get("requested_amount") is not None:
            cents = wire.amount(document, "requested_amount")
        reason = document.get("reason")
        if reason is not None and not (isinstance(reason, str) and len(reason) <= MAX_REASON):
            raise InvalidRequest(f"reason: must be a text of at most {MAX_REASON} characters.")

        def create(connection: DatabaseConnection) -> tuple[Increase, bool]:
            now = time.time()
            made = increases.create(connection, principal, period, cents, reason, now)
            is_new = made.created == now
            if is_new:
                after = _document(made)
                increases.TRAIL.record(connection, request.actor, "create", made.id, None, after)
            return made, is_new

        made, is_new = await self._sync.change(create)
        if is_new:
            _logger.info("%s is pending: %s asks for a higher %s limit", made.id, principal, period)
        return self._shown(made)

    async def _list(self, request: admin.Request) -> admin.Document:
        statuses = request.query.values("status", increases.STATUSES)
        return await self._page(request, statuses, request.query.values("actor_ids"))

    async def _page(
        self, request: admin.Request, statuses: tuple[str, ...], principals: tuple[str, ...]
    ) -> admin.Document:
        limit, page = request.query.limit(), request.query.value("page")
        after = None
        if page is not None:
            created, id_ = admin.cursor_key(page, float, str)
            after = created, id_
        # one more than the page shows, to know whether another page follows
        read = partial(
            increases.page,
            statuses=statuses,
            principals=principals,
            limit=limit + 1,
            after=after,
        )
        found = await self._sync.read(read)
        shown, has_more = found[:limit], len(found) > limit
        return admin.list_document(
            [self._shown(each) for each in shown],
            has_more=has_more,
            next_page=admin.cursor(shown[-1].created, shown[-1].id) if has_more else None,
        )

    async def _get(self, request: admin.Request) -> admin.Document:
        found = await self._sync.read(partial(increases.find, id_=request.arguments[0]))
        return self._shown(_existing(found))

    async def _approve(self, request: admin.Request) -> admin.Document:
        document = request.document("amount", "period", "suppress_notification")
        cents = wire.amount(document)

        def approve(connection: DatabaseConnection) -> tuple[Increase, Cap | None, bool]:
            increase = _existing(increases.find(connection, request.arguments[0]))
            repeats = increases.TRAIL.earlier(connection, request.once) is not None
            period = wire.period(document, increase.period)
            scope = Scope("user", increase.principal)
            if repeats:
                return increase, storage.find_cap(connection, scope, period), False
            _check_pending(request, increase)
            now = time.time()
            cap = storage.set_cap(connection, scope, period, cents, actor=request.actor, now=now)
            return _resolved(connection, request, increase, "approved"), cap, True

        increase, cap, is_new = await self._sync.change(approve)
        if is_new:
            _log_decision(increase)
        limit = None if cap is None else wire.cap_document(cap)
        return {**self._shown(increase, always=True), "spend_limit": limit}

    async def _deny(self, request: admin.Request) -> admin.Document:
        request.document("suppress_notification")

        def deny(connection: DatabaseConnection) -> tuple[Increase, bool]:
            increase = _existing(increases.find(connection, request.arguments[0]))
            if increase.status == "denied":
                return increase, False
            _check_pending(request, increase)
            return _resolved(connection, request, increase, "denied"), True

        increase, is_new = await self._sync.change(deny)
        if is_new:
            _log_decision(increase)
        return self._shown(increase)

    def _shown(self, increase: Increase, *, always: bool = False) -> admin.Document:
        """Return the document of a request, with what its person has spent.

        :param always: whether the request need not be pending for that.
        """
        summary = None
        if always or increase.status == "pending":
            summary = self._limits.summary(increase.principal, increase.period)
        return {**_document(increase), "spend_summary": summary}


def _resolved(
    connection: DatabaseConnection,
    request: admin.Request,
    increase: Increase,
    status: increases.Status,
) -> Increase:
    resolved = increases.resolve(connection, increase, status, request.actor, time.time())
    increases.TRAIL.record(
        connection,
        request.actor,
        "approve" if status == "approved" else "deny",
        increase.id,
        _document(increase),
        _document(resolved),
        once=request.once,
    )
    return resolved


def _log_decision(increase: Increase) -> None:
    _logger.info(
        "%s is %s by %s: %s had asked for a higher %s limit",
        increase.id, increase.status, increase.resolver, increase.principal, increase.period,
    )  # fmt: skip


def _document(increase: Increase) -> admin.Document:
    resolver = increase.resolver
    return {
        "type": "spend_limit_increase_request",
        "id": increase.id,
        "actor": wire.actor(increase.principal),
        "created_at": admin.timestamp(increase.created),
        "period": increase.period,
        "status": increase.status,
        "resolved_at": None if increase.resolved is None else admin.timestamp(increase.resolved),
        "resolved_by": None
        if resolver is None
        else {"type": "scoped_api_key_actor", "scoped_api_key_id": resolver},
        "requested_amount": None if increase.cents is None else str(increase.cents),
        "reason": increase.reason,
    }


def _check_pending(request: admin.Request, increase: Increase) -> None:
    request.check_match(_document(increase))
    if increase.status != "pending":
        raise InvalidRequest(f"This request is already {increase.status}.")


def _existing(increase: Increase | None) -> Increase:
    if increase is None:
        raise Denied("There is no spend limit increase request with this id.", status=404)
    return increase
