"""An SQLite file, and the one thread that reads and writes it while the proxy runs.

The event loop never waits for the file. `Database.run` is awaited, for what a request has to wait
for; `Database.write_behind` leaves word of what is to be written, and returns.

The file is in WAL mode, with ``synchronous=NORMAL`` (https://www.sqlite.org/wal.html): other
processes may read it at any time, and write to it in between; whatever kills the process, the
file stays sound and has all that was committed. A crash of the machine may take the last commits.

While the file cannot be used (locked for seconds, full, corrupt, no longer there), `run` raises
`DatabaseUnavailable`, so that its caller can refuse a request, and what is to be written behind is
held and tried again. How often that failed is logged at 1, 2, 4, 8 … A file that was deleted,
moved or replaced while the proxy runs counts as one that cannot be used, and nothing is made in
its place: writing to what nobody can find would be a loss that nobody sees, and an empty file
would let in whom the lost one kept out. It goes on when the same file is back. Another one is
opened by the next start.

`sqlite3` is imported when a file is opened: whoever uses none does not pay for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tornadoproxy.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

MAX_HELD = 10_000
"""How many items may be held that are to be written behind."""

LINGER = 0.25  # seconds that items are gathered for one transaction
BUSY_TIMEOUT = 2.0  # seconds that another connection's lock is waited for
OPEN_TIMEOUT = 10.0  # the same, for all that opening takes
CLOSE_TIMEOUT = 4.0  # seconds that what is held may take to be written at the end

# SQLite's result codes (https://www.sqlite.org/rescode.html), without their extensions
_REASONS = {
    3: "access is denied: let the proxy's user read and write it",
    5: "it is locked by another program: end that one's transaction",
    6: "it is locked by another program: end that one's transaction",
    8: "it cannot be written: let the proxy's user write it and its directory",
    10: "the disk fails, or cannot be reached",
    11: "it is corrupt: stop the proxy and put a backup in its place",
    13: "the disk is full: make room",
    14: "it cannot be opened: let the proxy's user read and write it and its directory",
    26: "it is not an SQLite database: name another file, or put a backup in its place",
}
_BUSY = (5, 6)
# Python's own module, ERROR (such as no such table), TOOBIG, CONSTRAINT, MISMATCH, MISUSE, RANGE
_FAULTS_OF_A_WORK = (0, 1, 18, 19, 20, 21, 25)

_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS tornadoproxy_schema "
    "(name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
)

_logger = logging.getLogger(__name__)


class DatabaseUnavailable(Exception):
    """The file cannot be used at present; the text says why, in a line, and what mends it."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What somebody waits for. Any: the future has the type of what it is made of."""

    do: Callable[[sqlite3.Connection], Any]
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
        self._schema = tuple(schema)
        self._name = name
        self._title = f"the database {path} of {name}" if setting is None else f"{setting}={path}"
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._data_version = 0
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
        try:
            path = self.path.absolute()
            if path.is_dir():
                raise self._refusal("it is a directory: name a file in it")
            if path.exists() and not path.is_file():
                raise self._refusal("it is not a file: name one")
            directory = path.parent
            if not directory.exists():
                raise self._refusal(f"there is no directory {directory}: make it, or mend the path")
        except OSError as error:
            raise self._refusal(f"it cannot be reached: {error.strerror}") from None
        if not directory.is_dir():
            raise self._refusal(f"{directory} is not a directory: name another one")
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise self._refusal(_REASONS[3])
        if not os.access(directory, os.W_OK | os.X_OK):
            raise self._refusal(f"{directory} cannot be written by the proxy's user: let it")

    def open(self) -> None:
        """Open the file, make it if it is absent, and bring its schema up to date. Blocks.

        :raises ConfigurationError: with one line that says why it cannot be used, and what mends
            it.
        """
        import sqlite3

        self.check()
        deadline = time.monotonic() + OPEN_TIMEOUT
        while True:
            try:
                self._open()
            except sqlite3.Error as error:
                self._disconnect()
                if _is_fault_of_a_work(error):
                    raise
                # the switch to WAL mode does not wait for others that open the file as well
                if _code(error) not in _BUSY or time.monotonic() > deadline:
                    raise self._refusal(_reason(error)) from None
                time.sleep(0.05)
            except OSError as error:
                self._disconnect()
                raise self._refusal(f"it cannot be made: {error.strerror}") from None
            except BaseException:
                self._disconnect()
                raise
            else:
                return

    def start(self) -> None:
        """Start the thread. The file must be open."""
        assert self._connection is not None, "open() comes first"
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

        def do(connection: sqlite3.Connection) -> T:
            with self._transaction():
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
        return await self._ask(self._has_changed)

    async def close(self) -> None:
        """Write out what is held, for at most 4 seconds, and close the file."""
        if self._thread is None:
            self._disconnect()
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
        assert self._connection is not None, "open() comes first"
        try:
            with self._guarded(), self._transaction():
                yield self._connection
        except DatabaseUnavailable as error:
            raise ConfigurationError(str(error)) from None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that only reads, for commands: of one moment, also while the proxy writes.

        It takes no `open`, makes no database, and changes none.

        :raises ConfigurationError: there is none, or it cannot be read.
        """
        import sqlite3

        try:
            self.path.stat()
        except FileNotFoundError:
            raise self._refusal(
                "there is no such file: the proxy makes it when it starts"
            ) from None
        except OSError as error:
            raise self._refusal(f"it cannot be reached: {error.strerror}") from None
        try:
            with contextlib.closing(self._connect("ro")) as connection:
                connection.execute("BEGIN")
                version = self._version(connection)
                if version == 0:
                    raise self._refusal(f"{self._name} has never written to it: name its own file")
                if version != len(self._schema):
                    raise self._refusal(
                        "it was written by another version of the plugin: start the proxy of this "
                        "one, which brings it up to date"
                    )
                yield connection
        except sqlite3.Error as error:
            if _is_fault_of_a_work(error):
                raise
            raise self._refusal(_reason(error)) from None

    def __enter__(self) -> Database:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._disconnect()

    # In whichever thread has the connection

    def _open(self) -> None:
        """One attempt to open the file."""
        self._make_file()
        self._connection = connection = self._connect("rw")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise self._refusal(f"its journal cannot be WAL there ({mode}): name a local disk")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        self._migrate(connection)
        self._file = _identity(self.path)
        self._has_changed(connection)

    def _connect(self, mode: str) -> sqlite3.Connection:
        import sqlite3

        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,  # transactions begin and end where this module says so
            check_same_thread=False,  # it is handed from the thread that opens to the one that uses
        )

    def _make_file(self) -> None:
        # never opened otherwise: to close a file a second time takes SQLite's locks away from it
        # (https://www.sqlite.org/howtocorrupt.html, 2.2)
        with contextlib.suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self.path, flags, 0o600))

    def _migrate(self, connection: sqlite3.Connection) -> None:
        # without the lock first, for the usual case
        if self._version(connection) == len(self._schema):
            return
        with self._transaction():
            connection.execute(_VERSIONS)
            version = self._version(connection)
            if version > len(self._schema):
                raise self._refusal(
                    f"it was written by a newer version of the plugin (schema {version}, and this "
                    f"one knows {len(self._schema)}): install that one, or name another file"
                )
            for script in self._schema[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(
                "INSERT OR REPLACE INTO tornadoproxy_schema VALUES (?, ?)",
                (self._name, len(self._schema)),
            )

    def _version(self, connection: sqlite3.Connection) -> int:
        if not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'tornadoproxy_schema'"
        ).fetchone():
            return 0
        row = connection.execute(
            "SELECT version FROM tornadoproxy_schema WHERE name = ?", (self._name,)
        ).fetchone()
        return int(row[0]) if row else 0

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            # some errors have rolled it back already
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Tell the file's faults from those of the body.

        :raises DatabaseUnavailable: in place of SQLite's error, if it is the file's.
        """
        import sqlite3

        try:
            there = _identity(self.path)
        except OSError as error:
            raise self._unavailable(f"it is gone ({error.strerror}): put it back") from None
        if there != self._file:
            raise self._unavailable("another file is in its place: start the proxy again to use it")
        try:
            yield
        except sqlite3.Error as error:
            if _is_fault_of_a_work(error):
                raise
            raise self._unavailable(_reason(error)) from error

    def _has_changed(self, connection: sqlite3.Connection) -> bool:
        before = self._data_version
        (self._data_version,) = connection.execute("PRAGMA data_version").fetchone()
        return self._data_version != before

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # In the loop's thread

    async def _ask(self, do: Callable[[sqlite3.Connection], T]) -> T:
        job = _Job(do, Future())
        with self._condition:
            if self._closing_at is not None:
                raise self._unavailable("it is closed")
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
                with self._guarded():
                    self._write_held()
                    _do(jobs, self._existing())
            except DatabaseUnavailable as error:
                self._failed(error, jobs)
            except BaseException as error:
                self._failed(self._unavailable(_where(error)), jobs)
            else:
                self._succeeded()
        _fail(self._jobs, self._unavailable("it is closed"))
        if self._held:
            self._lose(len(self._held), "they could not be written until the end")
        if self.lost:
            _logger.error("%s: %d items have been lost in all", self._title, self.lost)
        self._disconnect()

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
                with self._transaction():
                    for write, items in _groups(held, alone=alone):
                        write(items, self._existing())
                        done += len(items)
            except BaseException as error:
                if done == len(held) or not _is_fault_of_a_work(error):
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

    def _existing(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

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

    def _refusal(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self._title} cannot be used: {reason}")

    def _unavailable(self, reason: str) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"{self._title} cannot be used: {reason}")


