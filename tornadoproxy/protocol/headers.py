"""Which headers cross the proxy, in which direction. Pure functions.

Headers are open lists: all cross but those named here, repeated lines included.

- Hop-by-hop fields end here (RFC 9110 §7.6.1), those that ``Connection`` names included. The
  framing of each side is that side's own, but a ``Content-Length`` crosses as it came.
- Credentials and cookies end here: the client's are for this proxy, and upstream gets one
  credential, its own. So do the headers that plugins declare by the hook ``credential_headers``.
  Upstream's cookies are not for the client.
- ``Expect`` ends here, since this proxy has answered it.
- ``Origin``, ``Referer`` and ``Sec-Fetch-*`` end here: the API refuses requests from web pages, and
  which of them may use this proxy is decided here (`tornadoproxy.handlers.cors`).
- ``Access-Control-*`` of the upstream ends here: which pages may read an answer of this proxy is
  not the upstream's to say (`tornadoproxy.handlers.cors`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from tornado.httputil import HTTPHeaders, _normalize_header

if TYPE_CHECKING:
    from tornadoproxy.secret import Secret

_HOP_BY_HOP = frozenset(
    {
        "Connection",
        "Http2-Settings",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authentication-Info",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Te",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    }
)
_REQUEST_ENDS_HERE = _HOP_BY_HOP | {
    "Authorization",
    "Cookie",
    "Expect",
    "Host",
    "Origin",
    "Referer",
    "X-Api-Key",
}
_OF_BROWSERS = "Sec-Fetch-"
_RESPONSE_ENDS_HERE = _HOP_BY_HOP | {"Set-Cookie"}

_FOR_PAGES = "Access-Control-"

# What Connection may not take away: the framing that the peer goes by.
_FRAMING = frozenset({"Content-Length"})

_VIA = "1.1 tornadoproxy-"


_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# what the protocol needs, and what a `RequestRecord` holds, which logs show
_NO_CREDENTIAL = frozenset(
    {
        "Accept-Encoding",
        "Anthropic-Version",
        "Connection",
        "Content-Encoding",
        "Content-Length",
        "Content-Type",
        "Host",
        "Traceparent",
        "Tracestate",
        "Transfer-Encoding",
        "Via",
        "X-Claude-Code-Agent-Id",
        "X-Claude-Code-Parent-Agent-Id",
        "X-Claude-Code-Session-Id",
    }
)


def credential_name(name: object) -> str:
    """Return the name of a header that carries a plugin's credential, in ``Http-Header-Case``.

    :raises ValueError: with the end of a sentence that begins with `name`, which is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("is not a header's name")
    canonical = _normalize_header(name)
    if canonical in _NO_CREDENTIAL:
        raise ValueError("is a header that the protocol needs or that logs show: choose another")
    return canonical


def credential_header(key: Secret, scheme: str) -> tuple[str, str]:
    """The one credential that upstream gets, as ``x-api-key`` or as ``bearer``."""
    value = key.reveal().decode("latin-1")
    return ("Authorization", f"Bearer {value}") if scheme == "bearer" else ("X-Api-Key", value)


def via(instance: str) -> str:
    """What this proxy adds to ``Via`` (RFC 9110 §7.6.3)."""
    return _VIA + instance


def has_been_here(headers: HTTPHeaders, instance: str) -> bool:
    """Whether a request has been through this proxy before (RFC 9110 §7.6.3, ``Via``)."""
    return any(via(instance) in line for line in headers.get_list("Via"))


class RequestHeaders(HTTPHeaders):
    """A client's headers, as plugins are given them and as they go upstream: nobody changes them.

    They hold credentials, so `str` does not show them. ``copy()`` can be changed.
    """

    def add(self, name: str, value: str, **options: bool) -> NoReturn:
        raise TypeError("a request's headers cannot be changed")

    def __setitem__(self, name: str, value: str) -> NoReturn:
        raise TypeError("a request's headers cannot be changed")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError("a request's headers cannot be changed")

    # Reading is what each request does some thirty times. Tornado's own methods cache joined values
    # and raise where a header is missing, which takes 2 % of a small request's time.

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _normalize_header(name) in self._as_list

    def __getitem__(self, name: str) -> str:
        return ",".join(self._as_list[_normalize_header(name)])

    def get(self, name: str, default: Any = None) -> Any:  # Any: the mapping's own signature
        values = self._as_list.get(_normalize_header(name))
        return default if values is None else ",".join(values)

    def get_list(self, name: str) -> list[str]:
        """Return the values of each line of a header, in a list of the caller's own."""
        return [*self._as_list.get(_normalize_header(name), ())]

    def __str__(self) -> str:
        return repr(self)


