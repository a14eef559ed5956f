"""The thread that uses one database while the proxy runs.

Callers wait for jobs; items are written behind. While the database cannot be used, jobs fail at
once, and items are held and tried again.

If the connection breaks while a transaction is committed, only the database knows whether it was.
Nothing else is done until it has told, so that no item is written twice and no job done again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from tornadoproxy.errors import DatabaseUnavailable
from tornadoproxy.storage.contract import OutcomeUnknown
from tornadoproxy.storage.failures import Failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tornadoproxy.storage.contract import DatabaseConnection, Engine

T = TypeVar("T")

MAX_HELD = 10_000
"""How many items to be written behind are held at most."""

MAX_HELD_BEFORE_OVERFLOW = 500
"""The same if others go elsewhere."""

_FOR_THE_MAIN_THREAD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

LINGER = 0.25  # seconds for which items are collected for one transaction
CLOSE_TIMEOUT = 4.0  # seconds for writing the held items at the end

_logger = logging.getLogger(__name__)


class _Job(Struct, frozen=True):
    """A function that a caller awaits. Any: each has a result type of its own."""

    do: Callable[[], Any]
    done: Future[Any]


class _Item(Struct, frozen=True):
    """An item to be written behind. Any: each `write` has an item type of its own."""

    write: Callable[[Sequence[Any], DatabaseConnection], object]
    item: Any


class Worker:
    """The thread of one database; see the module's docstring.

    :ivar failures: the failures to use the database.
    :ivar lost: how many items have been lost.
    """

    def __init__(
        self, engine: Engine, name: str, overflow: Callable[[Sequence[Any]], bool] | None
    ) -> None:
        self.failures = Failures(engine.title)
        self.lost = 0
        self._engine = engine
        self._title = engine.title
        self._overflow = overflow
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        # guards the following attributes, and is notified when the thread has something to do
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._jobs: list[_Job] = []
        self._held: deque[_Item] = deque()
        self._closing_at: float | None = None
        # used by the thread only
        # how to learn whether the last transaction was committed, and what to do then
        self._unknown: tuple[Callable[[], bool], Callable[[bool], None]] | None = None

    @property
    def held(self) -> int:
        """How many items wait to be written."""
        return len(self._held)

    # In the event loop's thread

    def start(self) -> None:
        """Start the thread. The database must be open."""
        self._thread.start()

    async def do(self, job: Callable[[], T]) -> T:
        """Have the thread do `job`, and return its result; see `Database.run`."""
        queued = _Job(job, Future())
        with self._condition:
            if self._closing_at is not None:
                raise self._engine.unavailable("it is closed")
            self._jobs.append(queued)
            self._condition.notify()
        result: T = await asyncio.wrap_future(queued.done)
        return result

    def write_behind(
        self, write: Callable[[Sequence[T], DatabaseConnection], object], item: T
    ) -> None:
        """Have the thread write `item`; see `Database.write_behind`."""
        most = MAX_HELD if self._overflow is None else MAX_HELD_BEFORE_OVERFLOW
        with self._lock:
            if len(self._held) < most and self._closing_at is None:
                self._held.append(_Item(write, item))
                if len(self._held) == 1:
                    self._condition.notify()
                return
        closed = self._closing_at is not None
        self._give_up([item], "the database is closed" if closed else f"{most} are held")

    async def close(self) -> None:
        """Write the held items, and end the thread, which closes the database."""
        with self._condition:
            self._closing_at = time.monotonic() + CLOSE_TIMEOUT
            self._condition.notify()
        if not self._thread.ident:
            self._engine.close()
            return
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT + 0.5)
        if self._thread.is_alive():
            _logger.error("%s does not respond; held items may be lost", self._title)

    # In the thread

    def _serve(self) -> None:
        # these are for the main thread, which may have blocked them
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_THREAD)
        while self._wait():
            # taken first, so that all items held when a job was queued are written before it
            with self._condition:
                jobs, self._jobs = self._jobs, []
            try:
                self._engine.verify()
                self._learn_outcome()
                self._write_held()
                self._do(jobs)
            except DatabaseUnavailable as error:
                self._failed(error, jobs)
            except BaseException as error:
                self._failed(self._engine.unavailable(_where(error)), jobs)
            else:
                self._recovered()
        if self._unknown is not None:
            _, act = self._unknown
            act(False)
        _fail(self._jobs, self._engine.unavailable("it is closed"))
        if self._held:
            items = [each.item for each in self._held]
            self._give_up(items, "they could not be written before the end")
        if self.lost:
            _logger.error("%s: %d items were lost in all", self._title, self.lost)
        self._engine.close()

    def _wait(self) -> bool:
        """Wait until there is something to do: not longer than necessary if it is a job.

        :return: False if everything is done, or the time to close is up.
        """
        with self._condition:

            def urgent() -> bool:
                return bool(self._jobs) or self._closing_at is not None

            self._condition.wait_for(lambda: self._held or self._unknown or urgent())
            self._condition.wait_for(urgent, LINGER)
            if self._closing_at is None:
                return True
            if self.failures.last:
                self._condition.wait(LINGER)
            due = bool(self._held or self._jobs or self._unknown)
            return due and time.monotonic() < self._closing_at

    def _write_held(self) -> None:
        """Write all held items in one transaction, except for those whose `write` fails."""
        alone = False
        while self._held:
            with self._condition:
                held = list(self._held)
            done = 0
            try:
                with self._engine.transaction(exclusive=False) as connection:
                    for write, items in _groups(held, alone=alone):
                        write(items, connection)
                        done += len(items)
            except OutcomeUnknown as unknown:
                self._unknown = unknown.committed, partial(self._remove_written, len(held))
                raise unknown.error from None
            except BaseException as error:
                if done == len(held) or isinstance(error, DatabaseUnavailable):
                    raise
                if not alone:
                    alone = True
                    continue
                with self._condition:
                    del self._held[done]
                self._lose(1, _where(error))
            else:
                self._remove_written(len(held), committed=True)
                return

    def _remove_written(self, count: int, committed: bool) -> None:
        with self._condition:
            for _ in range(count if committed else 0):
                self._held.popleft()

    def _do(self, jobs: list[_Job]) -> None:
        """Do `jobs` one after the other, and remove each when it is done.

        :raises DatabaseUnavailable: the database cannot be used; the remaining jobs are not done.
        """
        while jobs:
            job = jobs[0]
            if not job.done.set_running_or_notify_cancel():
                del jobs[0]
                continue
            try:
                result = job.do()
            except DatabaseUnavailable:
                raise
            except OutcomeUnknown as unknown:
                del jobs[0]
                self._unknown = unknown.committed, partial(_end, job, unknown)
                raise unknown.error from None
            except BaseException as error:
                self._recovered()
                job.done.set_exception(error)
            else:
                self._recovered()  # before the job is done, so that the status is true by then
                job.done.set_result(result)
            del jobs[0]

    def _learn_outcome(self) -> None:
        """Find out whether the last transaction was committed, if this is unknown."""
        if self._unknown is not None:
            committed, act = self._unknown
            act(committed())
            self._unknown = None

    def _recovered(self) -> None:
        self.failures.end(f"; {self.lost} items were lost so far")

    def _failed(self, error: DatabaseUnavailable, jobs: list[_Job]) -> None:
        """Count a failure, and fail all waiting jobs, so that none waits for the next."""
        with self._condition:
            jobs += self._jobs
            self._jobs = []
        self.failures.count(error, f", {len(self._held)} items held")
        _fail(jobs, error)

    # In any thread

    def _give_up(self, items: Sequence[Any], reason: str) -> None:
        if self._overflow is None or not self._overflow(items):
            self._lose(len(items), reason)

    def _lose(self, count: int, reason: str) -> None:
        with self._condition:
            before = self.lost
            self.lost += count
        # at 1, 2, 4, 8 …
        if self.lost.bit_length() > before.bit_length():
            _logger.error(
                "%s: %d items were lost, the last one because %s",
                self._title, self.lost, reason,
            )  # fmt: skip


def _groups(
    held: list[_Item], *, alone: bool
) -> Iterator[tuple[Callable[[Sequence[Any], DatabaseConnection], object], list[Any]]]:
    """Group consecutive items of the same function; or yield each `alone`."""
    if alone:
        yield from ((each.write, [each.item]) for each in held)
    else:
        for write, group in groupby(held, attrgetter("write")):
            yield write, [each.item for each in group]


def _end(job: _Job, unknown: OutcomeUnknown, committed: bool) -> None:
    if committed:
        job.done.set_result(unknown.result)
    else:
        job.done.set_exception(unknown.error)


def _fail(jobs: list[_Job], error: DatabaseUnavailable) -> None:
    for job in jobs:
        if job.done.running() or job.done.set_running_or_notify_cancel():
            job.done.set_exception(DatabaseUnavailable(*error.args))


def _where(error: BaseException) -> str:
    """Describe an exception without its text, which may contain secrets."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"it raised {type(error).__name__} in {last.filename}, line {last.lineno}"
