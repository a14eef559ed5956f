"""The protection of a proxy without credentials from web pages. Pure.

A page on any site can make a browser send requests to ``localhost``: across origins, or under the
site's own name, by DNS rebinding. Anonymous requests are therefore accepted only under a
loopback or configured ``Host``, and never with a foreign ``Origin`` that is not configured.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from tornado.httputil import split_host_and_port

from tornadoproxy.errors import Denied

if TYPE_CHECKING:
    from collections.abc import Collection

    from tornado.httputil import HTTPHeaders


def check_not_from_web_page(
    headers: HTTPHeaders,
    allowed_hosts: Collection[str],
    allowed_origins: Collection[str] = (),
) -> None:
    """Refuse an anonymous request that a web page could have sent.

    :param headers: the request's headers.
    :param allowed_hosts: host names besides loopback's, in lower case and without port.
    :param allowed_origins: origins of the pages that may use the proxy, as browsers send them.
    :raises Denied: its ``Host`` is unknown, or its ``Origin`` or ``Sec-Fetch-Site`` names another
        site.
    """
    authority = headers.get("Host", "").lower()
    if authority and not _is_ours(split_host_and_port(authority)[0], allowed_hosts):
        raise Denied(
            "This proxy asks for no credential and does not serve this host name. Use localhost, "
            "name it in ALLOWED_HOSTS, or set AUTH_TOKEN."
        )
    origin = headers.get("Origin")
    if origin in allowed_origins:
        return
    own = {f"http://{authority}", f"https://{authority}"}
    if origin is not None and origin.lower() not in own:
        raise Denied("This proxy asks for no credential and serves no other site's pages.")
    if headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        raise Denied("This proxy asks for no credential and serves no other site's pages.")


def _is_ours(host: str, allowed_hosts: Collection[str]) -> bool:
    host = host.strip("[]").rstrip(".")
    if host == "localhost" or host in allowed_hosts:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
