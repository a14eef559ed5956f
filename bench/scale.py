"""What PostgreSQL and Redis see of 1, 2 and 4 replicas, and what that makes of 1,000.

``python -m bench.scale`` prints the tables that docs/scale.md rests on: the counters of both
servers while real replicas with keys, limits, ledger and budgets get requests at a fixed rate; what
each replica and each request add, fitted to all of these runs, so that it can be seen whether they
add up; and how many saves of spend one PostgreSQL server takes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bench import postgresql, prompts
from bench.peers import ROOT, running
from bench.plugins import SHARED, with_plugins
from bench.programs import Programs
from bench.server_figures import ServerFigures
from bench.servers import shared_servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.peers import Running

Figures: TypeAlias = dict[str, float]

RUNS = ((1, 0), (2, 0), (4, 0), (1, 10), (1, 40), (2, 20), (4, 10), (4, 20))
"""Of each run: how many replicas, and how many requests a second each of them gets."""

FLEETS = (10, 100, 1_000)  # replicas
RATE = 10  # requests a second that each of these gets
CONNECTIONS = 16
LEAD = 3.0  # seconds until all counters move; PostgreSQL's lag by one
OPTIONS = ("shared_preload_libraries=pg_stat_statements", "max_connections=300")
WRITERS = (1, 16, 64)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each run (default: 10)")
    seconds: float = parser.parse_args().seconds
    with shared_servers(*(word for each in OPTIONS for word in ("-c", each))) as shared:
        if shared is None:
            sys.stderr.write("bench.scale: install PostgreSQL and Redis\n")
            return 1
        with ServerFigures(shared["DATABASE_URL"], shared["SHARED_LIMITS"]) as servers:
            _print_runs(list(_measured(shared, servers, seconds)))
            _print_saves(shared["DATABASE_URL"], servers, seconds)
    return 0


def _measured(
    shared: Mapping[str, str], servers: ServerFigures, seconds: float
) -> Iterator[tuple[int, int, Figures]]:
    """Yield each of `RUNS` with what all replicas together have caused in a second."""
    *_, peer = with_plugins(sys.executable, ROOT, shared)
    assert peer.name == SHARED
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        upstream = stack.enter_context(Programs(folder).upstream())
        replicas: list[Running] = []
        for count, rate in sorted(RUNS):
            while len(replicas) < count:
                replicas.append(
                    stack.enter_context(running(peer, upstream, folder, os.sched_getaffinity(0)))
                )
            sys.stderr.write(f"{count} replicas, {rate} requests a second each\n")
            yield count, rate, _run(replicas, rate, servers, seconds)


def _run(replicas: Sequence[Running], rate: int, servers: ServerFigures, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory(prefix="scale-") as name, ThreadPoolExecutor() as threads:
        programs = []
        for number in range(len(replicas)):
            folder = Path(name, str(number))
            folder.mkdir()
            programs.append(Programs(folder))  # each client has files of its own

        def load(replica: Running, client: Programs, count: int, rate: float | None) -> None:
            request = prompts.message(replica.peer.messages, "hello", token=replica.token)
            client.load(replica.port, request, connections=CONNECTIONS, count=count, rate=rate)

        for replica, client in zip(replicas, programs, strict=True):
            load(replica, client, CONNECTIONS, None)  # so that keys, caps and sums are known
        # longer than is measured, at both ends
        count = int(rate * (seconds + 2 * LEAD))
        loads = [
            threads.submit(load, replica, client, count, rate)
            for replica, client in zip(replicas, programs, strict=True)
            if rate
        ]
        time.sleep(LEAD)
        before, began = servers.read(), time.monotonic()
        time.sleep(seconds)
        after, took = servers.read(), time.monotonic() - began
        for each in loads:
            each.result()
    return {
        name: after[name] if name in servers.LEVELS else (after[name] - before[name]) / took
        for name in after
    }


def _print_runs(runs: Sequence[tuple[int, int, Figures]]) -> None:
    names = list(runs[0][2])
    _tell("| a second |", *(f"{count} x {rate}/s |" for count, rate, _ in runs))
    _tell("|---" * (len(runs) + 1) + "|")
    for name in names:
        _tell(f"| {name} |", *(f"{figures[name]:.3g} |" for _, _, figures in runs))
    _tell()
    _tell("| | idle replica | busy replica | request |", *(f"{n:,} x {RATE}/s |" for n in FLEETS))
    _tell("|---" * (4 + len(FLEETS)) + "|")
    for name in names:
        idle, busy, request = fitted(name, runs)
        fleets = (f"{n * (busy + RATE * request):,.0f} |" for n in FLEETS)
        _tell(f"| {name} | {idle:.3g} | {busy:.3g} | {request:.3g} |", *fleets)
    _tell()


def fitted(name: str, runs: Sequence[tuple[int, int, Figures]]) -> tuple[float, float, float]:
    """Return what an idle replica, a busy one and each request of it add, by least squares."""
    idle = [figures[name] / count for count, rate, figures in runs if not rate]
    points = [(rate, figures[name] / count) for count, rate, figures in runs if rate]
    mean_rate = sum(rate for rate, _ in points) / len(points)
    mean = sum(value for _, value in points) / len(points)
    slope = sum((rate - mean_rate) * (value - mean) for rate, value in points) / sum(
        (rate - mean_rate) ** 2 for rate, _ in points
    )
    return sum(idle) / len(idle), mean - slope * mean_rate, slope


def _print_saves(url: str, servers: ServerFigures, seconds: float) -> None:
    """Save spend as budgets do, with pgbench, into rows of many people and into one row."""
    from tornadoproxy_budgets.storage import ADD_SPENT

    _tell("| saves of spend | connections | a second | ms | µs CPU each |")
    _tell("|---|---|---|---|---|")
    for what, person in (("of 10,000 people", ":person"), ("of one person", "1")):
        values = iter(("0", "'user'", f"'p' || {person}", "1"))
        statement = re.sub(r"\?", lambda _: next(values), ADD_SPENT)  # noqa: B023
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            script = Path(folder, "save.sql")
            script.write_text(
                "\\set person random(1, 10000)\n"
                "BEGIN \\; SET LOCAL statement_timeout = 60000 \\; SELECT pg_current_xact_id();\n"
                f"{statement};\nCOMMIT;\n"
            )
            for writers in WRITERS:
                used = -servers.read()["PostgreSQL: ms of CPU"]
                rate, latency, count = _pgbench(url, script, writers, seconds)
                used += servers.read()["PostgreSQL: ms of CPU"]
                figures = f"{rate:,.0f} | {latency:.1f} | {used * 1e3 / count:.0f}"
                _tell(f"| {what} | {writers} | {figures} |")


def _tell(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def _pgbench(url: str, script: Path, writers: int, seconds: float) -> tuple[float, float, int]:
    program = postgresql.program("pgbench")
    assert program is not None
    done = subprocess.run(
        [program, "--no-vacuum", f"--file={script}", f"--client={writers}",
         f"--time={seconds:.0f}", url],
        check=True, capture_output=True, text=True,
    )  # fmt: skip

    def number(pattern: str) -> float:
        found = re.search(pattern, done.stdout)
        assert found is not None, done.stdout
        return float(found[1])

    return (
        number(r"tps = ([\d.]+)"),
        number(r"latency average = ([\d.]+)"),
        int(number(r"actually processed: (\d+)")),
    )


if __name__ == "__main__":
    sys.exit(main())
