"""The upstream's live list of models, kept for a few minutes.

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
"""How long a list is good for, in seconds."""

PATIENCE = 5.0
"""How long `ModelList.known` waits for the first list, in seconds."""

RETRY_AFTER = 60.0
"""How long `ModelList.known` goes without a list after a failure, in seconds."""

MAX_PAGES = 20

Model: TypeAlias = dict[str, Any]
"""An entry of upstream's list: JSON, looked at before it is used."""

_UNKNOWN: Model = {}

Get: TypeAlias = Callable[[str], Awaitable[tuple[int, bytes]]]
"""Gets a path with its query from the upstream; the answer's status and body."""


class UpstreamRefused(UpstreamError):
    """Upstream answered the request for its models with an error of its own.

    :param body: that answer's body.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("The upstream did not give its list of models.", status=status)
        self.body = body


class ModelList:
    """Fetches the list when it is wanted, once for all who want it at the same time."""

    def __init__(self, get: Get) -> None:
        self._get = get
        self._models: dict[str, Model] = {}
        self._good_until = 0.0
        self._retry_at = 0.0
        self._fetching: asyncio.Task[dict[str, Model]] | None = None

    async def models(self) -> dict[str, Model]:
        """The models by their ids, in upstream's order.

        :raises UpstreamRefused: upstream answered with an error.
        :raises UpstreamError: there is no answer, or it makes no sense.
        """
        if time.monotonic() < self._good_until:
            return self._models
        # shielded: who leaves does not take the answer away from the others who wait for it
        return await asyncio.shield(self._start())

    @property
    def is_known(self) -> bool:
        """Whether `known` would not wait."""
        return bool(self._models) or time.monotonic() < max(self._good_until, self._retry_at)

    async def known(self) -> dict[str, Model]:
        """The models as far as they are known, for requests that can go without.

        Only the first list is waited for, `PATIENCE` seconds at most. Later ones are fetched while
        the one before is used; after a failure no request waits for `RETRY_AFTER` seconds.
        """
        if time.monotonic() < max(self._good_until, self._retry_at):
            return self._models
        fetching = self._start()
        if not self._models:
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.shield(fetching)
            except (TimeoutError, UpstreamError):
                self._retry_at = time.monotonic() + RETRY_AFTER
        return self._models

    def max_tokens(self, names: Iterable[str]) -> int | None:
        """The highest output limit of these models; ``None`` if one is not known. Never waits."""
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
                    f"The upstream answered with status {status}, which is no list of models. Does "
                    "UPSTREAM_BASE_URL lead to the API?"
                )
            page = read_page(body)
            found |= {model["id"]: model for model in page["data"] if _is_model(model)}
            last = page.get("last_id")
            if page.get("has_more") is not True or not isinstance(last, str):
                break
            # half of a surrogate pair, which JSON can express, has no place in UTF-8
            path = f"/v1/models?limit=1000&after_id={quote(last, safe='', errors='replace')}"
        return found


def read_page(body: bytes) -> dict[str, Any]:  # Any: JSON from upstream
    """Return one page of the list of models.

    :raises UpstreamProtocolError: it is none.
    """
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        page = None
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise UpstreamProtocolError("The upstream's answer is not a list of models.")
    return page


def _is_model(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str)
