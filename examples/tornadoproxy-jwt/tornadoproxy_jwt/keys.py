"""The public keys of an identity provider: its JWKS (RFC 7517)."""

from __future__ import annotations

import asyncio
import logging
import math
import time

import jwt
from tornado.httpclient import AsyncHTTPClient

# seconds for loading the keys: less than PLUGIN_TIMEOUT and than the five seconds of shutdown
TIMEOUT = 3.0
MAX_SIZE = 1024 * 1024  # bytes

_logger = logging.getLogger(__name__)


class KeySet:
    """Keys that are loaded for an unknown key id, and again when they are old.

    :param url: the URL of the JWKS.
    :ivar lifetime: seconds after which the keys are old.
    :ivar retry: seconds between two attempts to load the keys, because a client can name an unknown
        key in each request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.lifetime = math.inf
        self.retry = 0.0
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = self._tried_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key of this id; ``None`` if the provider has none.

        :raises OSError: the key is unknown, and the last attempt to load the keys failed.
        """
        now = time.monotonic()
        wanted = key_id not in self._keys or now - self._read_at > self.lifetime
        if wanted and (self._reading or now - self._tried_at >= self.retry):
            await self._read_once()
        if key_id not in self._keys and self._tried_at > self._read_at:
            raise OSError("the provider's keys cannot be loaded at present")
        return self._keys.get(key_id)

    async def close(self) -> None:
        """Wait for a load in progress, which ends by its timeout."""
        if self._reading is not None:
            await asyncio.wait((self._reading,))

    async def _read_once(self) -> None:
        """Load the keys once for all waiting requests, whatever deadline one of them reaches."""
        if self._reading is None:
            self._tried_at = time.monotonic()
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        """Replace the keys; a failure leaves them as they are."""
        # an instance of its own, because another plugin may have configured the shared one
        client = AsyncHTTPClient(force_instance=True, max_body_size=MAX_SIZE)
        try:
            response = await client.fetch(
                self.url, connect_timeout=TIMEOUT, request_timeout=TIMEOUT, follow_redirects=False
            )
            keys = jwt.PyJWKSet.from_json(response.body.decode())
        # whatever the error is, requests with loaded keys must be accepted
        except Exception as error:
            _logger.warning("JWT_JWKS_URL cannot be loaded: %s", type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in keys if key.public_key_use != "enc"}
            self._read_at = self._tried_at
        finally:
            client.close()
            self._reading = None
