"""The relay of ``/v1/*``: requests and responses cross it as they are.

A request without a body is sent to the upstream as soon as it is admitted. A body up to `HELD_BODY`
bytes is held until it is whole, so that the request is one write, and can be sent again if a kept
connection turns out to be dead. Any other body streams: a part is read from the client only when
the upstream has room for it. A messages request that plugins have to authorize is held whatever its
size.

The proxy reads the usage in the response to a messages request, so that it asks only for codings
that it can read (`tornadoproxy.protocol.decompression`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote

from tornadoproxy.config.core_settings import (
    MAX_BODY_SIZE,
    MODELS,
    REWRITE_RESULTS_URL,
    SSE_KEEPALIVE_INTERVAL,
)
from tornadoproxy.errors import NotFound, UpstreamClosed
from tornadoproxy.handlers.event_stream import EventStream
from tornadoproxy.handlers.proxying import UpstreamHandler
from tornadoproxy.plugin.admin.query import Query
from tornadoproxy.plugin.decisions import MAX_MODEL_NAME, all_allow
from tornadoproxy.protocol import results_url
from tornadoproxy.protocol.decompression import readable_codings
from tornadoproxy.protocol.headers import (
    add_fields,
    is_encoded,
    is_event_stream,
    is_json,
    replace_fields,
    response_headers,
)
from tornadoproxy.protocol.request_fields import MAX_MESSAGE_BODY, MESSAGE_HINT
from tornadoproxy.protocol.request_target import MODELS_PATH, asks_a_model
from tornadoproxy.protocol.usage import Usage
from tornadoproxy.protocol.usage_reader import UsageReader
from tornadoproxy.upstream.model_list import UpstreamRefused
from tornadoproxy.upstream.routing import keeps, made_id, names_a_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.plugin.decisions import AllowedModels
    from tornadoproxy.protocol.wire import ResponseHead

HELD_BODY = 1024 * 1024
"""The largest request body that is held until it is whole, in bytes."""

_MAX_MADE = 64 * 1024  # bytes of a response that says what was made
_CODING = frozenset({"Accept-Encoding"})
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_FRAMING = frozenset({"Content-Length", "Transfer-Encoding"})


class RelayHandler(UpstreamHandler):
    """The relay of one exchange."""

    _rewriting: list[bytes] | None = None
    _ends_with_connection = False
    _reads_body = False
    """Whether the body has to be read, for plugins or to choose the upstream."""

    _needs_whole_body = False
    _making: bytes | None = None

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        method, path = self.request.method or "", self.request.path
        self._asks_a_model = asks_a_model(method, path)
        plugins = gateway.plugins
        decided = self._asks_a_model and (plugins.authorizes or plugins.responds)
        if decided or (gateway.routes_by_body and names_a_model(method, path)):
            self._reads_body = self._needs_whole_body = True
        elif gateway.upstreams.sole is None and gateway.upstreams.needs_body(method, path):
            self._needs_whole_body = True

    def asks_a_model(self) -> bool:
        return self._asks_a_model

    def max_body(self) -> int:
        largest = self.gateway.settings[MAX_BODY_SIZE]
        return min(largest, MAX_MESSAGE_BODY) if self._needs_whole_body else largest

    def max_body_hint(self) -> str:
        return MESSAGE_HINT if self._needs_whole_body else MAX_BODY_SIZE.name

    def holds(self, length: int, *, chunked: bool) -> bool:
        if self._reads_body:
            self.check_body_is_plain()
            return True
        if chunked or not length:
            return chunked and self._needs_whole_body
        return length <= HELD_BODY or self._needs_whole_body

    def begin(self, *, has_body: bool, chunked: bool) -> None:
        self._send(None if has_body else b"", chunked=chunked)

    async def serve_held(self, body: bytes) -> None:
        if self._reads_body:
            if self.gateway.routes_by_body:
                routed = await self.route(body, self.gateway.settings[MODELS])
                if routed is None:
                    return
                body = routed
            if self._asks_a_model and not await self.ask_plugins(body):
                return
            if self.gateway.plugins.responds and await self.respond_by_plugin(body):
                return
        self._send(body)

    def begin_response(self, head: ResponseHead) -> None:
        headers = response_headers(head.status, head.fields, self.withheld_headers)
        if self._shown:
            headers.pop("X-Tornadoproxy-Upstream", None)  # of another tornadoproxy behind this one
            add_fields(headers, self._shown)
        permits = self.exchange.permits
        if permits is not None and permits.added_headers and head.status == 200:
            replace_fields(headers, permits.added_headers)
        self._headers = headers  # Tornado's `add_header` would validate each one again
        self.set_status(head.status, head.reason)
        if not head.reason:
            self._reason = ""
        self.exchange.request_id = headers.get("Request-Id", self.request_id)
        if head.status < 300 and self.asks_a_model():
            self._usage = UsageReader.for_response(headers)
            if self._usage is None:
                self.exchange.usage = Usage(partial=True)
        if is_event_stream(headers) and not is_encoded(headers):
            self._events = EventStream(self, headers)
            if head.ends_with_connection:
                self._ends_with_connection = True
        if self._rewriting is not None and not is_json(headers):
            self._rewriting = None
        if self.gateway.upstreams.sole is None and head.status < 300:
            makes = self.request.method == "POST" and keeps(self.request.path)
            self._making = b"" if makes else None

    def on_data(self, chunk: bytes) -> None:
        if self._making is not None and len(self._making) < _MAX_MADE:
            self._making += chunk
        if self._rewriting is not None:
            self._rewriting.append(chunk)
            return
        if self._usage is not None:
            self._usage.feed(chunk)
        self.pass_on(chunk)

    def on_end(self) -> None:
        if self._making:
            made = made_id(self._making)
            if made is not None and self._target is not None:
                self.gateway.upstreams.made(made, self._target)
        if self._ends_with_connection and self._events and not self._events.between_events:
            # to HTTP the response is complete, but an event without its end shows that it is not
            self.end(UpstreamClosed("The upstream ended its response within an event."))
            return
        if self._rewriting is not None:
            self._pass_on_rewritten(b"".join(self._rewriting))
        self.end()

    def _send(self, body: bytes | None, *, chunked: bool = False) -> None:
        drop: frozenset[str] = frozenset()
        add: list[tuple[str, str]] = []
        codings = self._codings(body)
        if codings is not None:
            drop, add = _CODING, [("Accept-Encoding", codings)]
        headers = self.request.headers
        if body is not None and (
            "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != str(len(body))
        ):
            drop |= _FRAMING
            add.append(("Content-Length", str(len(body))))
        self.send(self.request.uri or "", body, chunked=chunked, drop=drop, add=add)

    def _codings(self, body: bytes | None) -> str | None:
        """Return the ``Accept-Encoding`` for the upstream; ``None`` keeps the client's own."""
        settings, headers = self.gateway.settings, self.request.headers
        if self._asks_a_model:
            # neither a ping nor an error event can be put into a compressed stream, and its events
            # decide whether another upstream is asked
            looks_inside = settings[SSE_KEEPALIVE_INTERVAL] or self.gateway.upstreams.sole is None
            if looks_inside and (body is None or _STREAM.search(body)):
                return "identity"
            if "Accept-Encoding" in headers:
                accepted = headers["Accept-Encoding"]
                readable = readable_codings(accepted)
                return None if readable == accepted else readable
        elif settings[REWRITE_RESULTS_URL] and self.request.path.startswith(
            results_url.PATH_PREFIX
        ):
            self._rewriting = []
            return "identity"
        return None

    def _pass_on_rewritten(self, body: bytes) -> None:
        body = results_url.rewrite(body, self.base_url())
        if "Content-Length" in self._headers and self.request.method != "HEAD":
            self._headers["Content-Length"] = str(len(body))
        self.pass_on(body)


