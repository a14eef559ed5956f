"""The counters of ``SHARED_LIMITS``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import DATABASE_TIMEOUT, SHARED_LIMITS

if TYPE_CHECKING:
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.storage.shared_counters import SharedCounters


def shared_counters(settings: Settings) -> SharedCounters | None:
    """Return the counters in the server of ``SHARED_LIMITS``; ``None`` if that is not set.

    All plugins of a proxy get the same ones, so that they share a connection.

    :raises ConfigurationError: the URL is not valid, or the library is not installed.
    """
    return settings.once(_counters)


def _counters(settings: Settings) -> SharedCounters | None:
    url = settings[SHARED_LIMITS]
    if url is None:
        return None
    from tornadoproxy.storage.shared_counters import SharedCounters

    return SharedCounters(url, setting=SHARED_LIMITS.name, timeout=settings[DATABASE_TIMEOUT])
