"""The caps in a running proxy: they are applied to requests and kept in step with the database.

Requests are decided from memory. Four times a second, or twice with PostgreSQL, the keeper saves
the new sums and checks whether another process, a command or another proxy, has changed the
database; if so it reloads the database. These jobs run one at a time, because a second one could
read the database before the first one's sums are in it.

While the database is unusable, the keeper relies on its memory for `MAX_UNKNOWN` seconds. After
that it refuses requests for a model with 503, those of people without a cap included, because they
may have one by now. New sums are held meanwhile, and saved when the database is usable again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tornadoproxy import (
    DatabaseUnavailable,
    Dialect,
    Identity,
    IncomingRequest,
    ModelRequest,
    Permit,
    RequestRecord,
)
from tornadoproxy_budgets import refusals, storage
from tornadoproxy_budgets.engine import (
    Applying,
    Batch,
    CapReached,
    Engine,
    Reservation,
    State,
    subjects_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from tornadoproxy import DatabaseConnection, DatabaseLocation, DatabaseStatus
    from tornadoproxy_budgets.shared_reservations import SharedReservations

T = TypeVar("T")

MAX_UNKNOWN = 5.0
"""How long the database may be unusable before requests are refused, in seconds."""

MAX_CHARGE = 10**15
"""The highest charge for one request, in nanos: a million dollars.

