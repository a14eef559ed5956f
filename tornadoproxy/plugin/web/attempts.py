"""The limit of attempts by one client, such as those with wrong credentials. Without I/O."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from math import ceil

from tornadoproxy.errors import Denied


class Attempts:
    """How often each client may try something within some time, counted in this proxy.

    :param what: the attempts, for the error: ``wrong admin keys``.
    :param limit: attempts of one client.
    :param seconds: within this time.
    """

    CLIENTS = 10_000  # that are remembered; of more, the one whose last attempt is the oldest goes

    def __init__(self, what: str, limit: int = 10, seconds: float = 60.0) -> None:
        self._what = what
        self._limit = limit
        self._seconds = seconds
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Return the seconds until a client may try again; 0 if it may now.

        :param client: its address, or what else identifies it.
        """
        times = self._times.get(client)
        if times is None or len(times) < self._limit:
            return 0.0
        return max(0.0, times[0] + self._seconds - time.monotonic())

    def check(self, client: str) -> None:
        """Refuse a client that has tried too often.

        :raises Denied: 429.
        """
        if wait := self.wait(client):
            raise Denied(
                f"Too many {self._what} from this address: try again in {ceil(wait)} s.",
                status=429,
                code="rate_limit_exceeded",
                retry_after=wait,
            )

    def count(self, client: str) -> None:
        """Count an attempt."""
        times = self._times.setdefault(client, deque(maxlen=self._limit))
        times.append(time.monotonic())
        self._times.move_to_end(client)
        if len(self._times) > self.CLIENTS:
            self._times.popitem(last=False)
