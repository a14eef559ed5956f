"""The plugin in a running proxy: its parts, made of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec.structs import replace

from tornadoproxy import ConfigurationError, Settings
from tornadoproxy_oidc import settings as names
from tornadoproxy_oidc.browser_pages import BrowserPages
from tornadoproxy_oidc.device_api import DeviceApi
from tornadoproxy_oidc.managed_settings import ManagedSettingsPage
from tornadoproxy_oidc.people import Claims, Person
from tornadoproxy_oidc.policies import Policies
from tornadoproxy_oidc.provider import Provider
from tornadoproxy_oidc.relying_party import RelyingParty
from tornadoproxy_oidc.sealing import Sealer
from tornadoproxy_oidc.sessions import Sessions
from tornadoproxy_oidc.telemetry import Telemetry
from tornadoproxy_oidc.tokens import TokenReader, unverified

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tornadoproxy import (
        AllowedModels,
        DatabaseStatus,
        Identity,
        IncomingRequest,
        ModelRequest,
        Page,
        SignInWay,
    )

NEEDED = (names.OIDC_PUBLIC_URL, names.OIDC_SIGNING_KEY, names.OIDC_DB)
"""The settings that a sign-in needs besides ``OIDC_CLIENT_ID``."""


class Service:
    """Everything of the plugin.

    :raises ConfigurationError: there is no ``OIDC_ISSUER``.
    """

    def __init__(self, settings: Settings) -> None:
        issuer = settings[names.OIDC_ISSUER]
        assert issuer is not None, "the plugin is active"
        self._provider = Provider(issuer)
        self._sessions: Sessions | None = None
        self._pages: tuple[Page, ...] = ()
        self._ways: tuple[SignInWay, ...] = ()
        self._telemetry = Telemetry()
        self._own_issuer: str | None = None
        self._policies = Policies({}, Path())

    def configure(self, settings: Settings) -> str:
        """Take the settings, and return the line that is shown at start.

        :raises ConfigurationError: one is missing.
        """
        audiences = settings[names.OIDC_AUDIENCES]
        workloads = settings[names.OIDC_WORKLOADS] or {}
        if both := sorted(workloads.keys() & set(audiences)):
            raise ConfigurationError(
                f"OIDC_WORKLOADS: {both[0]} is in OIDC_AUDIENCES as well; remove it from one."
            )
        signs_in = settings[names.OIDC_CLIENT_ID] is not None
        if not (audiences or workloads or signs_in):
            raise ConfigurationError(
                "OIDC_ISSUER is set, but nobody can use it: set OIDC_AUDIENCES to the audience of "
                "the tokens that people send, or OIDC_CLIENT_ID to let them sign in."
            )
        collector = settings[names.OIDC_OTLP_ENDPOINT]
        self._telemetry.endpoint = None if collector is None else str(collector)
        self._policies = settings[names.OIDC_POLICY_FILE] or Policies({}, Path())
        self._check_applied(settings)
        claims = Claims(
            name=settings[names.OIDC_NAME_CLAIM],
            email=settings[names.OIDC_EMAIL_CLAIM],
            groups=settings[names.OIDC_GROUPS_CLAIM],
            domains=settings[names.OIDC_EMAIL_DOMAINS],
            policies=self._policies,
            admins=frozenset(settings[names.OIDC_ADMIN_GROUPS]),
            admin_readers=frozenset(settings[names.OIDC_ADMIN_READ_GROUPS]),
        )
        self._tokens = TokenReader(
            self._provider,
            claims,
            audiences=audiences,
            workloads=workloads,
            algorithms=settings[names.OIDC_ALGORITHMS],
            leeway=settings[names.OIDC_LEEWAY],
        )
        if not signs_in:
            _check_unused(settings)
            return f"clients with a token of {self._provider.issuer}"
        self._configure_sessions(settings, claims)
        return (
            f"people who sign in at {self._provider.issuer}, from Claude Code by /login with "
            f"{settings[names.OIDC_PUBLIC_URL]} as forceLoginGatewayUrl"
        )

    def _check_applied(self, settings: Settings) -> None:
        """Refuse limits and caps that no plugin would apply.

        :raises ConfigurationError: the plugin is not active.
        """
        for where, what, needed in (
            (self._policies.limited, "limits", "KEYS_DB"),
            (self._policies.capped, "caps", "BUDGETS_DB"),
        ):
            if where is not None and not settings.is_set(needed):
                raise ConfigurationError(
                    f"OIDC_POLICY_FILE: {where} has {what}, which nothing applies without "
                    f"{needed}; set {needed} or DATABASE_URL, or remove {what}."
                )

    def pages(self) -> tuple[Page, ...]:
        """Return the pages of telemetry, and of the sign-in if there is one."""
        return (*self._telemetry.pages(), *self._pages)

    def sign_in_ways(self) -> tuple[SignInWay, ...]:
        """Return the way to sign in at the provider, if people sign in."""
        return self._ways

    async def open(self, deadline: float) -> None:
        """Begin to load what the provider publishes, and open the database.

        :raises ConfigurationError: the database cannot be used.
        """
        self._provider.start()
        if self._sessions is not None:
            await self._sessions.open(deadline)

    def database_status(self) -> list[DatabaseStatus]:
        """Return the state of the database, if there is one."""
        return [] if self._sessions is None else [self._sessions.status]

    async def close(self) -> None:
        """Finish what is in progress."""
        await self._provider.close()
        await self._telemetry.close()
        if self._sessions is not None:
            await self._sessions.close()

    def authenticate(
        self, request: IncomingRequest
    ) -> Identity | Coroutine[None, None, Identity] | None:
        """Return who sends a request; ``None`` if it has no token of the provider or proxy."""
        for candidate in request.candidates():
            seen = unverified(candidate.reveal())
            if seen is None:
                continue
            if self._sessions is not None and seen.issuer == self._own_issuer:
                return self._allowed(self._sessions.person(seen))
            if seen.issuer == self._provider.issuer:
                person = self._tokens.person(seen)
                return self._allowed(person) if isinstance(person, Person) else self._later(person)
        return None

    def _allowed(self, person: Person) -> Person:
        """Return a person with what the policy allows them."""
        allowance = self._policies.of(person.groups).allowance(person.groups)
        return person if allowance is None else replace(person, allowance=allowance)

    async def _later(self, person: Coroutine[None, None, Person]) -> Person:
        return self._allowed(await person)

    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> None:
        """Reject a person's request for models that the policy does not allow.

        :raises Denied: 403.
        """
        models = self.allowed_models(identity)
        if models is not None:
            models.check(request, model_request)

    def allowed_models(self, identity: Identity) -> AllowedModels | None:
        """Return the models that the policy allows a person; ``None`` is all."""
        if not isinstance(identity, Person):
            return None
        return self._policies.of(identity.groups).models

    def _configure_sessions(self, settings: Settings, claims: Claims) -> None:
        if missing := [each.name for each in NEEDED if not settings[each]]:
            raise ConfigurationError(
                *(f"{name} is not set but OIDC_CLIENT_ID is; set both." for name in missing)
            )
        client_id, where = settings[names.OIDC_CLIENT_ID], settings[names.OIDC_DB]
        assert client_id is not None
        assert where is not None
        base = str(settings[names.OIDC_PUBLIC_URL])
        if base == self._provider.issuer:
            raise ConfigurationError(
                "OIDC_PUBLIC_URL is OIDC_ISSUER; set it to the URL of this proxy."
            )
        sealer = Sealer(settings[names.OIDC_SIGNING_KEY], base, settings[names.OIDC_BEARER_SECONDS])
        parameters = settings[names.OIDC_PARAMETERS]
        party = RelyingParty(
            self._provider,
            claims,
            client_id=client_id,
            client_secret=settings[names.OIDC_CLIENT_SECRET],
            scopes=settings[names.OIDC_SCOPES],
            parameters=parameters or {},
            redirect_uri=f"{base}/oauth/callback",
            algorithms=settings[names.OIDC_ALGORITHMS],
            leeway=settings[names.OIDC_LEEWAY],
        )
        lifetime = settings[names.OIDC_SESSION_SECONDS]
        if self._sessions is not None:
            self._sessions.sealer, self._sessions.party = sealer, party
            self._sessions.lifetime = lifetime
            return
        sessions = Sessions(where, sealer, party, lifetime)
        sessions.check()
        api = DeviceApi(
            sessions,
            base,
            settings[names.OIDC_LOGIN_NOTICE],
            tells_email=settings[names.OIDC_CONFIRM_EMAIL],
        )
        browser = BrowserPages(sessions, base)
        settings_page = ManagedSettingsPage(sessions, lambda: self._policies)
        self._pages = (
            *api.pages(),
            *browser.pages(),
            settings_page.page(),
        )
        self._ways = (browser.way(urlsplit(self._provider.issuer).netloc),)
        self._sessions, self._own_issuer = sessions, base


def _check_unused(settings: Settings) -> None:
    """Refuse settings of a sign-in without ``OIDC_CLIENT_ID``, which would do nothing.

    :raises ConfigurationError: one is set.
    """
    for each in (names.OIDC_PUBLIC_URL, names.OIDC_SIGNING_KEY, names.OIDC_CLIENT_SECRET):
        if settings[each]:
            raise ConfigurationError(
                f"{each.name} is set but OIDC_CLIENT_ID is not; set it, or remove {each.name}."
            )
