"""The limits of keys and people for several proxies together, in the server of ``SHARED_LIMITS``.

The server's clock counts, so the clocks of the proxies do not matter. A request in flight is a
lease, which its proxy renews; the leases of a proxy that was killed end by themselves after
`LEASE` seconds.

The keys of one API key or person have its id in braces, so that a cluster keeps them together.
"""

from __future__ import annotations

import itertools
import secrets
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from tornadoproxy import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy import DatabaseStatus, SharedCounters
    from tornadoproxy_keys.live_key import Limited

LEASE = 30  # seconds
RENEWAL = 10.0  # seconds between two renewals
_MAX_TOKENS = 10**15  # of one request: beyond any limit, and exact among the numbers of Lua

# Amounts are counted by the second in which they were used. A second counts until 61 seconds after
# it has begun: in any 60 seconds no more is accepted than the limit allows.
_ADMIT = Script("""
local requests, tokens, leases = KEYS[1], KEYS[2], KEYS[3]
local most_requests, most_tokens, most_leases = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(time[2] / 1000)

local function wait(key, limit)
  local used, total, seconds = {}, 0, {}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local at, amount = tonumber(all[i]), tonumber(all[i + 1])
    if at <= second - 61 then
      redis.call('HDEL', key, all[i])
    else
      used[at] = amount
      total = total + amount
      seconds[#seconds + 1] = at
    end
  end
  if total < limit then return 0 end
  table.sort(seconds)
  for _, at in ipairs(seconds) do
    total = total - used[at]
    if total < limit then return (at + 61) * 1000 - now end
  end
end

if most_leases >= 0 then
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
  if redis.call('ZCARD', leases) >= most_leases then return {'concurrency', 1000} end
end
if most_tokens >= 0 then
  local left = wait(tokens, most_tokens)
  if left > 0 then return {'tokens', left} end
end
if most_requests >= 0 then
  local left = wait(requests, most_requests)
  if left > 0 then return {'requests', left} end
  redis.call('HINCRBY', requests, second, 1)
  redis.call('EXPIRE', requests, 61)
end
if most_leases >= 0 then
  redis.call('ZADD', leases, now + ARGV[5] * 1000, ARGV[4])
  redis.call('EXPIRE', leases, ARGV[5])
end
return {'', 0}
""")
_RENEW = Script("""
local time = redis.call('TIME')
local ends = (time[1] + ARGV[1]) * 1000
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ends, ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
""")
_RELEASE = Script("for _, lease in ipairs(ARGV) do redis.call('ZREM', KEYS[1], lease) end")
_COUNT_TOKENS = Script("""
local second = redis.call('TIME')[1]
for _, tokens in ipairs(ARGV) do redis.call('HINCRBY', KEYS[1], second, tokens) end
redis.call('EXPIRE', KEYS[1], 61)
""")


class SharedLimits:
    """The limits of all keys and people.

    :param counters: the server.
    """

    def __init__(self, counters: SharedCounters) -> None:
        self._counters = counters
        self._leases: dict[str, set[str]] = {}  # of this process, by whom they are of
        # the ids of leases differ from those of other processes
        self._process = f"{secrets.token_hex(8)}:"
        self._numbers = itertools.count()

    @property
    def status(self) -> DatabaseStatus:
        """The server in figures."""
        return self._counters.status

    async def open(self) -> None:
        """Connect.

        :raises ConfigurationError: the server cannot be used.
        """
        await self._counters.open(self._renew, every=RENEWAL)

    async def close(self) -> None:
        """Close the connection."""
        await self._counters.close()

    def admit(self, limited: Limited, done: Callable[[str, BaseException | None], None]) -> None:
        """Count one more request, unless a limit is reached.

        :param done: called once, with its lease, and with the error if it is not admitted: `Denied`
            with 429, or `DatabaseUnavailable` if the server cannot be used; it must not raise.
        """
        limits = limited.limits
        lease = f"{self._process}{next(self._numbers)}"
        self._counters.ask(
            partial(self._decided, limited, limits.concurrency is not None, lease, done),
            _ADMIT,
            _names(limited.id, "requests", "tokens", "leases"),
            -1 if limits.requests_per_minute is None else limits.requests_per_minute,
            -1 if limits.tokens_per_minute is None else limits.tokens_per_minute,
            -1 if limits.concurrency is None else limits.concurrency,
            lease,
            LEASE,
        )

    def _decided(
        self,
        limited: Limited,
        leased: bool,
        lease: str,
        done: Callable[[str, BaseException | None], None],
        result: tuple[bytes, int],
        failed: BaseException | None,
    ) -> None:
        if failed is not None:
            if leased:
                self._end(limited.id, lease)  # the script may have run
        elif result[0]:
            failed = limited.denied(result[0].decode(), result[1] / 1000)
        elif leased:
            self._leases.setdefault(limited.id, set()).add(lease)
        done(lease, failed)

    def release(self, owner: str, lease: str) -> None:
        """End the lease of a request that has ended, if there was a limit of concurrency."""
        leases = self._leases.get(owner)
        if leases is None or lease not in leases:
            return
        leases.remove(lease)
        if not leases:
            del self._leases[owner]
        self._end(owner, lease)

    def count_tokens(self, owner: str, tokens: int) -> None:
        """Count the tokens of a request that has ended."""
        self._counters.send_joined(_COUNT_TOKENS, _names(owner, "tokens"), min(tokens, _MAX_TOKENS))

    def _end(self, owner: str, lease: str) -> None:
        self._counters.send_joined(_RELEASE, _names(owner, "leases"), lease)

    def _renew(self) -> None:
        for owner, leases in self._leases.items():
            self._counters.send(_RENEW, _names(owner, "leases"), LEASE, *leases)


@lru_cache(4096)  # most requests are of keys that were used before
def _names(owner: str, *counters: str) -> tuple[str, ...]:
    return tuple(f"tornadoproxy:{{{owner}}}:{counter}" for counter in counters)
