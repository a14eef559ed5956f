"""The thread that writes exchanges, behind a queue that is bounded in bytes."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy import RequestRecord
    from tornadoproxy_recorder.capture import Exchange

MAX_QUEUED = 64 * 1024 * 1024
"""The limit of the bodies that wait to be written, in bytes."""

_OWN_SIZE = 4096  # of an exchange without bodies, roughly

_logger = logging.getLogger(__name__)


class Writer:
    """Writes exchanges in the order in which they ended.

    :param write: writes one; called in the thread.
    :ivar dropped: exchanges for which there was no room.
    :ivar failed: exchanges that could not be written.
    """

    def __init__(self, write: Callable[[Exchange, RequestRecord], None]) -> None:
        self.dropped = self.failed = 0
        self._write = write
        self._queue: deque[tuple[Exchange, RequestRecord, int]] = deque()
        self._queued = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, exchange: Exchange, record: RequestRecord) -> None:
        """Write an exchange soon, or drop it if too much waits. It never waits for the disk."""
        size = len(exchange.request.kept) + len(exchange.response.kept) + _OWN_SIZE
        with self._changed:
            fits = self._queued + size <= MAX_QUEUED and not self._closing
            if fits:
                self._queue.append((exchange, record, size))
                self._queued += size
                self._changed.notify()
        if not fits:
            self.dropped += 1
            if _is_told(self.dropped):
                _logger.warning(
                    "%d exchanges were not recorded so far: the disk is too slow", self.dropped
                )

    def close(self, timeout: float) -> None:
        """Write what is queued, for at most `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._queue:
            _logger.warning("%d exchanges were not recorded: no time left", len(self._queue))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                exchange, record, size = self._queue.popleft()
            try:
                self._write(exchange, record)
            except Exception as error:
                self.failed += 1
                if _is_told(self.failed):
                    # an OSError's text names a file; another's may quote what was recorded
                    why = error.strerror if isinstance(error, OSError) else type(error).__name__
                    _logger.warning(
                        "%d exchanges could not be recorded so far: %s", self.failed, why
                    )
            with self._changed:
                self._queued -= size


def _is_told(count: int) -> bool:
    """Whether a failure is logged: the 1st, 2nd, 4th, 8th …"""
    return count & (count - 1) == 0
