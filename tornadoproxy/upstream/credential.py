"""A credential that is loaded in a thread, and loaded anew ahead of its end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from tornadoproxy.errors import UpstreamError, UpstreamTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

logger = logging.getLogger(__name__)

AHEAD = 300.0
"""How long before its end a credential is loaded anew, in seconds."""

LOAD_TIMEOUT = 30.0
"""How long a request waits for a credential, in seconds."""

NEW = 10.0
"""The time between two loads that are not needed at once, in seconds."""

RENEWAL_INTERVAL = 60.0
"""The time between two renewals, in seconds: a 403 is often not about the credential."""


class RefreshedCredential(Generic[T]):
    """A credential that ends, such as an access token. The event loop never waits for it.

    One load runs at a time, in a thread of its own. While the credential has not ended, requests
    take it at once, and a load ahead of its end delays none of them.

    :param name: for errors and the log: whose credential it is.
    :param load: returns the credential, and when it ends, by `time.time`; ``None`` for one that
        does not end. It may block and raise anything; of an exception only its type is shown.
    """

    def __init__(self, name: str, load: Callable[[], tuple[T, float | None]]) -> None:
        self._name = name
        self._load = load
        self._value: T | None = None
        self._ends: float | None = None
        self._loaded_at = 0.0
        self._tried_at = 0.0
        self._renewed_at = 0.0
        self._loading: asyncio.Future[None] | None = None

    def current(self) -> T | None:
        """Return the credential if it has not ended; ``None`` if it has to be awaited by `get`."""
        left = None if self._ends is None else self._ends - time.time()
        if self._value is None or (left is not None and left <= 0):
            return None
        if left is not None and left < AHEAD and time.time() - self._tried_at > NEW:
            self._begin_load()
        return self._value

    async def get(self) -> T:
        """Return the credential, once it is loaded.

        :raises UpstreamError: it cannot be loaded.
        """
        value = self.current()
        if value is None:
            await self._until_loaded()
            assert self._value is not None
            value = self._value
        return value

    async def renew(self) -> bool:
        """Load the credential anew, since it was refused.

        :return: whether it is another one now. A refused request that was sent before the last
            load, a moment ago, is to be sent again as well, so that counts.
        :raises UpstreamError: it cannot be loaded.
        """
        now = time.time()
        if self._loading is None:
            if now - self._loaded_at < NEW:
                return True
            if now - self._renewed_at < RENEWAL_INTERVAL:
                return False
            self._renewed_at = now
        before = self._value
        await self._until_loaded()
        return self._value != before

    async def _until_loaded(self) -> None:
        loading = self._begin_load()
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                await asyncio.shield(loading)
        except TimeoutError:
            raise UpstreamTimeout(f"{self._name} could not be loaded in time.") from None

    def _begin_load(self) -> asyncio.Future[None]:
        if self._loading is None:
            loop = asyncio.get_running_loop()
            self._loading = loading = loop.create_future()
            # a failed load ahead of the end has nobody who waits for it
            loading.add_done_callback(lambda _: loading.exception())
            # no thread of a pool: the end of the process would wait for it
            threading.Thread(target=self._run, args=(loop, loading), daemon=True).start()
        return self._loading

    def _run(self, loop: asyncio.AbstractEventLoop, loading: asyncio.Future[None]) -> None:
        try:
            done = partial(self._succeeded, loading, self._load())
        except Exception as error:
            done = partial(self._failed, loading, type(error).__name__)
        with suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(done)

    def _succeeded(self, loading: asyncio.Future[None], loaded: tuple[T, float | None]) -> None:
        self._value, self._ends = loaded
        self._loaded_at = self._tried_at = time.time()
        self._loading = None
        loading.set_result(None)

    def _failed(self, loading: asyncio.Future[None], kind: str) -> None:
        logger.warning("%s could not be loaded: %s", self._name, kind)
        self._tried_at = time.time()
        self._loading = None
        loading.set_exception(UpstreamError(f"{self._name} could not be loaded ({kind})."))
