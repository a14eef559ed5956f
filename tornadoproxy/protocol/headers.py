"""Headers: which cross the proxy in which direction, and the request head that goes upstream. Pure.

All headers cross, repeated lines included, except these:

- Hop-by-hop headers (RFC 9110 §7.6.1), and those that ``Connection`` names. Each side has its own
  framing, but a ``Content-Length`` crosses unchanged.
- The client's credentials and cookies, which are for this proxy, and the headers that plugins
  declare with the hook ``credential_headers``. The upstream gets one credential, its own. Its
  cookies are not for the client.
- ``Expect``, since this proxy has confirmed it.
- ``Origin``, ``Referer`` and ``Sec-Fetch-*``: the API refuses requests from web pages, and this
  proxy decides which pages may use it (`tornadoproxy.handlers.cors`).
- ``Access-Control-*`` of the upstream: this proxy decides which pages may read its responses
  (`tornadoproxy.handlers.cors`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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

CLIENT_CREDENTIALS = frozenset({"Authorization", "Cookie", "Proxy-Authorization", "X-Api-Key"})
"""The request headers that carry a client's credentials, besides those that plugins declare."""

_REQUEST_ENDS_HERE = _HOP_BY_HOP | CLIENT_CREDENTIALS | {"Expect", "Host", "Origin", "Referer"}
_OF_BROWSERS = "Sec-Fetch-"
_RESPONSE_ENDS_HERE = _HOP_BY_HOP | {"Set-Cookie"}

_FOR_PAGES = "Access-Control-"

# Connection cannot remove these, since the peer needs them for the framing.
_FRAMING = frozenset({"Content-Length"})

_VIA = "1.1 tornadoproxy-"


_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_IN_A_VALUE = r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]"  # compiled when it is used

# the headers that the protocol needs, and those that a `RequestRecord` holds and logs show
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

    :raises ValueError: `name` cannot be one; the message is the end of a sentence that begins
        with the name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("is not a header's name")
    canonical = _normalize_header(name)
    if canonical in _NO_CREDENTIAL:
        raise ValueError("is a header that the protocol needs or that logs show: choose another")
    return canonical


def credential_header(key: Secret, scheme: str) -> tuple[str, str]:
    """Return the upstream's credential header, by `scheme`: ``x-api-key`` or ``bearer``."""
    value = key.reveal().decode("latin-1")
    return ("Authorization", f"Bearer {value}") if scheme == "bearer" else ("X-Api-Key", value)


def via(instance: str) -> str:
    """Return this proxy's entry in ``Via`` (RFC 9110 §7.6.3)."""
    return _VIA + instance


def has_been_here(headers: HTTPHeaders, instance: str) -> bool:
    """Whether a request has been through this proxy before (RFC 9110 §7.6.3, ``Via``)."""
    return any(via(instance) in line for line in headers.get_list("Via"))


class RequestHeaders(HTTPHeaders):
    """Read-only headers of a client's request, as plugins and the upstream get them.

    They hold credentials, so `str` does not show them. Their ``copy()`` can be changed.
    """

    def add(self, name: str, value: str, **options: bool) -> NoReturn:
        raise TypeError("a request's headers cannot be changed")

    def __setitem__(self, name: str, value: str) -> NoReturn:
        raise TypeError("a request's headers cannot be changed")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError("a request's headers cannot be changed")

    # Each request reads headers some thirty times. Tornado's own methods cache joined values and
    # raise where a header is missing, which takes 2 % of a small request's time.

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _normalize_header(name) in self._as_list

    def __getitem__(self, name: str) -> str:
        return ",".join(self._as_list[_normalize_header(name)])

    def get(self, name: str, default: Any = None) -> Any:  # Any: the mapping's own signature
        values = self._as_list.get(_normalize_header(name))
        return default if values is None else ",".join(values)

    def get_list(self, name: str) -> list[str]:
        """Return the value of each line of a header, in a new list."""
        return [*self._as_list.get(_normalize_header(name), ())]

    def __str__(self) -> str:
        return repr(self)


def request_headers(fields: Iterable[tuple[str, str]]) -> RequestHeaders:
    """Return a request's headers; see `headers_of` for `fields`."""
    headers = RequestHeaders()
    add_fields(headers, fields)
    return headers


def headers_of(fields: Iterable[tuple[str, str]]) -> HTTPHeaders:
    """Return headers from fields whose syntax a strict parser has validated.

    :param fields: names and values; blanks around a value are removed (RFC 9112 §5).
    """
    headers = HTTPHeaders()
    add_fields(headers, fields)
    return headers


def add_fields(headers: HTTPHeaders, fields: Iterable[tuple[str, str]]) -> None:
    """Add fields as `headers_of` does, to `headers` that have not been read yet."""
    lines = headers._as_list
    for name, value in fields:
        key = _normalize_header(name)
        if key in lines:
            lines[key].append(value.strip(" \t"))
        else:
            lines[key] = [value.strip(" \t")]


