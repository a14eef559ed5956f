"""The Admin API at ``/v1/organizations/``, in Anthropic's format, for administrators.

The plugins that own data declare its resources by the hook `admin_api`: ``keys`` the API keys,
``budgets`` the spend limits, ``ledger`` the usage and cost reports. This plugin does what they have
in common: it authenticates, finds the resource, writes responses, and merges the audit trails.

- `tornadoproxy_admin.keys`: the admin keys
- `tornadoproxy_admin.administrators`: who sends a request
- `tornadoproxy_admin.service`: requests
- `tornadoproxy_admin.events`: the audit trail
- `tornadoproxy_admin.people`: users and groups
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Inactive,
    Page,
    Setting,
    Settings,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy import RunningProxy, admin
    from tornadoproxy_admin.administrators import Administrators
    from tornadoproxy_admin.keys import AdminKey, AdminKeys


def _parse_keys(value: str) -> tuple[AdminKey, ...]:
    from tornadoproxy_admin.keys import parse_keys  # most starts set no key

    return parse_keys(value)


ADMIN_KEY: Setting[tuple[AdminKey, ...]] = Setting(
    "ADMIN_KEY",
    _parse_keys,
    default=(),
    help=(
        "keys of the Admin API at /v1/organizations, separated by spaces: each NAME=KEY or KEY, "
        "the key of at least 32 characters. Without a key, and without OIDC_ADMIN_GROUPS, there is "
        "no Admin API."
    ),
    secret=True,
    fallbacks=("BUDGETS_ADMIN_KEY",),
)
ADMIN_READ_KEY: Setting[tuple[AdminKey, ...]] = Setting(
    "ADMIN_READ_KEY",
    _parse_keys,
    default=(),
    help="keys of the Admin API that may only read, in the format of ADMIN_KEY",
    secret=True,
    fallbacks=("BUDGETS_ADMIN_READ_KEY",),
)


ADMIN_GROUPS = ("OIDC_ADMIN_GROUPS", "OIDC_ADMIN_READ_GROUPS")
"""Settings of the plugin ``oidc`` whose people are administrators, so that no key is needed."""


class Admin:
    """The plugin: it serves the resources that other plugins declare."""

    def __init__(self) -> None:
        self._keys: AdminKeys | None = None
        self._administrators: Administrators | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[tuple[AdminKey, ...]], ...]:
        return ADMIN_KEY, ADMIN_READ_KEY

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the admin keys.

        :raises ConfigurationError: they are invalid.
        """
        write, read = settings[ADMIN_KEY], settings[ADMIN_READ_KEY]
        by_group = [name for name in ADMIN_GROUPS if settings.is_set(name)]
        if not (write or read or by_group):
            return INACTIVE
        from tornadoproxy_admin.keys import AdminKeys

        self._keys = AdminKeys(write, read)
        if self._administrators is not None:
            self._administrators.keys = self._keys
        people = f", and the people of {' and '.join(by_group)}" if by_group else ""
        return f"the Admin API at /v1/organizations; admin keys: {len(write) + len(read)}{people}"

    @hookimpl
    def pages(
        self, admin_apis: Callable[[], Sequence[admin.Api]], proxy: RunningProxy
    ) -> tuple[Page, ...]:
        """Return the page of the whole API.

        :raises ConfigurationError: no plugin has anything to administer.
        """
        from tornadoproxy_admin.administrators import Administrators
        from tornadoproxy_admin.service import Service

        assert self._keys is not None, "configure() has returned that this plugin is active"
        apis = admin_apis()
        if not apis:
            raise ConfigurationError(
                "ADMIN_KEY, ADMIN_READ_KEY or OIDC_ADMIN_GROUPS is set, but there is nothing to "
                "administer: set KEYS_DB, BUDGETS_DB or LEDGER_DB to a database."
            )
        self._administrators = Administrators(self._keys, proxy)
        return (Service(self._administrators).page(apis),)
