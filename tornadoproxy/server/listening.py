"""Listening sockets: of an address and a port, or of a file (``HOST=unix:/path``)."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from tornado.netutil import bind_sockets

UNIX = "unix:"
"""The beginning of a ``HOST`` that names a path."""

_BACKLOG = 1024
_FILE_MODE = 0o660  # to connect, a process needs write access: the proxy's user and group


def open_sockets(host: str, port: int, *, reuse_port: bool) -> list[socket.socket]:
    """Return the listening sockets.

    :param host: the value of ``HOST``.
    :param port: 0 selects a free one; not used for a Unix socket.
    :raises OSError: the address is in use, does not exist, or is not permitted.
    """
    if host.startswith(UNIX):
        return [_open_unix_socket(host.removeprefix(UNIX))]
    address = None if host == "::" else host  # Tornado takes :: for IPv6 alone
    return bind_sockets(port, address, backlog=_BACKLOG, reuse_port=reuse_port)


class SocketFile:
    """The file of a Unix socket that this process listens on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove the file, unless another process has put its own in its place."""
        with suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                os.unlink(self._path)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _open_unix_socket(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        os.chmod(path, _FILE_MODE)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the file of a socket that no process listens on: a killed process leaves it behind.

    :raises OSError: a process listens on it, or the file is not a socket.
    """
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is not a socket exists there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # a process listens, and its queue is full
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
