"""Notices that a peer has hung up while nobody reads from it.

A server that reads nothing more does not see the end of file behind bytes that wait unread, and a
proxy reads nothing more while it waits for the upstream, or while the upstream is slower than the
client. ``EPOLLRDHUP`` tells regardless of what waits (epoll_ctl(2)). An epoll descriptor can be
watched itself, so one reader in the event loop serves all connections.

Where there is no epoll, nothing is watched here: a peer's leaving is seen by the next read.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from contextlib import suppress


class HangupWatch:
    """Calls back, once for each watched descriptor, when its peer has closed or reset."""

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
        """Stop watching; harmless if `fd` is watched for somebody else by now."""
        if self._callbacks.get(fd) == callback:
            del self._callbacks[fd]
            with suppress(OSError):  # it is closed already, so that nothing is watched
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
