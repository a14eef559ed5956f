"""Writes lines to a file descriptor without ever making the caller wait.

Who writes a line only puts it in a bounded queue; a daemon thread takes all that waits and hands
it to the system. The thread lingers a little after it was woken, so that at a thousand lines a
second it wakes, and takes the interpreter's lock, a few dozen times and not a thousand.

When the descriptor takes nothing (its reader is slow) the queue fills, and further lines are
dropped. When it fails (disk full, pipe closed) the lines in hand are dropped; nothing is tried
again, so there is no busy loop. Dropped lines are counted, and the first thing written once
writing works again is a line that says how many.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LINGER = 0.02  # seconds
_FILE_WRITE = 1 << 20  # bytes


def _dropped_notice(count: int) -> bytes:
    return b"%d lines were dropped: they could not be written in time" % count


class LineWriter:
    """A bounded writer of lines that neither blocks its caller nor raises, and counts its losses.

    May be used from several threads, with or without an event loop. Close it, or the last lines
    may be lost: its thread does not keep the process alive.

    :param fd: where to write. It is duplicated, so that its owner may close it at any time; it may
        be in blocking mode or not.
    :param capacity: how many lines may wait.
    :param notice: makes the line that tells of so many dropped ones, without its line end.
    :raises OSError: `fd` is not open.
    """

    def __init__(
        self,
        fd: int,
        capacity: int = 10_000,
        notice: Callable[[int], bytes] = _dropped_notice,
    ) -> None:
        self._fd = os.dup(fd)
        # a pipe keeps a write up to this size whole among those of other processes
        self._largest = select.PIPE_BUF if stat.S_ISFIFO(os.fstat(fd).st_mode) else _FILE_WRITE
        self._capacity = capacity
        self._notice = notice
        self._waiting: SimpleQueue[bytes | Callable[[], bytes] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropped = 0
        # the thread's own: how many dropped lines it has told of, and whether half a line is out
        self._told = 0
        self._torn = False

    @property
    def dropped(self) -> int:
        """How many lines have been dropped so far."""
        return self._dropped

    def write(self, line: bytes | Callable[[], bytes]) -> None:
        """Put `line` in the queue, or drop it if the queue is full or the writer closed.

        :param line: without its line end, and without one inside; or what makes it, in the
            thread, where many are made one after the other, which takes a third of the time. One
            that raises makes a dropped line.
        """
        if self._waiting.qsize() >= self._capacity or self._closing.is_set():
            self._drop(1)
            return
        self._waiting.put(line)
        if self._thread is None:
            self._start()

    def close(self, timeout: float = 2.0) -> None:
        """Write out what waits and stop. May be called again.

        :param timeout: seconds to wait at most. A thread that is stuck is left behind; it ends
            when its descriptor takes or refuses the rest, or with the process.
        """
        with self._lock:
            if not self._closing.is_set():
                self._closing.set()
                if self._thread is None:
                    os.close(self._fd)
        if self._thread is not None:
            self._waiting.put(None)  # wakes it
            self._thread.join(timeout)

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped += count

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._closing.is_set():
                return
            thread = threading.Thread(target=self._run, name="linewriter", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # no thread to be had: the lines wait, and the next write tries again
            self._thread = thread

    def _run(self) -> None:
        # signals are the main thread's, which may have blocked them
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not (self._closing.is_set() and self._waiting.empty()):
            self._write_out(self._take())
        os.close(self._fd)

    def _take(self) -> list[bytes]:
        lines = [self._waiting.get()]
        self._closing.wait(_LINGER)
        lines += [self._waiting.get() for _ in range(self._waiting.qsize())]
        return [made for line in lines if line is not None and (made := self._made(line))]

    def _made(self, line: bytes | Callable[[], bytes]) -> bytes:
        """`line` with its end, or nothing."""
        try:
            return (line if isinstance(line, bytes) else line()) + b"\n"
        except Exception:
            self._drop(1)
            return b""

    def _write_out(self, lines: list[bytes]) -> None:
        lost = len(lines)
        if self._tell_dropped():
            for chunk in self._chunks(lines):
                written = self._write(chunk)
                lost -= chunk.count(b"\n", 0, written)
                if written < len(chunk):
                    break
        if lost:
            self._drop(lost)

    def _tell_dropped(self) -> bool:
        """Whether there was nothing to tell, or it has been written."""
        dropped = self._dropped
        if dropped > self._told:
            notice = self._notice(dropped - self._told) + b"\n"
            if self._torn:
                notice = b"\n" + notice
            if self._write(notice) < len(notice):
                return False
            self._told = dropped
        return True

    def _chunks(self, lines: list[bytes]) -> Iterator[bytes]:
        """`lines` in whole lines, joined up to the size that is best written at once."""
        chunk: list[bytes] = []
        size = 0
        for line in lines:
            if chunk and size + len(line) > self._largest:
                yield b"".join(chunk)
                chunk, size = [], 0
            chunk.append(line)
            size += len(line)
        if chunk:
            yield b"".join(chunk)

    def _write(self, data: bytes) -> int:
        """How many bytes of `data` went out; fewer than all if the descriptor failed."""
        written = 0
        while written < len(data):
            try:
                written += os.write(self._fd, data[written:] if written else data)
            except BlockingIOError:
                self._wait_until_writable()
            except OSError:
                break
        if written:
            self._torn = not data.endswith(b"\n", 0, written)
        return written

    def _wait_until_writable(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        poller.poll()
