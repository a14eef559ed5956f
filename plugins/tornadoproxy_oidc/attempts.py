"""The limit of attempts by each client address, counted in this proxy. Without I/O."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

MAX_CLIENTS = 10_000
"""Addresses that are remembered; of more, the one that tried the longest ago is forgotten."""


class Attempts:
    """How often each client may try within some seconds."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, client: str) -> bool:
        """Count an attempt; return whether it is allowed."""
        now = time.monotonic()
        times = self._times.setdefault(client, deque())
        self._times.move_to_end(client)
        if len(self._times) > MAX_CLIENTS:
            self._times.popitem(last=False)
        while times and times[0] <= now - self._seconds:
            times.popleft()
        if len(times) >= self._limit:
            return False
        times.append(now)
        return True
