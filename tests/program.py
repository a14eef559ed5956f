"""The real program in a process of its own, and plugins installed for it.

`run` runs a command to its end; the fixture `launch` serves, on `free_port` if it must be known::

    async with launch(DRAIN_TIMEOUT="60") as program:
        client = await program.connect()
        ...
        assert await program.stop() == 0
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    RawResponse,
    ScriptedServer,
    ScriptedUpstream,
)

PATIENCE = 15.0  # seconds; a limit for what would otherwise hang, never an expectation

Stream = int | IO[bytes]


class Lines:
    """The lines that come out of a pipe, read as they come."""

    def __init__(self, pipe: asyncio.StreamReader | None) -> None:
        self.all: list[str] = []
        self._pipe = pipe
        self._more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        if self._pipe is None:
            return
        async for line in self._pipe:
            async with self._more:
                self.all.append(line.decode().rstrip("\n"))
                self._more.notify_all()

    async def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """The `count`-th line that `pattern` is found in, waited for."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.all if (match := re.search(pattern, line))]

        async with self._more:
            await self._more.wait_for(lambda: len(found()) >= count)
        return found()[count - 1]

    async def end(self) -> None:
        """Wait until the pipe has been read to its end."""
        await self._reading


class Program:
    """A running ``python -m tornadoproxy``.

    :ivar errors: what it has written to standard error, if that is a pipe.
    :ivar output: what it has written to standard output, if that is a pipe: the access log.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.errors = Lines(process.stderr)
        self.output = Lines(process.stdout)

    async def port(self) -> int:
        """The port, once it serves."""
        port = int((await self.errors.wait_for(r"^  address +https?://\S+:(\d+)$"))[1])
        await self.errors.wait_for(r"^curl ")
        return port

    async def connect(self) -> RawConnection:
        return await RawConnection.open(await self.port())

    async def ask(self, request: bytes) -> RawResponse:
        """Its answer to one request on a connection of its own."""
        connection = await self.connect()
        try:
            await connection.send(request)
            return await connection.response()
        finally:
            await connection.close()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal.

        :raises ProcessLookupError: it has ended.
        """
        # asyncio's own may take its exit status, which is lost to whoever waits for it then
        if self.process.returncode is not None:
            raise ProcessLookupError
        os.kill(self.process.pid, number)

    async def stop(self) -> int:
        """Send it SIGTERM, and return its exit status."""
        self.send_signal(signal.SIGTERM)
        return await self.ended()

    def said(self) -> str:
        """All that it has written."""
        return "\n".join([*self.errors.all, *self.output.all])

    async def ended(self, patience: float = PATIENCE) -> int:
        """The exit status, waited for; all that it wrote has been read."""
        async with asyncio.timeout(patience):
            status = await self.process.wait()
            await self.errors.end()
            await self.output.end()
        return status


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    upstream: ScriptedServer | str,
    *arguments: str,
    stdout: Stream = asyncio.subprocess.PIPE,
    stderr: Stream = asyncio.subprocess.PIPE,
    wrapper: Sequence[str] = (),
    **variables: str | None,
) -> AsyncIterator[Program]:
    """Run the program in front of `upstream`, with the tests' token and key; end it afterwards.

    :param directory: where it runs. Modules and packages in its ``site`` can be imported.
    :param wrapper: the command that starts the program, in place of the system.
    :param variables: its environment; ``None`` takes a variable away.
    """
    environment = {
        **_environment(directory),
        "PORT": "0",
        "AUTH_TOKEN": TEST_TOKEN,
        "UPSTREAM_BASE_URL": upstream if isinstance(upstream, str) else upstream.url,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
        "ACCESS_LOG_FORMAT": "json",
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        *(*wrapper, sys.executable, "-m", "tornadoproxy", *arguments),
        cwd=directory,
        env={name: text for name, text in environment.items() if text is not None},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        limit=1 << 20,  # of a line
    )
    program = Program(process)
    try:
        yield program
    finally:
        await _end(program)


Launch = Callable[..., contextlib.AbstractAsyncContextManager[Program]]
"""`running`, without its first two arguments."""


@pytest.fixture
def launch(tmp_path: Path, upstream: ScriptedUpstream) -> Launch:
    """Runs the program in `tmp_path`, in front of `upstream`."""
    return partial(running, tmp_path, upstream)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on 127.0.0.1 for the test's proxy; the system gives it to nobody else meanwhile."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


async def _end(program: Program) -> None:
    # twice, so that it does not wait for what the test has left open
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ProcessLookupError):
            program.send_signal(number)
    try:
        await program.ended()
    except TimeoutError:
        program.process.kill()
        await program.ended()
        raise


def run(
    directory: Path, *arguments: str, file: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m tornadoproxy`` with `arguments` to its end.

    :param directory: where it runs. Modules and packages in its ``site`` can be imported.
    :param file: what is written into its ``.env`` before.
    :param variables: its environment, which has nothing else of the tests'.
    """
    if file is not None:
        (directory / ".env").write_text(file)
    return subprocess.run(
        [sys.executable, "-m", "tornadoproxy", *arguments],
        cwd=directory,
        env={**_environment(directory), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,  # seconds; for what would otherwise hang
        check=False,
    )


def _environment(directory: Path) -> dict[str, str]:
    """As little as possible, so that nothing of this machine's has a say."""
    names = ("COVERAGE", "SSL_CERT_FILE")
    kept = {name: text for name, text in os.environ.items() if name.startswith(names)}
    python_path = [str(directory / "site"), *filter(None, sys.path)]
    return {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(python_path), **kept}


async def printed_by(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Return what a process prints on either stream until its end; a cancelled test kills it."""
    try:
        return await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()


async def connect_when_listening(port: int) -> RawConnection:
    """Return a connection to a program that cannot tell when it listens."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await RawConnection.open(port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)  # nothing reports it from outside


def install(directory: Path, name: str, source: str) -> None:
    """Install a package with one plugin for a program that runs in `directory`."""
    info = directory / "site" / f"{name}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[tornadoproxy]\n{name} = {name}\n")
    (directory / "site" / f"{name}.py").write_text(source)
