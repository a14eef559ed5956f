"""Rows of the ledger that wait in ``LEDGER_SPOOL`` while PostgreSQL cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest
from postgres import PostgreSQLServer
from test_ledger import rows, write
from tornadoproxy_ledger import LEDGER_DB, LEDGER_SPOOL, LEDGER_SPOOL_SIZE, Ledger, spool

from tornadoproxy import ConfigurationError, DatabaseLocation, SecretURL, Settings
from tornadoproxy.testing import request_record

MANY = 600  # more rows than are held in memory


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(spool, "PAUSE", 0.05)
    return tmp_path / "spool.db"


def ids_in(where: DatabaseLocation) -> list[str]:
    return sorted(row["request_id"] for row in rows(where))


@contextlib.asynccontextmanager
async def started(where: SecretURL, path: Path, size: int = 1 << 30) -> AsyncIterator[Ledger]:
    plugin = Ledger()
    settings = Settings.defaults(*plugin.declare_settings())
    plugin.configure(
        settings.replace({LEDGER_DB: where, LEDGER_SPOOL: path, LEDGER_SPOOL_SIZE: size})
    )
    await plugin.startup()
    yield plugin
    await plugin.shutdown()


def finish(plugin: Ledger, numbers: Iterable[int]) -> list[str]:
    ids = [f"req_{number:03}" for number in numbers]
    for number, id_ in enumerate(ids):
        plugin.request_finished(request_record(request_id=id_, time=1_800_000_000.0 + number))
    return ids


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


async def test_rows_wait_in_the_file_until_the_server_is_back(
    path: Path, postgres: SecretURL, postgres_server: PostgreSQLServer
) -> None:
    async with started(postgres, path) as plugin:
        await asyncio.to_thread(postgres_server.stop)
        ids = finish(plugin, range(MANY))
        await until(lambda: len(ids_in(path)) == 100)
        await asyncio.to_thread(postgres_server.start)
        await until(lambda: ids_in(postgres) == ids)
        await until(lambda: ids_in(path) == [])


async def test_rows_of_a_stopped_process_are_moved_by_the_next(
    path: Path, postgres: SecretURL, postgres_server: PostgreSQLServer
) -> None:
    async with started(postgres, path) as plugin:
        await asyncio.to_thread(postgres_server.stop)
        ids = finish(plugin, range(3))
    assert ids_in(path) == ids
    await asyncio.to_thread(postgres_server.start)
    # as if the process had been killed after it wrote one of them
    write(postgres, request_record(request_id=ids[0], time=1_800_000_000.0))
    async with started(postgres, path):
        await until(lambda: ids_in(path) == [])
    assert ids_in(postgres) == ids


async def test_full_file_takes_no_rows(
    path: Path,
    postgres: SecretURL,
    postgres_server: PostgreSQLServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started(postgres, path, size=1) as plugin:
        await asyncio.to_thread(postgres_server.stop)
        finish(plugin, range(MANY))
    assert ids_in(path) == []
    assert f"{MANY} items were lost in all" in caplog.text
    await asyncio.to_thread(postgres_server.start)


def test_file_of_the_ledger_itself_is_refused(path: Path) -> None:
    plugin = Ledger()
    settings = Settings.defaults(*plugin.declare_settings())
    with pytest.raises(ConfigurationError, match="LEDGER_SPOOL is the file of LEDGER_DB"):
        plugin.configure(settings.replace({LEDGER_DB: path, LEDGER_SPOOL: path}))