def replace_fields(headers: HTTPHeaders, fields: Mapping[str, str]) -> None:
    """Add fields whose names are in ``Http-Header-Case``, in place of those of the same names."""
    lines = headers._as_list
    for name, value in fields.items():
        if name in lines:
            del headers[name]
        lines[name] = [value]


def forwarded(
    headers: HTTPHeaders,
    *,
    default_version: str,
    drop: frozenset[str] = frozenset(),
    add: Iterable[tuple[str, str]] = (),
) -> list[str]:
    """Return the header lines of a client's request that go upstream: ``Name: value``.

    :param headers: the client's, which stay unchanged.
    :param default_version: the ``anthropic-version`` if the client sends none.
    :param drop: the names of further headers that do not cross, in ``Http-Header-Case``.
    :param add: headers that are added.
    """
    ends_here = _ends_here(_REQUEST_ENDS_HERE, drop, headers.get("Connection", ""))
    lines = [
        f"{name}: {value}"
        for name, value in headers.get_all()
        if name not in ends_here and not name.startswith(_OF_BROWSERS)
    ]
    lines += [f"{name}: {value}" for name, value in add]
    if "Transfer-Encoding" in headers and "Transfer-Encoding" not in drop:
        lines.append("Transfer-Encoding: chunked")
    if "Anthropic-Version" not in headers or "Anthropic-Version" in ends_here:
        lines.append(f"Anthropic-Version: {default_version}")
    return lines


def request_head(
    method: str,
    target: str,
    lines: Iterable[str],
    *,
    authority: str,
    instance: str,
    credential: tuple[str, str] | None,
) -> bytes:
    """Return the head of the request that goes upstream, its final blank line included.

    :param target: the request target for the upstream.
    :param lines: as `forwarded` returns them.
    :param authority: the upstream's ``Host``.
    :param instance: this proxy's name in ``Via``.
    :param credential: the header with the upstream's key.
    """
    first = f"{method} {target} HTTP/1.1\r\nHost: {authority}"
    last = f"Via: {_VIA}{instance}\r\n\r\n"
    if credential is not None:
        last = f"{credential[0]}: {credential[1]}\r\n{last}"
    return "\r\n".join((first, *lines, last)).encode("latin-1")


def is_field(name: str, value: str) -> bool:
    """Whether a header that a plugin adds can be sent (RFC 9110 §5.1, §5.5)."""
    if _NAME.fullmatch(name) is None:
        return False
    is_plain = value.isascii() and value.isprintable()
    return is_plain or re.search(_NOT_IN_A_VALUE, value) is None


def response_headers(
    status: int, fields: Iterable[tuple[str, str]], withheld: tuple[str, ...] = ()
) -> HTTPHeaders:
    """Return the headers of the response that goes to the client.

    An event stream gets ``cache-control: no-cache`` and ``x-accel-buffering: no`` unless the
    upstream sends these, so that no proxy in between buffers it.

    :param fields: the upstream's, validated by its parser.
    :param withheld: lower-case name prefixes of headers that do not cross.
    """
    headers = headers_of(fields)
    # `get` of Tornado's headers raises and catches a KeyError where there is none, which is slower
    connection = headers["Connection"] if "Connection" in headers else ""  # noqa: SIM401
    ends_here = _ends_here(_RESPONSE_ENDS_HERE, frozenset(), connection)
    prefixes = _prefixes(withheld)
    for name in [each for each in headers if each in ends_here or each.startswith(prefixes)]:
        del headers[name]
    if status == 204 and "Content-Length" in headers:
        del headers["Content-Length"]  # RFC 9110 §8.6
    if is_event_stream(headers):
        headers.setdefault("Cache-Control", "no-cache")
        headers.setdefault("X-Accel-Buffering", "no")
    return headers


def is_event_stream(headers: HTTPHeaders) -> bool:
    """Whether the body is server-sent events."""
    return headers.get("Content-Type", "").lower().startswith("text/event-stream")


def is_json(headers: HTTPHeaders) -> bool:
    """Whether the body is one JSON document."""
    return headers.get("Content-Type", "").lower().startswith("application/json")


def is_encoded(headers: HTTPHeaders) -> bool:
    """Whether the body is compressed, so that nothing can be added to it."""
    return "Content-Encoding" in headers and headers["Content-Encoding"].lower() != "identity"


@lru_cache(64)  # nearly all say keep-alive or close
def _ends_here(always: frozenset[str], drop: frozenset[str], connection: str) -> frozenset[str]:
    """Return the names that do not cross: `always`, `drop`, and those that ``Connection`` has."""
    names = (name.strip() for name in connection.split(","))
    named = frozenset(_canonical(name) for name in names if name) - _FRAMING
    return always | drop | named


@lru_cache(64)
def _prefixes(withheld: tuple[str, ...]) -> tuple[str, ...]:
    """Return the beginnings, in ``Http-Header-Case``, of response headers that do not cross."""
    return (_FOR_PAGES, *map(_canonical, withheld))


def _canonical(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))
