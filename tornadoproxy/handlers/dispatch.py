"""The way of one request to an upstream: which one, and in what form.

Where there is one upstream, no plugin changes requests and no form is another, the request is sent
as it is; `UpstreamHandler.send` does that. All else is here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.errors import PluginFailed
from tornadoproxy.plugin.decisions import HOW
from tornadoproxy.protocol.body_fields import IN_THREAD, with_model
from tornadoproxy.protocol.wire import ANTHROPIC, OutgoingRequest, is_sendable
from tornadoproxy.upstream.attempt import Prepared
from tornadoproxy.upstream.failover import Failover
from tornadoproxy.upstream.routing import targets_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tornadoproxy.handlers.exchange import Exchange
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.protocol.body_fields import RoutingFields
    from tornadoproxy.upstream.failover import FailoverReceiver
    from tornadoproxy.upstream.target import Target

logger = logging.getLogger(__name__)

_OF_THE_CORE = ("Host", "Content-Length", "Transfer-Encoding")
_FRAMING = frozenset(_OF_THE_CORE[1:])
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Dispatch(Struct, frozen=True):
    """One request, and what is sent to each upstream that is tried.

    :param target: path and query.
    :param lines: the headers that go upstream, as `forwarded` returns them.
    :param body: ``None`` if it is streamed.
    :param chunked: a streamed body has the chunked transfer coding.
    :param routing: what its body says about where it goes.
    """

    gateway: Gateway
    exchange: Exchange
    method: str
    target: str
    lines: list[str]
    body: bytes | None
    chunked: bool
    routing: RoutingFields

    def start(self, receiver: FailoverReceiver) -> Failover:
        """Send the request to the upstreams that can serve it, until one responds.

        :raises NotFound: none can serve it.
        :raises Overloaded: each of them has as many requests as it may.
        """
        pool, plugins = self.gateway.upstreams, self.gateway.plugins
        path, model = self.target.partition("?")[0], self.routing.model
        identity = self.exchange.identity
        assert identity is not None
        session = self.exchange.session_id or self.routing.user_id or identity.principal
        targets, moves = targets_of(pool, self.method, path, model, session, self.body)
        # also if only one can serve it: a plugin may refuse that one
        choosing = self._chosen(targets) if plugins.chooses and len(pool.targets) > 1 else targets
        call = Failover(pool, choosing, self.prepare, receiver, model=model, moves=moves)
        call.start()
        return call

    def _chosen(self, targets: Sequence[Target]) -> Sequence[Target] | Awaitable[Sequence[Target]]:
        """Return those of `targets` that plugins choose, in their order."""
        exchange = self.exchange
        assert exchange.identity is not None
        by_name = {target.name: target for target in targets}
        chosen = self.gateway.plugins.choose_upstream(
            exchange.request, exchange.identity, exchange.model_request, tuple(by_name)
        )
        if isinstance(chosen, Awaitable):
            return _named(by_name, chosen)
        return targets if chosen is None else [by_name[name] for name in chosen]

    def prepare(self, target: Target) -> Prepared | Awaitable[Prepared]:
        """Return the request for `target`, or an awaitable of it.

        It is awaited if a plugin has to be, or if a large body is changed, which a thread does.

        :raises ProxyError: a plugin or the upstream's form refuses it.
        """
        body, there = self.body, self._model_at(target)
        if body is None or there is None:
            return self._prepare(target, body)
        if len(body) <= IN_THREAD:
            return self._prepare(target, with_model(body, there))
        return self._when_renamed(target, asyncio.to_thread(with_model, body, there))

    async def _when_renamed(self, target: Target, renaming: Awaitable[bytes]) -> Prepared:
        prepared = self._prepare(target, await renaming)
        return await prepared if isinstance(prepared, Awaitable) else prepared

    def _prepare(self, target: Target, body: bytes | None) -> Prepared | Awaitable[Prepared]:
        exchange, plugins = self.exchange, self.gateway.plugins
        outgoing = OutgoingRequest(
            upstream=target.name,
            method=self.method,
            target=self.target,
            headers=tuple(_field(line) for line in self.lines),
            body=body,
        )
        if plugins.prepares:
            assert exchange.identity is not None
            prepared = plugins.prepare_request(exchange.request, exchange.identity, outgoing)
            if isinstance(prepared, Awaitable):
                return self._when_prepared(target, prepared)
            outgoing = prepared
        formed = target.upstream.wire.prepare(outgoing)
        if isinstance(formed, OutgoingRequest):
            return self._as_sent(target, formed)
        return self._when_in_form(target, formed)

    async def _when_prepared(
        self, target: Target, preparing: Awaitable[OutgoingRequest]
    ) -> Prepared:
        formed = target.upstream.wire.prepare(await preparing)
        if isinstance(formed, OutgoingRequest):
            return self._as_sent(target, formed)
        return await self._when_in_form(target, formed)

    async def _when_in_form(self, target: Target, forming: Awaitable[OutgoingRequest]) -> Prepared:
        return self._as_sent(target, await forming)

    def _model_at(self, target: Target) -> str | None:
        """Return what the model is called there, if that is another name."""
        own = self.routing.model
        there = None if own is None else target.upstream.model(own)
        return None if there == own else there

    def _framed(self, outgoing: OutgoingRequest) -> tuple[tuple[str, str], ...]:
        """Return the headers with those that frame the body, whatever plugins did to these."""
        body = outgoing.body
        framing = [field for field in map(_field, self.lines) if field[0] in _FRAMING]
        if body is not None and (body or framing or outgoing.method in _WITH_BODY):
            framing = [("Content-Length", str(len(body)))]
        own = {name.lower() for name in _OF_THE_CORE}
        if [field for field in outgoing.headers if field[0].lower() in own] == framing:
            return outgoing.headers
        return (*outgoing.with_headers(without=_OF_THE_CORE), *framing)

    def _as_sent(self, target: Target, outgoing: OutgoingRequest) -> Prepared:
        is_whole = outgoing.body is not None
        if is_whole != (self.body is not None) or (
            target.upstream.wire is not ANTHROPIC and not is_sendable(outgoing)
        ):
            logger.error("upstream %s: its wire has made an invalid request", target.name)
            raise PluginFailed(HOW.unavailable, retry_after=1)
        body = outgoing.body
        fields = self._framed(outgoing)
        credential = target.credential
        request = target.request(
            outgoing.method,
            outgoing.target,
            (f"{name}: {value}" for name, value in fields),
            body,
            chunked=self.chunked and body is None,
            instance=self.gateway.instance,
            # a plugin may have put another in its place
            has_credential=credential is not None and outgoing.header(credential[0]) is not None,
        )
        # the response needs its own part of the request only
        return Prepared(request, replace(outgoing, body=None, headers=()))


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name, value


async def _named(
    by_name: Mapping[str, Target], choosing: Awaitable[Sequence[str] | None]
) -> Sequence[Target]:
    chosen = await choosing
    return [*by_name.values()] if chosen is None else [by_name[name] for name in chosen]
