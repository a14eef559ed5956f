"""Residency: the requests of some groups go to some upstreams only."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from tornadoproxy import (
    INACTIVE,
    Denied,
    Identity,
    Inactive,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

Rules = Mapping[str, tuple[str, ...]]


def _rules(value: str) -> Rules:
    """Parse ``legal=eu-* research=eu-*|us-*``."""
    return {group: tuple(names.split("|")) for group, names in parsers.pairs(value).items()}


GROUP_UPSTREAMS: Setting[Rules] = Setting(
    "GROUP_UPSTREAMS",
    _rules,
    default=MappingProxyType({}),
    help=(
        "upstreams that groups may use, such as 'legal=eu-* research=eu-*|us-*'. "
        "A member of several groups may use only the upstreams of all of them; a principal in "
        "none may use any."
    ),
)


class Residency:
    """The plugin."""

    def __init__(self) -> None:
        self._rules: Rules = {}

    @hookimpl
    def declare_settings(self) -> list[Setting[Rules]]:
        return [GROUP_UPSTREAMS]

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        self._rules = settings[GROUP_UPSTREAMS]
        if not self._rules:
            return INACTIVE
        return f"keeps {', '.join(self._rules)} on their upstreams"

    @hookimpl
    def choose_upstream(
        self, identity: Identity, upstreams: tuple[str, ...]
    ) -> tuple[str, ...] | None:
        rules = [self._rules[group] for group in identity.groups if group in self._rules]
        if not rules:
            return None
        allowed = tuple(
            name
            for name in upstreams
            if all(any(fnmatchcase(name, each) for each in patterns) for patterns in rules)
        )
        if not allowed:
            raise Denied(
                "Your group may use no upstream that can serve this: choose another model."
            )
        return allowed
