"""Scripts that change shared counters."""

from __future__ import annotations

import hashlib


class Script:
    """A script in Lua.

    :param source: its text; ``KEYS`` and ``ARGV`` are what it is run with.
    """

    __slots__ = ("digest", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        # the server's name for it (https://redis.io/docs/latest/commands/evalsha/)
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
