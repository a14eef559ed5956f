"""Detection of a client's disconnect while the proxy reads nothing from it.

A server that has stopped reading does not see the end of file behind unread bytes, and a proxy
stops reading while it waits for the upstream, or while the upstream is slower than the client.
``EPOLLRDHUP`` reports a disconnect regardless of unread bytes (epoll_ctl(2)). An epoll descriptor
can itself be watched, so that one reader in the event loop serves all connections.

Without epoll nothing is watched: the next read sees the disconnect.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from contextlib import suppress


class HangupWatch:
    """Watched descriptors, each with a callback for when its peer has closed or reset."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop = asyncio.get_running_loop()
        if sys.platform == "linux":
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._on_events)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch `fd`, which must be removed before it is closed."""
        if sys.platform == "linux":
            self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)
            self._callbacks[fd] = callback

    def remove(self, fd: int, callback: Callable[[], None]) -> None:
        """Stop watching `fd`; harmless if it is watched for another callback by now."""
        if self._callbacks.get(fd) == callback:
            del self._callbacks[fd]
            with suppress(OSError):  # closed already, which ends the watch
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching everything; harmless the second time."""
        self._callbacks.clear()
        if sys.platform == "linux" and not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _on_events(self) -> None:
        for fd, _ in self._epoll.poll(0):
            self._callbacks[fd]()
