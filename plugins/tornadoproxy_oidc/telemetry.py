"""OpenTelemetry of clients: ``POST /v1/metrics``, ``/v1/logs`` and ``/v1/traces``.

It is taken with 200 whatever happens, so that no client sends it again, and never goes to the model
provider. With ``OIDC_OTLP_ENDPOINT`` it goes on to a collector, without the client's credential.
Headers and the attributes of each resource say who sent it, whatever the client has written there;
its other attributes, such as those of a log record, are not verified.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx2

from tornadoproxy import Page, PageRequest, PageResponse
from tornadoproxy_oidc.otlp import decompressed, stamp_json, stamp_protobuf
from tornadoproxy_oidc.people import Person

if TYPE_CHECKING:
    from tornadoproxy import Identity

SIGNALS = ("metrics", "logs", "traces")
JSON = "application/json"
PROTOBUF = "application/x-protobuf"

ATTRIBUTES = ("identity.source", "user.id", "user.email", "user.groups")
"""The attributes of a resource that the proxy writes, and nobody else."""

IN_THREAD = 64 * 1024
"""The largest body that is changed at once, in bytes; a larger or compressed one is in a thread."""

UNUSABLE = "OIDC_OTLP_ENDPOINT cannot be used"

MAX_IN_FLIGHT = 32
"""Requests to the collector at once; what comes beyond that is dropped."""

TIMEOUT = 3.0  # seconds for the collector, less than a stop may take

_logger = logging.getLogger(__name__)


class Telemetry:
    """The pages, and the way to the collector.

    :ivar endpoint: the base URL of the collector; ``None`` discards what comes.
    """

    def __init__(self) -> None:
        self.endpoint: str | None = None
        self._client: httpx2.AsyncClient | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._failing = False

    def pages(self) -> tuple[Page, ...]:
        """Return the pages, for everybody with a credential."""
        return tuple(
            Page(f"/v1/{signal}", self._take, ("POST",), overrides=True, compressed=True)
            for signal in SIGNALS
        )

    async def close(self) -> None:
        """Wait for what is being sent."""
        if self._sending:
            await asyncio.wait(self._sending)
        if self._client is not None:
            await self._client.aclose()

    def _take(self, request: PageRequest) -> PageResponse:
        given = request.incoming.headers
        kind = given.get("Content-Type", "").partition(";")[0].strip().lower()
        kind = JSON if kind == JSON else PROTOBUF
        if self.endpoint is not None and request.identity is not None:
            if len(self._sending) < MAX_IN_FLIGHT:
                url = f"{self.endpoint}{request.incoming.path}"
                headers = {"Content-Type": kind, **_who(request.identity)}
                coding = given.get("Content-Encoding", "").strip().lower()
                task = asyncio.create_task(
                    self._send(url, headers, request.body, coding, _attributes(request.identity))
                )
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
            else:
                self._tell(f"{UNUSABLE}: it is too slow")
        return PageResponse(b"{}" if kind == JSON else b"", kind)

    async def _send(
        self,
        url: str,
        headers: dict[str, str],
        body: bytes,
        coding: str,
        attributes: dict[str, str],
    ) -> None:
        stamp = stamp_json if headers["Content-Type"] == JSON else stamp_protobuf

        def stamped() -> bytes:
            return stamp(decompressed(body, coding), ATTRIBUTES, attributes)

        try:
            is_large = coding or len(body) > IN_THREAD
            content = await asyncio.to_thread(stamped) if is_large else stamped()
        except ValueError as error:
            self._tell(f"a client's request is dropped: {error}")
            return
        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=TIMEOUT)
        try:
            async with asyncio.timeout(TIMEOUT):
                response = await self._client.post(url, content=content, headers=headers)
        except (httpx2.HTTPError, TimeoutError) as error:
            self._tell(f"{UNUSABLE}: {type(error).__name__}")
            return
        fault = None if response.is_success else f"{UNUSABLE}: it responds {response.status_code}"
        self._tell(fault)

    def _tell(self, fault: str | None) -> None:
        """Log that telemetry is lost, once until it arrives again."""
        if fault is not None and not self._failing:
            _logger.warning("telemetry is lost: %s", fault)
        self._failing = fault is not None


def _attributes(identity: Identity) -> dict[str, str]:
    """Return the attributes that say who sends something, as Claude Code itself writes them."""
    said = {"user.id": identity.principal, "user.groups": ",".join(identity.groups)}
    if isinstance(identity, Person):
        said["identity.source"] = "gateway-oidc"
        said["user.email"] = identity.email or ""
    return {name: value for name, value in said.items() if value}


def _who(identity: Identity) -> dict[str, str]:
    """Return the headers that say who sends something, percent-encoded."""
    said = {"X-User-Id": identity.principal, "X-User-Groups": ",".join(identity.groups)}
    if isinstance(identity, Person) and identity.email is not None:
        said["X-User-Email"] = identity.email
    return {name: quote(value, safe="@,+.:/") for name, value in said.items() if value}
