"""The limit of wrong admin keys from one address."""

from __future__ import annotations

import time
from collections import OrderedDict
from math import ceil

from tornadoproxy import Denied

MOST = 10  # wrong keys within a minute
MINUTE = 60.0  # seconds
ADDRESSES = 10_000  # that are remembered


class Attempts:
    """The wrong admin keys of the last minute, by the client's address."""

    def __init__(self) -> None:
        # how many, and when the first of them was sent; the address that began last is the last
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Refuse an address that has sent too many wrong keys, whatever it sends now.

        :raises Denied: 429.
        """
        count, began = self._wrong.get(address, (0, 0.0))
        wait = began + MINUTE - time.monotonic()
        if count >= MOST and wait > 0:
            raise Denied(
                f"Too many wrong admin keys from this address: try again in {ceil(wait)} s.",
                status=429,
                code="rate_limit_exceeded",
                retry_after=wait,
            )

    def count(self, address: str) -> None:
        """Count a wrong key."""
        now = time.monotonic()
        count, began = self._wrong.get(address, (0, now))
        if now >= began + MINUTE:
            del self._wrong[address]
            count, began = 0, now
        self._wrong[address] = count + 1, began
        if len(self._wrong) > ADDRESSES:
            self._wrong.popitem(last=False)
