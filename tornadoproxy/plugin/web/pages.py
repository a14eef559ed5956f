"""A plugin's own pages, as the hook ``pages`` declares them, and how they are found.

Their handler is `tornadoproxy.handlers.plugin_pages.PageHandler`.
"""

from __future__ import annotations

import re
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from msgspec import Struct, field

from tornadoproxy.protocol.request_target import SAMPLES, is_served

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import Identity, IncomingRequest

MAX_PAGE_BODY = 1024 * 1024
"""The largest request body that a page is given, in bytes."""

MAX_PUBLIC_BODY = 16 * 1024
"""The same for a public page without ``admit``: its client is unknown."""

MAX_SILENCE = 30.0
"""The longest time between two pieces of a stream, in seconds."""

# compiled when they are used: most starts have no page
_SPECIAL = r"[\\^$.|?*+()\[\]{}]"  # never in a literal path
_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = r"[\t\x20-\x7e\x80-\xff]*"

# The server sets the length, framing and connection of the response.
_SERVERS_OWN = frozenset(
    {"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"}
)


class PageRequest(Struct, frozen=True):
    """A complete request for a page.

    :param incoming: method, path and headers. The method may be HEAD where the page has GET:
        return the same response; its body is not sent.
    :param identity: who sends it; ``None`` on a public page.
    :param query: the decoded query: each name with its values in order.
    :param arguments: the decoded groups of the page's path.
    :param body: at most `MAX_PAGE_BODY` bytes; `MAX_PUBLIC_BODY` on a public page without
        `Page.admit`.
    :param base_url: the URL under which the client reaches this proxy, without a trailing slash.
    """

    incoming: IncomingRequest
    identity: Identity | None
    query: Mapping[str, tuple[str, ...]]
    arguments: tuple[str, ...]
    body: bytes
    base_url: str = ""

    def __repr__(self) -> str:
        # query and body may hold what no log may show
        return f"PageRequest(incoming={self.incoming!r}, identity={self.identity!r})"


class PageResponse(Struct, frozen=True):
    """A page's response.

    :param body: the whole body; empty with 204 and 304.
    :param content_type: of the body.
    :param status: the final HTTP status.
    :param headers: further headers, except those of framing and connection. ``Cache-Control`` is
        ``no-store`` unless given.
    :param stream: further pieces of the body, each sent as it comes, such as server-sent events.
        Between two pieces at most `MAX_SILENCE` seconds may pass. It is closed when the client
        disconnects, or takes longer than that to read a piece.
    :raises ValueError: it cannot be sent.
    """

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None

    def __post_init__(self) -> None:
        if type(self.body) is not bytes:
            raise ValueError(f"the body must be bytes, not {type(self.body).__name__}")
        if self.status not in range(200, 600) or (self.body and self.status in (204, 304)):
            raise ValueError(f"a response with this body cannot have status {self.status!r}")
        for name, value in {"content-type": self.content_type, **self.headers}.items():
            if not re.fullmatch(_NAME, name) or name.lower() in _SERVERS_OWN:
                raise ValueError(f"a response cannot have a header {name!r}")
            if not re.fullmatch(_VALUE, value):
                raise ValueError(f"the header {name} has characters that HTTP does not allow")


PageAnswer = PageResponse
"""The earlier name of `PageResponse`, until 0.2."""


class Page(Struct, frozen=True):
    """One page of a plugin.

    :param path: a regular expression that must match the whole undecoded path: ``/metrics``.
    :param serve: returns the response; sync or async, within ``PLUGIN_TIMEOUT`` seconds. It may
        raise a `ProxyError`, which becomes an error in the path's API format; any other exception
        is a 500.
    :param methods: the allowed methods. GET includes HEAD.
    :param public: whether the request is not authenticated: the page itself decides who may see it.
    :param admit: called with a request's headers before its body is read; sync or async. It may
        raise as `serve` may. For a public page that requires a credential.
    :param overrides: whether it may take a path that the proxy or another plugin serves. Without it
        such a page ends the start, and a pattern matches none of the proxy's own paths.
    :param compressed: whether its body may have a ``Content-Encoding``, which the page decodes
        itself. Otherwise such a request is refused with 400.
    :param title: of a page in the navigation of the web console, which asks for it in the name of
        an administrator and shows its body, HTML without a frame, in the console's own frame.
    """

    path: str
    serve: Callable[[PageRequest], PageResponse | Awaitable[PageResponse]]
    methods: tuple[str, ...] = ("GET",)
    public: bool = False
    overrides: bool = False
    admit: Callable[[IncomingRequest], Awaitable[None] | None] | None = None
    compressed: bool = False
    title: str = ""

    @property
    def is_pattern(self) -> bool:
        """Whether `path` is a pattern and not a literal path."""
        return re.search(_SPECIAL, self.path) is not None

    def matches(self, path: str) -> bool:
        """Return whether this page serves the undecoded `path`."""
        return path == self.path or (self.is_pattern and re.fullmatch(self.path, path) is not None)


def hidden_paths(pages: Sequence[tuple[str, Page]]) -> Iterator[tuple[str, str]]:
    """Yield each plugin with a page that hides another path, and how to fix it.

    :param pages: each with its plugin's name.
    """
    for at, (plugin, page) in enumerate(pages):
        fix = "choose another path, or declare it with overrides=True"
        if not page.overrides and (is_served(page.path) or any(map(page.matches, SAMPLES))):
            yield plugin, f"its page {page.path} hides a path of the proxy's own: {fix}"
        for other, earlier in pages[:at]:
            if page.overrides != earlier.overrides:
                continue
            # within one plugin, a literal path takes precedence over a pattern
            if page.path == earlier.path or (
                plugin != other and (page.matches(earlier.path) or earlier.matches(page.path))
            ):
                yield (
                    plugin,
                    f"its page {page.path} and the page {earlier.path} of {other!r} are for the "
                    f"same path: {fix}",
                )


class FoundPage(NamedTuple):
    """A page with what the groups of its path matched.

    :param plugin: the name of the page's plugin.
    """

    plugin: str
    page: Page
    arguments: tuple[str, ...]


class PageFinder:
    """The pages of all plugins, found by path: the first one that matches.

    :param pages: each after its plugin's name; those that override come first.
    """

    def __init__(self, pages: Iterable[tuple[str, Page]]) -> None:
        self._literal: dict[str, FoundPage] = {}
        self._patterns: list[tuple[re.Pattern[str], str, Page]] = []
        for plugin, page in pages:
            if page.is_pattern:
                self._patterns.append((re.compile(page.path), plugin, page))
            elif page.overrides or not any(
                other.overrides and owner != plugin and pattern.fullmatch(page.path)
                for pattern, owner, other in self._patterns
            ):
                self._literal.setdefault(page.path, FoundPage(plugin, page, ()))

    def find(self, path: str) -> FoundPage | None:
        """Return the page of `path`, which is still percent-encoded."""
        found = self._literal.get(path)
        if found is not None:
            return found
        for pattern, plugin, page in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None and (page.overrides or not is_served(path)):
                return FoundPage(plugin, page, tuple(map(unquote, match.groups(""))))
        return None
