"""What open live pages of the web console cost, beside a load of requests.

``python -m bench.console`` starts a proxy with a console on a processor of its own, sends it
requests at a fixed rate, and prints its processor time with 0, 1 and 200 live pages. Every other
part of each round is without pages, so that a machine that others use is as fast for both.
"""

from __future__ import annotations

import argparse
import http.client
import os
import secrets
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from bench import prompts
from bench.peers import ROOT, proxy, running
from bench.processes import cpu_seconds, pinned
from bench.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_KEY = secrets.token_urlsafe(32)
CONNECTIONS = 16
PIECES = 65_536  # bytes that a page reads at once
SETTLE = 0.2  # seconds


@dataclass(frozen=True)
class Case:
    """What is measured.

    :param pages: that are open.
    :param filters: how many different ones they have.
    :param sessions: how many different sign-ins they have.
    """

    pages: int
    filters: int = 1
    sessions: int = 1

    @property
    def title(self) -> str:
        parts = [f"{self.pages} pages"]
        if self.filters > 1:
            parts.append(f"{self.filters} filters")
        if self.sessions > 1:
            parts.append(f"{self.sessions} sessions")
        return ", ".join(parts)


# each finds every request, which is the most that can be sent
FILTERS = [
    {"status": status, "model": model, "person": person}
    for status, model, person in product(("", "200", "success"), ("", prompts.MODEL), ("", "token"))
]
CASES = (
    *(Case(0), Case(1), Case(200), Case(200, sessions=200)),
    Case(200, filters=len(FILTERS)),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="requests a second (1,000)")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement (2)")
    parser.add_argument("--rounds", type=int, default=10, help="of all cases (10)")
    given = parser.parse_args()
    cpus = os.sched_getaffinity(0)
    ours = {min(cpus)}
    added: dict[str, list[float]] = {case.title: [] for case in CASES}
    rates: dict[str, list[float]] = {case.title: [] for case in CASES}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-console-")))
        programs = Programs(folder)
        stack.enter_context(pinned(cpus - ours or cpus))
        upstream = stack.enter_context(programs.upstream())
        peer = proxy("tornadoproxy", sys.executable, ROOT, uvloop=False)
        console = {"CONSOLE": "yes", "ADMIN_KEY": f"ops={ADMIN_KEY}", "KEYS_DB": "keys.db"}
        peer = replace(peer, environment={**peer.environment, **console})
        process = stack.enter_context(running(peer, upstream, folder, ours))
        request = prompts.message(peer.messages, "hello", token=process.token)

        def used() -> tuple[float, float]:
            """Send the load; return the processor time and the time that it took."""
            before, began = cpu_seconds(process.pid), time.monotonic()
            count = int(given.rate * given.seconds)
            programs.load(
                process.port, request, connections=CONNECTIONS, count=count, rate=given.rate
            )
            return cpu_seconds(process.pid) - before, time.monotonic() - began

        used()  # so that nothing is measured that happens once
        for number in range(given.rounds):
            for case in CASES:
                sys.stderr.write(f"round {number + 1} of {given.rounds}: {case.title}\n")
                without, _ = used()
                with _open(process.port, case) as read:
                    before = read()
                    total, took = used()
                    added[case.title].append(100 * (total - without) / took)
                    rates[case.title].append((read() - before) / took)
                time.sleep(SETTLE)
    sys.stdout.write("| Live pages | added, % of a core | least and most | sent, KB/s |\n")
    sys.stdout.write("|---|---|---|---|\n")
    for title, shares in added.items():
        spread = f"{min(shares):.1f} to {max(shares):.1f}"
        sent = statistics.median(rates[title]) / 1024
        row = f"| {title} | {statistics.median(shares):.1f} | {spread} | {sent:,.0f} |"
        sys.stdout.write(row + "\n")
    return 0


@contextmanager
def _open(port: int, case: Case) -> Iterator[_Reading]:
    """Open live pages and read what they are sent; yield a function that returns bytes so far."""
    cookies = [_sign_in(port) for _ in range(min(case.sessions, case.pages))]
    reading = _Reading()
    for number in range(case.pages):
        target = f"/console/now/events?{urlencode(FILTERS[number % case.filters])}"
        reading.add(port, target, cookies[number % len(cookies)])
    thread = threading.Thread(target=reading.run, daemon=True)
    thread.start()
    try:
        time.sleep(SETTLE)
        yield reading
    finally:
        reading.ended = True
        thread.join()


class _Reading:
    """Live pages, whose events one thread reads."""

    def __init__(self) -> None:
        self.ended = False
        self._selector = selectors.DefaultSelector()
        self._bytes = 0

    def __call__(self) -> int:
        return self._bytes

    def add(self, port: int, target: str, cookie: str) -> None:
        client = socket.create_connection(("127.0.0.1", port))
        head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(PIECES).startswith(b"HTTP/1.1 200 ")
        self._selector.register(client, selectors.EVENT_READ)

    def run(self) -> None:
        while not self.ended:
            for key, _ in self._selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                piece = key.fileobj.recv(PIECES)
                assert piece, "a page was closed"
                self._bytes += len(piece)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()


def _sign_in(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/console/sign-in", urlencode({"key": ADMIN_KEY}), form)
    response = connection.getresponse()
    cookie = (response.getheader("Set-Cookie") or "").partition(";")[0]
    connection.close()
    assert cookie, response.status
    return cookie


if __name__ == "__main__":
    sys.exit(main())
