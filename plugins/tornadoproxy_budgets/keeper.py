"""Applies the caps in a running proxy, and keeps the engine and the database in step.

Requests are decided from memory. Four times a second what was spent is saved, and it is looked
whether another process, a command or another proxy, has changed the file: what it changed is read.
One thing at a time: a second job could read the file before the first one's batch is in it.

The file may be unusable for `MAX_UNKNOWN` seconds: so long what is in memory is relied on. After
that requests for a model are refused with 503, also those of persons without a cap: whether they
still have none cannot be known. What was spent meanwhile is held, and saved when the file can be
used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tornadoproxy import (
    Database,
    DatabaseUnavailable,
    Denied,
    Dialect,
    Identity,
    IncomingRequest,
    ModelRequest,
    Permit,
    RequestRecord,
    Usage,
    usd,
)
from tornadoproxy_budgets import storage
from tornadoproxy_budgets.engine import Batch, CapReached, Engine, Reservation, State
from tornadoproxy_budgets.periods import minute_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

T = TypeVar("T")

MAX_UNKNOWN = 5.0
"""For how long the file may be unusable before requests are refused, in seconds."""

MAX_CHARGE = 10**15
"""The most that one request is charged with, in nanos: a million dollars.

A price may be anything that a plugin says, and SQLite sums up to 2**63.
"""

TICK = 0.25  # seconds between two looks at the file

HELD_RETRY = 5.0  # seconds; requests that hold the rest of a budget take some time

# the upstream's quota is everybody's: what it says of that is no business of one person's
WITHHELD = ("anthropic-ratelimit-unified-",)
_WITHHOLDING = Permit(withheld_headers=WITHHELD)

_logger = logging.getLogger(__name__)


class Keeper:
    """The budgets of one running proxy.

    :param path: the database's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = Engine(time.time())
        self._database = Database(path, storage.SCHEMA, name="budgets")
        self._lock = asyncio.Lock()
        self._revision: int | None = None  # what the engine has loaded
        self._behind = True  # whether the file may hold more than that
        self._unknown_since: float | None = None  # monotonic
        self._stopping = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Refuse a path that cannot be right.

        :raises ConfigurationError: with one line that says why.
        """
        self._database.check()

    async def open(self) -> None:
        """Open the file, load what it says, and keep in step with it.

        :raises ConfigurationError: it cannot be used.
        """
        await asyncio.to_thread(self._database.open)
        self._database.start()
        await self._sync(_nothing)
        self._ticking = asyncio.create_task(self._tick(), name="budgets")

    async def close(self) -> None:
        """Save what is not saved yet, and close the file."""
        self._stopping.set()
        if self._ticking is not None:
            await self._ticking
        if batch := self.engine.take_unsaved():
            # this is tried until the time for closing is over
            self._database.write_behind(_save, batch)
        await self._database.close()

    # -- requests

    def admit(self, request: IncomingRequest, identity: Identity) -> None:
        """Refuse a request that may spend, before its body is read, if nothing is left to spend.

        :raises Denied: 429.
        """
        if request.costs_nothing:
            return
        applying = self.engine.applying(identity.principal, identity.groups)
        try:
            self.engine.check(applying, time.time())
        except CapReached as reached:
            raise _refusal(reached) from None

    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | None:
        """Admit a request, or refuse it. See the hook of that name."""
        principal, groups = identity.principal, identity.groups
        applying = self.engine.applying(principal, groups)
        if model_request is None:
            if not applying:
                return None
            if _spends_uncounted(request):
                raise Denied(
                    f"A spend limit applies to you, and what {request.method} "
                    f"{request.path[:200]} spends is not "
                    "counted. Use /v1/messages, or ask for the limit to be removed."
                )
            return _WITHHOLDING
        self.check_known()
        estimate = model_request.max_cost
        if applying and (estimate is None or model_request.model is None):
            raise _unpriced(model_request)
        try:
            reservation = self.engine.reserve(
                principal, groups, applying, estimate or 0, time.time()
            )
        except CapReached as reached:
            raise _refusal(reached) from None
        settle = partial(self._settle, reservation, model_request)
        return Permit(settle, WITHHELD) if applying else Permit(settle)

    def _settle(
        self, reservation: Reservation, model_request: ModelRequest, record: RequestRecord
    ) -> None:
        self.engine.settle(reservation, charge(record, model_request), time.time())

    def check_known(self) -> None:
        """Refuse to go by what is too old.

        :raises Denied: it has not been known for too long what is in the file.
        """
        since = self._unknown_since
        if since is not None and time.monotonic() - since > MAX_UNKNOWN:
            raise Denied(
                "The budgets cannot be known at present, so nothing may be spent. Try again in a "
                "while; the proxy's log says what is wrong.",
                status=503,
                retry_after=MAX_UNKNOWN,
            )

    # -- the file

    async def change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in the file, and take over what it changed before returning what it returns.

        It is finished even if the caller is cancelled.

        :raises DatabaseUnavailable: the file cannot be used; nothing was changed.
        """
        return await asyncio.shield(asyncio.ensure_future(self._sync(work)))

    async def _tick(self) -> None:
        faults = 0
        while not self._stopping.is_set():
            try:
                if self.engine.unsaved or self._behind or await self._changed():
                    await self._sync(_nothing)
                faults = 0
            except DatabaseUnavailable:
                pass  # the database itself logs that
            except Exception:
                # such as a table that is gone; at 1, 2, 4, 8 ... in a row
                faults += 1
                if faults & (faults - 1) == 0:
                    _logger.exception("%s: not saved, %d times in a row", self.path, faults)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK)

    async def _changed(self) -> bool:
        async with self._lock:
            with self._knowing():
                self._behind = await self._database.changed()
        return self._behind

    async def _sync(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Save what was spent, do `work`, and load what anyone else has changed."""
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
        """Note since when it has not been known what is in the file."""
        if self._unknown_since is None:
            self._unknown_since = time.monotonic()
        yield
        self._unknown_since = None


def charge(record: RequestRecord, asked: ModelRequest) -> int:
    """What a request is charged with, in nanos.

    Its cost if that is known, else the cost of its estimated usage.
    """
    cost = record.cost
    if cost is None:
        cost = asked.cost(asked.estimated_usage(record))
    return min(cost or 0, MAX_CHARGE)


def _save_and_load(
    batch: Batch,
    work: Callable[[sqlite3.Connection], T],
    known: int | None,
    day: int,
    connection: sqlite3.Connection,
) -> tuple[T, int, State | None]:
    """The state is ``None`` if it is what is `known` already, but for the batch."""
    unchanged = storage.revision(connection) == known
    if batch:
        storage.save(connection, batch)
    before = storage.revision(connection)
    result = work(connection)
    after = storage.revision(connection)
    state = None if unchanged and after == before else storage.load(connection, day)
    return result, after, state


def _save(batches: Iterable[Batch], connection: sqlite3.Connection) -> None:
    for batch in batches:
        storage.save(connection, batch)


def _nothing(_: sqlite3.Connection) -> None:
    """Change nothing."""


def _spends_uncounted(request: IncomingRequest) -> bool:
    """Whether a request may make the upstream spend what no answer to it tells.

    Whatever is sent to the upstream, but for what is known to cost nothing.
    """
    return request.dialect is Dialect.ANTHROPIC and not request.costs_nothing


def _unpriced(asked: ModelRequest) -> Denied:
    if asked.model is None:
        return Denied("model: name one; a spend limit applies to you.", status=400)
    token = Usage(input_tokens=1)
    model = next(each for each in asked.models if asked.price(each, token) is None)
    return Denied(
        "A spend limit applies to you, and no plugin knows the price of the model "
        f"{model[:100]!r}, so that what it spends cannot be counted. Ask for another model, or "
        "have its price added to the proxy's table.",
        status=503,
        headers={"X-Should-Retry": "false"},
    )


def _refusal(reached: CapReached) -> Denied:
    cap = reached.cap
    amount = f"${usd(reached.nanos)}"
    limit = f"{cap.period}; resets {minute_text(reached.reset)}"
    of_whom = f" for {cap.scope}" if cap.scope.shared else ""
    if reached.held:
        return Denied(
            f"spend limit reached for now ({limit}): requests in flight hold the rest of "
            f"{amount}{of_whom}, of which ${usd(reached.spent)} is spent. Try again when "
            "one of them has ended.",
            status=429,
            error_type="billing_error",
            retry_after=HELD_RETRY,
            headers={"X-Should-Retry": "true"},
        )
    return Denied(
        f"spend limit reached ({limit}): ${usd(reached.spent)} of {amount}{of_whom} is spent.",
        status=429,
        error_type="billing_error",
        retry_after=max(reached.reset - time.time(), 1),
        headers={"X-Should-Retry": "false"},
    )
