"""What keeps the engine of a running proxy in step with the database.

Requests are decided from memory. A few times a second the new sums are added to those in the
database, which needs no lock, and the caps are loaded again if another process, a command or
another proxy, has changed them. What other proxies have spent is loaded at most once a second;
hardly ever if a server of ``SHARED_LIMITS`` decides, which knows it sooner. These jobs run one at a
time, because a load must contain the sums that were saved before it.

Many proxies add to the same rows, one after the other. One that waits for others for long does so
less often: otherwise all of them would wait until the deadline of a statement.

While the database is unusable, the memory is relied on for `MAX_UNKNOWN` seconds. New sums are
held, and saved when the database is usable again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from tornadoproxy import DatabaseUnavailable
from tornadoproxy_budgets import refusals, storage
from tornadoproxy_budgets.engine import Engine
from tornadoproxy_budgets.state import Batch, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tornadoproxy import DatabaseConnection, DatabaseLocation, DatabaseStatus
    from tornadoproxy_budgets.caps import Cap

T = TypeVar("T")

MAX_UNKNOWN = 5.0
"""How long the database may be unusable before requests are refused, in seconds."""

TICK = 0.25  # seconds between two checks of an SQLite file
SERVER_TICK = 0.5  # seconds between two checks of a PostgreSQL server, which many proxies ask
RELOAD = 1.0  # seconds between two loads of the sums, at least
SHARED_RELOAD = 60.0  # seconds between two of them if a server of SHARED_LIMITS decides, at most
SHORT = 0.05  # seconds for a save or a load after which the next one is not delayed
REST = 30  # times as long as one takes beyond that, a proxy waits before the next one
MAX_REST = 5.0  # seconds

_Part: TypeAlias = Literal["nothing", "caps", "all"]

_logger = logging.getLogger(__name__)


class Sync:
    """The engine of one running proxy, and its database.

    :param where: the database.
    :param decided_elsewhere: returns whether others than the engine decide, at the moment.
    :ivar engine: the engine.
    """

    def __init__(self, where: DatabaseLocation, decided_elsewhere: Callable[[], bool]) -> None:
        self.where = where
        self.engine = Engine(time.time())
        self._decided_elsewhere = decided_elsewhere
        self._database = storage.database(where)
        self._is_file = self._database.dialect == "sqlite"
        self._lock = asyncio.Lock()
        self._changed = False  # whether others have changed the database since the last load
        # monotonic times
        self._loaded_at = 0.0
        self._save_at = 0.0
        self._load_at = 0.0
        self._unknown_since: float | None = None
        self._stopping = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None

    @property
    def status(self) -> DatabaseStatus:
        """The state of the database."""
        return self._database.status

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
        await self._database.start(partial(self._run, _nothing, "all"), statement_timeout=deadline)
        self._ticking = asyncio.create_task(self._tick(), name="budgets")

    async def close(self) -> None:
        """Save what is not saved yet, and close the database."""
        self._stopping.set()
        if self._ticking is not None:
            await self._ticking
        if batch := self.engine.take_unsaved():
            # retried until the deadline for closing
            self._database.write_behind(_save, batch)
        await self._database.close()

    async def change(self, work: Callable[[DatabaseConnection], T]) -> T:
        """Do `work` in the database, load what it changed, and return its result.

        The work is finished even if the caller is cancelled.

        :raises DatabaseUnavailable: the database cannot be used; nothing was changed.
        """
        return await asyncio.shield(asyncio.ensure_future(self._change(work)))

    async def read(self, work: Callable[[DatabaseConnection], T]) -> T:
        """Do `work`, which only reads, in the database, and return its result.

        :raises DatabaseUnavailable: the database cannot be used.
        """
        return await self._database.run(work, exclusive=False)

    async def load(self, since: float) -> None:
        """Load the sums, unless this was done after `since`, or the database fails.

        :param since: a monotonic time.
        """
        if self._unknown_since is None:
            await asyncio.shield(asyncio.ensure_future(self._load(since)))

    def check_known(self) -> None:
        """Refuse to decide from memory that is too old.

        :raises Denied: the database has been unusable for more than `MAX_UNKNOWN` seconds.
        """
        since = self._unknown_since
        if since is not None and time.monotonic() - since > MAX_UNKNOWN:
            raise refusals.unknown(MAX_UNKNOWN)

    async def _change(self, work: Callable[[DatabaseConnection], T]) -> T:
        async with self._lock:
            with self._knowing():
                return await self._run(work, "all", exclusive=True)

    async def _load(self, since: float) -> None:
        async with self._lock:
            if self._loaded_at <= since:
                # the next tick fails as well, and reports it
                with contextlib.suppress(Exception):
                    await self._run(_nothing, "all")

    async def _tick(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                async with self._lock:
                    with self._knowing():
                        await self._keep_in_step()
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
                await asyncio.wait_for(
                    self._stopping.wait(), TICK if self._is_file else SERVER_TICK
                )

    async def _keep_in_step(self) -> None:
        self._changed |= await self._database.changed()
        now = time.monotonic()
        if self._must_load(now):
            await self._run(_nothing, "all")
        elif self._changed and not self._is_file:
            await self._run(_nothing, "caps")
        elif self.engine.unsaved and now >= self._save_at:
            await self._run(_nothing, "nothing")

    def _must_load(self, now: float) -> bool:
        """Return whether the sums of others are to be loaded."""
        if now < self._load_at:
            return False
        age = now - self._loaded_at
        if self._is_file:
            return self._changed and age >= RELOAD
        if self._decided_elsewhere():
            # not all proxies at the same moment
            return age >= SHARED_RELOAD * random.uniform(0.5, 1)  # noqa: S311  # no secret
        return age >= RELOAD

    async def _run(
        self, work: Callable[[DatabaseConnection], T], part: _Part, *, exclusive: bool = False
    ) -> T:
        """Save the new sums, do `work`, and load a part of the database.

        :param exclusive: whether no other process may change the caps meanwhile.
        """
        batch = self.engine.take_unsaved()
        job = partial(_save_and_load, batch, work, part, self.engine.roll(time.time()))
        began = time.monotonic()
        try:
            result, loaded, saving, loading = await self._database.run(job, exclusive=exclusive)
        except Exception:
            self.engine.put_back(batch)
            raise
        if isinstance(loaded, State):
            if self.engine.load(loaded):
                self._loaded_at = began
                self._changed = False
        elif loaded is not None:
            self.engine.load_caps(loaded)
            self._changed = False
        if not self._is_file:
            self._save_at = time.monotonic() + _rest(saving)
            self._load_at = time.monotonic() + _rest(loading)
        return result

    @contextlib.contextmanager
    def _knowing(self) -> Iterator[None]:
        """Note since when the content of the database has been unknown."""
        if self._unknown_since is None:
            self._unknown_since = time.monotonic()
        yield
        self._unknown_since = None


def _rest(took: float) -> float:
    return min(max(took - SHORT, 0) * REST, MAX_REST)


def _save_and_load(
    batch: Batch,
    work: Callable[[DatabaseConnection], T],
    part: _Part,
    day: int,
    connection: DatabaseConnection,
) -> tuple[T, State | Iterable[Cap] | None, float, float]:
    """Save `batch`, do `work`, and load a part of the database.

    :return: the result of `work`, what was loaded, and the seconds for saving and for loading.
    """
    began = time.monotonic()
    storage.save(connection, batch)
    saved = time.monotonic()
    result = work(connection)
    worked = time.monotonic()
    loaded: State | Iterable[Cap] | None = None
    if part == "all":
        loaded = storage.load(connection, day)
    elif part == "caps":
        loaded = storage.read_caps(connection)
    return result, loaded, saved - began, time.monotonic() - worked


def _save(batches: Iterable[Batch], connection: DatabaseConnection) -> None:
    for batch in batches:
        storage.save(connection, batch)


def _nothing(_: DatabaseConnection) -> None:
    """Change nothing."""
