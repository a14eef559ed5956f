"""One upstream of the pool: its client, its credential, and whether it can be used at present.

::

    well ──failure──▶ resting ──its time is over──▶ probing ──success──▶ well
                         ▲                             └──failure──▶ resting, longer
                         └─────────────────────────────────┘

While it probes, one request asks it, and the others go elsewhere.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING

from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders

from tornadoproxy.config.core_settings import DEFAULT_ANTHROPIC_VERSION
from tornadoproxy.config.upstreams import UpstreamStatus
from tornadoproxy.errors import CredentialRefused, UpstreamTimeout
from tornadoproxy.protocol.decompression import decompressor
from tornadoproxy.protocol.headers import credential_header, is_encoded, request_head, via
from tornadoproxy.protocol.wire import OutgoingRequest, ResponseHead
from tornadoproxy.upstream.call import UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.upstreams import Upstream
    from tornadoproxy.errors import UpstreamError
    from tornadoproxy.upstream.client import UpstreamClient

logger = logging.getLogger(__name__)

FIRST_REST = 1.0
"""How long an upstream rests after its first failure, at most, in seconds; doubled each time."""

LONGEST_REST = 60.0
"""The longest such rest, in seconds."""

LONGEST_ASKED_REST = 3600.0
"""The longest rest that an upstream can ask for by ``retry-after``, in seconds."""

MODEL_ABSENT = 300.0
"""How long an upstream is not asked for a model that it did not have, in seconds."""


class Target:
    """One upstream; `UpstreamPool` makes it.

    :ivar upstream: how it is reached.
    :ivar name: the upstream's.
    :ivar settings: the proxy's, with those of this upstream.
    :ivar key_is_refused: whether it has refused its key since that was loaded.
    :ivar in_flight: its requests that have not ended.
    """

    def __init__(self, upstream: Upstream, settings: Settings) -> None:
        self.upstream = upstream
        self.name = upstream.name
        self.settings = upstream.settings(settings)
        self.in_flight = 0
        self.rests_until = 0.0
        self.credential = (
            None
            if upstream.api_key is None
            else credential_header(upstream.api_key, upstream.auth_scheme)
        )
        self.key_is_refused = False
        self._probe: object | None = None
        self._failures = 0
        self._rests = 0
        self._absent_models: dict[str, float] = {}
        self._attempts: Counter[int | str] = Counter()
        self._responses = 0
        self._first_byte_time = 0.0

    @cached_property
    def client(self) -> UpstreamClient:
        """Its client; it is not loaded at the start, since probes need none."""
        from tornadoproxy.upstream.client import UpstreamClient

        return UpstreamClient(force_instance=True, settings=self.settings)

    def request(
        self,
        method: str,
        path: str,
        lines: Iterable[str],
        body: bytes | None,
        *,
        chunked: bool,
        instance: str,
        has_credential: bool = False,
    ) -> UpstreamRequest:
        """Return a request as it is sent to this upstream.

        :param path: the request target below its base URL.
        :param lines: the headers, as `forwarded` returns them.
        :param body: ``None`` if it is streamed.
        :param instance: this proxy's name in ``Via``.
        :param has_credential: `lines` have a credential in place of the upstream's key.
        """
        base = self.upstream.base_url
        head = request_head(
            method,
            base.prefix + path,
            lines,
            authority=base.authority,
            instance=instance,
            credential=None if has_credential else self.credential,
        )
        return UpstreamRequest(
            origin=self.client.origin, method=method, head=head, body=body, chunked=chunked
        )

    async def ask(self, path: str, *, instance: str) -> tuple[int, bytes]:
        """Get `path` from the upstream for the proxy itself.

        :param instance: this proxy's name in ``Via``.
        :return: status and body of the response.
        :raises UpstreamError: there is no response, or it cannot be decompressed.
        """
        wire, credential = self.upstream.wire, self.credential
        outgoing = OutgoingRequest(
            upstream=self.name,
            method="GET",
            target=path,
            headers=(
                ("Accept-Encoding", "identity"),
                ("Anthropic-Version", self.settings[DEFAULT_ANTHROPIC_VERSION]),
                ("Via", via(instance)),
                *(() if credential is None else (credential,)),
            ),
            body=b"",
        )
        prepared = wire.prepare(outgoing)
        if isinstance(prepared, Awaitable):
            prepared = await prepared
        headers = HTTPHeaders()
        for name, value in prepared.headers:
            headers.add(name, value)
        request = HTTPRequest(f"{self.upstream.base_url}{prepared.target}", headers=headers)
        response = await self.client.fetch(request, raise_error=False)
        fields = list(response.headers.get_all())
        head, decoder = wire.read(prepared, ResponseHead(response.code, response.reason, fields))
        if decoder is not None:
            return head.status, decoder.feed(response.body) + decoder.end()
        if is_encoded(response.headers):
            decompress = decompressor(response.headers["Content-Encoding"])
            return head.status, b"".join(decompress(response.body))
        return head.status, response.body

    def close(self) -> None:
        """Close the idle connections."""
        if "client" in vars(self):
            self.client.close()

    # -- whether it can be asked

    def is_well(self, now: float) -> bool:
        """Whether it may be asked: it does not rest, or its rest is over and nobody probes it."""
        return not self._failures or (self.rests_until <= now and self._probe is None)

    @property
    def is_full(self) -> bool:
        """Whether it has as many requests in flight as it may."""
        most = self.upstream.max_concurrent
        return most is not None and self.in_flight >= most

    def lacks(self, model: str | None, now: float) -> bool:
        """Whether it did not have `model` when it was asked last."""
        return model is not None and self._absent_models.get(model, 0.0) > now

    # -- what happens to it

    def begin(self) -> object | None:
        """Take note that a request is about to be sent; return a token if it is a probe."""
        self.in_flight += 1
        if not self._failures or self._probe is not None:
            return None
        self._probe = object()
        logger.info("upstream %s: probing", self.name)
        return self._probe

    def end(self, probe: object | None) -> None:
        """Take note that a request is over; each `begin` is followed by one.

        :param probe: what `begin` returned.
        """
        self.in_flight -= 1
        if probe is self._probe:
            self._probe = None

    def responded(self, status: int, seconds: float) -> None:
        """Take note that a response began, `seconds` after the request was sent."""
        self._attempts[status] += 1
        self._responses += 1
        self._first_byte_time += seconds

    def broke(self, reason: str) -> None:
        """Take note that a request ended without a response."""
        self._attempts[reason] += 1

    def succeeded(self) -> None:
        """Take note that it responds as it should."""
        if self._failures:
            logger.info("upstream %s: well again", self.name)
            self._failures = 0
            self.rests_until = 0.0
            self._probe = None  # what it asked is known, although its response may be long

    def failed(self, reason: str, head: ResponseHead | None = None) -> None:
        """Let it rest, for as long as the head of its response asks, or longer each time.

        :param reason: for the log.
        """
        if head is None:
            self.broke(reason)
        now = time.monotonic()
        asked = None if head is None else retry_after(head)
        if self._failures and now < self.rests_until and self._probe is None:
            # one of several requests in flight when it began to rest: they are one failure
            rest = 0.0
        else:
            self._failures += 1
            self._rests += 1
            rest = min(FIRST_REST * 2.0 ** min(self._failures - 1, 16), LONGEST_REST)
            rest *= 0.5 + int.from_bytes(os.urandom(4)) / 2**33  # so that probes spread
        self._probe = None
        if asked is not None:
            rest = min(asked, LONGEST_ASKED_REST)
        if now + rest > self.rests_until:
            self.rests_until = now + rest
            logger.warning("upstream %s: resting for %.1f s: %s", self.name, rest, reason)

    def lacked(self, model: str | None) -> None:
        """Take note that it does not have `model`."""
        if model is not None:
            if len(self._absent_models) >= 1000:
                self._absent_models.clear()
            self._absent_models[model] = time.monotonic() + MODEL_ABSENT
            logger.warning("upstream %s does not have the model %.100r", self.name, model)

    def check_key(self, status: int) -> CredentialRefused | None:
        """Return the error for a response that refuses the key, and log the first one.

        It is logged again after the key was reloaded, or after the upstream accepted it.

        :param status: the response's.
        """
        if status == 401:
            if not self.key_is_refused:
                self.key_is_refused = True
                logger.error(
                    "%s, then reload or restart; requests fail with 502 until then",
                    self.upstream.key_fault(),
                )
            return CredentialRefused()
        if self.key_is_refused and status < 400:
            self.key_is_refused = False
        return None

    def status(self) -> UpstreamStatus:
        """Return its figures."""
        now = time.monotonic()
        return UpstreamStatus(
            name=self.name,
            kind=self.upstream.kind,
            state="probing" if self._probe is not None else "resting" if self._failures else "well",
            in_flight=self.in_flight,
            attempts={str(result): count for result, count in self._attempts.items()},
            rests=self._rests,
            rests_for=max(0.0, self.rests_until - now),
            first_byte_time=self._first_byte_time,
            responses=self._responses,
        )

    def continues(self, other: Target) -> None:
        """Take over the figures of the same upstream before a reload."""
        self._attempts, self._rests = other._attempts, other._rests
        self._responses, self._first_byte_time = other._responses, other._first_byte_time


def failure_name(error: UpstreamError) -> str:
    """Return what a request without a response counts as: ``timeout`` or ``connection``."""
    return "timeout" if isinstance(error, UpstreamTimeout) else "connection"


def retry_after(head: ResponseHead) -> float | None:
    """Return the seconds that a response asks to wait: ``retry-after-ms`` or ``retry-after``.

    Source: RFC 9110 §10.2.3
    """
    fields = {name.lower(): value.strip() for name, value in head.fields}
    try:
        if "retry-after-ms" in fields:
            return max(0.0, float(fields["retry-after-ms"]) / 1000)
        if "retry-after" not in fields:
            return None
        text = fields["retry-after"]
        if text.replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