A plugin may return any price, and the databases sum up to 2**63.
"""

TICK = 0.25  # seconds between two checks of an SQLite file
SERVER_TICK = 0.5  # seconds between two checks of a PostgreSQL server, which many proxies ask

# the upstream's quota is shared by everybody, so people with a cap do not see it
WITHHELD = ("anthropic-ratelimit-unified-",)
_WITHHOLDING = Permit(withheld_headers=WITHHELD)

_logger = logging.getLogger(__name__)


class Keeper:
    """The budgets of one running proxy.

    :param where: the database.
    :param shared: the reservations of several proxies together; ``None`` if each has its own.
    :param local: whether each proxy reserves by itself while `shared` cannot be used; otherwise
        requests under a cap are rejected with 503.
    """

    def __init__(
        self,
        where: DatabaseLocation,
        shared: SharedReservations | None = None,
        *,
        local: bool = False,
    ) -> None:
        self._shared = shared
        self._local = local
        self.where = where
        self.engine = Engine(time.time())
        self._database = storage.database(where)
        self._lock = asyncio.Lock()
        self._revision: int | None = None  # the one that the engine has loaded
        self._behind = True  # whether the database may have a later one
        self._unknown_since: float | None = None  # monotonic
        self._stopping = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Refuse an invalid setting.

        :raises ConfigurationError: in one line.
        """
        self._database.check()

    async def open(self, deadline: float) -> None:
        """Open and load the database, and keep in step with it.

        :param deadline: seconds for a statement; see `Database.start`.
        :raises ConfigurationError: the database cannot be used.
        """
        await self._database.start(self._load, statement_timeout=deadline)
        self._ticking = asyncio.create_task(self._tick(), name="budgets")

    def database_status(self) -> list[DatabaseStatus]:
        """Return the state of the database, and of the server of ``SHARED_LIMITS`` if it is set."""
        states = [self._database.status]
        if self._shared is not None:
            states.append(self._shared.status)
        return states

    async def close(self) -> None:
        """Save what is not saved yet, and close the database."""
        self._stopping.set()
        if self._ticking is not None:
            await self._ticking
        if batch := self.engine.take_unsaved():
            # retried until the deadline for closing
            self._database.write_behind(_save, batch)
        await self._database.close()
        if self._shared is not None:
            await self._shared.close()

    # -- requests

    def admit(self, request: IncomingRequest, identity: Identity) -> None:
        """Refuse a request that may spend, before its body is read, if a cap is spent.

        :raises Denied: 429.
        """
        if request.costs_nothing:
            return
        applying = self.engine.applying(identity.principal, identity.groups)
        try:
            self.engine.check(applying, time.time())
        except CapReached as reached:
            raise refusals.cap_reached(reached) from None

    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | Awaitable[Permit] | None:
        """Admit or refuse a request; see the hook `authorize`."""
        principal, groups = identity.principal, identity.groups
        applying = self.engine.applying(principal, groups)
        if model_request is None:
            if not applying:
                return None
            # whatever goes upstream and is not known to cost nothing may spend uncounted
            if request.dialect is Dialect.ANTHROPIC and not request.costs_nothing:
                raise refusals.uncounted(request)
            return _WITHHOLDING
        self.check_known()
        estimate = model_request.max_cost
        if applying and (estimate is None or model_request.model is None):
            raise refusals.price_unknown(model_request)
        if applying and self._shared is not None:
            return self._authorize_shared(
                self._shared, identity, applying, estimate or 0, model_request
            )
        return self._authorize_here(identity, applying, estimate or 0, model_request)

    def _authorize_here(
        self, identity: Identity, applying: list[Applying], estimate: int, asked: ModelRequest
    ) -> Permit:
        try:
            reservation = self.engine.reserve(
                identity.principal, identity.groups, applying, estimate, time.time()
            )
        except CapReached as reached:
            raise refusals.cap_reached(reached) from None
        settle = partial(self._settle, reservation, asked)
        return Permit(settle, WITHHELD) if applying else Permit(settle)

    async def _authorize_shared(
        self,
        shared: SharedReservations,
        identity: Identity,
        applying: list[Applying],
        estimate: int,
        asked: ModelRequest,
    ) -> Permit:
        subjects = subjects_of(identity.principal, identity.groups)
        try:
            lease = await shared.reserve(self.engine, applying, subjects, estimate, time.time())
        except CapReached as reached:
            raise refusals.cap_reached(reached) from None
        except DatabaseUnavailable:
            if not self._local:
                raise
            return self._authorize_here(identity, applying, estimate, asked)
        reservation = self.engine.hold(identity.principal, identity.groups, lease.nanos)

        def settle(record: RequestRecord) -> None:
            shared.settle(self.engine, lease, charge(record, asked), time.time())
            self._settle(reservation, asked, record)

        return Permit(settle, WITHHELD)

    def _settle(
        self, reservation: Reservation, model_request: ModelRequest, record: RequestRecord
    ) -> None:
        self.engine.settle(reservation, charge(record, model_request), time.time())

    def check_known(self) -> None:
        """Refuse to decide from memory that is too old.

        :raises Denied: the database has been unusable for more than `MAX_UNKNOWN` seconds.
        """
        since = self._unknown_since
        if since is not None and time.monotonic() - since > MAX_UNKNOWN:
            raise refusals.unknown(MAX_UNKNOWN)

    # -- the database

    async def change(self, work: Callable[[DatabaseConnection], T]) -> T:
        """Do `work` in the database, load what it changed, and return its result.

        The work is finished even if the caller is cancelled.

        :raises DatabaseUnavailable: the database cannot be used; nothing was changed.
        """
        return await asyncio.shield(asyncio.ensure_future(self._sync(work)))

    async def _load(self) -> None:
        await self._sync(_nothing)
        if self._shared is not None:
            await self._shared.open()

    async def _tick(self) -> None:
        failures = 0
        pause = TICK if self._database.dialect == "sqlite" else SERVER_TICK
        while not self._stopping.is_set():
            try:
                if self.engine.unsaved or self._behind or await self._changed():
                    await self._sync(_nothing)
                failures = 0
            except DatabaseUnavailable:
                pass  # the database itself logs it
            except Exception:
                # such as a missing table; logged at the 1st, 2nd, 4th, 8th … failure in a row
                failures += 1
                if failures & (failures - 1) == 0:
                    _logger.exception(
                        "%s: budgets not saved, %d failures in a row", self.where, failures
                    )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _changed(self) -> bool:
        async with self._lock:
            with self._knowing():
                self._behind = await self._database.changed()
        return self._behind

    async def _sync(self, work: Callable[[DatabaseConnection], T]) -> T:
        """Save the new sums, do `work`, and load the changes of others."""
        async with self._lock:
            batch = self.engine.take_unsaved()
            job = partial(
                _save_and_load, batch, work, self._revision, self.engine.roll(time.time())
            )
            self._behind = True
            try:
                with self._knowing():
                    result, revision, state = await self._database.run(job)
            except Exception:
                self.engine.put_back(batch)
                raise
            if state is None or self.engine.load(state):
                self._revision = revision
                self._behind = False
            return result

    @contextlib.contextmanager
    def _knowing(self) -> Iterator[None]:
        """Note since when the content of the database has been unknown."""
        if self._unknown_since is None:
            self._unknown_since = time.monotonic()
        yield
        self._unknown_since = None


def charge(record: RequestRecord, asked: ModelRequest) -> int:
    """Return the charge for a request in nanos: its cost, or else that of its estimated usage."""
    cost = record.cost
    if cost is None:
        cost = asked.cost(asked.estimated_usage(record))
    return min(cost or 0, MAX_CHARGE)


def _save_and_load(
    batch: Batch,
    work: Callable[[DatabaseConnection], T],
    known: int | None,
    day: int,
    connection: DatabaseConnection,
) -> tuple[T, int, State | None]:
    """Save `batch`, do `work`, and return its result, the revision and the state.

    The state is ``None`` if only the batch has changed since the revision `known`.
    """
    unchanged = storage.revision(connection) == known
    if batch:
        storage.save(connection, batch)
    before = storage.revision(connection)
    result = work(connection)
    after = storage.revision(connection)
    state = None if unchanged and after == before else storage.load(connection, day)
    return result, after, state


def _save(batches: Iterable[Batch], connection: DatabaseConnection) -> None:
    for batch in batches:
        storage.save(connection, batch)


def _nothing(_: DatabaseConnection) -> None:
    """Change nothing."""
