"""A PostgreSQL server of its own, for measurements and tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path


def program(name: str) -> str | None:
    """Return the path of one of PostgreSQL's programs; Debian keeps them beside the versions."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


class Server:
    """A server on a port of the loopback interface.

    :param directory: an empty one for its data, which may not be below the home of root.
    :param user: the superuser's name.
    :param password: the superuser's; without it, none is needed.
    :ivar log: the file of what it prints.
    """

    def __init__(
        self, directory: Path, port: int, user: str, *, password: str | None = None
    ) -> None:
        self.port = port
        self.log = directory / "log"
        self.data = directory / "data"
        # the server refuses to run as root
        self._as = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        directory.chmod(0o755)
        self.give(directory)
        credentials = ["--auth=trust"]
        if password is not None:
            file = directory / "password"
            file.write_text(password)
            self.give(file)
            credentials = ["--auth=scram-sha-256", f"--pwfile={file}"]
        done = self._run(
            *("initdb", "--no-sync", "--no-locale", "--encoding=UTF8", f"--username={user}"),
            *(*credentials, f"--pgdata={self.data}"),
        ).wait()
        assert done == 0, self.log.read_text()

    def give(self, path: Path) -> None:
        """Make the server's account the owner of a file or directory."""
        if self._as is not None:
            os.chown(path, self._as.pw_uid, self._as.pw_gid)

    def launch(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the server, without waiting until it accepts connections."""
        where = ("-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1", "-k", "")
        return self._run("postgres", *where, *options)

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        found = program(name)
        assert found is not None, f"PostgreSQL's {name} is absent"
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [found, *arguments],
                stdout=log,
                stderr=log,
                user=self._as and self._as.pw_uid,
                group=self._as and self._as.pw_gid,
            )
