"""The two programs in C: the upstream that responds, and the client that asks."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).parent


class BenchError(Exception):
    """The measurement is not one: something is missing, or a response was wrong."""


@dataclass(frozen=True)
class Load:
    """What a run of the client found; every response was a whole 200.

    :param bytes: of all responses' bodies.
    :param events: in them.
    :param p50: the latency in microseconds that half of the requests stayed below.
    :param p99: the same for 99 in a hundred.
    """

    requests: int
    bytes: int
    events: int
    seconds: float
    p50: float
    p90: float
    p99: float
    max: float


class Programs:
    """The programs, compiled into `folder`.

    :raises BenchError: there is no C compiler, or it fails.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise BenchError("there is no C compiler: install one that is called as `cc`")
        self._folder = folder
        for name in ("mock", "load"):
            command = [compiler, "-O2", "-o", str(folder / name), str(SOURCES / f"{name}.c"), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(f"{name}.c does not compile: {done.stderr}")

    @contextmanager
    def upstream(self) -> Iterator[int]:
        """The upstream runs, on the port that is yielded."""
        with subprocess.Popen([self._folder / "mock", "0"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline())
            finally:
                process.kill()

    def load(
        self,
        port: int,
        request: bytes,
        *,
        connections: int,
        count: int,
        rate: float | None = None,
        expected_bytes: int | None = None,
    ) -> Load:
        """Send `request` `count` times. See load.c for what each parameter says.

        :raises BenchError: a response was not a whole 200, or not as expected.
        """
        options = {"-n": count, "-r": rate, "-b": expected_bytes}
        command = self._command(port, request, connections)
        for name, value in options.items():
            if value is not None:
                command += [name, str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"the client stopped: {done.stderr.strip()}")
        return Load(**json.loads(done.stdout))

    @contextmanager
    def held(self, port: int, request: bytes, *, streams: int) -> Iterator[None]:
        """So many responses to `request` have begun, and stay open.

        :raises BenchError: one was not a 200.
        """
        command = [*self._command(port, request, streams), "-h"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                if not process.stdout.readline():
                    reason = process.stderr.read().decode().strip()
                    raise BenchError(f"the client stopped: {reason}")
                yield
            finally:
                process.kill()

    def _command(self, port: int, request: bytes, connections: int) -> list[str]:
        file = self._folder / "request"
        file.write_bytes(request)
        program = str(self._folder / "load")
        return [program, "-p", str(port), "-f", str(file), "-c", str(connections)]
