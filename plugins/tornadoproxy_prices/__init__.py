"""The cost of responses, by a dated price table that is part of the plugin.

The core reads the usage of a response; this plugin multiplies it by prices. ``PRICES_FILE``
replaces rows of the table or adds rows. A model in neither has the highest price of each kind of
token, and is named once in the log.

- `tornadoproxy_prices.price_table`: price tables; `tornadoproxy_prices.shipped`: the built-in one
- `tornadoproxy_prices.price_file`: the parser of ``PRICES_FILE``
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
"""The most unknown models that are named in the log, because a client may ask for any."""

MAX_NAME = 80
"""The longest name of a model in the log, in characters."""

logger = logging.getLogger(__name__)


def _prices_file(value: str) -> PriceTable:
    """Return the price table in a file."""
    from tornadoproxy_prices import price_file  # imported when it is used, which is rare

    path = parsers.readable_file(value)
    try:
        return price_file.read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"must be a price file, but {value!r} {_reason(error)}") from None


PRICES_FILE: Setting[PriceTable | None] = Setting(
    "PRICES_FILE",
    _prices_file,
    default=None,
    help=(
        "TOML file of prices that replace, or add to, those of the command prices. Reloaded on "
        "SIGHUP."
    ),
)


class Pricer:
    """The plugin: it prices the usage of responses."""

    def __init__(self) -> None:
        self._prices: Prices | None = None
        self._named: set[str] = set()

    @hookimpl
    def declare_settings(self) -> tuple[Setting[PriceTable | None]]:
        return (PRICES_FILE,)

    @hookimpl
    def commands(self) -> tuple[Command]:
        command = Command("prices", "show the prices of models, and their date", _arguments, _show)
        return (command,)

    @hookimpl
    def configure(self, settings: Settings) -> str:
        """Take the prices; the line says which."""
        self._prices = _prices(settings)
        self._named = set()
        return self._prices.describe()

    @hookimpl(trylast=True)
    def price(self, model: str, usage: Usage) -> int | None:
        """Return the cost of `usage`; ``None`` if the usage is unknown."""
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
        last = " No further model is named." if len(self._named) == MAX_NAMED else ""
        logger.warning(
            "the model %s has no price: it is charged the highest price of each kind of token. "
            "Add it to PRICES_FILE.%s",
            name,
            last,
        )


def _prices(settings: Settings) -> Prices:
    # imported when it is used, so that an inactive plugin costs nothing
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
