"""OpenTelemetry of clients: ``POST /v1/metrics``, ``/v1/logs`` and ``/v1/traces``.

It is taken with 200 whatever happens, so that no client sends it again, and never goes to the model
provider. With ``OIDC_OTLP_ENDPOINT`` it goes on to a collector, without the client's credential,
and with headers that say who sent it. What clients themselves write into it is not verified.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx2

from tornadoproxy import Page, PageRequest, PageResponse
from tornadoproxy_oidc.people import Person

if TYPE_CHECKING:
    from tornadoproxy import Identity

SIGNALS = ("metrics", "logs", "traces")
JSON = "application/json"
PROTOBUF = "application/x-protobuf"

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
            Page(f"/v1/{signal}", self._take, ("POST",), overrides=True) for signal in SIGNALS
        )

    async def close(self) -> None:
        """Wait for what is being sent."""
        if self._sending:
            await asyncio.wait(self._sending)
        if self._client is not None:
            await self._client.aclose()

    def _take(self, request: PageRequest) -> PageResponse:
        kind = request.incoming.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        kind = JSON if kind == JSON else PROTOBUF
        if self.endpoint is not None and request.identity is not None:
            if len(self._sending) < MAX_IN_FLIGHT:
                url = f"{self.endpoint}{request.incoming.path}"
                headers = {"Content-Type": kind, **_who(request.identity)}
                task = asyncio.create_task(self._send(url, headers, request.body))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
            else:
                self._tell("it is too slow")
        return PageResponse(b"{}" if kind == JSON else b"", kind)

    async def _send(self, url: str, headers: dict[str, str], body: bytes) -> None:
        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=TIMEOUT)
        try:
            async with asyncio.timeout(TIMEOUT):
                response = await self._client.post(url, content=body, headers=headers)
        except (httpx2.HTTPError, TimeoutError) as error:
            self._tell(type(error).__name__)
            return
        self._tell(None if response.is_success else f"it responds {response.status_code}")

    def _tell(self, fault: str | None) -> None:
        """Log that telemetry is lost, once until it arrives again."""
        if fault is not None and not self._failing:
            _logger.warning("telemetry is lost: OIDC_OTLP_ENDPOINT cannot be used: %s", fault)
        self._failing = fault is not None


def _who(identity: Identity) -> dict[str, str]:
    """Return the headers that say who sends something, percent-encoded."""
    said = {"X-User-Id": identity.principal, "X-User-Groups": ",".join(identity.groups)}
    if isinstance(identity, Person) and identity.email is not None:
        said["X-User-Email"] = identity.email
    return {name: quote(value, safe="@,+.:/") for name, value in said.items() if value}
