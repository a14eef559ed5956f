"""The proxy as a relying party: the code flow with PKCE, and the provider's refresh tokens.

Sources: https://openid.net/specs/openid-connect-core-1_0.html, RFC 7636, RFC 9207.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError

from tornadoproxy_oidc.people import document_of
from tornadoproxy_oidc.provider import TIMEOUT, ProviderUnavailable
from tornadoproxy_oidc.tokens import unverified

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tornadoproxy import Secret
    from tornadoproxy_oidc.people import Claims
    from tornadoproxy_oidc.provider import Provider

_logger = logging.getLogger(__name__)

Document = dict[str, Any]  # Any: JSON


class ProviderRefused(Exception):
    """The provider refuses a code or a refresh token, or its response is not valid."""


class Begun(NamedTuple):
    """A sign-in that a browser begins: all but `url` is kept for its end."""

    url: str
    state: str
    nonce: str
    verifier: str


class SignedIn(NamedTuple):
    """Who has signed in.

    :param person: see `people.document_of`.
    :param refresh_token: the provider's; ``None`` if it gives none.
    """

    person: Document
    refresh_token: str | None


class RelyingParty:
    """The proxy as a client of the provider.

    :ivar claims: who is accepted.
    :param client_secret: ``None`` for a public client, which PKCE alone protects.
    :param parameters: further ones of the authorization request.
    :param redirect_uri: where the provider sends the browser.
    """

    def __init__(
        self,
        provider: Provider,
        claims: Claims,
        *,
        client_id: str,
        client_secret: Secret | None,
        scopes: Sequence[str],
        parameters: Mapping[str, str],
        redirect_uri: str,
        algorithms: Sequence[str],
        leeway: int,
    ) -> None:
        self._provider = provider
        self.claims = claims
        self._client_id = client_id
        self._secret = client_secret
        self._scope = " ".join(scopes)
        self._parameters = parameters
        self._redirect_uri = redirect_uri
        self._algorithms = algorithms
        self._leeway = leeway

    async def begin(self) -> Begun:
        """Return where to send a browser.

        :raises ProviderUnavailable: the provider was never reached.
        """
        metadata = await self._provider.loaded()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        async with await self._client(metadata) as client:
            own = {"state": state, "code_verifier": verifier, "nonce": nonce}
            url, _ = client.create_authorization_url(
                _endpoint(metadata, "authorization_endpoint"), **{**self._parameters, **own}
            )
        return Begun(url, state, nonce, verifier)

    async def check_issuer(self, issuer: str | None) -> None:
        """Refuse a code of another provider, which would be a mix-up (RFC 9207).

        :param issuer: the parameter ``iss`` with which the browser comes back.
        :raises ProviderRefused: it is another issuer, or absent although the provider sends it.
        :raises ProviderUnavailable: whether the provider sends it is unknown.
        """
        metadata = await self._provider.loaded()
        sent = metadata.get("authorization_response_iss_parameter_supported")
        if (issuer is None and sent is True) or issuer not in (None, self._provider.issuer):
            raise ProviderRefused("the response is of another issuer")

    async def finish(self, code: str, verifier: str, nonce: str) -> SignedIn:
        """Exchange a code for who has signed in.

        :raises ProviderRefused: the code or the response is not valid.
        :raises ProviderUnavailable: the provider does not respond.
        :raises InvalidClaims: the claims do not say who it is.
        :raises Denied: the person is not accepted.
        """
        return await self._fetch(
            nonce=nonce, grant_type="authorization_code", code=code, code_verifier=verifier
        )

    async def refresh(self, refresh_token: str, before: Document) -> SignedIn:
        """Ask the provider whether a person still may; return the person with present claims.

        :param before: the person.
        :raises: as `finish`.
        """
        found = await self._fetch(
            before=before, grant_type="refresh_token", refresh_token=refresh_token
        )
        return found._replace(refresh_token=found.refresh_token or refresh_token)

    async def _fetch(
        self, *, nonce: str | None = None, before: Document | None = None, **grant: str
    ) -> SignedIn:
        metadata = await self._provider.loaded()
        try:
            async with asyncio.timeout(TIMEOUT), await self._client(metadata) as client:
                tokens = await client.fetch_token(_endpoint(metadata, "token_endpoint"), **grant)
                claims = await self._id_claims(tokens, nonce)
                if claims is None and before is None:
                    raise ProviderRefused("the provider sent no ID token")
                subject = (claims or {}).get("sub") or (before or {}).get("provider_sub")
                claims = await self._complete(client, metadata, claims or {}, str(subject))
        except (httpx2.HTTPError, TimeoutError) as error:
            _logger.warning("the provider does not respond: %s", type(error).__name__)
            raise ProviderUnavailable from None
        except AuthlibBaseError as error:
            if error.error in ("temporarily_unavailable", "server_error", "slow_down"):
                raise ProviderUnavailable from None
            raise ProviderRefused(str(error.error)) from None
        except (JoseError, ValueError, TypeError) as error:
            raise ProviderRefused(f"its ID token is not valid: {type(error).__name__}") from None
        if before is not None and before["provider_sub"] != subject:
            raise ProviderRefused("the provider responds with another person")
        if before is not None and not claims:
            self.claims.check_again(before)
            person = before
        else:
            person = document_of(self.claims.person(claims), str(subject))
        return SignedIn(person, tokens.get("refresh_token"))

    async def _id_claims(self, tokens: Mapping[str, Any], nonce: str | None) -> Document | None:
        """Return the claims of the ID token, which a refresh may lack."""
        text = tokens.get("id_token")
        if text is None:
            return None
        seen = unverified(str(text).encode())
        if seen is None:
            raise ProviderRefused("its ID token is no signed token")
        key = self._provider.key(seen.key_id) or await self._provider.new_key(seen.key_id)
        if key is None:
            raise ProviderRefused("its ID token is signed with an unknown key")
        token = jwt.decode(str(text), key, algorithms=self._algorithms)
        checked = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": self._provider.issuer},
                "aud": {"essential": True, "value": self._client_id},
            },
            params={
                "nonce": nonce,
                "client_id": self._client_id,
                "access_token": tokens.get("access_token"),
            },
        )
        checked.validate(leeway=self._leeway)
        return token.claims

    async def _complete(
        self, client: AsyncOAuth2Client, metadata: Mapping[str, Any], claims: Document, subject: str
    ) -> Document:
        """Return the claims together with those of the provider's userinfo endpoint."""
        wanted = {self.claims.name, self.claims.email, self.claims.groups}
        url = metadata.get("userinfo_endpoint")
        if url is None or wanted <= claims.keys():
            return claims
        response = await client.get(url)
        if response.status_code >= 500:
            raise ProviderUnavailable
        told = response.json() if response.status_code == 200 else None
        # the endpoint's response is not signed: only its sub says whose it is (OIDC Core §5.3.2)
        if not isinstance(told, dict) or not hmac.compare_digest(
            str(told.get("sub")).encode(), subject.encode()
        ):
            raise ProviderRefused("its userinfo endpoint does not say who signed in")
        return {**told, **claims}

    async def _client(self, metadata: Mapping[str, Any]) -> AsyncOAuth2Client:
        methods = metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        method = "none"
        if self._secret is not None:
            basic = "client_secret_basic"
            method = basic if basic in methods else "client_secret_post"
        return AsyncOAuth2Client(
            self._client_id,
            None if self._secret is None else self._secret.reveal().decode(),
            scope=self._scope,
            redirect_uri=self._redirect_uri,
            token_endpoint_auth_method=method,
            code_challenge_method="S256",
            timeout=TIMEOUT,
            verify=await self._provider.tls(),
        )


def _endpoint(metadata: Mapping[str, Any], name: str) -> str:
    url = metadata.get(name)
    if not isinstance(url, str):
        raise ProviderUnavailable
    return url
