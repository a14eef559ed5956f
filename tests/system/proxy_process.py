"""The proxy in a process of its own, and what the system knows of that process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from load_content import ORDINARY, TOKEN, request

from tornadoproxy.fakes.raw_client import RawConnection, RawResponse

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_FIRST_MOMENT = 20.0  # seconds to listen in
_LAST_MOMENT = 10.0  # seconds to end in
_TO_DRAIN = 2.0  # seconds that a proxy gets to stop by itself


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until `condition` holds: for what tells nobody when it changes.

    :raises TimeoutError: it does not in so many seconds.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class ProxyProcess:
    """A running ``python -m tornadoproxy``, whose log and access log are files.

    :ivar pid: its process id.
    :ivar port: where it listens, on 127.0.0.1.
    """

    def __init__(self, pid: int, directory: Path) -> None:
        self.pid = pid
        self.port = 0
        self._directory = directory

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def sockets(self) -> int:
        """How many of its descriptors are sockets, the one that it listens on included."""
        found = 0
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            # it may have been closed in between
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(f"/proc/{self.pid}/fd/{name}").startswith("socket:")
        return found

    def memory(self) -> int:
        """Its resident set, in bytes."""
        statm = Path(f"/proc/{self.pid}/statm").read_text()
        return int(statm.split()[1]) * _PAGE

    def cpu(self) -> float:
        """The seconds of processor time that it has used (proc(5): utime and stime)."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def log(self) -> str:
        """What it has written to standard error."""
        return (self._directory / "log").read_text()

    def records(self) -> list[dict[str, Any]]:  # a field may be anything
        """Its access log but for ordinary requests; all of it only when the process has ended."""
        text = (self._directory / "access.log").read_text()
        records = [json.loads(line) for line in text.splitlines()]
        return [each for each in records if each["session_id"] != str(ORDINARY)]

    async def ask(self) -> RawResponse:
        """Its answer to an ordinary request, on a connection of its own."""
        connection = await RawConnection.open(self.port)
        try:
            await connection.send(request("anthropic", "json", ORDINARY))
            return await connection.response()
        finally:
            await connection.close()

    async def baseline(self) -> int:
        """Its descriptors when a first request is over, with which the last things are opened."""
        listening = self.sockets()
        response = await self.ask()
        assert response.status == 200, response
        await until(lambda: self.sockets() <= listening, 5)
        return self.descriptors()

    def has_listened(self) -> bool:
        """Whether it has said where it listens."""
        address = re.search(r"^  address +http://\S+:(\d+)$", self.log(), re.MULTILINE)
        if address:
            self.port = int(address[1])
        return address is not None


@asynccontextmanager
async def proxy_process(
    directory: Path, upstream_url: str, *, open_files: int | None = None, **variables: str
) -> AsyncIterator[ProxyProcess]:
    """Run it until the block's end. It keeps no idle connections upstream.

    :param directory: where its files go.
    :param open_files: how many descriptors it may have at most, in place of the test's own limit.
    :param variables: its environment.
    """
    # not the test's own: coverage would be counted among what is measured
    environment = {
        "PATH": os.defpath,
        # so that it is the package that the test imports
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PORT": "0",
        "AUTH_TOKEN": TOKEN,
        "UPSTREAM_BASE_URL": upstream_url,
        "UPSTREAM_API_KEY": "key-of-nobody",
        "UPSTREAM_KEEPALIVE_TIMEOUT": "0",
        "ACCESS_LOG": "./access.log",
        "ACCESS_LOG_FORMAT": "json",
        **variables,
    }
    command = [sys.executable, "-m", "tornadoproxy"]
    if open_files is not None:
        command = ["/bin/sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=directory,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
    proxy = ProxyProcess(process.pid, directory)
    try:
        await until(lambda: proxy.has_listened() or process.returncode is not None, _FIRST_MOMENT)
        assert proxy.port, proxy.log()
        yield proxy
    finally:
        # the second one, so that it does not wait for what the test has left open
        for number, patience in ((signal.SIGTERM, _TO_DRAIN), (signal.SIGINT, _LAST_MOMENT)):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
            raise TimeoutError("the proxy did not end")
