"""Who sends a request to the Admin API: the holder of an admin key, or a person.

Another plugin, such as ``oidc``, says by `Identity.admin_access` that a person is an administrator.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import AuthenticationFailed, Denied, Secret

if TYPE_CHECKING:
    from tornadoproxy import IncomingRequest, RunningProxy
    from tornadoproxy_admin.keys import AdminKeys


class Administrator(NamedTuple):
    """Who sends a request.

    :param actor: the name in the audit trail: ``admin-key:ops`` or ``user:ada``.
    :param secret: what secrets are derived from that a repeated request must show again.
    """

    actor: str
    may_change: bool
    secret: Secret

    def derive(self, *parts: bytes) -> bytes:
        """Return 32 bytes that only this administrator gives with `parts` (HMAC, RFC 2104)."""
        named = b"\0".join((self.actor.encode(), *parts))
        return hmac.digest(self.secret.reveal(), named, hashlib.sha256)


class Administrators:
    """Everybody who may use the Admin API.

    :ivar keys: the admin keys.
    """

    def __init__(self, keys: AdminKeys, proxy: RunningProxy) -> None:
        self.keys = keys
        self._proxy = proxy
        # a person's credential changes by the hour, and must not change what is derived
        self._secret_for_people = Secret(secrets.token_bytes(32))

    async def admit(self, request: IncomingRequest) -> Administrator:
        """Return who sends a request.

        :raises AuthenticationFailed: nobody who may use the Admin API.
        :raises Denied: they may only read, and the request changes something.
        """
        found = self.keys.find(request)
        if found is not None:
            key, may_change = found
            administrator = Administrator(f"admin-key:{key.name}", may_change, key.secret)
        else:
            administrator = await self._person(request)
        if not administrator.may_change and request.method not in ("GET", "HEAD"):
            raise Denied("You may only read here: use a key of ADMIN_KEY, or ask who has one.")
        return administrator

    async def _person(self, request: IncomingRequest) -> Administrator:
        try:
            identity = await self._proxy.authenticate(request)
        except AuthenticationFailed:
            access = None
        else:
            access = identity.admin_access
        if access is None:
            raise request.authentication_failed(
                "an admin key of this proxy's ADMIN_KEY, without its name"
            )
        name = identity.principal
        return Administrator(f"user:{name}", access == "write", self._secret_for_people)
