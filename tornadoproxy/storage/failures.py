"""The failures of one database or server, counted and logged."""

from __future__ import annotations

import logging

_logger = logging.getLogger(__name__)


class Failures:
    """Of consecutive failures the 1st, 2nd, 4th, 8th … are logged, and the recovery.

    :param title: the database in messages.
    :ivar total: all failures so far.
    """

    def __init__(self, title: str) -> None:
        self.total = 0
        self._title = title
        self._consecutive = 0

    @property
    def last(self) -> bool:
        """Whether the last attempt to use the database failed."""
        return self._consecutive > 0

    def count(self, error: Exception, note: str = "") -> None:
        """Count a failure.

        :param note: what to log besides.
        """
        self.total += 1
        self._consecutive += 1
        if self._consecutive & (self._consecutive - 1) == 0:
            _logger.error("%s (%d consecutive failures%s)", error, self._consecutive, note)

    def end(self, note: str = "") -> None:
        """Note that the database could be used.

        :param note: what to log besides.
        """
        if self._consecutive:
            _logger.warning(
                "%s can be used again after %d failures%s", self._title, self._consecutive, note
            )
            self._consecutive = 0
