"""The upstream's list of models, cached for a few minutes.

Source: https://docs.anthropic.com/en/api/models-list
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias
from urllib.parse import quote

from tornadoproxy.errors import UpstreamError, UpstreamProtocolError

LIFETIME = 300.0
"""How long a list is used, in seconds."""

FIRST_TIMEOUT = 5.0
"""How long `ModelList.known` waits for the first list, in seconds."""

RETRY_AFTER = 60.0
"""How long `ModelList.known` does not wait for a list after an error, in seconds."""

MAX_PAGES = 20

Model: TypeAlias = dict[str, Any]
"""An entry of the list: JSON whose fields are not validated."""

_UNKNOWN: Model = {}

Get: TypeAlias = Callable[[str], Awaitable[tuple[int, bytes]]]
"""A function that gets a path with its query from the upstream: status and body."""


class UpstreamRefused(UpstreamError):
    """An error of the upstream in response to the request for its models.

    :param body: the body of that response.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("The upstream refused to list its models.", status=status)
        self.body = body


class ModelList:
    """The list, fetched on demand, once for all callers that wait at the same time."""

    def __init__(self, get: Get) -> None:
        self._get = get
        self._models: dict[str, Model] = {}
        self._good_until = 0.0
        self._retry_at = 0.0
        self._fetching: asyncio.Task[dict[str, Model]] | None = None

    async def models(self) -> dict[str, Model]:
        """Return the models by their ids, in the upstream's order.

        :raises UpstreamRefused: the upstream responded with an error.
        :raises UpstreamError: there is no response, or it is not a list of models.
        """
        if time.monotonic() < self._good_until:
            return self._models
        # shielded: a caller that is cancelled must not cancel the fetch for the others
        return await asyncio.shield(self._start())

    @property
    def is_known(self) -> bool:
        """Whether `known` would not wait."""
        return bool(self._models) or time.monotonic() < max(self._good_until, self._retry_at)

    async def known(self) -> dict[str, Model]:
        """Return the models if they are known, for requests that do not depend on them.

        Only the first list is waited for, `FIRST_TIMEOUT` seconds at most. Later ones are fetched
        while the previous one is used. For `RETRY_AFTER` seconds after an error nothing waits.
        """
        if time.monotonic() < max(self._good_until, self._retry_at):
            return self._models
        fetching = self._start()
        if not self._models:
            try:
                async with asyncio.timeout(FIRST_TIMEOUT):
                    await asyncio.shield(fetching)
            except (TimeoutError, UpstreamError):
                self._retry_at = time.monotonic() + RETRY_AFTER
        return self._models

    def max_tokens(self, names: Iterable[str]) -> int | None:
        """Return the highest output limit of these models; ``None`` if one is unknown."""
        highest = 0
        for name in names:
            limit = self._models.get(name, _UNKNOWN).get("max_tokens")
            if type(limit) is not int or limit <= 0:
                return None
            highest = max(highest, limit)
        return highest

    def close(self) -> None:
        """Stop fetching."""
        if self._fetching is not None:
            self._fetching.cancel()

    def _start(self) -> asyncio.Task[dict[str, Model]]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, task: asyncio.Task[dict[str, Model]]) -> None:
        self._fetching = None
        if task.cancelled():
            return
        if task.exception() is not None:
            self._retry_at = time.monotonic() + RETRY_AFTER
            return
        self._models = task.result()
        self._good_until = time.monotonic() + LIFETIME

    async def _fetch(self) -> dict[str, Model]:
        found: dict[str, Model] = {}
        path = "/v1/models?limit=1000"
        for _ in range(MAX_PAGES):
            status, body = await self._get(path)
            if status >= 400:
                raise UpstreamRefused(status, body)
            if status != 200:
                raise UpstreamProtocolError(
                    f"The upstream responded with status {status} instead of a list of models. "
                    "Check that UPSTREAM_BASE_URL names the API."
                )
            page = read_page(body)
            found |= {model["id"]: model for model in page["data"] if _is_model(model)}
            last = page.get("last_id")
            if page.get("has_more") is not True or not isinstance(last, str):
                break
            # JSON can contain half of a surrogate pair, which UTF-8 cannot encode
            path = f"/v1/models?limit=1000&after_id={quote(last, safe='', errors='replace')}"
        return found


def read_page(body: bytes) -> dict[str, Any]:  # Any: JSON from upstream
    """Return one page of the list of models.

    :raises UpstreamProtocolError: `body` is not such a page.
    """
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        page = None
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise UpstreamProtocolError("The upstream's response is not a list of models.")
    return page


def _is_model(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str)
