"""``check --online``: one request to the upstream with the proxy's key."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import UPSTREAM_BASE_URL
from tornadoproxy.config.upstream_key import upstream_key_fault
from tornadoproxy.errors import ConfigurationError, UpstreamError
from tornadoproxy.protocol.dialects import read_error
from tornadoproxy.upstream.client import UpstreamClient
from tornadoproxy.upstream.model_list import read_page

if TYPE_CHECKING:
    from tornadoproxy.config.settings import Settings

PATH = "/v1/models?limit=1"
"""The cheapest request that needs a valid key: it runs no model and costs nothing."""

TIMEOUT = 20.0
"""How long the upstream may take to respond, in seconds."""

_MAX_QUOTED = 500  # characters of a response that is not an API error


async def check_upstream(settings: Settings) -> str:
    """Ask the upstream for one of its models, and return a line that reports success.

    :raises ConfigurationError: the upstream refuses the key, cannot be reached, or responds with
        anything else.
    """
    client = UpstreamClient(force_instance=True, settings=settings)
    try:
        async with asyncio.timeout(TIMEOUT):
            status, body = await client.ask(settings, PATH, instance=secrets.token_hex(8))
        if status == 200:
            read_page(body)
            return f"the upstream accepts the key (GET {PATH})"
        _, message = read_error(body)
        message = message or body[:_MAX_QUOTED].decode("utf-8", "replace").strip() or "nothing else"
        fault = f"it responded to GET {PATH} with {status}: {message}"
    except TimeoutError:
        status, fault = 0, f"no response to GET {PATH} within {TIMEOUT:g} seconds"
    except UpstreamError as error:
        status, fault = 0, error.message
    finally:
        client.close()
    if status == 401:
        raise ConfigurationError(upstream_key_fault(settings))
    raise ConfigurationError(f"UPSTREAM_BASE_URL is {settings[UPSTREAM_BASE_URL]}: {fault}")
