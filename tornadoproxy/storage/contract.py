"""The contract between plugins and the storage engine that keeps their data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")
ConnectionT_co = TypeVar("ConnectionT_co", covariant=True)


class Storage(Protocol[ConnectionT_co]):
    """What every engine offers; `ConnectionT_co` is its library's connection.

    In the proxy, the hook ``startup`` calls `open` in a thread and then `start`, and ``shutdown``
    calls `close`. The event loop never waits for the database: `run` is awaited, `write_behind`
    queues. In a command, ``with storage:`` opens and closes it, and `transaction` is used in the
    calling thread; `reading` is enough for a command that changes nothing.

    While the proxy runs, an engine raises `DatabaseUnavailable` if the database cannot be used.
    `check`, `open` and the commands raise `ConfigurationError` then, with one line that says why
    and what to do. An engine raises no other error of its library, except for a wrong statement.

    """

    @property
    def failing(self) -> bool:
        """Whether the last attempt to use the database failed."""
        ...

    @property
    def lost(self) -> int:
        """How many items passed to `write_behind` have been lost."""
        ...

    def check(self, *, created_by: str | None = None) -> None:
        """Validate the setting that names the database, without opening or creating anything.

        :param created_by: the command that creates the database, which must exist then.
        :raises ConfigurationError: the setting is wrong.
        """

    def open(self) -> None:
        """Open the database, create it if it is absent, and bring its schema up to date. Blocks.

        :raises ConfigurationError: the database cannot be used.
        """

    def start(self) -> None:
        """Begin to serve `run` and `write_behind`. The database must be open."""

    async def run(self, work: Callable[[ConnectionT_co], T]) -> T:
        """Do `work` in one transaction outside of the event loop, and return its result.

        Everything that was written behind before is written first. An exception of `work` is
        raised here, and the transaction is rolled back. If the caller is cancelled, `work` is not
        done unless it has begun; then it is finished.

        :raises DatabaseUnavailable: the database cannot be used; nothing was changed.
        """
        ...

    def write_behind(self, write: Callable[[Sequence[T], ConnectionT_co], object], item: T) -> None:
        """Write `item` within half a second, in order, many items in one transaction.

        Never blocks and never raises. `write` is called with all consecutive items that it was
        passed for, since one statement for many is far cheaper.

        While the database cannot be used, items are held, and `write` is tried again: calling it
        several times must have the same effect as calling it once, and it must never commit. If
        `write` itself fails, it is called for each item alone, and the items that fail are lost,
        as are those beyond the number that is held. Each is counted in `lost`, and logged.
        """

    async def changed(self) -> bool:
        """Return whether others have changed the database since the previous call.

        This is cheap: it reads no data.

        :raises DatabaseUnavailable: the database cannot be used.
        """
        ...

    async def close(self) -> None:
        """Write what is held, for at most 4 seconds, and close the database."""

    def transaction(self) -> AbstractContextManager[ConnectionT_co]:
        """Begin a transaction in the calling thread, for commands; an exception rolls it back.

        :raises ConfigurationError: the database cannot be used; nothing was changed.
        """
        ...

    def reading(self) -> AbstractContextManager[ConnectionT_co]:
        """Return a read-only connection to the database as of one moment, for commands.

        It works without `open` and while the proxy writes, and creates no database.

        :raises ConfigurationError: there is no database, or it cannot be read.
        """
        ...

    def __enter__(self) -> Self:
        """Open the database; see `open`."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the database."""
