"""API keys for people, with limits, in the database ``KEYS_DB``: an SQLite file or PostgreSQL.

``python -m tornadoproxy keys create --name ada`` creates a key and shows it once. A request with
the key has the principal ``ada``. Other authenticators validate the credentials that do not begin
with ``tp-``. Keys that a command or the Admin API changes take effect in running proxies within
two seconds.

With ``KEYS_DB`` every request needs a credential: the plugin token then requires a token, and this
plugin rejects anonymous identities in `admit`, whichever authenticator returned them. Both hold on
any ``HOST``.

The limits of requests and tokens are checked in `admit`, before the body is read; the models in
`authorize`.

- `tornadoproxy_keys.gate`: authentication in a running proxy
- `tornadoproxy_keys.live_key`: the limits of one key
- `tornadoproxy_keys.usage_count`: the usage of each key that is not written yet
- `tornadoproxy_keys.store`: the tables
- `tornadoproxy_keys.changes`: changes of keys, with the audit trail
- `tornadoproxy_keys.api`, `wire`: the Admin API
- `tornadoproxy_keys.command`: ``keys create``, ``list``, ``revoke``, ``rotate``, ``audit`` and
  ``usage``
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tornadoproxy import (
    DATABASE_TIMEOUT,
    INACTIVE,
    SHARED_LIMITS,
    SHARED_LIMITS_FAILURE,
    Command,
    Identity,
    Inactive,
    IncomingRequest,
    ModelRequest,
    Permit,
    SecretURL,
    Setting,
    Settings,
    hookimpl,
    parsers,
    shared_counters,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from tornadoproxy import AllowedModels, Database, DatabaseLocation, DatabaseStatus, admin
    from tornadoproxy_keys.gate import Gate


KEYS_DB: Setting[DatabaseLocation | None] = Setting(
    "KEYS_DB",
    parsers.database,
    default=None,
    help=(
        "SQLite file, created if missing, or postgresql:// URL for the keys of `keys create`. With "
        "it, every request needs a credential."
    ),
    fixed=True,
    fallbacks=("DATABASE_URL",),
)


class Keys:
    """The plugin: it accepts keys, within their limits."""

    def __init__(self) -> None:
        self._gate: Gate | None = None
        self._timeout = DATABASE_TIMEOUT.default

    @hookimpl
    def declare_settings(self) -> tuple[Setting[DatabaseLocation | None]]:
        return (KEYS_DB,)

    @hookimpl
    def commands(self) -> tuple[Command]:
        return (
            Command(
                "keys",
                "create, list, revoke and rotate the keys of KEYS_DB, and show their usage",
                _add_arguments,
                _run,
            ),
        )

    @hookimpl
    def databases(
        self,
    ) -> dict[Setting[DatabaseLocation | None], Callable[[DatabaseLocation], Database]]:
        from tornadoproxy_keys import store

        return {KEYS_DB: store.database}

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the database.

        :raises ConfigurationError: it is invalid.
        """
        where = settings[KEYS_DB]
        if where is None:
            return INACTIVE
        self._timeout = settings[DATABASE_TIMEOUT]
        if self._gate is None:
            from tornadoproxy_keys.gate import Gate
            from tornadoproxy_keys.shared_limits import SharedLimits

            counters = shared_counters(settings)
            gate = Gate(
                where,
                None if counters is None else SharedLimits(counters),
                local=settings[SHARED_LIMITS_FAILURE] == "local",
            )
            gate.check()
            self._gate = gate
        self._gate.has_token = _has_token(settings)
        if not self._gate.has_keys():
            create = f"{sys.executable} -m tornadoproxy keys create --name ada"
            if not isinstance(where, SecretURL):
                import shlex  # most starts find keys

                create += f" --keys-db {shlex.quote(str(where.absolute()))}"
            return f"no keys in {where} yet; create one with `{create}`"
        line = f"clients with a key in {where}"
        if isinstance(where, SecretURL) and settings[SHARED_LIMITS] is None:
            line += "; their limits count in each proxy alone, unless SHARED_LIMITS is set"
        return line

    @hookimpl
    def admin_api(self) -> admin.Api:
        from tornadoproxy_keys.api import KeysApi  # few proxies serve the Admin API

        return KeysApi(self._opened()).api()

    @hookimpl
    async def startup(self) -> None:
        await self._opened().open(self._timeout)

    @hookimpl
    def database_status(self) -> list[DatabaseStatus]:
        return self._opened().database_status()

    @hookimpl
    async def shutdown(self) -> None:
        await self._opened().close()

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        return self._opened().authenticate(request)

    # first, because it is the cheapest check
    @hookimpl(tryfirst=True)
    def admit(
        self, request: IncomingRequest, identity: Identity
    ) -> Permit | Awaitable[Permit] | None:
        return self._opened().admit(request, identity)

    @hookimpl(tryfirst=True)
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | None:
        return self._opened().authorize(request, identity, model_request)

    @hookimpl
    def allowed_models(self, identity: Identity) -> AllowedModels | None:
        return self._opened().allowed_models(identity)

    def _opened(self) -> Gate:
        assert self._gate is not None, "configure() has returned that this plugin is active"
        return self._gate


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from tornadoproxy_keys import command

    command.add_arguments(parser)


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from tornadoproxy_keys import command

    return command.run(arguments, settings[KEYS_DB], has_token=_has_token(settings))


def _has_token(settings: Settings) -> bool:
    return settings.is_set("AUTH_TOKEN") or settings.is_set("AUTH_TOKEN_FILE")