def _groups(
    held: list[_Item], *, alone: bool
) -> Iterator[tuple[Callable[[Sequence[Any], sqlite3.Connection], object], list[Any]]]:
    """What is written by the same function one after the other; or each `alone`."""
    if alone:
        yield from ((write, [item]) for write, item in held)
    else:
        for write, group in groupby(held, attrgetter("write")):
            yield write, [each.item for each in group]


def _do(jobs: list[_Job], connection: sqlite3.Connection) -> None:
    """Do `jobs` one after the other, each taken out when it is done.

    :raises sqlite3.Error: the file cannot be used; those that remain have not been done.
    """
    while jobs:
        job = jobs[0]
        if not job.done.set_running_or_notify_cancel():
            del jobs[0]
            continue
        try:
            result = job.do(connection)
        except BaseException as error:
            if not _is_fault_of_a_work(error):
                raise
            job.done.set_exception(error)
        else:
            job.done.set_result(result)
        del jobs[0]


def _fail(jobs: list[_Job], error: DatabaseUnavailable) -> None:
    for job in jobs:
        if job.done.running() or job.done.set_running_or_notify_cancel():
            job.done.set_exception(DatabaseUnavailable(*error.args))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension; 0 if Python's own module raised `error`."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _reason(error: sqlite3.Error) -> str:
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    return _REASONS.get(_code(error), name)


def _is_fault_of_a_work(error: BaseException) -> bool:
    import sqlite3

    return not isinstance(error, sqlite3.Error) or _code(error) in _FAULTS_OF_A_WORK


def _where(error: BaseException) -> str:
    """What was raised and where, without its text, which may hold what is secret."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"it raised {type(error).__name__} in {last.filename}, line {last.lineno}"


def _statements(script: str) -> Iterator[str]:
    """The statements of `script`: Python's own way to do one ends the transaction first."""
    import sqlite3

    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
