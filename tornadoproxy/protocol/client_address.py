"""The client of a request that a trusted proxy forwards: its address, scheme and prefix. Pure.

``X-Forwarded-For``, ``X-Forwarded-Proto`` and ``X-Forwarded-Prefix`` are used only if the peer is
in ``TRUSTED_PROXIES``.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

    from tornado.httputil import HTTPHeaders

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+;=:@%-]+)+")


UNKNOWN = "unknown"
"""Stands for an unknown address (RFC 7239 §6.2); it is in no network."""


def client_address(peer: str, headers: HTTPHeaders, trusted: Collection[IPNetwork]) -> str:
    """Return the client's address: the last in ``X-Forwarded-For`` that is not a trusted proxy's.

    It is in its shortest form, an IPv4-mapped one as IPv4. An entry may have a port, which some
    load balancers send. If an entry is not an address, the client's is `UNKNOWN`: the entries left
    of it cannot be trusted, and the load balancer's own address would give a stranger its rights.

    :param peer: the address that the connection comes from.
    """
    address, parsed = _parsed(peer)
    if not trusted or not _is_trusted(parsed, trusted) or "X-Forwarded-For" not in headers:
        return address
    for entry in reversed(headers["X-Forwarded-For"].split(",")):
        address, parsed = _parsed(entry.strip())
        if not _is_trusted(parsed, trusted):
            break
    return address


def client_scheme(
    scheme: str, peer: str, headers: HTTPHeaders, trusted: Collection[IPNetwork]
) -> str:
    """Return ``http`` or ``https``, as the client sees it.

    :param scheme: the scheme of the connection itself.
    """
    if trusted and _is_trusted(_parsed(peer)[1], trusted):
        forwarded = headers.get("X-Forwarded-Proto", "").split(",")[-1].strip().lower()
        if forwarded in {"http", "https"}:
            return forwarded
    return scheme


def client_prefix(peer: str, headers: HTTPHeaders, trusted: Collection[IPNetwork]) -> str:
    """Return the path below which the client finds this proxy, such as ``/claude``; mostly empty.

    A proxy in front that removes the prefix sends it as ``X-Forwarded-Prefix``, which is ignored if
    it is not a path.
    """
    if trusted and _is_trusted(_parsed(peer)[1], trusted):
        forwarded = headers.get("X-Forwarded-Prefix", "").split(",")[-1].strip().rstrip("/")
        if _PREFIX.fullmatch(forwarded):
            return forwarded
    return ""


@lru_cache(4096)
def _parsed(text: str) -> tuple[str, IPAddress | None]:
    """Return the address in `text`, in its shortest form and parsed."""
    with_port = _WITH_PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((with_port[1] or with_port[2]) if with_port else text)
    except ValueError:
        return UNKNOWN, None
    if isinstance(address, ipaddress.IPv6Address):
        # without its zone, which has a meaning on the sender's machine alone
        address = address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return str(address), address


def _is_trusted(address: IPAddress | None, trusted: Collection[IPNetwork]) -> bool:
    return address is not None and any(address in network for network in trusted)
