"""The cost of usage: the first plugin that knows the price of a model decides.

Costs are integers, in billionths of a US dollar.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from msgspec import structs

from tornadoproxy.config.core_settings import PLUGIN_TIMEOUT
from tornadoproxy.plugin.failures import OurOwnError, discard, held_the_loop
from tornadoproxy.protocol.usage import NOTHING_USED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy.plugin.loading.implementations import PluginCall
    from tornadoproxy.protocol.usage import Usage

MAX_COST = 2**63 - 1  # the largest integer of a database

_DOLLAR = 1_000_000_000


class Pricing:
    """Asks the plugins what usage costs.

    :param calls: the implementations of ``price``, in order.
    :param count_failure: called with a plugin, the hook and the error when a plugin fails.
    :ivar timeout: seconds that a plugin may block the event loop.
    """

    def __init__(
        self, calls: list[PluginCall], count_failure: Callable[[str, str, BaseException], None]
    ) -> None:
        self.timeout = PLUGIN_TIMEOUT.default
        self._calls = calls
        self._count_failure = count_failure

    def price(self, model: str | None, usage: Usage) -> int | None:
        """Return the cost of `usage`, `others` included; see `Plugins.price`."""
        if not usage.others:
            return self._price_of_one(model, usage)
        own = self._price_of_one(model, structs.replace(usage, others=()))
        costs = [own, *(other.cost for other in usage.others)]
        known = [cost for cost in costs if cost is not None]
        return min(sum(known), MAX_COST) if len(known) == len(costs) else None

    def priced(self, usage: Usage) -> Usage:
        """Return `usage` with the cost of each of its `others`."""
        others = (
            structs.replace(other, cost=self._price_of_one(other.model, other.usage))
            for other in usage.others
        )
        return structs.replace(usage, others=tuple(others))

    def _price_of_one(self, model: str | None, usage: Usage) -> int | None:
        if model is None or (usage.input_tokens is None and usage.output_tokens is None):
            return None
        if usage.output_tokens == 0 and usage == NOTHING_USED:
            return 0
        for plugin, ask in self._calls:
            began = monotonic()
            try:
                cost = ask(model, usage)
            except BaseException as error:
                self._count_failure(plugin, "price", error)
                continue
            if (took := monotonic() - began) > self.timeout:
                self._count_failure(plugin, "price", held_the_loop(took, self.timeout))
                continue
            if type(cost) is int and cost >= 0:
                return cost
            if cost is not None:
                discard(cost)
                kind = type(cost).__name__
                failed = OurOwnError(f"its {kind} is neither None nor an int from 0 on")
                self._count_failure(plugin, "price", failed)
        return None


def usd(nanos: int) -> str:
    """Return the amount in US dollars with all its digits, and at least two decimals.

    ``12.50``, ``0.000108``, ``1.500000001``. The caller adds a dollar sign.
    """
    whole, rest = divmod(abs(nanos), _DOLLAR)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole}.{f'{rest:09}'.rstrip('0').ljust(2, '0')}"
