"""The usage of each key and day until it is written to the database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tornadoproxy_keys.store import UsageRow

if TYPE_CHECKING:
    from tornadoproxy import RequestRecord

_DAY = 86_400  # seconds


class _Sums:
    __slots__ = ("cache_creation", "cache_read", "cost", "input", "last", "output", "requests",
                 "unpriced")  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.input = self.output = self.cache_read = self.cache_creation = 0
        self.cost = self.unpriced = 0
        self.last = 0.0


class UsageCount:
    """The usage that is not written yet: one set of sums for each key and day."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], _Sums] = {}

    def add(self, key_id: str, record: RequestRecord) -> None:
        """Count a request that has ended. Its day is the one on which it began, in UTC."""
        at = (key_id, int(record.time // _DAY))
        sums = self._sums.get(at)
        if sums is None:
            sums = self._sums[at] = _Sums()
        sums.requests += 1
        sums.last = max(sums.last, record.time)
        usage = record.usage
        for part in usage.parts():
            sums.input += part.input_tokens or 0
            sums.output += part.output_tokens or 0
            sums.cache_read += part.cache_read_input_tokens or 0
            sums.cache_creation += part.cache_creation_input_tokens or 0
        if record.cost is not None:
            sums.cost += record.cost
        elif usage.partial or usage.input_tokens is not None or usage.output_tokens is not None:
            sums.unpriced += 1

    def take(self) -> list[UsageRow]:
        """Return the usage since the last call."""
        taken, self._sums = self._sums, {}
        return [
            UsageRow(
                key_id=key_id,
                day=datetime.fromtimestamp(day * _DAY, UTC).date().isoformat(),
                requests=sums.requests,
                input_tokens=sums.input,
                output_tokens=sums.output,
                cache_read_input_tokens=sums.cache_read,
                cache_creation_input_tokens=sums.cache_creation,
                cost=sums.cost,
                unpriced=sums.unpriced,
                last_used=int(sums.last // 60) * 60,
            )
            for (key_id, day), sums in taken.items()
        ]
