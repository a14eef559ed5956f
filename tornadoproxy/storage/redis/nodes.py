"""The servers that have the counters, one or the nodes of a cluster, and which of them has a key.

A cluster divides the keys into slots, and tells which node has which
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/). A node that lacks a
key names the one that has it: ``MOVED`` for good, ``ASK`` while the key's slot is being moved.
After a ``MOVED``, or the loss of a node, the slots are read again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from redis import exceptions
from redis.asyncio.connection import ConnectionPool
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from tornadoproxy.storage.redis.line import FAILURES, Line, NodeError
from tornadoproxy.storage.redis.url import ClusterURL, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CONNECT_TIMEOUT = 2.0  # seconds


class Node:
    """One server, and the connection to it.

    :param broken: called with a connection that was lost and the error.
    :param timeout: seconds that the server may take for a response.
    :param name: host and port of a node of a cluster.
    :ivar line: the connection; ``None`` while there is none.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        broken: Callable[[Node, Line, Exception], None],
        timeout: float,
        name: str = "",
    ) -> None:
        self.line: Line | None = None
        self.name = name
        self._pool = pool
        self._broken = broken
        self._timeout = timeout
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def connect(self) -> Line:
        """Return the connection, after opening it if there is none.

        :raises: an error of `FAILURES`.
        """
        async with self._opening:
            if self.line is None:
                # not one that the pool counts, which would never have it back
                connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        await connection.connect()
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                self.line = line = Line(
                    connection, lambda error: self._broken(self, line, error), self._timeout
                )
            return self.line

    def drop(self, line: Line) -> bool:
        """Close a connection; return False if it has been dropped already."""
        if line is not self.line:
            return False
        self.line = None
        closing = asyncio.create_task(line.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return True

    async def close(self) -> None:
        """Close the connection if there is one."""
        if self.line is not None:
            self.drop(self.line)
        await asyncio.gather(*self._closing)
        await self._pool.aclose()


class Servers(Protocol):
    """What has the counters."""

    @property
    def connected(self) -> bool:
        """Whether every server that is needed has a connection."""
        ...

    @property
    def moved(self) -> bool:
        """Whether `connect` has to find out where the keys are by now."""
        ...

    def node_of(self, keys: Sequence[str]) -> Node | None:
        """Return the server that has these keys; ``None`` if none has."""
        ...

    async def connect(self) -> None:
        """Find out which server has which keys, and open each connection that is missing.

        :raises: an error of `FAILURES`.
        """

    def named_by(self, error: exceptions.AskError) -> Node:
        """Return the server to ask instead."""
        ...

    def failed(self) -> None:
        """Note that a script has failed; `connected` is False then until `connect` succeeds."""

    def __iter__(self) -> Iterator[Node]: ...


def servers_of(
    url: str, broken: Callable[[Node, Line, Exception], None], timeout: float
) -> Servers:
    """Return the servers of a URL, without connecting to them; see `parse`.

    :param broken: called with a connection that was lost, its server and the error.
    :param timeout: seconds that a server may take for a response.
    :raises ValueError: the URL is not valid.
    :raises OSError: a file that it names for TLS cannot be read.
    """
    parsed = parse(url)
    if isinstance(parsed, ClusterURL):
        return Cluster(parsed, broken, timeout)
    return OneServer(parsed, broken, timeout)


class OneServer:
    """The one server of a URL; see `Servers`."""

    def __init__(
        self,
        pool: ConnectionPool,
        broken: Callable[[Node, Line, Exception], None],
        timeout: float,
    ) -> None:
        self._node = Node(pool, broken, timeout)

    @property
    def connected(self) -> bool:
        return self._node.line is not None

    @property
    def moved(self) -> bool:
        return False

    def node_of(self, _keys: Sequence[str]) -> Node:
        return self._node

    async def connect(self) -> None:
        await self._node.connect()

    def named_by(self, error: exceptions.AskError) -> Node:
        raise error

    def failed(self) -> None:
        pass

    def __iter__(self) -> Iterator[Node]:
        yield self._node


class Cluster:
    """The nodes of a cluster; see `Servers`."""

    def __init__(
        self,
        url: ClusterURL,
        broken: Callable[[Node, Line, Exception], None],
        timeout: float,
    ) -> None:
        self._options = url.options
        self._broken = broken
        self._timeout = timeout
        self._nodes: dict[tuple[str, int], Node] = {}
        self._host = url.places[0][0]
        self._seeds = [self._node_at(place) for place in url.places]
        self._slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._owners: set[Node] = set()
        self._is_usable = False
        self._moved = False

    @property
    def connected(self) -> bool:
        return self._is_usable and all(node.line is not None for node in self._owners)

    @property
    def moved(self) -> bool:
        return self._moved

    def node_of(self, keys: Sequence[str]) -> Node | None:
        return self._slots[key_slot(keys[0].encode()) if keys else 0]

    async def connect(self) -> None:
        self._moved = False
        await self._read_slots()
        await asyncio.gather(*map(self._connect_to, self._owners))
        self._is_usable = True
        unused = [each for each in self._nodes.items() if each[1] not in self._owners]
        for place, node in unused:
            if node not in self._seeds:
                del self._nodes[place]
            await node.close()

    def named_by(self, error: exceptions.AskError) -> Node:
        node = self._node_at((error.host, error.port))
        if isinstance(error, exceptions.MovedError):
            self._slots[error.slot_id] = node
            self._moved = True
        return node

    def failed(self) -> None:
        self._is_usable = False

    def __iter__(self) -> Iterator[Node]:
        return iter(tuple(self._nodes.values()))

    async def _read_slots(self) -> None:
        """Ask one node after the other which node has which slots."""
        failed: Exception | None = None
        for node in sorted({*self._nodes.values(), *self._seeds}, key=lambda each: not each.line):
            try:
                ranges = await self._slots_told_by(node)
            except FAILURES as error:
                failed = NodeError(node.name, error)
                continue
            slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for first, last, (host, port, *_), *_replicas in ranges:
                owner = self._node_at((host.decode() if host else "", int(port)))
                slots[first : last + 1] = [owner] * (last + 1 - first)
            self._slots = slots
            self._owners = {each for each in slots if each is not None}
            return
        assert failed is not None, "a URL names at least one node"
        raise failed

    async def _connect_to(self, node: Node) -> None:
        try:
            await node.connect()
        except FAILURES as error:
            raise NodeError(node.name, error) from None

    # Any: the response to CLUSTER SLOTS is nested lists
    async def _slots_told_by(self, node: Node) -> list[Any]:
        line = await node.connect()
        try:
            async with asyncio.timeout(self._timeout):
                info = await line.ask("CLUSTER", "INFO")
                ranges: list[Any] = await line.ask("CLUSTER", "SLOTS")
        except TimeoutError:
            node.drop(line)
            raise
        if b"cluster_state:ok" not in info:
            raise exceptions.ClusterDownError("")
        return ranges

    def _node_at(self, place: tuple[str, int]) -> Node:
        # nodes may leave out their host, if all are behind the one that the URL has
        host, port = place[0] or self._host, place[1]
        node = self._nodes.get((host, port))
        if node is None:
            pool = ConnectionPool(**self._options, host=host, port=port)
            name = f"{host}:{port}"
            node = self._nodes[host, port] = Node(pool, self._broken, self._timeout, name)
        return node
