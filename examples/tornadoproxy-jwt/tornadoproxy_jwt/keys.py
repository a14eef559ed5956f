"""The public keys of an identity provider, as its JWKS lists them (RFC 7517)."""

from __future__ import annotations

import asyncio
import logging
import math
import time

import jwt
from tornado.httpclient import AsyncHTTPClient

# seconds for reading the keys: less than PLUGIN_TIMEOUT, and than the five that shutdown may take
TIMEOUT = 3.0
MAX_SIZE = 1024 * 1024  # bytes

_logger = logging.getLogger(__name__)


class KeySet:
    """Keys that are read when one is asked for that is not known, or when they are old.

    :param url: of the JWKS.
    :ivar lifetime: seconds after which the keys are old.
    :ivar retry: seconds between two attempts to read them. Whoever sends a token can name a key
        that nobody knows, and shall not make us ask for it each time.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.lifetime = math.inf
        self.retry = 0.0
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = self._tried_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of this id; ``None`` if the provider has none.

        :raises OSError: it is not known, and the keys could not be read when that was last tried.
        """
        now = time.monotonic()
        wanted = key_id not in self._keys or now - self._read_at > self.lifetime
        if wanted and (self._reading or now - self._tried_at >= self.retry):
            await self._read_once()
        if key_id not in self._keys and self._tried_at > self._read_at:
            raise OSError("the provider's keys cannot be read now")
        return self._keys.get(key_id)

    async def close(self) -> None:
        """Let a reading end that goes on, which its deadline sees to."""
        if self._reading is not None:
            await asyncio.wait((self._reading,))

    async def _read_once(self) -> None:
        """One reading for all who wait for it; it goes on when the time of one of them is up."""
        if self._reading is None:
            self._tried_at = time.monotonic()
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        """Replace the keys; they stay as they are if that fails."""
        # of our own: the shared one may have been configured by somebody else
        client = AsyncHTTPClient(force_instance=True, max_body_size=MAX_SIZE)
        try:
            response = await client.fetch(
                self.url, connect_timeout=TIMEOUT, request_timeout=TIMEOUT, follow_redirects=False
            )
            keys = jwt.PyJWKSet.from_json(response.body.decode())
        # whatever it is: it must not end the requests whose keys are known
        except Exception as error:
            _logger.warning("JWT_JWKS_URL cannot be read: %s", type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in keys if key.public_key_use != "enc"}
            self._read_at = self._tried_at
        finally:
            client.close()
            self._reading = None
