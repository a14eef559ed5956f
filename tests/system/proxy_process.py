"""The proxy in a process of its own, measured from outside, and an upstream that bears load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from load_content import ORDINARY, TOKEN, request
from program import Program, running

from tornadoproxy.testing import RawResponse

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_LINE = 1 << 20  # bytes that a script may say at once
_TO_DRAIN = 2.0  # seconds that a proxy gets to stop by itself


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until `condition` holds: for what nothing reports.

    :raises TimeoutError: it does not in so many seconds.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class ProxyProcess:
    """A running proxy.

    :ivar pid: its process id.
    :ivar port: where it listens, on 127.0.0.1.
    """

    def __init__(self, program: Program, port: int) -> None:
        self.pid = program.process.pid
        self.port = port
        self._program = program

    def descriptors(self) -> int:
        """Return how many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Return its resident set, in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used (proc(5): utime and stime)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def log(self) -> str:
        """Return what it has written to standard error."""
        return "\n".join(self._program.errors.all)

    def records(self) -> list[dict[str, Any]]:  # a field may be anything
        """Return its access log without ordinary requests; complete once the process has ended."""
        records = [json.loads(line) for line in self._program.output.all]
        return [each for each in records if each["session_id"] != str(ORDINARY)]

    async def ask(self) -> RawResponse:
        """Return the response to an ordinary request on a connection of its own."""
        return await self._program.ask(request("anthropic", "json", ORDINARY))

    async def baseline(self) -> int:
        """Return its descriptors after a first request, for which the last ones are opened."""
        listening = self._sockets()
        response = await self.ask()
        assert response.status == 200, response
        await until(lambda: self._sockets() <= listening, 5)
        return self.descriptors()

    def _sockets(self) -> int:
        found = 0
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            # it may have been closed in between
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(f"/proc/{self.pid}/fd/{name}").startswith("socket:")
        return found


@asynccontextmanager
async def proxy_process(
    directory: Path, upstream_url: str, *, open_files: int | None = None, **variables: str
) -> AsyncIterator[ProxyProcess]:
    """Run the proxy until the block's end, without idle connections upstream.

    :param open_files: how many descriptors it may have at most, in place of the test's own limit.
    """
    limit = ("/bin/sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh")
    settings: dict[str, str | None] = {
        "AUTH_TOKEN": TOKEN,
        "UPSTREAM_KEEPALIVE_TIMEOUT": "0",
        # coverage would be counted among what is measured
        "COVERAGE_PROCESS_START": None,
        "COVERAGE_PROCESS_CONFIG": None,
        **variables,
    }
    wrapper = () if open_files is None else limit
    async with running(
        directory, upstream_url, stdout=PIPE, stderr=PIPE, wrapper=wrapper, **settings
    ) as program:
        try:
            yield ProxyProcess(program, await program.port())
        finally:
            # a second signal follows at once, and cuts what is left open
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                program.send_signal(signal.SIGTERM)
                await program.ended(_TO_DRAIN)


class FastUpstream:
    """The running script ``fast_upstream.py``, whose work is not the test's."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.url = ""
        self.stdin = process.stdin
        self.stdout = process.stdout

    async def says(self) -> Any:  # a JSON document may be anything
        """What it says next."""
        line = await self.stdout.readline()
        assert line, "the script has ended"
        return json.loads(line)

    async def ask(self, command: str) -> Any:  # as says
        """What it says to `command`."""
        self.stdin.write(f"{command}\n".encode())
        await self.stdin.drain()
        return await self.says()


@asynccontextmanager
async def fast_upstream() -> AsyncIterator[FastUpstream]:
    """Run the script until the block's end."""
    script = Path(__file__).with_name("fast_upstream.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdin=PIPE, stdout=PIPE, limit=_LINE
    )
    upstream = FastUpstream(process)
    upstream.url = f"http://127.0.0.1:{await upstream.says()}"
    try:
        yield upstream
    finally:
        upstream.stdin.close()
        await process.wait()
