"""The SQLite engine: one file, and the thread that uses it while the proxy runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from tornadoproxy.errors import ConfigurationError, DatabaseUnavailable
from tornadoproxy.storage.contract import Storage
from tornadoproxy.storage.sqlite_file import SQLiteFile
from tornadoproxy.storage.worker import Worker

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")


class Database(Storage["sqlite3.Connection"]):
    """One SQLite file, and the thread of its own that uses it; see `Storage` for the methods.

    :param path: the file. It is created if it is absent, readable for the proxy's user only; its
        directory is not, because a path may be misspelt.
    :param schema: ``schema[i]`` is the SQL script that migrates version i to i + 1. A released
        script is never changed; new ones are appended.
    :param name: the plugin's name, under which the version is stored, so that several plugins can
        share a file.
    :param setting: the setting that names the path, for messages.
    :ivar path: the file.
    """

    def __init__(
        self, path: Path, schema: Sequence[str], *, name: str, setting: str | None = None
    ) -> None:
        self.path = path
        self._file = SQLiteFile(path, schema, name, setting)
        self._worker = Worker(self._file, f"database of {name}")

    @property
    def failing(self) -> bool:
        """Whether the last attempt to use the file failed."""
        return self._worker.failing

    @property
    def lost(self) -> int:
        """How many items passed to `write_behind` have been lost."""
        return self._worker.lost

    def check(self, *, created_by: str | None = None) -> None:
        with _configuration_errors():
            self._file.check(created_by=created_by)

    def open(self) -> None:
        with _configuration_errors():
            self._file.open()

    def start(self) -> None:
        self._worker.start()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def job() -> T:
            with self._file.transaction() as connection:
                return work(connection)

        return await self._worker.do(job)

    def write_behind(
        self, write: Callable[[Sequence[T], sqlite3.Connection], object], item: T
    ) -> None:
        self._worker.write_behind(write, item)

    async def changed(self) -> bool:
        return await self._worker.do(self._file.has_changed)

    async def close(self) -> None:
        await self._worker.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with _configuration_errors():
            self._file.verify()
            with self._file.transaction() as connection:
                yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with _configuration_errors(), self._file.reading() as connection:
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


@contextlib.contextmanager
def _configuration_errors() -> Iterator[None]:
    """Raise `ConfigurationError` instead of `DatabaseUnavailable`, for the start and commands."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise ConfigurationError(str(error)) from None
