"""How long the Admin API takes with many keys and a large ledger.

``python -m bench.admin`` fills the databases of a proxy, SQLite files and, if it is installed,
PostgreSQL, and prints the milliseconds of each request: the median of a few. The rows are spread
evenly over people, models, groups and the 31 days of a report, which is the worst case for sums.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornadoproxy_keys import changes
from tornadoproxy_keys import store as keys
from tornadoproxy_ledger import rows as ledger
from tornadoproxy_ledger.summing import Summing

from bench.servers import free_port, shared_servers
from tornadoproxy import Database, DatabaseLocation, ModelUsage, SecretURL, Usage
from tornadoproxy.testing import request_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tornadoproxy import RequestRecord

DAY = 86_400  # seconds
DAYS = 31
TOGETHER = 20_000  # rows written at once
MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5")
TEAMS = 20
ADVISED = Usage(1200, 300, 5000, 800, others=(ModelUsage(MODELS[2], Usage(10, 5), 1000),))
USED = Usage(1200, 300, 5000, 800)
ADMIN_KEY = secrets.token_urlsafe(32)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.admin", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the ledger (1,000,000)")
    parser.add_argument("--keys", type=int, default=5_000, help="that exist (default: 5,000)")
    parser.add_argument("--times", type=int, default=5, help="each request is sent (default: 5)")
    given = parser.parse_args()
    end = int(time.time()) // 3600 * 3600
    with tempfile.TemporaryDirectory(prefix="bench-admin-") as name, shared_servers() as shared:
        places: dict[str, DatabaseLocation] = {"SQLite": Path(name, "all.db")}
        if shared is not None:
            places["PostgreSQL"] = SecretURL(shared["DATABASE_URL"])
        columns = []
        for title, where in places.items():
            sys.stderr.write(f"{title}: filling\n")
            _fill(where, given.rows, given.keys, end)
            asyncio.run(_sum(where))
            with _proxy(where, Path(name)) as port:
                columns.append(_measured(port, end, given.times))
    sys.stdout.write(f"| ms | {' | '.join(places)} |\n|---{'|---' * len(places)}|\n")
    for target in columns[0]:
        figures = " | ".join(f"{column[target]:,.0f}" for column in columns)
        sys.stdout.write(f"| `{target}` | {figures} |\n")
    return 0


def _fill(where: DatabaseLocation, rows: int, people: int, end: int) -> None:
    by = changes.By("bench")
    with keys.database(where) as database, database.transaction() as connection:
        for number in range(people):
            given = (f"person-{number}", (f"team-{number % TEAMS}",), keys.Limits(), None, number)
            changes.create(connection, *given, by)
    with Database(where, ledger.SCHEMA, name="ledger") as database:
        for first in range(0, rows, TOGETHER):
            with database.transaction() as connection:
                records = [
                    _record(number, people, end - DAYS * DAY * (1 - number / rows))
                    for number in range(first, min(first + TOGETHER, rows))
                ]
                ledger.insert(records, connection)


async def _sum(where: DatabaseLocation) -> None:
    """Sum the hours and days, as a proxy does in the background."""
    database, reader = (Database(where, ledger.SCHEMA, name="ledger") for _ in range(2))
    await database.start()
    began = time.monotonic()
    await Summing(database, reader).catch_up()
    sys.stderr.write(f"summed in {time.monotonic() - began:.0f} s\n")
    await database.close()


def _record(number: int, people: int, at: float) -> RequestRecord:
    person = number * 7919 % people  # a prime: each comes as often as the others
    return request_record(
        time=at,
        principal=f"person-{person}",
        groups=(f"team-{person % TEAMS}",),
        model=MODELS[number % 3],
        usage=USED if number % 50 else ADVISED,
        cost=12_345_678,
        session_id=f"session-{number // 20}",
    )


@contextmanager
def _proxy(where: DatabaseLocation, folder: Path) -> Iterator[int]:
    """Run a proxy with these databases, and yield its port."""
    port = free_port()
    place = where.reveal() if isinstance(where, SecretURL) else str(where)
    variables = {
        "PATH": os.defpath,
        "PORT": str(port),
        "UPSTREAM_API_KEY": "unused",
        "ADMIN_KEY": ADMIN_KEY,
        "PLUGIN_TIMEOUT": "120",  # the machine may be busy
        **dict.fromkeys(("KEYS_DB", "LEDGER_DB", "BUDGETS_DB"), place),
    }
    command = [sys.executable, "-m", "tornadoproxy"]
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, cwd=folder, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            try:
                _get(port, "/health")
            except ConnectionError:
                time.sleep(0.05)
            else:
                break
        else:
            raise SystemExit((folder / "proxy.log").read_text())
        yield port
    finally:
        process.terminate()
        process.wait()


def _targets(end: int) -> Sequence[str]:
    def at(days: int) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end - days * DAY))

    month, week, day = (f"starting_at={at(days)}&ending_at={at(0)}" for days in (DAYS, 7, 1))
    return (
        "api_keys?limit=1000",
        "api_keys?status=active&limit=20",
        "api_keys?name=person-4999",
        "users?limit=20",
        "rbac_groups",
        "audit_events",
        "spend_limits/effective",
        f"analytics/usage?{month}",
        f"analytics/usage?{month}&group_by[]=model",
        f"analytics/cost?{month}&group_by[]=actor&limit=1000",
        f"analytics/cost?{month}&group_by[]=rbac_group_id",
        f"analytics/usage?{month}&actor_ids[]=person-7&time_bucket_width=1d&order_by=time",
        f"analytics/usage_report?{week}&group_by[]=model",
        f"analytics/usage_report?{day}&bucket_width=1h&group_by[]=model",
        f"analytics/cost_report?{day}&bucket_width=1m&limit=256",
        f"usage_report/messages?{month}&limit=31&group_by[]=model",
        f"cost_report?{week}",
    )


def _measured(port: int, end: int, times: int) -> dict[str, float]:
    """Return the milliseconds of each request."""
    found = {}
    # each time another range, since a report that was just read is not read again
    for targets in zip(*(_targets(end - days * DAY) for days in range(times)), strict=True):
        took = []
        for target in targets:
            began = time.perf_counter()
            document = _get(port, f"/v1/organizations/{target}")
            took.append(1000 * (time.perf_counter() - began))
            assert "data" in document, (target, document)
        title = _title(targets[0])
        found[title] = statistics.median(took)
        sys.stderr.write(f"{found[title]:,.0f} ms: {title}\n")
    return found


def _title(target: str) -> str:
    """Return a target with its range in days."""
    found = re.search(r"starting_at=(\S+?)&ending_at=([^&]+)", target)
    if found is None:
        return target
    first, last = (datetime.fromisoformat(text) for text in found.groups())
    return target.replace(found[0], f"{(last - first).days} days")


def _get(port: int, target: str) -> Any:  # Any: JSON
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", target, headers={"x-api-key": ADMIN_KEY})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
