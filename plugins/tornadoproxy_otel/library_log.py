"""A filter of OpenTelemetry's log, so that a collector that is down does not fill the disk.

Only the records of the exporter and the SDK pass. The library's parsers of headers quote what they
cannot parse: a client's trace context, possibly with each request, or the collector's headers,
which are secret.
"""

from __future__ import annotations

import logging
from collections import Counter

_HEARD = ("opentelemetry.exporter.", "opentelemetry.sdk.")


class LibraryLog(logging.Filter):
    """A filter on the library's loggers, from `install` to `remove`."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[str, int]] = Counter()
        self._loggers: list[logging.Logger] = []

    def install(self) -> None:
        """Filter the loggers of all imported modules of the library."""
        # a filter applies to the records of its own logger, not to those of loggers below it
        self._loggers = [
            logger
            for name, logger in logging.root.manager.loggerDict.items()
            if name.startswith("opentelemetry.") and isinstance(logger, logging.Logger)
        ]
        for logger in self._loggers:
            logger.addFilter(self)

    def remove(self) -> None:
        """Remove the filter from the loggers."""
        for logger in self._loggers:
            logger.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass the 1st, 2nd, 4th, 8th … record from each line of the library."""
        if not record.name.startswith(_HEARD):
            return False
        place = record.name, record.lineno
        self._counts[place] += 1
        count = self._counts[place]
        return count & (count - 1) == 0
