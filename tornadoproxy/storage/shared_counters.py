"""Counters that several proxies share, in a Redis or Valkey server.

Scripts change them, each atomically (https://redis.io/docs/latest/develop/programmability/). While
there is no connection, scripts fail at once, and a connection is tried twice a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from tornadoproxy.errors import ConfigurationError, DatabaseUnavailable
from tornadoproxy.storage.contract import DatabaseStatus
from tornadoproxy.storage.failures import Failures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy.secret import SecretURL
    from tornadoproxy.storage.redis_line import Line
    from tornadoproxy.storage.script import Script

CONNECT_TIMEOUT = 2.0  # seconds
PAUSE = 0.5  # seconds between two attempts to connect


class SharedCounters:
    """The counters in one server.

    :param url: see `tornadoproxy.storage.redis_line.pool`.
    :param setting: the setting that names the server, for messages.
    :param timeout: seconds that the server may take for a script.
    :raises ConfigurationError: the URL is not valid, or the library is not installed.
    """

    def __init__(self, url: SecretURL, *, setting: str, timeout: float) -> None:
        self._setting = setting
        self._title = f"{setting}={url}"
        try:
            from tornadoproxy.storage import redis_line
        except ImportError:
            raise ConfigurationError(
                f"{self._title} needs redis: install it with `pip install 'tornadoproxy[redis]'`."
            ) from None
        try:
            self._pool = redis_line.pool(url.reveal())
        except ValueError:  # its text quotes the URL
            raise ConfigurationError(
                f"{self._title} is not valid: write redis://user:password@host:6379/0, with the "
                "special characters of user and password percent-encoded."
            ) from None
        self._library = redis_line
        self._timeout = timeout
        self._line: Line | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._failures = Failures(self._title)
        self._reason = "it is not open"

    @property
    def failing(self) -> bool:
        """Whether there is no connection."""
        return self._line is None

    @property
    def status(self) -> DatabaseStatus:
        """The server in figures, for the hook ``database_status``."""
        return DatabaseStatus(self._setting, self.failing, self._failures.total)

    async def open(self, renew: Callable[[], None] | None = None, *, every: float = 10.0) -> None:
        """Connect.

        :param renew: called again and again until `close`, to renew leases with `send`.
        :param every: seconds between two calls of it.
        :raises ConfigurationError: the server cannot be used.
        """
        try:
            await self._connect()
        except DatabaseUnavailable as error:
            raise ConfigurationError(str(error)) from None
        self._tasks.append(asyncio.create_task(self._stay_connected()))
        if renew is not None:
            self._tasks.append(asyncio.create_task(_repeat(renew, every)))

    async def run(self, script: Script, keys: Sequence[str], *arguments: str | int) -> Any:
        """Run a script and return its result. Any: that is the script's.

        :raises DatabaseUnavailable: the server cannot be used; the script may have run.
        """
        line = self._line
        if line is None:
            raise self._unavailable()
        command = (len(keys), *keys, *arguments)
        try:
            try:
                return await self._response(line.ask(*line.named(script), *command))
            except self._library.NoScriptError:
                return await self._response(line.ask("EVAL", script.source, *command))
        except self._library.FAILURES as error:
            if self._library.reason(error) is None:
                raise
            self._failed(error, line)
            raise self._unavailable() from None

    def send(self, script: Script, keys: Sequence[str], *arguments: str | int) -> None:
        """Run a script without waiting for it; it is lost if the server cannot be used."""
        if (line := self._line) is not None:
            done = line.ask(*line.named(script), len(keys), *keys, *arguments)
            done.add_done_callback(_take_error)

    async def close(self) -> None:
        """Send what is still to be sent, and close the connection."""
        for task in self._tasks:
            task.cancel()
        if (line := self._line) is not None:
            with contextlib.suppress(*self._library.FAILURES):
                await self._response(line.ask("PING"))
            self._drop(line)
        await asyncio.gather(*self._closing)
        await self._pool.disconnect()

    async def _response(self, response: asyncio.Future[Any]) -> Any:
        """Wait for a response and return it.

        :raises TimeoutError: there is none in time.
        """
        deadline = asyncio.get_running_loop().call_later(self._timeout, _late, response, 3)
        try:
            return await response
        finally:
            deadline.cancel()

    async def _stay_connected(self) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            if self._line is None:
                with contextlib.suppress(DatabaseUnavailable):
                    await self._connect()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        except self._library.FAILURES as error:
            self._failed(error)
            raise self._unavailable() from None
        line = self._library.Line(connection, lambda error: self._failed(error, line))
        self._line = line
        self._failures.end()

    def _failed(self, error: Exception, line: Line | None = None) -> None:
        """Close the connection and count the failure; a connection fails once."""
        if line is not None:
            if line is not self._line:
                return
            self._drop(line)
        self._reason = self._library.reason(error) or "the server fails: see its log"
        self._failures.count(self._unavailable())

    def _drop(self, line: Line) -> None:
        self._line = None
        closing = asyncio.create_task(line.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _unavailable(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"{self._title} cannot be used: {self._reason}")


async def _repeat(function: Callable[[], None], every: float) -> None:
    while True:
        await asyncio.sleep(every)
        function()


def _late(response: asyncio.Future[Any], turns: int) -> None:
    """Fail a response, unless it has arrived and only this process was late to read it."""
    if turns:
        asyncio.get_running_loop().call_soon(_late, response, turns - 1)
    elif not response.done():
        response.set_exception(TimeoutError())


def _take_error(done: asyncio.Future[Any]) -> None:
    """Note an error that nobody waits for; the connection's are logged."""
    if not done.cancelled():
        done.exception()
