"""Says what an answer costs, by a table of prices that ships with its date.

What an answer consumed is read by the core; this plugin multiplies. ``PRICES_FILE`` replaces rows
of the table, or adds to them. A model that is in neither is priced at the dearest, and named once
in the log.

- `tornadoproxy_prices.price_table`: what a table of prices is; `tornadoproxy_prices.shipped`: ours
- `tornadoproxy_prices.price_file`: reads one of the operator's own
- `tornadoproxy_prices.command`: ``python -m tornadoproxy prices``
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tornadoproxy import UNKNOWN_MODEL, Command, Setting, Settings, Usage, hookimpl, parsers

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from tornadoproxy_prices.price_table import Prices, PriceTable

MAX_NAMED = 100
"""How many unknown models are named in the log: a client may ask for any."""

MAX_NAME = 80
"""How much of a model's name is written, in characters."""

logger = logging.getLogger(__name__)


def _prices_file(value: str) -> PriceTable:
    """The path of a file of prices."""
    from tornadoproxy_prices import price_file  # most need none

    path = parsers.readable_file(value)
    try:
        return price_file.read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"must name a file of prices, but {value!r} {_reason(error)}") from None


PRICES_FILE: Setting[PriceTable | None] = Setting(
    "PRICES_FILE",
    _prices_file,
    default=None,
    help=(
        "A TOML file of prices that replace those of the command prices, or are added to them. "
        "Read again on SIGHUP."
    ),
)


class Pricer:
    """Prices what answers consumed."""

    def __init__(self) -> None:
        self._prices: Prices | None = None
        self._named: set[str] = set()

    @hookimpl
    def declare_settings(self) -> tuple[Setting[PriceTable | None]]:
        return (PRICES_FILE,)

    @hookimpl
    def commands(self) -> tuple[Command]:
        command = Command("prices", "Show what models cost, and since when.", _arguments, _show)
        return (command,)

    @hookimpl
    def configure(self, settings: Settings) -> str:
        """Take the prices; the line says which."""
        self._prices = _prices(settings)
        self._named = set()
        return self._prices.describe()

    @hookimpl(trylast=True)
    def price(self, model: str, usage: Usage) -> int | None:
        """What `usage` costs; ``None`` if it tells of nothing."""
        if usage.input_tokens is None and usage.output_tokens is None:
            return None
        prices = self._prices
        assert prices is not None
        row = prices.row(model)
        if row is None:
            if model != UNKNOWN_MODEL:
                self._name(model)
            row = prices.dearest
        return row.cost(usage, prices.web_search)

    def _name(self, model: str) -> None:
        name = ascii(model[:MAX_NAME])
        if name in self._named or len(self._named) == MAX_NAMED:
            return
        self._named.add(name)
        last = " No other model will be named." if len(self._named) == MAX_NAMED else ""
        logger.warning(
            "nobody knows what the model %s costs: it is priced as the dearest. Put it into "
            "PRICES_FILE.%s",
            name,
            last,
        )


def _prices(settings: Settings) -> Prices:
    # not loaded where the plugin is not asked
    from tornadoproxy_prices.price_table import Prices
    from tornadoproxy_prices.shipped import SHIPPED

    return Prices(SHIPPED, settings[PRICES_FILE])


def _arguments(parser: ArgumentParser) -> None:
    from tornadoproxy_prices import command

    command.add_arguments(parser)


def _show(arguments: Namespace, settings: Settings) -> int:
    from tornadoproxy_prices import command

    return command.show(_prices(settings), arguments.format)


def _reason(error: OSError | ValueError) -> str:
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
