"""The limit of attempts by one client, such as those with wrong credentials. Without I/O."""

from __future__ import annotations

import time
from collections import OrderedDict
from ipaddress import AddressValueError, IPv6Address
from math import ceil

from tornadoproxy.errors import Denied


class Attempts:
    """How often each client may try something within some time, counted in this proxy.

    The clients of one IPv6 network (``/64``) count as one, since a client has all addresses of its.

    :param what: the attempts, for the error: ``wrong admin keys``.
    :param limit: attempts of one client.
    :param seconds: within this time.
    """

    CLIENTS = 10_000  # that are remembered; of more, the one whose last attempt is the oldest goes

    def __init__(self, what: str, limit: int = 10, seconds: float = 60.0) -> None:
        self._what = what
        self._limit = limit
        self._seconds = seconds
        # the last ones of each client; of most there is one, for which a deque takes ten times more
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    @staticmethod
    def client_of(address: str) -> str:
        """Return whose attempts those of an address are: its own, or those of its IPv6 network."""
        try:
            found = IPv6Address(address)
        except AddressValueError:
            return address
        if found.ipv4_mapped is not None:  # all of these are in one network
            return str(found.ipv4_mapped)
        return f"{int(found) >> 64:x}::/64"

    def wait(self, client: str) -> float:
        """Return the seconds until a client may try again; 0 if it may now.

        :param client: its address, or what else identifies it.
        """
        times = self._times.get(self.client_of(client))
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
        client = self.client_of(client)
        times = self._times.setdefault(client, [])
        times.append(time.monotonic())
        del times[: -self._limit]
        self._times.move_to_end(client)
        if len(self._times) > self.CLIENTS:
            self._times.popitem(last=False)
