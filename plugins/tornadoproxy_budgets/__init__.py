"""Spending caps for a person, a group or everyone, for each day, week or month.

``python -m tornadoproxy budgets set --everyone --period monthly --amount 500`` sets a cap, and so
does the Admin API at ``/v1/organizations/spend_limits``. A cap takes effect in running proxies
within two seconds. Prices come from the plugins that implement `price`.

- `tornadoproxy_budgets.engine`: the decision, and the sums spent and reserved
- `tornadoproxy_budgets.caps`, `periods`, `money`: its values
- `tornadoproxy_budgets.keeper`: requests
- `tornadoproxy_budgets.sync`: the engine and the database
- `tornadoproxy_budgets.shared_reservations`: the sums of several proxies together
- `tornadoproxy_budgets.refusals`: the errors that clients get
- `tornadoproxy_budgets.storage`: the tables
- `tornadoproxy_budgets.api`, `wire`, `admin_keys`: the Admin API
- `tornadoproxy_budgets.command`: ``budgets set``, ``list``, ``remove``, ``show``, ``audit``
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tornadoproxy import (
    DATABASE_TIMEOUT,
    INACTIVE,
    SHARED_LIMITS_FAILURE,
    Command,
    ConfigurationError,
    Identity,
    Inactive,
    IncomingRequest,
    ModelRequest,
    Page,
    Permit,
    Setting,
    Settings,
    hookimpl,
    parsers,
    shared_counters,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from tornadoproxy import Database, DatabaseLocation, DatabaseStatus
    from tornadoproxy_budgets.admin_keys import AdminKey
    from tornadoproxy_budgets.api import SpendLimitsApi
    from tornadoproxy_budgets.keeper import Keeper


def _parse_keys(value: str) -> tuple[AdminKey, ...]:
    from tornadoproxy_budgets.admin_keys import parse_keys  # most starts set no key

    return parse_keys(value)


BUDGETS_DB: Setting[DatabaseLocation | None] = Setting(
    "BUDGETS_DB",
    parsers.database,
    default=None,
    help="SQLite file, created if missing, or postgresql:// URL for the caps and the spend",
    fixed=True,
    fallbacks=("DATABASE_URL",),
)
BUDGETS_ADMIN_KEY: Setting[tuple[AdminKey, ...]] = Setting(
    "BUDGETS_ADMIN_KEY",
    _parse_keys,
    default=(),
    help=(
        "keys for /v1/organizations/spend_limits, separated by spaces: each NAME=KEY or KEY, "
        "the key of at least 32 characters. That API is off without one."
    ),
    secret=True,
)
BUDGETS_ADMIN_READ_KEY: Setting[tuple[AdminKey, ...]] = Setting(
    "BUDGETS_ADMIN_READ_KEY",
    _parse_keys,
    default=(),
    help="keys for the same API that may only read, in the same format",
    secret=True,
)

ONE_PERSON = (
    "BUDGETS_DB is set without KEYS_DB: all clients with AUTH_TOKEN count as one person, token. "
    "Set KEYS_DB and give each person a key with `keys create`, unless another authenticator "
    "distinguishes them"
)

_logger = logging.getLogger(__name__)


class Budgets:
    """The plugin: it rejects requests of people whose cap is reached."""

    def __init__(self) -> None:
        self._keeper: Keeper | None = None
        self._timeout = DATABASE_TIMEOUT.default
        self._api: SpendLimitsApi | None = None

    @hookimpl
    def declare_settings(
        self,
    ) -> tuple[Setting[DatabaseLocation | None] | Setting[tuple[AdminKey, ...]], ...]:
        return BUDGETS_DB, BUDGETS_ADMIN_KEY, BUDGETS_ADMIN_READ_KEY

    @hookimpl
    def commands(self) -> tuple[Command]:
        return (
            Command(
                "budgets",
                "set, list and remove the caps of BUDGETS_DB, and show remaining amounts",
                _add_arguments,
                _run,
            ),
        )

    @hookimpl
    def databases(
        self,
    ) -> dict[Setting[DatabaseLocation | None], Callable[[DatabaseLocation], Database]]:
        from tornadoproxy_budgets import storage

        return {BUDGETS_DB: storage.database}

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the database and the admin keys.

        :raises ConfigurationError: they are invalid.
        """
        where = settings[BUDGETS_DB]
        _check_admin_keys(settings)
        if where is None:
            return INACTIVE
        from tornadoproxy_budgets.admin_keys import AdminKeys

        keys = AdminKeys(settings[BUDGETS_ADMIN_KEY], settings[BUDGETS_ADMIN_READ_KEY])
        self._timeout = settings[DATABASE_TIMEOUT]
        if self._keeper is None:
            from tornadoproxy_budgets.api import SpendLimitsApi
            from tornadoproxy_budgets.keeper import Keeper
            from tornadoproxy_budgets.shared_reservations import SharedReservations

            counters = shared_counters(settings)
            keeper = Keeper(
                where,
                None if counters is None else SharedReservations(counters),
                local=settings[SHARED_LIMITS_FAILURE] == "local",
            )
            keeper.sync.check()
            self._keeper = keeper
            self._api = SpendLimitsApi(keeper.sync, keys)
        else:
            self._opened_api().keys = keys
        if not settings.is_set("KEYS_DB"):
            _logger.warning("%s", ONE_PERSON)
        return f"spending caps in {where}"

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        return self._opened_api().pages()

    @hookimpl
    async def startup(self) -> None:
        await self._opened().open(self._timeout)

    @hookimpl
    def database_status(self) -> list[DatabaseStatus]:
        return self._opened().database_status()

    @hookimpl
    async def shutdown(self) -> None:
        await self._opened().close()

    @hookimpl(trylast=True)
    def admit(self, request: IncomingRequest, identity: Identity) -> None:
        self._opened().admit(request, identity)

    # last, because a request that another plugin rejects must not reserve anything
    @hookimpl(trylast=True)
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | Awaitable[Permit] | None:
        return self._opened().authorize(request, identity, model_request)

    def _opened(self) -> Keeper:
        assert self._keeper is not None, "configure() has returned that this plugin is active"
        return self._keeper

    def _opened_api(self) -> SpendLimitsApi:
        assert self._api is not None, "configure() has returned that this plugin is active"
        return self._api


def _check_admin_keys(settings: Settings) -> None:
    write, read = settings[BUDGETS_ADMIN_KEY], settings[BUDGETS_ADMIN_READ_KEY]
    if settings[BUDGETS_DB] is None and (write or read):
        variable = BUDGETS_ADMIN_KEY.name if write else BUDGETS_ADMIN_READ_KEY.name
        raise ConfigurationError(f"{variable} is set without BUDGETS_DB; set BUDGETS_DB to a file.")
    if {key.secret for key in write} & {key.secret for key in read}:
        raise ConfigurationError(
            "BUDGETS_ADMIN_KEY and BUDGETS_ADMIN_READ_KEY share a key; replace one of the two."
        )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from tornadoproxy_budgets import command

    command.add_arguments(parser)


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from tornadoproxy_budgets import command

    return command.run(arguments, settings[BUDGETS_DB], keyed=settings.is_set("KEYS_DB"))
