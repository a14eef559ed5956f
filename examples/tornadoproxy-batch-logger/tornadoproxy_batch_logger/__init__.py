"""Ships what became of each request somewhere else: in batches, by HTTP, as lines of JSON.

Nothing here makes a request wait. Records wait in a bounded queue until there are enough of them,
or for some seconds; a task of its own sends them, and sends them again, with longer and longer
pauses, while the other side fails. What does not fit in the queue, what the other side refuses, and
what is left at the stop is lost, which is counted and logged. A batch whose answer is lost arrives
twice: tell records apart by ``request_id``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from itertools import islice
from typing import Any

import msgspec
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from tornadoproxy import (
    INACTIVE,
    Inactive,
    RequestRecord,
    Secret,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

TIMEOUT = 3.0  # seconds for one batch
LONGEST_PAUSE = 60.0  # seconds
STOP_TIMEOUT = 4.0  # seconds; the proxy gives shutdown five

_logger = logging.getLogger(__name__)


def _url(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise ValueError("must begin with https://, as https://logs.example.com/requests does")
    return parsers.text(value)


URL: Setting[str] = Setting(
    "BATCH_LOG_URL", _url, default="", help="Where finished requests are sent to, as JSON lines."
)
TOKEN: Setting[Secret | None] = Setting(
    "BATCH_LOG_TOKEN",
    parsers.secret,
    default=None,
    help="The Bearer token that goes with them.",
    secret=True,
)
RECORDS: Setting[int] = Setting(
    "BATCH_LOG_RECORDS", parsers.integer(1, 10_000), default=100, help="The most in one batch."
)
SECONDS: Setting[float] = Setting(
    "BATCH_LOG_SECONDS",
    parsers.seconds(minimum=0.01),
    default=5.0,
    help="Seconds after which a batch is sent that is not full.",
)
QUEUE: Setting[int] = Setting(
    "BATCH_LOG_QUEUE",
    parsers.integer(1, 1_000_000),
    default=10_000,
    help="The most that wait to be sent; further ones are dropped.",
)


class BatchLogger:
    """Sends records, some at a time."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._waiting: deque[RequestRecord] = deque()
        self._lost = 0
        self._enough = asyncio.Event()
        self._stopping = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        return URL, TOKEN, RECORDS, SECONDS, QUEUE

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        if not settings[URL]:
            return INACTIVE
        self._settings = settings
        return f"sends finished requests to {settings[URL]}"

    @hookimpl
    def startup(self) -> None:
        assert self._settings is not None, "configured"
        self._sending = asyncio.create_task(self._send_all())

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        assert self._settings is not None, "configured"
        if len(self._waiting) >= self._settings[QUEUE]:
            self._lose(1, "the queue is full")
            return
        self._waiting.append(record)
        if len(self._waiting) >= self._settings[RECORDS]:
            self._enough.set()

    @hookimpl
    async def shutdown(self) -> None:
        """Send what waits, once, within the time that there is."""
        assert self._sending is not None, "started"
        self._stopping.set()
        self._enough.set()
        await asyncio.wait((self._sending,), timeout=STOP_TIMEOUT)
        self._sending.cancel()
        if self._waiting:
            self._lose(len(self._waiting), "the proxy stops")

    async def _send_all(self) -> None:
        assert self._settings is not None, "configured"
        pause = 0.0
        while self._waiting or not self._stopping.is_set():
            await _at_most(self._enough.wait(), self._settings[SECONDS])
            batch = list(islice(self._waiting, self._settings[RECORDS]))
            # they stay in the queue until they have arrived; others are added at its end
            if not batch or await self._sent(batch):
                for _ in batch:
                    self._waiting.popleft()
                pause = 0.0
            elif self._stopping.is_set():
                return
            else:
                pause = min(2 * pause or 1.0, LONGEST_PAUSE)
                await _at_most(self._stopping.wait(), pause)
            if len(self._waiting) < self._settings[RECORDS] and not self._stopping.is_set():
                self._enough.clear()

    async def _sent(self, batch: list[RequestRecord]) -> bool:
        """Send `batch`; whether it is done with, because it has arrived or never will."""
        assert self._settings is not None, "configured"
        headers = {"Content-Type": "application/x-ndjson"}
        if token := self._settings[TOKEN]:
            headers["Authorization"] = f"Bearer {token.reveal().decode('latin-1')}"
        client = AsyncHTTPClient(force_instance=True)
        try:
            await client.fetch(
                self._settings[URL],
                method="POST",
                headers=headers,
                body=await asyncio.to_thread(_lines, batch),  # it would hold up the loop
                request_timeout=TIMEOUT,
                follow_redirects=False,
            )
        # whatever it is: the next attempt may fare better
        except Exception as error:
            status = error.code if isinstance(error, HTTPClientError) else 0
            if 400 <= status < 500 and status not in (408, 429):
                self._lose(len(batch), f"they are refused with {status}")
                return True
            _logger.warning("BATCH_LOG_URL cannot be reached: %s", type(error).__name__)
            return False
        finally:
            client.close()
        return True

    def _lose(self, count: int, why: str) -> None:
        before, self._lost = self._lost, self._lost + count
        # at 1, 2, 4, 8 …: what is lost in a flood must not flood the log
        if before.bit_length() != self._lost.bit_length():
            _logger.error("BATCH_LOG_URL: %d records are lost by now: %s", self._lost, why)


def _lines(batch: list[RequestRecord]) -> bytes:
    return b"".join(json.dumps(msgspec.to_builtins(record)).encode() + b"\n" for record in batch)


async def _at_most(waiting: Any, seconds: float) -> None:  # Any: whatever can be awaited
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(waiting, seconds)
