"""What requests in flight at several proxies have reserved, in the server of ``SHARED_LIMITS``.

The server also has the sum that each subject has spent in each period. It counts a cost at once,
which the database does half a second later, so that it has the highest sum. A sum that it does not
have, as at the beginning of a period and after it has lost its data, is loaded from the database
before anything is reserved. A proxy that knows a higher one from the database tells it.

A reservation is a lease, which its proxy renews; those of a proxy that was killed end by themselves
after `LEASE` seconds. All names have one word in braces, so that a cluster keeps them together.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tornadoproxy import Script
from tornadoproxy_budgets.periods import Period, first_day, reset_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tornadoproxy import DatabaseStatus, SharedCounters
    from tornadoproxy_budgets.engine import Applying, Engine
    from tornadoproxy_budgets.state import Subject

LEASE = 30  # seconds
RENEWAL = 10.0  # seconds between two renewals

_PREFIX = "tornadoproxy:{budgets}:"
_LEASES, _RESERVED, _HELD = (_PREFIX + name for name in ("leases", "reserved", "held"))
_MOST = 2**63 - 1  # the highest sum of a database, and of the server
_DAY = 86_400  # seconds for which a sum is kept after its period, for requests that end late

# KEYS: the leases by their end, the sum reserved of each subject, the amount and subjects of each
# lease; then the sums that were spent.
_COMMON = """
local leases, reserved, held = KEYS[1], KEYS[2], KEYS[3]
local now = tonumber(redis.call('TIME')[1])

local function whole(number) return string.format('%.0f', number) end

local function release(lease)
  local of_it = redis.call('HGET', held, lease)
  if not of_it then return end
  local amount, subjects = unpack(cjson.decode(of_it))
  for _, subject in ipairs(subjects) do
    if redis.call('HINCRBY', reserved, subject, '-' .. amount) <= 0 then
      redis.call('HDEL', reserved, subject)
    end
  end
  redis.call('HDEL', held, lease)
  redis.call('ZREM', leases, lease)
