"""A logger that sends the records of finished requests to a collector, in batches of JSON lines.

No request waits for it. Records wait in a bounded queue until a batch is full or some seconds have
passed. A task sends the batches, and retries with increasing pauses while the collector fails.
Records that do not fit into the queue, that the collector refuses, or that are left at the stop are
lost; their number is logged. A batch whose response is lost arrives twice: identify records by
``request_id``.
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
    "BATCH_LOG_URL", _url, default="", help="URL that finished requests are sent to, as JSON lines"
)
TOKEN: Setting[Secret | None] = Setting(
    "BATCH_LOG_TOKEN",
    parsers.secret,
    default=None,
    help="Bearer token for BATCH_LOG_URL",
    secret=True,
)
RECORDS: Setting[int] = Setting(
    "BATCH_LOG_RECORDS", parsers.integer(1, 10_000), default=100, help="records in a full batch"
)
SECONDS: Setting[float] = Setting(
    "BATCH_LOG_SECONDS",
    parsers.seconds(minimum=0.01),
    default=5.0,
    help="seconds after which an incomplete batch is sent",
)
QUEUE: Setting[int] = Setting(
    "BATCH_LOG_QUEUE",
    parsers.integer(1, 1_000_000),
    default=10_000,
    help="records that may be queued; further ones are dropped",
)


class BatchLogger:
    """The plugin: it queues records and sends them in batches."""

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
        return f"records of finished requests to {settings[URL]}"

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
        """Send the queued records once, within the time for a stop."""
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
            # the batch stays in the queue until it has arrived; new records are appended
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
        """Send a batch, and return whether to remove it: it has arrived, or is refused."""
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
                body=await asyncio.to_thread(_lines, batch),  # in a thread, because it is slow
                request_timeout=TIMEOUT,
                follow_redirects=False,
            )
        # whatever the error is, a retry may succeed
        except Exception as error:
            status = error.code if isinstance(error, HTTPClientError) else 0
            if 400 <= status < 500 and status not in (408, 429):
                self._lose(len(batch), f"the collector refused them with {status}")
                return True
            _logger.warning("BATCH_LOG_URL cannot be reached: %s", type(error).__name__)
            return False
        finally:
            client.close()
        return True

    def _lose(self, count: int, why: str) -> None:
        before, self._lost = self._lost, self._lost + count
        # logged at 1, 2, 4, 8 … lost records, so that many losses do not flood the log
        if before.bit_length() != self._lost.bit_length():
            _logger.error("BATCH_LOG_URL: %d records lost so far: %s", self._lost, why)


def _lines(batch: list[RequestRecord]) -> bytes:
    return b"".join(json.dumps(msgspec.to_builtins(record)).encode() + b"\n" for record in batch)


async def _at_most(waiting: Any, seconds: float) -> None:  # Any: whatever can be awaited
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(waiting, seconds)
