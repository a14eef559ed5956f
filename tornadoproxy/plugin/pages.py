"""A plugin's own pages, as the hook ``pages`` declares them.

Their handler is `tornadoproxy.handlers.plugin_pages.PageHandler`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct, field

from tornadoproxy.protocol.request_target import SAMPLES, is_served

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import Identity, IncomingRequest

MAX_PAGE_BODY = 1024 * 1024
"""The largest request body that a page is given, in bytes."""

MAX_PUBLIC_BODY = 16 * 1024
"""The same of a public page that does not look at the head first: it is not known who sends it."""

_SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}]")  # what a literal path has none of
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

# The answer's length, its framing and what becomes of the connection are the server's business.
_SERVERS_OWN = frozenset(
    {"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"}
)


class PageRequest(Struct, frozen=True):
    """A whole request for a page.

    :param incoming: its head. Its method may be HEAD where the page has GET: the same is
        answered, and the body is left out on the way.
    :param identity: who asks; ``None`` on a public page.
    :param query: the query, decoded: each name with its values in order.
    :param arguments: what the groups of the page's path matched, decoded.
    :param body: the body, at most `MAX_PAGE_BODY` bytes; `MAX_PUBLIC_BODY` on a public page
        without `Page.admit`.
    """

    incoming: IncomingRequest
    identity: Identity | None
    query: Mapping[str, tuple[str, ...]]
    arguments: tuple[str, ...]
    body: bytes

    def __repr__(self) -> str:
        # query and body may hold what no log may show
        return f"PageRequest(incoming={self.incoming!r}, identity={self.identity!r})"


class PageResponse(Struct, frozen=True):
    """What a page answers.

    :param body: the whole body; none with 204 and 304.
    :param content_type: of the body.
    :param status: the HTTP status, a final one.
    :param headers: further headers; not those that frame the answer or rule the connection.
        ``Cache-Control`` is ``no-store`` unless it is among them.
    :raises ValueError: it cannot be sent.
    """

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.body) is not bytes:
            raise ValueError(f"the body must be bytes, not {type(self.body).__name__}")
        if self.status not in range(200, 600) or (self.body and self.status in (204, 304)):
            raise ValueError(f"with status {self.status!r}, this cannot be sent")
        for name, value in {"content-type": self.content_type, **self.headers}.items():
            if not _NAME.fullmatch(name) or name.lower() in _SERVERS_OWN:
                raise ValueError(f"an answer cannot have a header {name!r}")
            if not _VALUE.fullmatch(value):
                raise ValueError(f"the header {name} has characters that HTTP does not allow")


class Page(Struct, frozen=True):
    """One page of a plugin.

    :param path: a regular expression that the whole path, as it came, matches: ``/metrics``.
    :param serve: makes the answer; sync or async, within ``PLUGIN_TIMEOUT`` seconds. It may raise
        a `ProxyError`, which is answered in the path's dialect; anything else is a 500.
    :param methods: those that it has. With GET it has HEAD, too.
    :param public: whether nobody authenticates the request: the page says itself who may see it.
    :param admit: called with a request's head before its body is read; sync or async. What
        it raises is answered as what `serve` raises. For a public page that goes by a credential.
    :param overrides: whether it takes a path that the proxy or another plugin serves. Without it
        such a page ends the start, and a pattern matches none of the proxy's own paths.
    """

    path: str
    serve: Callable[[PageRequest], PageResponse | Awaitable[PageResponse]]
    methods: tuple[str, ...] = ("GET",)
    public: bool = False
    overrides: bool = False
    admit: Callable[[IncomingRequest], Awaitable[None] | None] | None = None

    @property
    def is_pattern(self) -> bool:
        """Whether `path` is more than a literal path."""
        return _SPECIAL.search(self.path) is not None

    def matches(self, path: str) -> bool:
        """Whether this is the page of `path`, which is as it came."""
        return path == self.path or (self.is_pattern and re.fullmatch(self.path, path) is not None)


def hidden_paths(pages: Sequence[tuple[str, Page]]) -> Iterator[tuple[str, str]]:
    """Yield each plugin one of whose `pages` hides what it may not, and what is to be done.

    :param pages: each after its plugin's name.
    """
    for at, (plugin, page) in enumerate(pages):
        mend = "choose another path, or declare it with overrides=True"
        if not page.overrides and (is_served(page.path) or any(map(page.matches, SAMPLES))):
            yield plugin, f"its page {page.path} hides a path of the proxy's own: {mend}"
        for other, earlier in pages[:at]:
            if page.overrides != earlier.overrides:
                continue
            # in one plugin, a literal path beside a pattern is the pattern's exception
            if page.path == earlier.path or (
                plugin != other and (page.matches(earlier.path) or earlier.matches(page.path))
            ):
                yield (
                    plugin,
                    f"its page {page.path} and the page {earlier.path} of {other!r} are for the "
                    f"same path: {mend}",
                )
