"""Reading the ledger outside of the event loop, on a connection of its own, as of one moment."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from tornadoproxy import ConfigurationError, DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy import Database, DatabaseConnection

T = TypeVar("T")

_logger = logging.getLogger(__name__)


async def read(database: Database, work: Callable[[DatabaseConnection], T]) -> T:
    """Return what `work` reads.

    :raises DatabaseUnavailable: the database cannot be read.
    """
    return await asyncio.to_thread(_read, database, work)


async def read_for_request(database: Database, work: Callable[[DatabaseConnection], T]) -> T:
    """Do the same for a request, whose response refers to the log if the database cannot be read.

    :raises DatabaseUnavailable: so it is.
    """
    try:
        return await read(database, work)
    except DatabaseUnavailable as error:
        _logger.warning("a report cannot be made: %s", error)
        raise


def _read(database: Database, work: Callable[[DatabaseConnection], T]) -> T:
    try:
        with database.reading() as connection:
            return work(connection)
    except ConfigurationError as error:  # what a command would end with
        raise DatabaseUnavailable(str(error)) from None
