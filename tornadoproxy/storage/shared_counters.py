"""Counters that several proxies share, in a Redis or Valkey server, or in a cluster of them.

Scripts change them, each atomically (https://redis.io/docs/latest/develop/programmability/). While
there is no connection, scripts fail at once, and a connection is tried at once and then twice a
second.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from tornadoproxy.errors import ConfigurationError, DatabaseUnavailable
from tornadoproxy.storage.contract import DatabaseStatus
from tornadoproxy.storage.failures import Failures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy.secret import SecretURL
    from tornadoproxy.storage.redis.line import Done, Line
    from tornadoproxy.storage.redis.nodes import Node
    from tornadoproxy.storage.script import Script

_pack = msgspec.msgpack.encode

PAUSE = 0.5  # seconds between two attempts to connect
MOVING_PAUSE = 0.02  # seconds until a node of a cluster is asked again for keys that it moves


class SharedCounters:
    """The counters in one server or cluster, over connections that several plugins share.

    :param url: see `tornadoproxy.storage.redis.url.parse`.
    :param setting: the setting that names the server, for messages.
    :param timeout: seconds that the server may take for a script.
    :raises ConfigurationError: the URL is not valid, or the library is not installed.
    """

    def __init__(self, url: SecretURL, *, setting: str, timeout: float) -> None:
        self._setting = setting
        self._title = f"{setting}={url}"
        try:
            from tornadoproxy.storage.redis import line, nodes
        except ImportError:
            raise ConfigurationError(
                f"{self._title} needs redis: install it with `pip install 'tornadoproxy[redis]'`."
            ) from None
        try:
            self._servers = nodes.servers_of(url.reveal(), self._lost, timeout)
        except ValueError:  # its text quotes the URL
            raise ConfigurationError(
                f"{self._title} is not valid: write redis://user:password@host:6379/0, with the "
                "special characters of user and password percent-encoded."
            ) from None
        except OSError:
            raise ConfigurationError(
                f"{self._title} names a file for TLS that cannot be read: correct ssl_ca_certs, "
                "ssl_certfile or ssl_keyfile."
            ) from None
        self._library = line
        self._timeout = timeout
        self._users = 0  # how many have it open
        self._tasks: list[asyncio.Task[None]] = []
        self._joined: dict[tuple[Script, tuple[str, ...]], list[str | int]] = {}
        self._following: set[asyncio.Task[object]] = set()
        self._failures = Failures(self._title)
        self._reason = "it is not open"
        self._has_lost = asyncio.Event()  # whether a connection was lost a moment ago

    @property
    def failing(self) -> bool:
        """Whether a connection is missing, or a node of a cluster has failed lately."""
        return not self._servers.connected

    @property
    def status(self) -> DatabaseStatus:
        """The server in figures, for the hook ``database_status``."""
        return DatabaseStatus(self._setting, self.failing, self._failures.total)

    async def open(self, renew: Callable[[], None] | None = None, *, every: float = 10.0) -> None:
        """Connect, unless another plugin has done so.

        :param renew: called again and again until `close`, to renew leases with `send`.
        :param every: seconds between two calls of it.
        :raises ConfigurationError: the server cannot be used.
        """
        self._users += 1
        try:
            await self._connect()
        except DatabaseUnavailable as error:
            await self.close()
            raise ConfigurationError(str(error)) from None
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._stay_connected()))
        if renew is not None:
            self._tasks.append(asyncio.create_task(_repeat(renew, every)))

    async def run(self, script: Script, keys: Sequence[str], *arguments: str | int) -> Any:
        """Run a script and return its result. Any: that is the script's.

        :param keys: what the script uses; in a cluster, all have the same word in braces.
        :raises DatabaseUnavailable: the server cannot be used; the script may have run.
        """
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def end(result: Any, failed: BaseException | None) -> None:
            if ended.cancelled():
                return
            if failed is None:
                ended.set_result(result)
            else:
                ended.set_exception(failed)

        self.ask(end, script, keys, *arguments)
        return await ended

    def ask(self, done: Done, script: Script, keys: Sequence[str], *arguments: str | int) -> None:
        """Run a script as `run` does, without a task; two of these take a tenth of a request.

        :param done: called once with the result and the error, possibly before this returns; it
            must not raise.
        """
        node = self._servers.node_of(keys)
        line = None if node is None else node.line
        if node is None or line is None:
            done(None, self._unavailable())
            return
        line.run(done, self._refused, script, tuple(keys), _pack(arguments))

    def send(self, script: Script, keys: Sequence[str], *arguments: str | int) -> None:
        """Run a script without waiting for it; it is lost if the server cannot be used."""
        self.ask(_ignore, script, keys, *arguments)

    def send_joined(self, script: Script, keys: tuple[str, ...], *arguments: str | int) -> None:
        """Run a script as `send` does, once for all calls with these keys in a turn of the loop.

        Its arguments are those of all calls, one after the other.
        """
        if not self._joined:
            asyncio.get_running_loop().call_soon(self._send_joined)
        self._joined.setdefault((script, keys), []).extend(arguments)

    async def close(self) -> None:
        """Send what is still to be sent; the last plugin's call closes the connections."""
        self._users -= 1
        if self._users:
            return
        while self._tasks:
            self._tasks.pop().cancel()
        self._send_joined()
        for node in self._servers:
            if node.line is not None:
                with contextlib.suppress(*self._library.FAILURES):
                    await node.line.ask("PING")
        await asyncio.gather(*self._following, return_exceptions=True)
        for node in self._servers:
            await node.close()

    def _send_joined(self) -> None:
        joined, self._joined = self._joined, {}
        for (script, keys), arguments in joined.items():
            self.send(script, keys, *arguments)

    def _refused(
        self,
        done: Done,
        line: Line,
        script: Script,
        keys: tuple[str, ...],
        arguments: bytes,
        error: Exception,
    ) -> None:
        if isinstance(error, self._library.NoScriptError):
            line.forget(script)
            line.run(done, self._refused, script, keys, arguments)
        elif isinstance(error, self._library.MOVES):
            following = asyncio.create_task(self._follow(error, script, keys, arguments))
            self._following.add(following)
            following.add_done_callback(self._following.discard)
            following.add_done_callback(partial(_pass_on, done))
        elif self._library.reason(error) is None:
            done(None, error)
        else:
            line.give_up(error)
            done(None, self._unavailable())

    async def _follow(
        self,
        moved: Exception,
        script: Script,
        keys: tuple[str, ...],
        arguments: bytes,
    ) -> Any:
        """Run a script at the node of a cluster which has its keys by now. Any: see `run`."""
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    line = await self._line_named_by(moved, keys)
                    try:
                        return await line.ask("EVAL", script.source, len(keys), *keys, arguments)
                    except self._library.MOVES as error:
                        moved = error
        except self._library.FAILURES as error:
            if self._library.reason(error) is None:
                raise
            is_moving = isinstance(moved, self._library.TryAgainError)
            self._failed(moved if is_moving else error)
            raise self._unavailable() from None

    async def _line_named_by(self, moved: Exception, keys: tuple[str, ...]) -> Line:
        if isinstance(moved, self._library.AskError):
            node = self._servers.named_by(moved)
            line = await node.connect()
            if not isinstance(moved, self._library.MovedError):
                # for the next command alone, so that the caller must not wait before it
                line.send(_ignore, "ASKING")
            return line
        # the slot's keys are at two nodes at the moment
        await asyncio.sleep(MOVING_PAUSE)
        node_of_keys = self._servers.node_of(keys)
        if node_of_keys is None:
            raise self._library.ClusterDownError("")
        return await node_of_keys.connect()

    async def _stay_connected(self) -> None:
        while True:
            # a server that was only late with one response is connected to again at once
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_lost.wait(), PAUSE)
            self._has_lost.clear()
            if self.failing or self._servers.moved:
                try:
                    await self._connect()
                except DatabaseUnavailable:
                    await asyncio.sleep(PAUSE)

    async def _connect(self) -> None:
        try:
            await self._servers.connect()
        except self._library.FAILURES as error:
            self._failed(error)
            raise self._unavailable() from None
        self._failures.end()

    def _lost(self, node: Node, line: Line, error: Exception) -> None:
        """Count the loss of a connection, once."""
        if node.drop(line):
            self._has_lost.set()
            self._failed(self._library.NodeError(node.name, error) if node.name else error)

    def _failed(self, error: Exception) -> None:
        """Count a failure, and note its reason."""
        self._servers.failed()
        self._reason = self._library.reason(error) or "the server fails: see its log"
        self._failures.count(self._unavailable())

    def _unavailable(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"{self._title} cannot be used: {self._reason}")


async def _repeat(function: Callable[[], None], every: float) -> None:
    while True:
        await asyncio.sleep(every)
        function()


def _pass_on(done: Done, following: asyncio.Task[Any]) -> None:
    failed = following.exception()
    done(following.result() if failed is None else None, failed)


def _ignore(_result: Any, _failed: BaseException | None) -> None:
    """Ignore what nobody waits for; the connection's errors are logged."""
