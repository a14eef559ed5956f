"""What a PostgreSQL and a Redis server have counted since their start."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import redis

from bench.processes import cpu_seconds
from bench.servers import START_TIMEOUT

if TYPE_CHECKING:
    from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")

_COUNTED = """
SELECT
    (SELECT sum(calls) FROM pg_stat_statements WHERE toplevel),
    (SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database),
    (SELECT sum(tup_inserted) FROM pg_stat_database),
    (SELECT sum(tup_updated) FROM pg_stat_database),
    (SELECT coalesce(sum(changes), 0) FROM tornadoproxy_schema),
    (SELECT wal_bytes / 1024 FROM pg_stat_wal),
    (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tornadoproxy%')
"""
_NAMES = (
    "PostgreSQL: statements",
    "PostgreSQL: transactions",
    "PostgreSQL: rows inserted",
    "PostgreSQL: rows updated",
    "PostgreSQL: changes announced",
    "PostgreSQL: KB of WAL",
    "PostgreSQL: connections",
)


class ServerFigures:
    """The counters of both servers.

    :param postgresql_url: with the extension pg_stat_statements loaded.
    :param redis_url: of the other.
    """

    LEVELS = ("PostgreSQL: connections", "Redis: connections")
    """The names of those that are not counted up."""

    def __init__(self, postgresql_url: str, redis_url: str) -> None:
        self._postgresql = _connected(postgresql_url)
        self._redis = redis.Redis.from_url(redis_url, decode_responses=True)
        self._postgresql.execute("CREATE EXTENSION pg_stat_statements")
        backend = self._postgresql.info.backend_pid
        self._main = int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()
        self._postgresql.close()

    def read(self) -> dict[str, float]:
        """Return all counters by their names."""
        counted = self._postgresql.execute(_COUNTED).fetchone()
        assert counted is not None, "a SELECT without FROM has one row"
        figures = {name: float(each) for name, each in zip(_NAMES, counted, strict=True)}
        figures["PostgreSQL: ms of CPU"] = self._cpu()
        told = self._redis.info("everything")
        scripts = [told.get(f"cmdstat_{each}", {}) for each in ("eval", "evalsha")]
        figures["Redis: scripts"] = sum(each.get("calls", 0) for each in scripts)
        figures["Redis: reads of sockets"] = told["total_reads_processed"]
        figures["Redis: KB received and sent"] = (
            told["total_net_input_bytes"] + told["total_net_output_bytes"]
        ) / 1024
        figures["Redis: ms of CPU"] = (told["used_cpu_sys"] + told["used_cpu_user"]) * 1e3
        figures["Redis: connections"] = told["connected_clients"] - 1
        return figures

    def _cpu(self) -> float:
        """Return the milliseconds that all processes of PostgreSQL have used."""
        children = Path(f"/proc/{self._main}/task/{self._main}/children").read_text().split()
        # that of children which have ended is counted in hundredths of a second only
        fields = Path(f"/proc/{self._main}/stat").read_text().rpartition(")")[2].split()
        ended = (int(fields[13]) + int(fields[14])) / _TICKS
        return (ended + sum(map(cpu_seconds, map(int, children)))) * 1e3


def _connected(url: str) -> psycopg.Connection:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return psycopg.connect(url, autocommit=True)
        except psycopg.OperationalError:  # it listens a moment before it serves
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
