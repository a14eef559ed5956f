"""An authorizer with three rules for authenticated people.

Each rule is inactive until it is set: the models of a group, the highest ``max_tokens`` of a
request, and the requests that a person may have in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from tornadoproxy import (
    INACTIVE,
    Denied,
    Identity,
    Inactive,
    IncomingRequest,
    ModelRequest,
    Permit,
    RequestRecord,
    Setting,
    Settings,
    hookimpl,
    parsers,
)


def _group_models(value: str) -> Mapping[str, tuple[str, ...]]:
    """Parse ``interns=claude-haiku-*|claude-sonnet-* *=claude-*``."""
    return {group: tuple(models.split("|")) for group, models in parsers.pairs(value).items()}


GROUP_MODELS: Setting[Mapping[str, tuple[str, ...]]] = Setting(
    "GROUP_MODELS",
    _group_models,
    default=MappingProxyType({}),
    help=(
        "models that groups may use, such as 'interns=claude-haiku-*|claude-sonnet-* *=claude-*'. "
        "The group * is everyone who is in none of the others; without it, they may use no model."
    ),
)
MAX_TOKENS: Setting[int] = Setting(
    "MAX_TOKENS_CEILING",
    parsers.integer(minimum=0),
    default=0,
    help="highest max_tokens of a request; 0 disables the limit",
)
CONCURRENT: Setting[int] = Setting(
    "CONCURRENT_REQUESTS",
    parsers.integer(minimum=0),
    default=0,
    help="requests that a person may have in flight; 0 disables the limit",
)


class Authorizer:
    """The plugin: it applies the rules, and counts each person's requests in flight."""

    def __init__(self) -> None:
        self._models: Mapping[str, tuple[str, ...]] = {}
        self._max_tokens = 0
        self._concurrent = 0
        self._in_flight: Counter[str] = Counter()

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        return GROUP_MODELS, MAX_TOKENS, CONCURRENT

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        self._models = settings[GROUP_MODELS]
        self._max_tokens = settings[MAX_TOKENS]
        self._concurrent = settings[CONCURRENT]
        if not (self._models or self._max_tokens or self._concurrent):
            return INACTIVE
        return "limits of models, max_tokens and concurrency"

    # before the body is read, so that slow bodies count as well
    @hookimpl
    def admit(self, identity: Identity) -> Permit | None:
        return self._count(identity.principal) if self._concurrent else None

    @hookimpl
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> None:
        if self._models:
            self._check_model(request, identity, model_request)
        if model_request is None:
            return
        asked = model_request.max_tokens
        if self._max_tokens and asked is not None and asked > self._max_tokens:
            raise Denied(
                f"max_tokens must be at most {self._max_tokens}, not {asked}.",
                status=400,
            )

    def _check_model(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> None:
        if model_request is None:
            # such as a batch, whose models are not checked
            if request.costs_nothing:
                return
            raise Denied("Your models are restricted, so you may only send messages.")
        groups = [group for group in identity.groups if group in self._models] or ["*"]
        allowed = [model for group in groups for model in self._models.get(group, ())]
        # fallbacks and tools may name further models than model_request.model
        for model in model_request.models:
            if not any(fnmatchcase(model, each) for each in allowed):
                names = ", ".join(allowed) or "none"
                raise Denied(f"You may not use {model}. You may use: {names}.")

    def _count(self, principal: str) -> Permit:
        """Reserve a place in flight for `principal` until the request ends."""
        if self._in_flight[principal] >= self._concurrent:
            raise Denied(
                f"You already have {self._concurrent} requests in flight: wait for one to end.",
                status=429,
                retry_after=1,
            )
        self._in_flight[principal] += 1

        def settle(record: RequestRecord) -> None:
            self._in_flight[principal] -= 1
            if not self._in_flight[principal]:
                del self._in_flight[principal]  # so that the counter does not grow without bound

        return Permit(settle=settle)
