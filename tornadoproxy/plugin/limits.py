"""What a person may use, and the counters of ``SHARED_LIMITS``, which count it for all proxies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy.config.core_settings import DATABASE_TIMEOUT, SHARED_LIMITS

if TYPE_CHECKING:
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.storage.shared_counters import SharedCounters

LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")
CAPS = ("daily", "weekly", "monthly")


class Allowance(Struct, frozen=True, omit_defaults=True):
    """What an authenticator lets a person use; ``None`` is no limit.

    The plugin ``keys`` applies the limits of rate and concurrency, and ``budgets`` the caps. Each
    does so only if it is active; an authenticator checks that at start.

    :param requests_per_minute: the most requests within a minute, from 1 on.
    :param tokens_per_minute: the tokens within a minute after which requests are rejected.
    :param concurrency: the most requests in flight.
    :param daily: the most that the person may spend on a day, in cents.
    :param weekly: in a week, from Monday on.
    :param monthly: in a month.
    :param group: the group that this applies to; ``None`` is everybody.
    :raises ValueError: a limit is lower than 1, or a cap lower than 0.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for names, least in ((LIMITS, 1), (CAPS, 0)):
            for name in names:
                value = getattr(self, name)
                if value is not None and (type(value) is not int or value < least):
                    raise ValueError(f"{name} must be a whole number from {least} on")

    @property
    def has_limits(self) -> bool:
        """Whether it has a limit of rate or concurrency."""
        return any(getattr(self, name) is not None for name in LIMITS)

    @property
    def has_caps(self) -> bool:
        """Whether it has a cap."""
        return any(getattr(self, name) is not None for name in CAPS)


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
