"""URLs of a Redis or Valkey server, of one that Sentinel names, and of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Sequence

# the caller has a deadline of its own, and the library's would sometimes swallow a cancellation
_OPTIONS: dict[str, Any] = {"socket_timeout": None, "socket_keepalive": True}
_PORT, _SENTINEL_PORT = 6379, 26379


class ClusterURL(NamedTuple):
    """A cluster.

    :param places: host and port of some of its nodes.
    :param options: how to connect to each node. Any: the library has them.
    """

    places: Sequence[tuple[str, int]]
    options: dict[str, Any]


class _NamedBySentinel(SentinelConnectionPool):
    """Connections to the server that Sentinel names, with those to Sentinel itself."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def parse(url: str) -> ConnectionPool | ClusterURL:
    """Return what opens connections to the server of a URL, or its cluster; open none.

    :param url: ``redis://user:password@host:6379/0``, ``unix://path``,
        ``redis+sentinel://user:password@host:26379,host:26379/service/0``, or
        ``redis+cluster://user:password@host:6379,host:6379``; ``rediss`` in place of ``redis`` is
        TLS. The query has the library's options, such as ``ssl_ca_certs=/path``.
    :raises ValueError: it is not valid.
    :raises OSError: a file that it names for TLS cannot be read.
    """
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    if not kind:
        pool = ConnectionPool.from_url(url, **_OPTIONS)
        _check(pool)
        return pool
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    query = f"?{parts.query}" if parts.query else ""
    options: dict[str, Any] = {**_OPTIONS, **parse_url(f"{scheme}://{credentials}{at}host{query}")}
    del options["host"]
    path = parts.path.strip("/")
    if kind == "cluster":
        if path not in ("", "0"):
            raise ValueError("a cluster has no databases")
        _check(ConnectionPool(**options))
        return ClusterURL(_places(hosts, _PORT), options)
    service, _, number = path.partition("/")
    if not service:
        raise ValueError("the service's name is missing")
    options["db"] = int(number or 0)
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    has_tls = options.pop("connection_class", None) is not None
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # the library's
        _places(hosts, _SENTINEL_PORT), sentinel_kwargs={**_OPTIONS, "ssl": has_tls, **tls}
    )
    pool = _NamedBySentinel(  # type: ignore[no-untyped-call]  # the library's
        service, sentinel, ssl=has_tls, **options
    )
    _check(pool)
    return pool


def _places(hosts: str, default_port: int) -> list[tuple[str, int]]:
    parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if not all(each.hostname for each in parts):
        raise ValueError("a host is missing")
    return [(str(each.hostname), each.port or default_port) for each in parts]


def _check(pool: ConnectionPool) -> None:
    """Refuse options that no connection takes, and files of TLS that cannot be read.

    :raises ValueError: there is such an option.
    :raises OSError: there is such a file.
    """
    try:
        connection = pool.make_connection()  # type: ignore[no-untyped-call]  # it opens nothing
    except (TypeError, RedisError) as error:
        raise ValueError("there is no such option") from error
    if isinstance(connection, SSLConnection):
        connection.ssl_context.get()
