"""The caps applied to the requests of a running proxy.

Each proxy decides from its memory. With ``SHARED_LIMITS``, that server decides for all of them.
After the database has been unusable for `sync.MAX_UNKNOWN` seconds, requests for a model are
refused with 503, those of people without a cap included, because they may have one by now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from tornadoproxy import (
    DatabaseUnavailable,
    Denied,
    Dialect,
    Identity,
    IncomingRequest,
    ModelRequest,
    Permit,
    RequestRecord,
)
from tornadoproxy_budgets import refusals, spend_headers
from tornadoproxy_budgets.engine import Applying, CapReached, Reservation, subjects_of
from tornadoproxy_budgets.sync import Sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from tornadoproxy import DatabaseLocation, DatabaseStatus
    from tornadoproxy_budgets.shared_reservations import Lease, SharedReservations

MAX_CHARGE = 10**15
"""The highest charge for one request, in nanos: a million dollars.

A plugin may return any price, and the databases sum up to 2**63.
"""

# the upstream's quota is shared by everybody, so people with a cap do not see it
WITHHELD = ("anthropic-ratelimit-unified-",)
_WITHHOLDING = Permit(withheld_headers=WITHHELD)
_NOTHING: Mapping[str, str] = {}


class Keeper:
    """The budgets of one running proxy.

    :param where: the database.
    :param shared: the reservations of several proxies together; ``None`` if each has its own.
    :param local: whether each proxy reserves by itself while `shared` cannot be used; otherwise
        requests under a cap are rejected with 503.
    :ivar message: ends the error of a reached cap.
    :ivar sync: the database.
    """

    def __init__(
        self,
        where: DatabaseLocation,
        shared: SharedReservations | None = None,
        *,
        local: bool = False,
    ) -> None:
        self.message: str | None = None
        self._shared = shared
        self._local = local
        self.sync = Sync(where, lambda: shared is not None and not shared.failing)
        self._engine = self.sync.engine

    async def open(self, deadline: float) -> None:
        """Open the database and the server of the reservations.

        :param deadline: seconds for a statement; see `Database.start`.
        :raises ConfigurationError: one of them cannot be used.
        """
        await self.sync.open(deadline)
        if self._shared is not None:
            try:
                await self._shared.open()
            except BaseException:
                await self.sync.close()
                raise

    def database_status(self) -> list[DatabaseStatus]:
        """Return the state of the database, and of the server of ``SHARED_LIMITS`` if it is set."""
        states = [self.sync.status]
        if self._shared is not None:
            states.append(self._shared.status)
        return states

    async def close(self) -> None:
        """Save what is not saved yet, and close both."""
        await self.sync.close()
        if self._shared is not None:
            await self._shared.close()

    def admit(self, request: IncomingRequest, identity: Identity) -> None:
        """Refuse a request that may spend, before its body is read, if a cap is spent.

        :raises Denied: 429.
        """
        if request.costs_nothing:
            return
        applying = self._applying(identity)
        try:
            self._engine.check(applying, time.time())
        except CapReached as reached:
            raise refusals.cap_reached(reached, self.message) from None

    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | Awaitable[Permit] | None:
        """Admit or refuse a request; see the hook `authorize`."""
        applying = self._applying(identity)
        if model_request is None:
            if not applying:
                return None
            # whatever goes upstream and is not known to cost nothing may spend uncounted
            if request.dialect is Dialect.ANTHROPIC and not request.costs_nothing:
                raise refusals.uncounted(request)
            return _WITHHOLDING
        self.sync.check_known()
        estimate = model_request.max_cost
        if applying and (estimate is None or model_request.model is None):
            raise refusals.price_unknown(model_request)
        shown = self._shown(request, applying)
        if applying and self._shared is not None:
            return self._authorize_shared(
                self._shared, identity, applying, estimate or 0, model_request, shown
            )
        return self._authorize_here(identity, applying, estimate or 0, model_request, shown)

    def _applying(self, identity: Identity) -> Sequence[Applying]:
        return self._engine.applying(identity.principal, identity.groups, identity.allowance)

    def _shown(self, request: IncomingRequest, applying: Sequence[Applying]) -> Mapping[str, str]:
        """Return the headers that show a person's spend, as it is before the request."""
        if not applying or request.dialect is not Dialect.ANTHROPIC:
            return _NOTHING
        fullest = self._engine.fullest(applying, time.time())
        if fullest is None or not fullest.nanos:  # a cap of nothing admits nothing
            return _NOTHING
        return spend_headers.of_success(fullest, self._engine.day)

    def _authorize_here(
        self,
        identity: Identity,
        applying: Sequence[Applying],
        estimate: int,
        asked: ModelRequest,
        shown: Mapping[str, str],
    ) -> Permit:
        try:
            reservation = self._engine.reserve(
                identity.principal,
                identity.groups,
                applying,
                estimate,
                time.time(),
                identity.allowance,
            )
        except CapReached as reached:
            raise refusals.cap_reached(reached, self.message) from None
        settle = partial(self._settle, reservation, asked)
        return Permit(settle, WITHHELD, shown) if applying else Permit(settle)

    def _authorize_shared(
        self,
        shared: SharedReservations,
        identity: Identity,
        applying: Sequence[Applying],
        estimate: int,
        asked: ModelRequest,
        shown: Mapping[str, str],
    ) -> asyncio.Future[Permit]:
        permit: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()

        def done(lease: Lease | None, failed: BaseException | None) -> None:
            if permit.cancelled():
                if lease is not None:
                    shared.settle(self._engine, lease, 0, time.time())
            elif lease is not None:
                permit.set_result(self._permit_of(lease, shared, identity, asked, shown))
            elif isinstance(failed, CapReached):
                permit.set_exception(refusals.cap_reached(failed, self.message))
            elif self._local and isinstance(failed, DatabaseUnavailable):
                try:
                    permit.set_result(
                        self._authorize_here(identity, applying, estimate, asked, shown)
                    )
                except Denied as refused:
                    permit.set_exception(refused)
            elif failed is not None:
                permit.set_exception(failed)

        subjects = subjects_of(identity.principal, identity.groups)
        shared.reserve(self._engine, applying, subjects, estimate, self._load, done)
        return permit

    def _permit_of(
        self,
        lease: Lease,
        shared: SharedReservations,
        identity: Identity,
        asked: ModelRequest,
        shown: Mapping[str, str],
    ) -> Permit:
        reservation = self._engine.hold(
            identity.principal, identity.groups, lease.nanos, identity.allowance
        )

        def settle(record: RequestRecord) -> None:
            cost, now = charge(record, asked), time.time()
            shared.settle(self._engine, lease, cost, now)
            self._engine.settle(reservation, cost, now)

        return Permit(settle, WITHHELD, shown)

    async def _load(self) -> None:
        await self.sync.load(since=time.monotonic())

    def _settle(
        self, reservation: Reservation, model_request: ModelRequest, record: RequestRecord
    ) -> None:
        self._engine.settle(reservation, charge(record, model_request), time.time())


def charge(record: RequestRecord, asked: ModelRequest) -> int:
    """Return the charge for a request in nanos: its cost, or else that of its estimated usage."""
    cost = record.cost
    if cost is None:
        cost = asked.cost(asked.estimated_usage(record))
    return min(cost or 0, MAX_CHARGE)