end
"""
# ARGV: the lease, its seconds, the amount, the subjects as a JSON array, whether the sums have just
# been loaded; then of each cap its subject, its amount, whether it is personal, the sum known to be
# spent, and when that ends.
_RESERVE = Script(
    _COMMON
    + """
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do release(lease) end
local lease, seconds, amount = ARGV[1], ARGV[2], ARGV[3]
local reached = {}
for at = 4, #KEYS do
  local base = 5 + (at - 4) * 5
  local subject, cap, personal = ARGV[base + 1], ARGV[base + 2], ARGV[base + 3]
  local spent, known = tonumber(redis.call('GET', KEYS[at]) or '-1'), ARGV[base + 4]
  if spent < 0 and ARGV[5] == 0 then return {2} end
  if spent < 0 or known > spent then
    spent = math.max(known, -1 - spent)
    redis.call('SET', KEYS[at], whole(spent), 'EXAT', ARGV[base + 5])
  end
  local left = cap - spent - tonumber(redis.call('HGET', reserved, subject) or '0')
  if left <= 0 then
    reached[#reached + 1] = {at - 4, whole(spent)}
  elseif personal == 1 and left < amount then
    amount = left
  end
end
if #reached > 0 then return {1, reached} end
amount = whole(amount)
for _, subject in ipairs(cjson.decode(ARGV[4])) do
  redis.call('HINCRBY', reserved, subject, amount)
end
redis.call('HSET', held, lease, cjson.encode({amount, cjson.decode(ARGV[4])}))
redis.call('ZADD', leases, now + seconds, lease)
return {0, amount}
"""
)
# ARGV: of each request its lease, its cost; then of each sum what was known to be spent before, and
# when it ends. A sum that is not there begins with that, below zero: -1 less the sum. It was not
# loaded just now.
_SETTLE = Script(
    _COMMON
    + """
for first = 1, #ARGV, 2 * (#KEYS - 2) do
  release(ARGV[first])
  for at = 4, #KEYS do
    local base = first + 1 + (at - 4) * 2
    redis.call('SET', KEYS[at], whole(-1 - ARGV[base + 1]), 'NX', 'EXAT', ARGV[base + 2])
    local command = tonumber(redis.call('GET', KEYS[at])) < 0 and 'DECRBY' or 'INCRBY'
    redis.call(command, KEYS[at], ARGV[first + 1])
  end
end
"""
)
_RESERVED_IT, _UNKNOWN = 0, 2  # what the first script returns first; else a cap is reached
_RENEW = Script("""
local ends = redis.call('TIME')[1] + ARGV[1]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i]) end
""")


class Lease(Struct, frozen=True):
    """A reservation of a request.

    :param nanos: the amount.
    :param applying: the caps that applied.
    """

    id: str
    nanos: int
    applying: Sequence[Applying]


class _Asked(Struct, frozen=True):
    """The parameters of `SharedReservations.reserve`.

    :param first: the first arguments of the script: the lease, its seconds, the amount, whom it
        counts for.
    """

    engine: Engine
    applying: Sequence[Applying]
    first: tuple[str, int, int, str]
    load: Callable[[], Awaitable[None]]
    done: Callable[[Lease | None, BaseException | None], None]


class SharedReservations:
    """The reservations of all proxies.

    :param counters: the server.
    """

    def __init__(self, counters: SharedCounters) -> None:
        self._counters = counters
        self._leases: set[str] = set()
        self._loading: set[asyncio.Task[None]] = set()
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

    @property
    def failing(self) -> bool:
        """Whether there is no connection."""
        return self._counters.failing

    def reserve(
        self,
        engine: Engine,
        applying: Sequence[Applying],
        subjects: tuple[Subject, ...],
        nanos: int,
        load: Callable[[], Awaitable[None]],
        done: Callable[[Lease | None, BaseException | None], None],
    ) -> None:
        """Reserve what a request may cost, or what the person has left of it.

        :param applying: the caps that apply.
        :param subjects: whom the reservation counts for.
        :param load: loads the sums into `engine`; called if the server does not have them.
        :param done: called once, with the lease, or with an error: `CapReached`, or
            `DatabaseUnavailable` if the server cannot be used; it must not raise.
        """
        lease = f"{self._process}{next(self._numbers)}"
        self._leases.add(lease)
        first = (lease, LEASE, nanos, _texts(subjects))
        self._ask(_Asked(engine, applying, first, load, done), are_loaded=0)

    def _ask(self, asked: _Asked, *, are_loaded: int) -> None:
        day, sums = asked.engine.spent_under(asked.applying, time.time())
        names = [_LEASES, _RESERVED, _HELD]
        values: list[str | int] = []
        for cap, subject, most, spent in sums:
            name, text, end = _sum(cap.period, day, subject)
            names.append(name)
            values += (text, min(most, _MOST), 0 if cap.scope.shared else 1, spent, end)
        decided = partial(self._decided, asked)
        self._counters.ask(decided, _RESERVE, names, *asked.first, are_loaded, *values)

    # Any: the script's result
    def _decided(self, asked: _Asked, result: Any, failed: BaseException | None) -> None:
        lease = asked.first[0]
        if failed is not None:
            self._end(lease)  # the script may have run
            asked.done(None, failed)
        elif result[0] == _RESERVED_IT:
            asked.done(Lease(lease, int(result[1]), asked.applying), None)
        elif result[0] == _UNKNOWN:
            loading = asyncio.create_task(self._load(asked))
            self._loading.add(loading)
            loading.add_done_callback(self._loading.discard)
        else:
            self._leases.discard(lease)
            reached = []
            for place, spent in result[1]:
                asked.engine.learn(asked.applying[place], int(spent), time.time())
                reached.append(asked.applying[place])
            asked.done(None, asked.engine.refusal(reached))

    async def _load(self, asked: _Asked) -> None:
        """Load the sums, and ask again."""
        try:
            await asked.load()
        except Exception as error:
            self._decided(asked, None, error)
        else:
            self._ask(asked, are_loaded=1)

    def settle(self, engine: Engine, lease: Lease, cost: int, now: float) -> None:
        """Replace a reservation by the cost; to be called before the engine counts it.

        The cost is added to the sums of the caps that applied. What else the person's spending
        counts for is learned from the database.
        """
        if not cost:
            self._end(lease.id)
            return
        day, sums = engine.spent_under(lease.applying, now)
        names = [_LEASES, _RESERVED, _HELD]
        values: list[int] = []
        for cap, subject, _, spent in sums:
            name, _, end = _sum(cap.period, day, subject)
            names.append(name)
            values += (spent, end)
        self._leases.discard(lease.id)
        self._counters.send_joined(_SETTLE, tuple(names), lease.id, cost, *values)

    def _end(self, lease: str) -> None:
        self._leases.discard(lease)
        self._counters.send_joined(_SETTLE, (_LEASES, _RESERVED, _HELD), lease, 0)

    def _renew(self) -> None:
        if self._leases:
            self._counters.send(_RENEW, [_LEASES], LEASE, *self._leases)


# most requests are of people who have asked today


@lru_cache(4096)
def _sum(period: Period, day: int, subject: Subject) -> tuple[str, str, int]:
    """Return the name of a sum, the text of its subject, and when the sum ends."""
    text = _text(subject)
    name = f"{_PREFIX}spent:{period}:{first_day(period, day)}:{text}"
    return name, text, reset_time(period, day) + _DAY


def _text(subject: Subject) -> str:
    return ":".join(subject)


@lru_cache(4096)
def _texts(subjects: tuple[Subject, ...]) -> str:
    return json.dumps([_text(each) for each in subjects])
