"""What an OpenID Connect provider publishes: its metadata and its public keys.

Both are loaded at the start, again when they are old, and when a token names an unknown key, since
a provider may rotate its keys at any time. While the provider is down or slow, what is known stays
in use: only tokens of an unknown key have to wait for it.

Sources: https://openid.net/specs/openid-connect-discovery-1_0.html, RFC 7517.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
from authlib.oidc.discovery import get_well_known_url
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from joserfc.jwk import Key

TIMEOUT = 3.0
"""Seconds for a response of the provider: less than the five that a stop may take."""

LIFETIME = 600.0
"""Seconds after which metadata and keys are loaded again."""

RETRY = 10.0
"""Seconds between two loads for unknown keys: a client can name one in each request."""

MAX_SIZE = 1024 * 1024  # bytes

_logger = logging.getLogger(__name__)


class ProviderUnavailable(Exception):
    """The provider cannot be reached, or what it responds cannot be used."""


class Provider:
    """One provider.

    :ivar issuer: its issuer URL.
    :ivar metadata: its metadata; empty until they are loaded.
    """

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.metadata: Mapping[str, Any] = {}  # Any: JSON
        self._keys: list[Key] = []
        self._loaded_at = self._tried_at = -math.inf
        self._loading: asyncio.Task[None] | None = None
        self._tls: ssl.SSLContext | None = None

    def start(self) -> None:
        """Begin to load metadata and keys."""
        self._load_once()

    async def close(self) -> None:
        """Wait for a load in progress, which ends by its timeout."""
        if self._loading is not None:
            await asyncio.wait((self._loading,))

    def key(self, key_id: str | None) -> Key | None:
        """Return the known key of this id; if they are old, have them loaded meanwhile.

        :param key_id: ``None``, which some providers with a single key leave out, is that one.
        """
        now = time.monotonic()
        if self._loaded_at + LIFETIME < now and self._tried_at + RETRY < now:
            self._load_once()
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.kid == key_id), None)

    async def new_key(self, key_id: str | None) -> Key | None:
        """Return the key of this id, which was unknown; ``None`` if the provider has none.

        :raises ProviderUnavailable: the provider cannot be reached.
        """
        if self._loading is not None or self._tried_at + RETRY <= time.monotonic():
            await asyncio.shield(self._load_once())
        if (key := self.key(key_id)) is not None:
            return key
        if self._tried_at > self._loaded_at:
            raise ProviderUnavailable
        return None

    async def loaded(self) -> Mapping[str, Any]:
        """Return the metadata.

        :raises ProviderUnavailable: they were never loaded.
        """
        if not self.metadata:
            await asyncio.shield(self._load_once())
        if not self.metadata:
            raise ProviderUnavailable
        return self.metadata

    async def tls(self) -> ssl.SSLContext:
        """Return the context of connections to the provider.

        It is made once, in a thread: it reads the certificates of all authorities, which would
        block the event loop for 50 ms with each client.
        """
        if self._tls is None:
            self._tls = await asyncio.to_thread(httpx2.create_ssl_context)
        return self._tls

    def _load_once(self) -> asyncio.Task[None]:
        """Load once for all requests that wait, even if one of them reaches its deadline."""
        if self._loading is None:
            self._tried_at = time.monotonic()
            self._loading = asyncio.create_task(self._load())
        return self._loading

    async def _load(self) -> None:
        """Replace metadata and keys; a failure leaves them as they are."""
        try:
            client = httpx2.AsyncClient(timeout=TIMEOUT, verify=await self.tls())
            async with asyncio.timeout(TIMEOUT), client:
                url = get_well_known_url(self.issuer, external=True)
                metadata = _valid(await _fetch(client, url), self.issuer)
                keys = _signing(await _fetch(client, metadata["jwks_uri"]))
        # whatever the error is, tokens of known keys must be accepted
        except Exception as error:
            # a text of our own says what is wrong; one of a library may be long
            reason = str(error) if type(error) is ValueError else type(error).__name__
            _logger.warning("OIDC_ISSUER=%s cannot be used at present: %s", self.issuer, reason)
        else:
            self.metadata, self._keys = metadata, keys
            self._loaded_at = self._tried_at
        finally:
            self._loading = None


async def _fetch(client: httpx2.AsyncClient, url: str) -> Any:  # Any: JSON
    """Return the JSON at a URL, without following a redirect.

    :raises httpx2.HTTPError: it cannot be read.
    :raises ValueError: it is too large, or no JSON.
    """
    content = b""
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as response:
        if response.status_code != 200:
            raise ValueError(f"{url} responds {response.status_code}")
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MAX_SIZE:
                raise ValueError(f"{url} responds more than 1 MiB")
    return httpx2.Response(200, content=content).json()


def _valid(metadata: Any, issuer: str) -> Mapping[str, Any]:
    """Return metadata that belong to `issuer`.

    :raises ValueError: they do not, or lack an endpoint.
    """
    if not isinstance(metadata, dict) or metadata.get("issuer") != issuer:
        raise ValueError("its metadata are those of another issuer; correct OIDC_ISSUER")
    secure = urlsplit(issuer).scheme == "https"
    for name in ("jwks_uri", "authorization_endpoint", "token_endpoint", "userinfo_endpoint"):
        url = metadata.get(name)
        if url is None and name != "jwks_uri":
            continue
        if not isinstance(url, str) or urlsplit(url).scheme not in ("https", "http"):
            raise ValueError(f"its metadata have no valid {name}")
        if secure and urlsplit(url).scheme != "https":
            raise ValueError(f"its {name} is not encrypted")
    return metadata


def _signing(document: Any) -> list[Key]:
    """Return the keys of a JWKS that may verify a signature; others are ignored (RFC 7517 §5).

    :raises ValueError: there is none.
    """
    published = document.get("keys") if isinstance(document, dict) else None
    found: list[Key] = []
    for each in published if isinstance(published, list) else ():
        # a symmetric key that is published is no secret
        if not isinstance(each, dict) or each.get("kty") == "oct" or each.get("use") == "enc":
            continue
        try:
            found += KeySet.import_key_set({"keys": [each]}).keys
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    if not found:
        raise ValueError("it publishes no keys")
    return found
