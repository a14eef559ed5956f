"""The store of responses and their items, which later requests can name.

A response, and the items of its request and its own, belong to the principal whose request it was.
For every other principal they do not exist: the same as an unknown id.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Sequence

    from tornadoproxy.openai.reading import Json

_logger = logging.getLogger(__name__)


class Stored(NamedTuple):
    """A response that is kept.

    :param response: the response object.
    :param input: the input items of its own request.
    :param previous: the id of the response that it continues.
    """

    response: Json
    input: tuple[Json, ...]
    previous: str | None


class ResponseStore(Protocol):
    """Keeps responses for a time.

    Every method but `put` raises `ProxyError` with status 503 if the store cannot be used at
    present.
    """

    def put(
        self,
        principal: str,
        response: Json,
        own_input: Sequence[Json],
        previous: str | None,
        size: int,
    ) -> Awaitable[None] | None:
        """Keep a response in place of one of the same id. Never raises: a failure is logged.

        :param own_input: the input items of its own request, not of those before.
        :param previous: the id of the response that it continues.
        :param size: of the request and the response, in bytes; a thread encodes large ones.
        :return: something to await, if keeping it has to wait. After that, other processes that
            share the store find it.
        """
        ...

    async def history(self, principal: str, response_id: str) -> list[Json] | None:
        """Return the items of a response and of all that it continues, the oldest first.

        :return: of each response its input, then its output; ``None`` if one of the responses is
            not kept.
        :raises InvalidRequest: they are too large for a request.
        """
        ...

    async def items(self, principal: str, ids: Collection[str]) -> dict[str, Json]:
        """Return the items of these ids that are kept; of two with one id, the one put last.

        An input item without an id is found by the one that `responses.made_id` gives it.

        :raises InvalidRequest: they are too large for a request.
        """
        ...

    async def get(self, principal: str, response_id: str) -> Stored | None:
        """Return a response; ``None`` if it is not kept."""
        ...

    async def delete(self, principal: str, response_id: str) -> bool:
        """Delete a response with its items; return whether it was kept.

        A response that continues it has no history from then on.
        """
        ...


class Losses:
    """The responses that could not be kept, of which the 1st, 2nd, 4th, 8th … are logged.

    :ivar total: how many.
    """

    def __init__(self) -> None:
        self.total = 0

    def count(self, reason: str) -> None:
        """Count a response.

        :param reason: why it could not be kept, and what to do.
        """
        self.total += 1
        if self.total & (self.total - 1) == 0:
            _logger.error(
                "%d responses could not be stored, the last because %s", self.total, reason
            )
