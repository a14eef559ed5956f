"""Spending caps for a person, a group or everyone, for each day, week or month.

``python -m tornadoproxy budgets set --everyone --period monthly --amount 500`` sets a cap, and so
does the Admin API at ``/v1/organizations/spend_limits``. A cap takes effect in running proxies
within two seconds. Prices come from the plugins that implement `price`.

- `tornadoproxy_budgets.engine`: the decision, and the sums spent and reserved
- `tornadoproxy_budgets.caps`, `periods`, `money`, `state`: its values
- `tornadoproxy_budgets.keeper`: requests
- `tornadoproxy_budgets.sync`: the engine and the database
- `tornadoproxy_budgets.shared_reservations`: the sums of several proxies together
- `tornadoproxy_budgets.spend_headers`, `usage_page`: what Claude Code shows of a person's spend
- `tornadoproxy_budgets.refusals`: the errors that clients get
- `tornadoproxy_budgets.storage`: the tables
- `tornadoproxy_budgets.api`, `wire`, `increases_api`: the Admin API
- `tornadoproxy_budgets.increases`: requests for higher caps
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
    Identity,
    Inactive,
    IncomingRequest,
    ModelRequest,
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

    from tornadoproxy import Database, DatabaseLocation, DatabaseStatus, Page, admin
    from tornadoproxy_budgets.keeper import Keeper


BUDGETS_DB: Setting[DatabaseLocation | None] = Setting(
    "BUDGETS_DB",
    parsers.database,
    default=None,
    help="SQLite file, created if missing, or postgresql:// URL for the caps and the spend",
    fixed=True,
    fallbacks=("DATABASE_URL",),
)
BUDGETS_MESSAGE: Setting[str | None] = Setting(
    "BUDGETS_MESSAGE",
    parsers.text,
    default=None,
    help="text that ends the error of a reached cap, for example where to ask for a higher one",
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
        self._has_admins = False

    @hookimpl
    def declare_settings(self) -> tuple[Setting[DatabaseLocation | None], Setting[str | None]]:
        return (BUDGETS_DB, BUDGETS_MESSAGE)

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
        """Take the database.

        :raises ConfigurationError: it is invalid.
        """
        where = settings[BUDGETS_DB]
        if where is None:
            return INACTIVE
        self._timeout = settings[DATABASE_TIMEOUT]
        self._has_admins = settings.is_set("ADMIN_KEY") or settings.is_set("OIDC_ADMIN_GROUPS")
        if self._keeper is None:
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
        self._keeper.message = settings[BUDGETS_MESSAGE]
        if not settings.is_set("KEYS_DB") and not settings.is_set("OIDC_ISSUER"):
            _logger.warning("%s", ONE_PERSON)
        return f"spending caps in {where}"

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        """Return the page of a person's usage, and of requests for higher caps.

        The latter is left out if nobody can grant them.
        """
        from tornadoproxy_budgets.usage_page import UsagePage

        usage = UsagePage(self._opened().sync.engine).page()
        if not self._has_admins:
            return (usage,)
        from tornadoproxy_budgets.api import SpendLimitsApi  # few proxies serve the Admin API
        from tornadoproxy_budgets.increases_api import IncreasesApi

        sync = self._opened().sync
        return usage, IncreasesApi(sync, SpendLimitsApi(sync)).page()

    @hookimpl
    def admin_api(self) -> admin.Api:
        from tornadoproxy_budgets.api import SpendLimitsApi  # few proxies serve the Admin API

        return SpendLimitsApi(self._opened().sync).api()

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

    # last, because a request that another plugin rejects must not reserve anything; one that waits
    # for its key's limits meanwhile gives back what it has reserved when these refuse it
    @hookimpl(trylast=True)
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | Awaitable[Permit] | None:
        return self._opened().authorize(request, identity, model_request)

    def _opened(self) -> Keeper:
        assert self._keeper is not None, "configure() has returned that this plugin is active"
        return self._keeper


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from tornadoproxy_budgets import command

    command.add_arguments(parser)


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from tornadoproxy_budgets import command

    return command.run(arguments, settings[BUDGETS_DB], keyed=settings.is_set("KEYS_DB"))
