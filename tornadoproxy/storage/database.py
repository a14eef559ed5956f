"""The thread that reads and writes a plugin's database while the proxy runs.

The event loop never waits for the file. `Database.run` is awaited, for what a request has to wait
for; `Database.write_behind` queues what is to be written, and returns.

While the file cannot be used, `run` raises `DatabaseUnavailable`, so that its caller can refuse a
request, and what is to be written behind is held and tried again. Of failures in a row the 1st,
2nd, 4th, 8th … are logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from msgspec import Struct

from tornadoproxy.errors import ConfigurationError, DatabaseUnavailable
from tornadoproxy.storage.sqlite_file import SQLiteFile

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

MAX_HELD = 10_000
"""How many items may be held that are to be written behind."""

LINGER = 0.25  # seconds that items are gathered for one transaction
CLOSE_TIMEOUT = 4.0  # seconds that what is held may take to be written at the end

_logger = logging.getLogger(__name__)


class _Job(Struct, frozen=True):
    """What somebody waits for. Any: the future has the type of what it is made of."""

    do: Callable[[], Any]
    done: Future[Any]


class _Item(NamedTuple):
    """What is to be written behind. Any: each `write` has a type of its own."""

    write: Callable[[Sequence[Any], sqlite3.Connection], object]
    item: Any


class Database:
    """One SQLite file, and the one thread of its own that touches it.

    In the proxy: `open` in a thread, then `start`, both from the hook ``startup``; `close` from
    ``shutdown``. In a command: ``with database:`` opens and closes it, and `transaction` is used
    in the calling thread; `reading` is enough for one that changes nothing.

    :param path: the file. It is made if it is not there, for the proxy's user alone; its directory
        is not, since a path may be misspelt.
    :param schema: ``schema[i]`` is the SQL script that takes version i to i + 1. What has been
        released is never changed, only added to.
    :param name: the plugin's, which the version is kept under, so that several plugins can share
        a file.
    :param setting: the variable that names the path, for messages.
    :ivar path: the file.
    :ivar failing: whether the last attempt to use the file failed.
    :ivar lost: how many items that were to be written behind have been lost.
    """

    def __init__(
        self, path: Path, schema: Sequence[str], *, name: str, setting: str | None = None
    ) -> None:
        self.failing = False
        self.lost = 0
        self.path = path
        self._file = SQLiteFile(path, schema, name, setting)
        self._title = self._file.title
        self._name = name
        self._thread: threading.Thread | None = None
        # guards what follows; is told of all that the thread is to act upon
        self._condition = threading.Condition()
        self._jobs: list[_Job] = []
        self._held: deque[_Item] = deque()
        self._closing_at: float | None = None
        # the thread's own: failures in a row
        self._failures = 0

    def check(self) -> None:
        """Refuse a path that cannot be right, without opening or making anything.

        :raises ConfigurationError: with one line that says why, and what mends it.
        """
        with _refusing():
            self._file.check()

    def open(self) -> None:
        """Open the file, make it if it is absent, and bring its schema up to date. Blocks.

        :raises ConfigurationError: with one line that says why it cannot be used, and what mends
            it.
        """
        with _refusing():
            self._file.open()

    def start(self) -> None:
        """Start the thread. The file must be open."""
        assert self._file.connection  # raises unless it is open
        name = f"database of {self._name}"
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Have the thread do `work` in one transaction, and return what it returns.

        All that was to be written behind before is written first. What `work` raises is raised
        here, and the transaction is rolled back. If the caller is cancelled, work that has not
        begun is not done; work that has is finished.

        :raises DatabaseUnavailable: the file cannot be used; nothing was changed.
        """

        def do() -> T:
            with self._file.transaction() as connection:
                return work(connection)

        return await self._ask(do)

    def write_behind(
        self, write: Callable[[Sequence[T], sqlite3.Connection], object], item: T
    ) -> None:
        """Have the thread write `item` within half a second, in order, many in one transaction.

        Never blocks and never raises. `write` is called with what was left for it in a row, be it
        one item, since one statement for many is far cheaper.

        While the file cannot be used, items are held, and `write` is tried again each time: so it
        must do the same however often it is called, and never commit. If it raises by a fault of
        its own, it is called for each item alone, and the one at fault is lost, as is one for
        which `MAX_HELD` leaves no room: each is counted in `lost`, and logged.
        """
        with self._condition:
            if len(self._held) < MAX_HELD and self._closing_at is None:
                self._held.append(_Item(write, item))
                if len(self._held) == 1:
                    self._condition.notify()
                return
        self._lose(1, "closed" if self._closing_at is not None else f"{MAX_HELD} others wait")

    async def changed(self) -> bool:
        """Whether another connection or process has changed the file since this was last asked.

        It costs a few microseconds in the thread, and reads nothing.

        :raises DatabaseUnavailable: the file cannot be used.
        """
        return await self._ask(self._file.has_changed)

    async def close(self) -> None:
        """Write out what is held, for at most 4 seconds, and close the file."""
        if self._thread is None:
            self._file.close()
            return
        with self._condition:
            self._closing_at = time.monotonic() + CLOSE_TIMEOUT
            self._condition.notify()
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT + 0.5)
        if self._thread.is_alive():
            _logger.error("%s: the disk does not answer; what was held may be lost", self._title)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction in the calling thread, for commands; rolled back if its body raises.

        :raises ConfigurationError: the file cannot be used; nothing was changed.
        """
        with _refusing():
            self._file.verify()
            with self._file.transaction() as connection:
                yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that only reads, for commands: of one moment, also while the proxy writes.

        It takes no `open`, makes no database, and changes none.

        :raises ConfigurationError: there is none, or it cannot be read.
        """
        with _refusing(), self._file.reading() as connection:
            yield connection

    def __enter__(self) -> Database:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    # In the loop's thread

    async def _ask(self, do: Callable[[], T]) -> T:
        job = _Job(do, Future())
        with self._condition:
            if self._closing_at is not None:
                raise self._file.unavailable("it is closed")
            self._jobs.append(job)
            self._condition.notify()
        result: T = await asyncio.wrap_future(job.done)
        return result

    # In the database's thread

    def _serve(self) -> None:
        # signals are the main thread's, which may have blocked them
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while self._wait():
            # taken first: whatever was held when they were asked for is written before them
            with self._condition:
                jobs, self._jobs = self._jobs, []
            try:
                self._file.verify()
                self._write_held()
                _do(jobs)
            except DatabaseUnavailable as error:
                self._failed(error, jobs)
            except BaseException as error:
                self._failed(self._file.unavailable(_where(error)), jobs)
            else:
                self._succeeded()
        _fail(self._jobs, self._file.unavailable("it is closed"))
        if self._held:
            self._lose(len(self._held), "they could not be written until the end")
        if self.lost:
            _logger.error("%s: %d items have been lost in all", self._title, self.lost)
        self._file.close()

    def _wait(self) -> bool:
        """Wait until there is something to do: for a job no longer than needed.

        :return: False if all is done, or must be given up.
        """
        with self._condition:

            def urgent() -> bool:
                return bool(self._jobs) or self._closing_at is not None

            self._condition.wait_for(lambda: self._held or urgent())
            self._condition.wait_for(urgent, LINGER)
            if self._closing_at is None:
                return True
            if self.failing:
                self._condition.wait(LINGER)
            due = bool(self._held or self._jobs)
            return due and time.monotonic() < self._closing_at

    def _write_held(self) -> None:
        """Write all that is held in one transaction, but for items that fail by themselves."""
        alone = False
        while self._held:
            with self._condition:
                held = list(self._held)
            done = 0
            try:
                with self._file.transaction() as connection:
                    for write, items in _groups(held, alone=alone):
                        write(items, connection)
                        done += len(items)
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
                with self._condition:
                    for _ in held:
                        self._held.popleft()
                return

    def _failed(self, error: DatabaseUnavailable, jobs: list[_Job]) -> None:
        """Count it, log it now and then, and let nobody wait for the same again."""
        self.failing = True
        self._failures += 1
        with self._condition:
            jobs += self._jobs
            self._jobs = []
        _fail(jobs, error)
        if self._failures & (self._failures - 1) == 0:
            _logger.error(
                "%s (%d failures in a row, %d items held)", error, self._failures, len(self._held)
            )

    def _succeeded(self) -> None:
        if self.failing:
            _logger.warning(
                "%s works again, after %d failures; %d items have been lost until now",
                self._title, self._failures, self.lost,
            )  # fmt: skip
            self.failing = False
            self._failures = 0

    # In any thread

    def _lose(self, count: int, reason: str) -> None:
        with self._condition:
            before = self.lost
            self.lost += count
        # at 1, 2, 4, 8 …
        if self.lost.bit_length() > before.bit_length():
            _logger.error(
                "%s: %d items have been lost, the last one since %s",
                self._title, self.lost, reason,
            )  # fmt: skip


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Raise `ConfigurationError` in place of `DatabaseUnavailable`: for starts and commands."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise ConfigurationError(str(error)) from None


def _groups(
    held: list[_Item], *, alone: bool
) -> Iterator[tuple[Callable[[Sequence[Any], sqlite3.Connection], object], list[Any]]]:
    """What is written by the same function one after the other; or each `alone`."""
    if alone:
        yield from ((write, [item]) for write, item in held)
    else:
        for write, group in groupby(held, attrgetter("write")):
            yield write, [each.item for each in group]


def _do(jobs: list[_Job]) -> None:
    """Do `jobs` one after the other, each taken out when it is done.

    :raises DatabaseUnavailable: the file cannot be used; those that remain have not been done.
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
        except BaseException as error:
            job.done.set_exception(error)
        else:
            job.done.set_result(result)
        del jobs[0]


def _fail(jobs: list[_Job], error: DatabaseUnavailable) -> None:
    for job in jobs:
        if job.done.running() or job.done.set_running_or_notify_cancel():
            job.done.set_exception(DatabaseUnavailable(*error.args))


def _where(error: BaseException) -> str:
    """What was raised and where, without its text, which may hold what is secret."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"it raised {type(error).__name__} in {last.filename}, line {last.lineno}"
