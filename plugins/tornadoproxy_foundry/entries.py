"""Upstreams of ``UPSTREAMS_FILE`` in Microsoft Foundry: their keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tornadoproxy import BaseURL, RefreshedCredential, parsers
from tornadoproxy_foundry.wire import FoundryWire

if TYPE_CHECKING:
    from tornadoproxy import Upstream, UpstreamEntry

SCOPE = "https://ai.azure.com/.default"
"""The scope of tokens in Azure's public cloud."""


def upstream_of(entry: UpstreamEntry) -> Upstream:
    """Return the upstream that an entry describes; what is wrong becomes a fault of the file."""
    api_key, source = entry.secret("api_key")
    scope = entry.read("scope", parsers.text)
    token = None
    if source is None:
        token = _token(entry, scope or SCOPE)
        source = f"the Entra ID credentials of the upstream {entry.name!r}"
    elif scope is not None:
        entry.fault("scope", "is for Entra ID, and a key is set: keep one of them")
    base_url = None
    if "base_url" not in entry.table:
        resource = entry.required("resource", _resource, "nowhere")
        base_url = BaseURL("https", f"{resource}.services.ai.azure.com", 443, "/anthropic")
    elif "resource" in entry.table:
        entry.read("resource", _resource)
        entry.fault("resource", "and base_url are both set: keep one of them")
    return entry.upstream(
        wire=FoundryWire(token, api_key),
        base_url=base_url,
        api_key=api_key,
        key_source=source,
        auth_scheme="x-api-key",
    )


def _token(entry: UpstreamEntry, scope: str) -> RefreshedCredential[str] | None:
    try:
        from tornadoproxy_foundry.tokens import AccessTokens
    except ModuleNotFoundError as error:
        entry.fault(
            "kind",
            f"{entry.kind!r} without an api_key needs {error.name}; install it with "
            "`pip install 'tornadoproxy[azure]'`, or set api_key",
        )
        return None
    return RefreshedCredential(
        f"The access token of the upstream {entry.name!r}", AccessTokens(scope).load
    )


def _resource(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{2,64}", value):
        raise ValueError("must be the name of a Foundry resource: letters, digits and hyphens")
    return value.lower()
