"""Thins out what OpenTelemetry logs: a collector that is down must not fill the disk.

Only its exporter and its SDK are heard. What its readers of headers say quotes what they cannot
read: a client's trace context, of which there may be one a request, or the headers that are set
for the collector.
"""

from __future__ import annotations

import logging
from collections import Counter

_HEARD = ("opentelemetry.exporter.", "opentelemetry.sdk.")


class LibraryLog(logging.Filter):
    """Stands before the library's loggers, from `install` to `remove`."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[str, int]] = Counter()
        self._loggers: list[logging.Logger] = []

    def install(self) -> None:
        """Stand before the loggers of all that is imported of the library."""
        # a filter is asked only by the very logger that a record was made with
        self._loggers = [
            logger
            for name, logger in logging.root.manager.loggerDict.items()
            if name.startswith("opentelemetry.") and isinstance(logger, logging.Logger)
        ]
        for logger in self._loggers:
            logger.addFilter(self)

    def remove(self) -> None:
        """Leave the loggers as they were."""
        for logger in self._loggers:
            logger.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let through the 1st, 2nd, 4th, 8th … record from each line of the library."""
        if not record.name.startswith(_HEARD):
            return False
        place = record.name, record.lineno
        self._counts[place] += 1
        count = self._counts[place]
        return count & (count - 1) == 0