class RelayedModelsHandler(RelayHandler):
    """The upstream's models, or one of them: those that the client may use.

    Without a rule about the client's models, the request is relayed as it is.
    """

    _rules: Sequence[AllowedModels] | None = None
    """The rules, if the response is made here."""

    def admit(self) -> Awaitable[None] | None:
        return self._admit() if self.request.method in {"GET", "HEAD"} else super().admit()

    async def _admit(self) -> None:
        rules = await self.allowed_models()
        if rules and self.request.path == MODELS_PATH:
            self.refuse_body()
            self._rules = rules
            return
        name = unquote(self.request.path.removeprefix(f"{MODELS_PATH}/"))
        if not all_allow(rules, name):
            raise NotFound(f"model: {name[:MAX_MODEL_NAME]}")
        waiting = super().admit()
        if waiting is not None:
            await waiting

    async def serve(self) -> None:
        if self._rules is None:
            await super().serve()
            return
        try:
            models = await self.gateway.models.models()
        except UpstreamRefused as refused:
            self._write_page(refused.status, refused.body)
            return
        allowed = [name for name in models if all_allow(self._rules, name)]
        shown, has_more = Query(parse_qs(self.request.query)).shown(allowed)
        page = {
            "data": [models[name] for name in shown],
            "has_more": has_more,
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }
        self._write_page(200, json.dumps(page).encode())

    def _write_page(self, status: int, body: bytes) -> None:
        if self.ended:
            return
        self.set_status(status)
        self.set_header(self.dialect.request_id_header, self.request_id)
        self.write(body)
        self.end()
