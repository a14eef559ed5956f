"""PostgreSQL and Redis for the row of plugins that share them, in a folder that is deleted."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_TIMEOUT = 20.0  # seconds for a server to start


@contextmanager
def shared_servers() -> Iterator[Mapping[str, str] | None]:
    """Start both; yield the proxy's variables for them, or ``None`` if one is not installed."""
    initdb, postgres = _of_postgresql("initdb"), _of_postgresql("postgres")
    redis = shutil.which("redis-server") or shutil.which("valkey-server")
    if initdb is None or postgres is None or redis is None:
        yield None
        return
    # not below /root, where PostgreSQL's user could not enter
    with tempfile.TemporaryDirectory(prefix="bench-servers-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        os.chown(folder, account.pw_uid, account.pw_gid)
        data, ports = folder / "data", [_free_port(), _free_port()]
        subprocess.run(
            [initdb, "--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust",
             "--username=bench", f"--pgdata={data}"],
            check=True, capture_output=True, user=account.pw_uid, group=account.pw_gid,
        )  # fmt: skip
        log = (folder / "log").open("wb")
        servers = [
            subprocess.Popen(
                [postgres, "-D", str(data), "-p", str(ports[0]), "-h", "127.0.0.1", "-k", ""],
                stdout=log, stderr=log, user=account.pw_uid, group=account.pw_gid,
            ),
            subprocess.Popen(
                [redis, "--port", str(ports[1]), "--save", ""], stdout=log, stderr=log, cwd=folder
            ),
        ]  # fmt: skip
        try:
            for port in ports:
                _wait_for(port)
            yield {
                "DATABASE_URL": f"postgresql://bench@127.0.0.1:{ports[0]}/postgres",
                "SHARED_LIMITS": f"redis://127.0.0.1:{ports[1]}/0",
            }
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait()
            log.close()


def _of_postgresql(program: str) -> str | None:
    """Return the path of one of PostgreSQL's programs; Debian keeps them beside the versions."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(found[-1]) if found else shutil.which(program)


def _free_port() -> int:
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
