"""The pages of plugins.

A page has exactly its path: the same path with a slash at its end, or with other escapes, is
another one.

A page fails if it raises anything but a `ProxyError`, returns a response that cannot be sent, or
takes longer than ``PLUGIN_TIMEOUT``. The client gets an error in the path's dialect then, and the
log has the type of the exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs

from msgspec.structs import replace

from tornadoproxy.config.core_settings import PLUGIN_TIMEOUT
from tornadoproxy.errors import (
    MethodNotAllowed,
    Overloaded,
    PluginFailed,
    ProxyError,
)
from tornadoproxy.handlers.exchange_handler import ExchangeHandler
from tornadoproxy.plugin.failures import OurOwnError, discard, held_the_loop, outcome
from tornadoproxy.plugin.request import Outcome
from tornadoproxy.plugin.web.pages import (
    MAX_PAGE_BODY,
    MAX_PUBLIC_BODY,
    MAX_SILENCE,
    PageRequest,
    PageResponse,
)
from tornadoproxy.protocol.request_target import check_target

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.plugin.request import IncomingRequest
    from tornadoproxy.plugin.web.pages import FoundPage

T = TypeVar("T")


class PageHandler(ExchangeHandler):
    """One request for a page. Its body is held until it is whole."""

    _streaming: asyncio.Task[Any] | None = None  # Any: the task's result is not used

    def initialize(self, gateway: Gateway, found: FoundPage) -> None:  # type: ignore[override]  # called by the application
        super().initialize(gateway)
        self.exchange.request = replace(self.exchange.request, is_page=True)
        self._plugin, self._page, self._arguments = found
        self._is_unauthenticated = self._page.public and self._page.admit is None

    async def prepare(self) -> None:
        if not self._page.public:
            await super().prepare()
            return
        check_target(self.request.uri or "")
        waiting = self.admit()
        if waiting is None:
            self.request.connection.authenticating()  # type: ignore[union-attr]  # ours
        else:
            await self.while_authenticating(waiting)

    def max_body(self) -> int:
        return MAX_PUBLIC_BODY if self._is_unauthenticated else MAX_PAGE_BODY

    def admit(self) -> Awaitable[None] | None:
        methods = self._page.methods
        allowed = (*methods, "HEAD") if "GET" in methods and "HEAD" not in methods else methods
        if self.request.method not in allowed:
            raise MethodNotAllowed(f"This page supports only {', '.join(allowed)}.", allowed)
        if self.request.method in ("GET", "HEAD"):
            self.refuse_body()
        if not self._page.compressed:
            self.check_body_is_plain()
        self.check_length()
        self.hold_body(self._principal(), self._give_way)
        return None if self._page.admit is None else self._ask_page(self._page.admit)

    async def _ask_page(self, admit: Callable[[IncomingRequest], object]) -> None:
        refusal = (await self._call_page(admit, self.exchange.request, type(None)))[1]
        if refusal is not None:
            raise refusal
        self.request.connection.authenticated()  # type: ignore[union-attr]  # ours

    def _principal(self) -> str | None:
        """Return whom the body is charged to; a page that admits its clients is charged itself."""
        if self.exchange.identity is not None:
            return self.exchange.identity.principal
        return None if self._is_unauthenticated else f"plugin {self._plugin}"

    def _give_way(self) -> None:
        self.end(Overloaded("Too many requests to pages are in flight. Try again.", retry_after=1))

    async def serve(self) -> None:
        assert self._held is not None
        response, refusal = await self._call_page(
            self._page.serve,
            PageRequest(
                incoming=self.exchange.request,
                identity=self.exchange.identity,
                query=_fields(self.request.query),
                arguments=self._arguments,
                body=self._held.take(),
                base_url=self.base_url(),
            ),
            PageResponse,
        )
        if self.ended:
            if response is not None and response.stream is not None:
                await response.stream.aclose()
            return
        if response is None:
            # raised here, so that the plugin's own exception is not its context
            assert refusal is not None
            raise refusal
        self.set_status(response.status)
        self.set_header("Cache-Control", "no-store")
        for name, value in response.headers.items():
            self.set_header(name, value)
        self.set_header("Content-Type", response.content_type)
        self.set_header(self.dialect.request_id_header, self.request_id)
        if response.body:
            self.write(response.body)
        if response.stream is not None:
            await self._send(response.stream)
        self.end()

    async def _send(self, pieces: AsyncGenerator[bytes, None]) -> None:
        """Send the pieces of a stream, unless it is of a response to HEAD."""
        async with contextlib.aclosing(pieces):
            if self.request.method == "HEAD":
                return
            self._streaming = asyncio.current_task()
            try:
                while await self._is_taken():
                    async with asyncio.timeout(MAX_SILENCE):
                        self.write(await anext(pieces))
            except StopAsyncIteration:
                pass
            except Exception as error:
                if not self.ended:
                    self.gateway.plugins.teller.count_failure(self._plugin, "pages", error)
                    self.end(PluginFailed("This page failed.", status=500))

    async def _is_taken(self) -> bool:
        """Wait until the client has taken what was sent, or disconnect it if that takes too long.

        :returns: whether the response goes on.
        """
        flushed = self.flush()
        if not flushed.done():
            try:
                async with asyncio.timeout(MAX_SILENCE):
                    await flushed
            except TimeoutError:
                self.request.connection.abort()  # type: ignore[union-attr]  # ours
                self.end(outcome=Outcome.ABANDONED)
        return not self.ended

    def release(self) -> None:
        """Release the body, and end the stream of a client that has disconnected."""
        super().release()
        if self._streaming is not None and self._streaming is not asyncio.current_task():
            self._streaming.cancel()

    async def _call_page(
        self, function: Callable[[Any], object], argument: object, kind: type[T]
    ) -> tuple[T | None, ProxyError | None]:
        """Return the result of a function of the page, or the error for its client.

        :param kind: of a valid result.
        """
        result: object = None
        error: BaseException | None = None
        timeout = self.gateway.settings[PLUGIN_TIMEOUT]
        began = time.monotonic()
        try:
            result = function(argument)
        except BaseException as raised:
            error = raised
        if inspect.isawaitable(result):
            result, error = await outcome(result, timeout)
        elif (took := time.monotonic() - began) > timeout:
            result, error = None, held_the_loop(took, timeout)
        if isinstance(error, ProxyError) and 400 <= error.status <= 599:
            return None, error
        if error is None and isinstance(result, kind):
            return result, None
        late = isinstance(error, OurOwnError)
        if error is None:
            discard(result)
            error = OurOwnError(f"its {type(result).__name__} is not a {kind.__name__}")
        self.gateway.plugins.teller.count_failure(self._plugin, "pages", error)
        if late:
            return None, PluginFailed("This page took too long. Try again.", retry_after=1)
        return None, PluginFailed("This page failed. The proxy's log says more.", status=500)


def _fields(query: str) -> dict[str, tuple[str, ...]]:
    fields = parse_qs(query, keep_blank_values=True)
    return {name: tuple(values) for name, values in fields.items()}
