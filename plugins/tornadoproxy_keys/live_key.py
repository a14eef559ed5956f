"""Keys and people in a running proxy: their limits, and a key's identity.

The last minute is counted to the second: in any 60 seconds no more requests are accepted than the
limit allows, and a place becomes free at most one second late.

Tokens are known only when a response ends. Therefore a request is accepted while the tokens of the
last minute are below the limit, and requests in flight may exceed it. Tokens read from the prompt
cache do not count, as in the API's own limits. A response without reported usage, such as one in an
unknown compression or one that the client cut off, counts with its estimate.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from math import ceil
from typing import TYPE_CHECKING

from tornadoproxy import AllowedModels, Denied, Identity
from tornadoproxy_keys import store

if TYPE_CHECKING:
    from tornadoproxy import Allowance, ModelRequest, RequestRecord
    from tornadoproxy_keys.store import KeyRow, Limits

MANY = 1000
"""How many people there are before those are forgotten who have sent nothing for a minute."""

_MINUTE = 60.0  # seconds
_STEP = 1.0  # seconds that are counted together


class Window:
    """The amount used within the last minute. Times are monotonic, in seconds."""

    __slots__ = ("_total", "_used")

    def __init__(self) -> None:
        # the beginning, the end and the size of each amount; the oldest first
        self._used: deque[tuple[float, float, int]] = deque()
        self._total = 0

    def add(self, amount: int, now: float) -> None:
        """Add an amount that is used now."""
        used = self._used
        self._total += amount
        if used and now < used[-1][0] + _STEP:
            began, _, before = used[-1]
            used[-1] = (began, now + _MINUTE, before + amount)
        else:
            used.append((now, now + _MINUTE, amount))

    def wait(self, limit: int, now: float) -> float:
        """Return the seconds until less than `limit` (at least 1) is used; 0 if that is now."""
        used = self._used
        while used and used[0][1] <= now:
            self._total -= used.popleft()[2]
        left = self._total
        free_at = now
        oldest_first = iter(used)
        while left >= limit:
            _, free_at, amount = next(oldest_first)
            left -= amount
        return min(free_at - now, _MINUTE)  # a sum of floats may be a little more

    def is_empty(self, now: float) -> bool:
        """Return whether nothing was used."""
        return not self._used or self._used[-1][1] <= now


class KeyIdentity(Identity, frozen=True, kw_only=True):
    """The identity of a request with a key.

    :param key: the key.
    """

    key: LiveKey


class Limited:
    """Somebody with limits, and what they have used of them.

    :ivar id: the name in the counters that several proxies share.
    :ivar limits: the limits.
    :ivar in_flight: the number of requests that have not ended.
    """

    __slots__ = ("_requests", "_tokens", "id", "in_flight", "limits")

    limits: Limits | Allowance

    def __init__(self, name: str) -> None:
        self.id = name
        self.in_flight = 0
        self._requests = Window()
        self._tokens = Window()

    @property
    def reached(self) -> str:
        """How a refusal begins."""
        raise NotImplementedError

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit that counts."""
        limits = self.limits
        return not (
            limits.requests_per_minute is None
            and limits.tokens_per_minute is None
            and limits.concurrency is None
        )

    def admit(self, now: float) -> None:
        """Count one more request, unless a limit is reached.

        :raises Denied: 429, with the seconds after which a retry may succeed.
        """
        limits = self.limits
        if limits.concurrency is not None and self.in_flight >= limits.concurrency:
            raise self.denied("concurrency", 1.0)
        if limits.tokens_per_minute is not None:
            wait = self._tokens.wait(limits.tokens_per_minute, now)
            if wait:
                raise self.denied("tokens", wait)
        if limits.requests_per_minute is not None:
            wait = self._requests.wait(limits.requests_per_minute, now)
            if wait:
                raise self.denied("requests", wait)
            self._requests.add(1, now)
        self.in_flight += 1

    def count_tokens(self, asked: ModelRequest, record: RequestRecord) -> int:
        """Count the tokens of a request that has ended, and return them.

        :param asked: the request for a model.
        """
        if tokens := _used(record, asked):
            self._tokens.add(tokens, time.monotonic())
        return tokens

    def denied(self, limit: str, wait: float) -> Denied:
        """Return the refusal of a request.

        :param limit: the limit that is reached: ``requests``, ``tokens`` or ``concurrency``.
        :param wait: seconds after which a retry may succeed.
        """
        limits = self.limits
        reached = {
            "concurrency": f"{limits.concurrency} requests at once",
            "tokens": f"{limits.tokens_per_minute} tokens a minute",
            "requests": f"{limits.requests_per_minute} requests a minute",
        }[limit]
        return Denied(
            f"{self.reached} of {reached}: try again in {ceil(wait)} s.",
            status=429,
            code="rate_limit_exceeded",
            retry_after=wait,
        )


class LiveKey(Limited):
    """A key, from its first load until the proxy stops.

    :ivar row: its row at the last load.
    :ivar identity: the identity of its requests.
    :ivar named_as_token: whether its name is the principal of clients with ``AUTH_TOKEN``.
    :ivar models: a pattern of the models that it may use; ``None`` is all.
    """

    __slots__ = ("identity", "models", "named_as_token", "row")

    def __init__(self, row: KeyRow) -> None:
        super().__init__(row.id)
        self.update(row)

    def update(self, row: KeyRow) -> None:
        """Replace the row; the amounts used are kept."""
        self.row = row
        self.limits = row.limits
        self.identity = KeyIdentity(row.name, groups=row.groups, key=self)
        self.named_as_token = store.is_token_name(row.name)
        patterns = row.limits.models
        self.models = AllowedModels(patterns, "This key is for") if patterns else None

    @property
    def reached(self) -> str:
        return f"The key {self.id} has reached its limit"


class LivePerson(Limited):
    """A person whose authenticator has set limits."""

    __slots__ = ()

    def __init__(self, principal: str) -> None:
        # a principal may have braces, by which a cluster of the counters finds a name's place
        super().__init__(f"person:{hashlib.sha256(principal.encode()).hexdigest()[:32]}")

    @property
    def reached(self) -> str:
        return "You have reached your limit"

    def is_idle(self, now: float) -> bool:
        """Return whether nothing is in flight, and nothing was used in the last minute."""
        return not self.in_flight and self._requests.is_empty(now) and self._tokens.is_empty(now)


class People:
    """The people with limits who have sent requests lately."""

    def __init__(self) -> None:
        self._people: dict[str, LivePerson] = {}
        self._check_at = MANY

    def get(self, principal: str, limits: Allowance, now: float) -> LivePerson:
        """Return a person, who has these limits from now on."""
        person = self._people.get(principal)
        if person is None:
            if len(self._people) >= self._check_at:
                self._forget(now)
            person = self._people[principal] = LivePerson(principal)
        person.limits = limits
        return person

    def _forget(self, now: float) -> None:
        self._people = {
            name: person for name, person in self._people.items() if not person.is_idle(now)
        }
        self._check_at = max(MANY, 2 * len(self._people))


def _used(record: RequestRecord, asked: ModelRequest) -> int:
    """Return the number of tokens that a request counts with."""
    usage = record.usage
    if usage.input_tokens is None and usage.output_tokens is None:
        usage = asked.estimated_usage(record)
    return sum(
        (part.input_tokens or 0)
        + (part.output_tokens or 0)
        + (part.cache_creation_input_tokens or 0)
        for part in usage.parts()
    )
