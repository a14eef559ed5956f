"""PostgreSQL and Redis for the row of plugins that share them, in a folder that is deleted."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench import postgresql
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_TIMEOUT = 20.0  # seconds for a server to start


@contextmanager
def shared_servers(*options: str) -> Iterator[Mapping[str, str] | None]:
    """Start both; yield the proxy's variables for them, or ``None`` if one is not installed.

    :param options: further ones of PostgreSQL's command line.
    """
    redis = shutil.which("redis-server") or shutil.which("valkey-server")
    if postgresql.program("postgres") is None or redis is None:
        yield None
        return
    # not below /root, where PostgreSQL's user could not enter
    with tempfile.TemporaryDirectory(prefix="bench-servers-", ignore_cleanup_errors=True) as name:
        server, port = postgresql.Server(Path(name), free_port(), "bench"), free_port()
        processes = [
            server.launch(*options),
            subprocess.Popen(
                [redis, "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL, cwd=name
            ),
        ]
        try:
            for each in (server.port, port):
                _wait_for(each)
            yield {
                "DATABASE_URL": f"postgresql://bench@127.0.0.1:{server.port}/postgres",
                "SHARED_LIMITS": f"redis://127.0.0.1:{port}/0",
            }
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise BenchError(f"no server has come to listen on port {port}") from None
            time.sleep(0.05)
        else:
            return
