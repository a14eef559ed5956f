"""``check --online``: one request to the upstream with the proxy's key."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from tornadoproxy.config.upstreams import DEFAULT
from tornadoproxy.errors import ConfigurationError, UpstreamError
from tornadoproxy.protocol.dialects import read_error
from tornadoproxy.upstream.model_list import read_page
from tornadoproxy.upstream.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.upstreams import Upstream

PATH = "/v1/models?limit=1"
"""The cheapest request that needs a valid key: it runs no model and costs nothing."""

TIMEOUT = 20.0
"""How long the upstream may take to respond, in seconds."""

_MAX_QUOTED = 500  # characters of a response that is not an API error


async def check_upstreams(settings: Settings, upstreams: Iterable[Upstream]) -> tuple[str, ...]:
    """Ask each upstream for one of its models, and return lines that report success.

    :raises ConfigurationError: with a line for each that refuses its key, cannot be reached, or
        responds with anything else.
    """
    lines: list[str] = []
    faults: list[str] = []
    for upstream in upstreams:
        try:
            lines.append(await _check(settings, upstream))
        except ConfigurationError as error:
            faults += error.faults
    if faults:
        raise ConfigurationError(*faults)
    return tuple(lines)


async def _check(settings: Settings, upstream: Upstream) -> str:
    """Ask one upstream, and return a line that reports success.

    :raises ConfigurationError: the upstream refuses the key, cannot be reached, or responds with
        anything else.
    """
    name = "the upstream" if upstream.name == DEFAULT else f"the upstream {upstream.name!r}"
    wire = upstream.wire
    if not wire.serves("GET", "/v1/models"):
        try:
            await wire.load_credential()
        except UpstreamError as error:
            raise ConfigurationError(f"{name}: {error.message}") from None
        return f"{name} has a credential; it lists no models, so that only a request tests that"
    target = Target(upstream, settings)
    try:
        async with asyncio.timeout(TIMEOUT):
            status, body = await target.ask(PATH, instance=secrets.token_hex(8))
        if status == 200:
            read_page(body)
            return f"{name} accepts the key (GET {PATH})"
        _, message = read_error(body)
        message = message or body[:_MAX_QUOTED].decode("utf-8", "replace").strip() or "nothing else"
        fault = f"it responded to GET {PATH} with {status}: {message}"
    except TimeoutError:
        status, fault = 0, f"no response to GET {PATH} within {TIMEOUT:g} seconds"
    except UpstreamError as error:
        status, fault = 0, error.message
    finally:
        target.close()
    if status == 401:
        raise ConfigurationError(upstream.key_fault())
    where = "UPSTREAM_BASE_URL" if upstream.name == DEFAULT else f"base_url of {upstream.name!r}"
    raise ConfigurationError(f"{where} is {upstream.base_url}: {fault}")
