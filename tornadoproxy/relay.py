"""``/v1/*``: the request goes upstream as it is, and so does the answer to the client.

The request's body. Without one, the request goes upstream as soon as it is admitted. A body up to
`HELD_BODY` bytes is held until it is whole, so that the request goes out in one write and can be
sent again if a kept connection turns out to be dead. Everything else streams: a part is read from
the client only when the upstream has room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import results_url
from tornadoproxy.errors import UpstreamClosed
from tornadoproxy.forwarded import client_scheme
from tornadoproxy.headers import (
    is_encoded,
    is_event_stream,
    is_json,
    response_headers,
)
from tornadoproxy.settings import (
    MAX_BODY_SIZE,
    REWRITE_RESULTS_URL,
    TRUSTED_PROXIES,
)
from tornadoproxy.upstream_handler import UpstreamHandler
from tornadoproxy.usage import UsageReader

if TYPE_CHECKING:
    from tornadoproxy.upstream_connection import ResponseHead

HELD_BODY = 1024 * 1024
"""The largest request body that is held until it is whole, in bytes."""


_CODING = frozenset({"Accept-Encoding"})


class RelayHandler(UpstreamHandler):
    """Relays one exchange."""

    _rewriting: list[bytes] | None = None
    _ends_with_connection = False

    def max_body(self) -> int:
        return self.gateway.settings[MAX_BODY_SIZE]

    def max_body_hint(self) -> str:
        return MAX_BODY_SIZE.name

    def begin(self, length: int, *, chunked: bool) -> None:
        if chunked or length > HELD_BODY:
            self._send(None, chunked=chunked)
        elif length == 0:
            self._send(b"")
        elif not self.hold(length):
            self._send(None)

    async def serve(self) -> None:
        if self._held is not None:
            self._send(self.take_held())
        elif self._call is not None:
            await self._call.end_body()

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        self.answer_began()
        headers = response_headers(head.status, head.fields)
        self._headers = headers
        self.set_status(head.status, head.reason)
        if not head.reason:
            self._reason = ""
        self.exchange.request_id = headers.get("Request-Id", self.request_id)
        if self.request.method == "POST" and self.request.path == "/v1/messages":
            self._usage = UsageReader.for_answer(headers)
        if is_event_stream(headers) and not is_encoded(headers):
            self.follow_events()
            if head.ends_with_connection:
                self._ends_with_connection = True
        if self._rewriting is not None and not is_json(headers):
            self._rewriting = None
        self.on_data(first)
        self.forget_heads()

    def on_data(self, chunk: bytes) -> None:
        if self._rewriting is not None:
            self._rewriting.append(chunk)
            return
        if self._usage is not None:
            self._usage.feed(chunk)
        self.pass_on(chunk)

    def on_end(self) -> None:
        if self._ends_with_connection and self._boundary and not self._boundary.between_events:
            # HTTP cannot tell it from a whole answer, but an event without its end tells
            self.on_failure(UpstreamClosed("The upstream ended its answer within an event."))
            return
        if self._rewriting is not None:
            self._pass_on_rewritten(b"".join(self._rewriting))
        self.answer_ended()

    def _send(self, body: bytes | None, *, chunked: bool = False) -> None:
        target = self.request.uri or ""
        rewrites = self.gateway.settings[REWRITE_RESULTS_URL]
        if rewrites and self.request.path.startswith(results_url.PATH_PREFIX):
            self._rewriting = []
            identity = [("Accept-Encoding", "identity")]
            self.send(target, body, chunked=chunked, drop=_CODING, add=identity)
        else:
            self.send(target, body, chunked=chunked)

    def _pass_on_rewritten(self, body: bytes) -> None:
        scheme = client_scheme(
            self.request.protocol,
            self.request.remote_ip or "",
            self.request.headers,
            self.gateway.settings[TRUSTED_PROXIES],
        )
        body = results_url.rewrite(body, f"{scheme}://{self.request.host}")
        if "Content-Length" in self._headers and self.request.method != "HEAD":
            self._headers["Content-Length"] = str(len(body))
        self.pass_on(body)
