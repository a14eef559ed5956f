"""What happens at present: the figures of the view Now, and the requests that ended last.

A request costs one appended reference. Everything else is computed when somebody looks, at most
twice a second for all of them together.
"""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tornadoproxy import RequestInFlight, RequestRecord, Status, UpstreamStatus

KEPT = 1000  # requests
WINDOW = 60.0  # seconds
PAUSE = 0.5  # seconds between two computations of the figures
OWN = ("/console", "/v1/organizations")


class Figures(Struct, frozen=True):
    """The figures of a moment.

    :param per_second: requests that ended in a second, of the last minute.
    :param errors: the share of them that failed, in percent.
    :param first_token: the median time to their first token, in seconds; ``None`` if none streamed.
    """

    in_flight: int
    waiting: int
    per_second: float
    errors: float
    first_token: float | None
    upstreams: tuple[UpstreamStatus, ...]
    draining: bool


class Wanted(Struct, frozen=True):
    """Which requests somebody wants to see; an empty text is all of them.

    :param status: a status, ``success`` or ``error``.
    """

    person: str = ""
    model: str = ""
    status: str = ""

    def has(self, record: RequestRecord) -> bool:
        """Return whether a request is one of them."""
        return self._concerns(record) and self._is_status(record.status, is_error(record))

    def has_in_flight(self, request: RequestInFlight) -> bool:
        """Return whether a request in flight is one of them; its status may not be known yet."""
        failed = (request.status or 0) >= 400
        return self._concerns(request) and (
            not self.status
            or (request.status is not None and self._is_status(request.status, failed))
        )

    def _concerns(self, request: RequestRecord | RequestInFlight) -> bool:
        if self.person and self.person != request.principal:
            return False
        return not self.model or self.model in (request.model, request.requested_model)

    def _is_status(self, status: int | None, failed: bool) -> bool:
        if self.status in ("success", "error"):
            return failed == (self.status == "error")
        return not self.status or self.status == str(status)


class Live:
    """The requests that ended last, and the figures.

    :ivar status: returns the proxy's figures.
    :ivar readers: how many live pages are open.
    :ivar own: how many other requests for the console are being served.
    """

    def __init__(self) -> None:
        self.status: Callable[[], Status]
        self.readers = self.own = 0
        self._recent: deque[RequestRecord] = deque(maxlen=KEPT)
        self.finished = self._recent.append
        self._figures: Figures | None = None
        self._computed = 0.0

    def figures(self) -> Figures:
        """Return the present figures, not older than `PAUSE`."""
        now = time.monotonic()
        if self._figures is None or now - self._computed >= PAUSE:
            self._figures = self._compute(time.time())
            self._computed = now
        return self._figures

    def since(self, last: RequestRecord | None, wanted: Wanted) -> list[RequestRecord]:
        """Return the requests that ended after `last`, the newest first."""
        found = []
        for record in reversed(self._recent):
            if record is last:
                break
            if not record.route.startswith(OWN) and wanted.has(record):
                found.append(record)
        return found

    @property
    def last(self) -> RequestRecord | None:
        """The request that ended last."""
        return self._recent[-1] if self._recent else None

    def _compute(self, now: float) -> Figures:
        records = list(self._ended_since(now - WINDOW))
        window = WINDOW
        if len(self._recent) == KEPT and len(records) == KEPT:  # earlier ones are not kept
            window = max(now - records[-1].time - records[-1].duration, PAUSE)
        own = [record for record in records if not record.route.startswith(OWN)]
        tokens = [each.time_to_first_token for each in own if each.time_to_first_token is not None]
        status = self.status()
        return Figures(
            in_flight=max(status.in_flight - self.readers - self.own, 0),
            waiting=status.waiting,
            per_second=len(own) / window,
            errors=100 * sum(map(is_error, own)) / len(own) if own else 0.0,
            first_token=median(tokens) if tokens else None,
            upstreams=status.upstreams,
            draining=status.draining,
        )

    def _ended_since(self, moment: float) -> Iterator[RequestRecord]:
        for record in reversed(self._recent):
            if record.time + record.duration < moment:
                return
            yield record


def is_error(record: RequestRecord) -> bool:
    """Return whether a request failed."""
    return record.outcome.value != "completed" or (record.status or 0) >= 400
