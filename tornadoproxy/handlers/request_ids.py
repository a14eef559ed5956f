"""The ids that the proxy gives to requests of its own accord."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BYTES = 12
_AT_ONCE = 256


def request_ids() -> Iterator[str]:
    """Ids without end, which nobody can guess.

    The system is asked for many at once: to ask it for each takes longer than all the rest.
    """
    while True:
        drawn = secrets.token_hex(_BYTES * _AT_ONCE)
        for start in range(0, len(drawn), 2 * _BYTES):
            yield "req_" + drawn[start : start + 2 * _BYTES]
