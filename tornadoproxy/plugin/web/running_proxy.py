"""What a page can ask of its proxy: other pages, who sends a request, and how it was started."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.errors import MethodNotAllowed, NotFound, PluginFailed
from tornadoproxy.plugin.web.pages import Page, PageFinder, PageRequest, PageResponse

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import Identity, IncomingRequest
    from tornadoproxy.plugin.web.sign_in import SignInWay
    from tornadoproxy.protocol.usage import Usage


class PluginState(Struct, frozen=True):
    """A plugin of a running proxy.

    :param name: as ``DISABLED_PLUGINS`` takes it.
    :param state: ``active``, ``inactive``, or ``disabled``.
    :param version: of its package, if known.
    :param line: what its `configure` returned.
    """

    name: str
    state: str
    version: str | None
    line: str | None


class RequestInFlight(Struct, frozen=True, kw_only=True):
    """A request that has not ended, as it is at a moment. The fields are a `RequestRecord`'s.

    :param principal: ``None`` until it is authenticated.
    :param status: ``None`` until the response begins.
    :param upstream: ``None`` until one is asked.
    :param model: ``None`` until the response names it.
    :param usage: what the response has reported or, of a stream's output, an estimate.
    :param duration: so far, in seconds.
    """

    time: float
    request_id: str
    principal: str | None
    method: str
    route: str
    status: int | None
    upstream: str | None
    requested_model: str | None
    model: str | None
    usage: Usage
    duration: float


class RunningProxy:
    """What a page can ask of its proxy once requests are served.

    :param authenticate: asks the plugins who sends a request.
    :param in_flight: yields the requests that have not ended, the oldest first. Each is read when
        it is yielded, so that those that are not taken cost nothing; nothing may be awaited
        in between.
    :param pages: returns all pages with their plugins' names.
    :param plugins: returns the plugins, in the order asked.
    :param warnings: returns what the start warned of.
    :param sign_in_ways: returns the ways to sign in with a browser.
    """

    def __init__(
        self,
        authenticate: Callable[[IncomingRequest], Identity | Awaitable[Identity]],
        in_flight: Callable[[], Iterator[RequestInFlight]],
        pages: Callable[[], Sequence[tuple[str, Page]]],
        plugins: Callable[[], Sequence[PluginState]],
        warnings: Callable[[], Sequence[str]],
        sign_in_ways: Callable[[], Sequence[SignInWay]],
    ) -> None:
        self._authenticate = authenticate
        self.in_flight = in_flight
        self.pages = pages
        self.plugins = plugins
        self.warnings = warnings
        self.sign_in_ways = sign_in_ways

    async def authenticate(self, request: IncomingRequest) -> Identity:
        """Return who sends `request`, as the plugins authenticate it; see `authenticate`.

        :raises ClientError: its credential is refused.
        :raises PluginFailed: a plugin failed.
        """
        found = self._authenticate(request)
        return await found if inspect.isawaitable(found) else found

    async def ask(self, request: PageRequest) -> PageResponse:
        """Return the response of the page at the path of ``request.incoming``.

        Its `Page.admit` is called as for a client's request, so that the page decides by the
        headers. The identity of a page that is not public is the one in `request`: who asks has
        authenticated it.

        :raises ProxyError: the page's own, or there is no page.
        """
        incoming = request.incoming
        found = self._finder.find(incoming.path)
        if found is None:
            raise NotFound(f"There is no page at {incoming.path[:200]}.")
        page = found.page
        if incoming.method not in page.methods:
            raise MethodNotAllowed(
                f"This page supports only {', '.join(page.methods)}.", page.methods
            )
        if page.admit is not None:
            admitted = page.admit(incoming)
            if inspect.isawaitable(admitted):
                await admitted
        response = page.serve(replace(request, arguments=found.arguments))
        if inspect.isawaitable(response):
            response = await response
        if not isinstance(response, PageResponse):
            raise PluginFailed(f"The page of {found.plugin} returned no response.", status=500)
        return response

    @cached_property
    def _finder(self) -> PageFinder:
        return PageFinder(self.pages())
