"""Sign-in with an OpenID Connect provider, and its JSON Web Tokens as credentials.

With ``OIDC_ISSUER``, a token of that provider whose audience is in ``OIDC_AUDIENCES`` or
``OIDC_WORKLOADS`` is a credential of the proxy. With ``OIDC_CLIENT_ID``, people sign in from Claude
Code, and get bearer tokens of the proxy. Other plugins authenticate tokens of other issuers, and
credentials that are not JSON Web Tokens.

- `tornadoproxy_oidc.settings`: the settings
- `tornadoproxy_oidc.provider`: what the provider publishes
- `tornadoproxy_oidc.tokens`: the validation of its tokens
- `tornadoproxy_oidc.people`: the identity that follows from claims
- `tornadoproxy_oidc.relying_party`: the code flow
- `tornadoproxy_oidc.sessions`: who is signed in
- `tornadoproxy_oidc.store`, `sealing`: what is kept, and how bearer tokens are signed
- `tornadoproxy_oidc.policies`, `managed_settings`: what holds for groups
- `tornadoproxy_oidc.telemetry`, `otlp`: OpenTelemetry of clients
- `tornadoproxy_oidc.service`: these parts in a running proxy
- `tornadoproxy_oidc.command`: ``sign-ins list``, ``end``
- `tornadoproxy_oidc.device_api`: what Claude Code calls to sign in
- `tornadoproxy_oidc.browser_session`: a person who has signed in with a browser alone
- `tornadoproxy_oidc.browser_pages`, `html`: what a person sees in the browser

The plugin needs Authlib, joserfc and httpx2, which ``pip install 'tornadoproxy[oidc]'`` installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tornadoproxy import (
    DATABASE_TIMEOUT,
    INACTIVE,
    Command,
    ConfigurationError,
    Identity,
    Inactive,
    IncomingRequest,
    ModelRequest,
    Setting,
    Settings,
    hookimpl,
)
from tornadoproxy_oidc import settings as names

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine

    from tornadoproxy import (
        AllowedModels,
        Database,
        DatabaseLocation,
        DatabaseStatus,
        Page,
        SignInWay,
    )
    from tornadoproxy_oidc.service import Service


class OpenIDConnect:
    """The plugin: it accepts the tokens of one provider, and signs people in."""

    def __init__(self) -> None:
        self._service: Service | None = None
        self._timeout = DATABASE_TIMEOUT.default

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: values of several types
        return names.SETTINGS

    @hookimpl
    def commands(self) -> tuple[Command]:
        return (
            Command(
                "sign-ins",
                "list the sign-ins of OIDC_DB, and end those of a person",
                _add_arguments,
                _run,
            ),
        )

    @hookimpl
    def databases(
        self,
    ) -> dict[Setting[DatabaseLocation | None], Callable[[DatabaseLocation], Database]]:
        from tornadoproxy_oidc import store

        return {names.OIDC_DB: store.database}

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the provider, what its tokens must be, and how people sign in.

        :raises ConfigurationError: a setting or a library is missing.
        """
        if settings[names.OIDC_ISSUER] is None:
            for each in (names.OIDC_ADMIN_GROUPS, names.OIDC_ADMIN_READ_GROUPS):
                if settings[each]:
                    raise ConfigurationError(
                        f"{each.name} is set but OIDC_ISSUER is not; set it, or remove {each.name}."
                    )
            return INACTIVE
        try:
            from tornadoproxy_oidc.service import Service
        except ImportError:
            raise ConfigurationError(
                "OIDC_ISSUER needs authlib and httpx2; install them with "
                "`pip install 'tornadoproxy[oidc]'`, or remove OIDC_ISSUER."
            ) from None
        self._timeout = settings[DATABASE_TIMEOUT]
        service = self._service or Service(settings)
        line = service.configure(settings)
        self._service = service
        return line

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        return self._configured().pages()

    @hookimpl
    def sign_in_ways(self) -> tuple[SignInWay, ...]:
        return self._configured().sign_in_ways()

    @hookimpl
    async def startup(self) -> None:
        await self._configured().open(self._timeout)

    @hookimpl
    def database_status(self) -> list[DatabaseStatus]:
        return self._configured().database_status()

    @hookimpl
    async def shutdown(self) -> None:
        await self._configured().close()

    @hookimpl
    def authenticate(
        self, request: IncomingRequest
    ) -> Identity | Coroutine[None, None, Identity] | None:
        return self._configured().authenticate(request)

    @hookimpl
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> None:
        self._configured().authorize(request, identity, model_request)

    @hookimpl
    def allowed_models(self, identity: Identity) -> AllowedModels | None:
        return self._configured().allowed_models(identity)

    def _configured(self) -> Service:
        assert self._service is not None, "configure() has returned that this plugin is active"
        return self._service


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from tornadoproxy_oidc import command

    command.add_arguments(parser)


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from tornadoproxy_oidc import command

    return command.run(arguments, settings[names.OIDC_DB])
