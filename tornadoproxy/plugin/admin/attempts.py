"""The limit of wrong credentials from one address."""

from __future__ import annotations

import time
from collections import OrderedDict
from math import ceil

from tornadoproxy.errors import Denied


class Attempts:
    """The wrong credentials of the last minute, by the client's address.

    :param what: the credentials, for the error: ``admin keys``.
    """

    MOST = 10  # wrong credentials within a minute
    MINUTE = 60.0  # seconds
    ADDRESSES = 10_000  # that are remembered

    def __init__(self, what: str) -> None:
        self._what = what
        # how many, and when the first of them was sent; the address that began last is the last
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Refuse an address that has sent too many wrong credentials, whatever it sends now.

        :raises Denied: 429.
        """
        count, began = self._wrong.get(address, (0, 0.0))
        wait = began + self.MINUTE - time.monotonic()
        if count >= self.MOST and wait > 0:
            raise Denied(
                f"Too many wrong {self._what} from this address: try again in {ceil(wait)} s.",
                status=429,
                code="rate_limit_exceeded",
                retry_after=wait,
            )

    def count(self, address: str) -> None:
        """Count a wrong credential."""
        now = time.monotonic()
        count, began = self._wrong.get(address, (0, now))
        if now >= began + self.MINUTE:
            del self._wrong[address]
            count, began = 0, now
        self._wrong[address] = count + 1, began
        if len(self._wrong) > self.ADDRESSES:
            self._wrong.popitem(last=False)
