"""The key that is sent upstream, and the variable that sets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import (
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
)

if TYPE_CHECKING:
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.secret import Secret


def upstream_key(settings: Settings) -> Secret | None:
    """Return the key that is sent upstream; ``None`` if there is none.

    The file takes precedence over the fallback ``ANTHROPIC_API_KEY``; together with
    ``UPSTREAM_API_KEY`` it is an error at start.
    """
    return settings[UPSTREAM_API_KEY_FILE] or settings[UPSTREAM_API_KEY]


def upstream_key_variable(settings: Settings) -> str | None:
    """Return the variable that the upstream's key came from."""
    if settings[UPSTREAM_API_KEY_FILE] is not None:
        return UPSTREAM_API_KEY_FILE.name
    return settings.variable(UPSTREAM_API_KEY)
