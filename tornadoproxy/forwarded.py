"""Who a request comes from when a trusted proxy passes it on. Pure.

``X-Forwarded-For``, ``X-Forwarded-Proto`` and ``X-Forwarded-Prefix`` are believed only from peers
in ``TRUSTED_PROXIES``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from tornado.httputil import HTTPHeaders

    from tornadoproxy.parsers import IPNetwork

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+;=:@%-]+)+")


def client_address(peer: str, headers: HTTPHeaders, trusted: Collection[IPNetwork]) -> str:
    """The client's address: the last one in ``X-Forwarded-For`` that is not a trusted proxy's.

    :param peer: the address that the connection comes from.
    """
    if not trusted or not _is_trusted(peer, trusted):
        return peer
    address = peer
    for candidate in reversed(headers.get("X-Forwarded-For", "").split(",")):
        candidate = candidate.strip()
        if not _is_address(candidate):
            break
        address = candidate
        if not _is_trusted(candidate, trusted):
            break
    return address


def client_scheme(
    scheme: str, peer: str, headers: HTTPHeaders, trusted: Collection[IPNetwork]
) -> str:
    """``http`` or ``https``, as the client sees it.

    :param scheme: the connection's own.
    """
    if trusted and _is_trusted(peer, trusted):
        forwarded = headers.get("X-Forwarded-Proto", "").split(",")[-1].strip().lower()
        if forwarded in {"http", "https"}:
            return forwarded
    return scheme


def client_prefix(peer: str, headers: HTTPHeaders, trusted: Collection[IPNetwork]) -> str:
    """Return the path below which the client finds this proxy, such as ``/claude``; mostly empty.

    A proxy in front that takes it off tells it in ``X-Forwarded-Prefix``, which is ignored if it is
    no path.
    """
    if trusted and _is_trusted(peer, trusted):
        forwarded = headers.get("X-Forwarded-Prefix", "").split(",")[-1].strip().rstrip("/")
        if _PREFIX.fullmatch(forwarded):
            return forwarded
    return ""


def _is_trusted(address: str, trusted: Collection[IPNetwork]) -> bool:
    return _is_address(address) and any(ipaddress.ip_address(address) in net for net in trusted)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