def request_headers(fields: Iterable[tuple[str, str]]) -> RequestHeaders:
    """A request's headers, from fields as `headers_of` takes them."""
    headers = RequestHeaders()
    add_fields(headers, fields)
    return headers


def headers_of(fields: Iterable[tuple[str, str]]) -> HTTPHeaders:
    """Headers from fields whose syntax a strict parser has checked: they are not checked again.

    :param fields: blanks around a value are not part of it (RFC 9112 §5).
    """
    headers = HTTPHeaders()
    add_fields(headers, fields)
    return headers


def add_fields(headers: HTTPHeaders, fields: Iterable[tuple[str, str]]) -> None:
    """Add fields as `headers_of` does. Nothing of `headers` may have been read yet."""
    lines = headers._as_list
    for name, value in fields:
        key = _normalize_header(name)
        if key in lines:
            lines[key].append(value.strip(" \t"))
        else:
            lines[key] = [value.strip(" \t")]


def request_head(
    method: str,
    target: str,
    headers: HTTPHeaders,
    *,
    authority: str,
    instance: str,
    credential: tuple[str, str] | None,
    default_version: str,
    drop: frozenset[str] = frozenset(),
    add: Iterable[tuple[str, str]] = (),
) -> bytes:
    """The head of the request that goes upstream, as bytes, its final blank line included.

    :param target: the upstream's request target, as it goes onto the wire.
    :param headers: the client's; not changed.
    :param authority: the upstream's ``Host``.
    :param instance: this proxy's name in ``Via``.
    :param credential: the header that carries the upstream's key.
    :param default_version: the ``anthropic-version`` where the client names none.
    :param drop: the names of what does not cross this time, in ``Http-Header-Case``.
    :param add: what the request gets besides.
    """
    ends_here = _ends_here(_REQUEST_ENDS_HERE, drop, headers.get("Connection", ""))
    lines = [f"{method} {target} HTTP/1.1\r\nHost: {authority}"]
    lines += [
        f"{name}: {value}"
        for name, value in headers.get_all()
        if name not in ends_here and not name.startswith(_OF_BROWSERS)
    ]
    lines += [f"{name}: {value}" for name, value in add]
    if "Transfer-Encoding" in headers and "Transfer-Encoding" not in drop:
        lines.append("Transfer-Encoding: chunked")
    if "Anthropic-Version" not in headers or "Anthropic-Version" in ends_here:
        lines.append(f"Anthropic-Version: {default_version}")
    if credential is not None:
        lines.append(f"{credential[0]}: {credential[1]}")
    lines.append(f"Via: {via(instance)}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1")


def response_headers(status: int, fields: Iterable[tuple[str, str]]) -> HTTPHeaders:
    """The headers of the answer that goes to the client.

    An event stream gets ``cache-control: no-cache`` and ``x-accel-buffering: no`` where the
    upstream says nothing, so that no proxy in between holds it back.

    :param fields: the upstream's, as its parser let them through.
    """
    headers = headers_of(fields)
    connection = headers["Connection"] if "Connection" in headers else ""  # noqa: SIM401
    ends_here = _ends_here(_RESPONSE_ENDS_HERE, frozenset(), connection)
    for name in [each for each in headers if each in ends_here or each.startswith(_FOR_PAGES)]:
        del headers[name]
    if status == 204 and "Content-Length" in headers:
        del headers["Content-Length"]  # RFC 9110 §8.6
    if is_event_stream(headers):
        headers.setdefault("Cache-Control", "no-cache")
        headers.setdefault("X-Accel-Buffering", "no")
    return headers


def is_event_stream(headers: HTTPHeaders) -> bool:
    """Whether a body is made of server-sent events."""
    return headers.get("Content-Type", "").lower().startswith("text/event-stream")


def is_json(headers: HTTPHeaders) -> bool:
    """Whether a body is one JSON document."""
    return headers.get("Content-Type", "").lower().startswith("application/json")


def is_encoded(headers: HTTPHeaders) -> bool:
    """Whether a body is compressed, so that nothing can be added to it."""
    return "Content-Encoding" in headers and headers["Content-Encoding"].lower() != "identity"


@lru_cache(64)  # nearly all say keep-alive or close
def _ends_here(always: frozenset[str], drop: frozenset[str], connection: str) -> frozenset[str]:
    """The names of what does not cross: `always`, `drop`, and what ``Connection`` names."""
    names = (name.strip() for name in connection.split(","))
    named = frozenset(_canonical(name) for name in names if name) - _FRAMING
    return always | drop | named


def _canonical(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))
