"""A writer of lines to a file descriptor that never blocks its caller.

`LineWriter.write` puts a line in a bounded queue; a daemon thread writes everything that is queued.
The thread waits a little after it was woken, so that at a thousand lines a second it wakes, and
takes the interpreter's lock, a few dozen times a second and not a thousand.

While the descriptor blocks (its reader is slow) the queue fills, and further lines are dropped.
When it fails (disk full, pipe closed) the lines at hand are dropped, and not tried again, so that
there is no busy loop. Dropped lines are counted. Once writing works again, the first line says how
many.
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

_FOR_THE_MAIN_THREAD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LINGER = 0.02  # seconds
_FILE_WRITE = 1 << 20  # bytes


def _dropped_notice(count: int) -> bytes:
    return b"%d lines were dropped: they could not be written in time" % count


class LineWriter:
    """A bounded writer of lines that never blocks its caller or raises, and counts dropped lines.

    It may be used from several threads, with or without an event loop. Close it, or the last lines
    may be lost: its thread does not keep the process alive.

    :param fd: where to write. It is duplicated, so that its owner may close it at any time. It may
        be in blocking mode or not.
    :param capacity: how many lines may be queued.
    :param notice: makes the line that reports the number of dropped lines, without its line end.
    :raises OSError: `fd` is not open.
    """

    def __init__(
        self,
        fd: int,
        capacity: int = 10_000,
        notice: Callable[[int], bytes] = _dropped_notice,
    ) -> None:
        self._fd = os.dup(fd)
        # a write of up to this size to a pipe is not mixed with the writes of other processes
        self._largest = select.PIPE_BUF if stat.S_ISFIFO(os.fstat(fd).st_mode) else _FILE_WRITE
        self._capacity = capacity
        self._notice = notice
        self._waiting: SimpleQueue[bytes | Callable[[], bytes] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropped = 0
        # used by the thread only: how many dropped lines it has reported, and whether half a line
        # has been written
        self._reported = 0
        self._torn = False

    @property
    def dropped(self) -> int:
        """The number of lines that have been dropped so far."""
        return self._dropped

    def write(self, line: bytes | Callable[[], bytes]) -> None:
        """Queue `line`, or drop it if the queue is full or the writer is closed.

        :param line: without a line end; or a function that makes it in the thread, which makes many
            in a row and so takes a third of the time. If the function raises, the line is dropped.
        """
        if self._waiting.qsize() >= self._capacity or self._closing.is_set():
            self._drop(1)
            return
        self._waiting.put(line)
        if self._thread is None:
            self._start()

    def close(self, timeout: float = 2.0) -> None:
        """Write the queued lines, and stop; harmless the second time.

        :param timeout: seconds to wait at most. A blocked thread ends when its descriptor takes or
            refuses the rest, or with the process.
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
                return  # the system has no more threads: the next write tries again
            self._thread = thread

    def _run(self) -> None:
        # these are for the main thread, which may have blocked them
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_THREAD)
        while not (self._closing.is_set() and self._waiting.empty()):
            self._write_out(self._take())
        os.close(self._fd)

    def _take(self) -> list[bytes]:
        lines = [self._waiting.get()]
        self._closing.wait(_LINGER)
        lines += [self._waiting.get() for _ in range(self._waiting.qsize())]
        return [made for line in lines if line is not None and (made := self._made(line))]

    def _made(self, line: bytes | Callable[[], bytes]) -> bytes:
        """Return `line` with its line end, or nothing if making it fails."""
        try:
            return (line if isinstance(line, bytes) else line()) + b"\n"
        except Exception:
            self._drop(1)
            return b""

    def _write_out(self, lines: list[bytes]) -> None:
        lost = len(lines)
        if self._report_dropped():
            for chunk in self._chunks(lines):
                written = self._write(chunk)
                lost -= chunk.count(b"\n", 0, written)
                if written < len(chunk):
                    break
        if lost:
            self._drop(lost)

    def _report_dropped(self) -> bool:
        """Write how many lines were dropped since the last report.

        :returns: whether the report has been written, or there was none to write.
        """
        dropped = self._dropped
        if dropped > self._reported:
            notice = self._notice(dropped - self._reported) + b"\n"
            if self._torn:
                notice = b"\n" + notice
            if self._write(notice) < len(notice):
                return False
            self._reported = dropped
        return True

    def _chunks(self, lines: list[bytes]) -> Iterator[bytes]:
        """Yield `lines`, joined up to the size that is best written at once."""
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
        """Write `data`, and return how many bytes were written: fewer if the descriptor failed."""
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
