"""Upstreams of ``UPSTREAMS_FILE`` on Google: their keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from tornadoproxy import BaseURL, RefreshedCredential, parsers
from tornadoproxy_google.gateway import GoogleCloudWire
from tornadoproxy_google.vertex import UNSUPPORTED, VertexWire

if TYPE_CHECKING:
    from tornadoproxy import Upstream, UpstreamEntry

_HOSTS = {
    "global": "aiplatform.googleapis.com",
    "us": "aiplatform.us.rep.googleapis.com",
    "eu": "aiplatform.eu.rep.googleapis.com",
}


def upstream_of(entry: UpstreamEntry) -> Upstream:
    """Return the upstream that an entry describes; what is wrong becomes a fault of the file."""
    fixed, source = entry.secret("access_token")
    token = None
    if source is None:
        token = _token(entry)
        source = f"the Google credentials of the upstream {entry.name!r}"
    elif "service_account_file" in entry.table:
        entry.read("service_account_file", parsers.text)
        entry.fault("service_account_file", "and an access token are both set: keep one of them")
    wire, host = (_vertex if entry.kind == "vertex" else _google_cloud)(entry, token)
    return entry.upstream(
        wire=wire,
        base_url=BaseURL("https", host, 443),
        api_key=fixed,
        key_source=source,
        auth_scheme="bearer",
    )


def _vertex(entry: UpstreamEntry, token: RefreshedCredential[str] | None) -> tuple[VertexWire, str]:
    project = entry.required("project", _project, "nowhere")
    region = entry.required("region", _region, "global")
    unsupported = UNSUPPORTED.for_entry(entry)
    version = entry.read("anthropic_version", parsers.text)
    host = _HOSTS.get(region, f"{region}-aiplatform.googleapis.com")
    location = f"projects/{project}/locations/{region}"
    return VertexWire(token, location, unsupported, version), host


def _google_cloud(
    entry: UpstreamEntry, token: RefreshedCredential[str] | None
) -> tuple[GoogleCloudWire, str]:
    project = entry.required("project", _project, "nowhere")
    workspace = entry.required("workspace_id", _workspace, "nowhere")
    location = entry.read("location", _region, "global")
    path = f"projects/{project}/locations/{location}"
    return GoogleCloudWire(token, path, workspace), "claude.googleapis.com"


def _token(entry: UpstreamEntry) -> RefreshedCredential[str] | None:
    try:
        from tornadoproxy_google.tokens import AccessTokens, service_account
    except ModuleNotFoundError as error:
        entry.fault(
            "kind",
            f"{entry.kind!r} needs {error.name}; install it with "
            "`pip install 'tornadoproxy[google]'`, or remove this upstream",
        )
        entry.read("service_account_file", parsers.text)  # it is no unknown key
        return None
    account = entry.read("service_account_file", service_account)
    tokens = AccessTokens(account)
    return RefreshedCredential(f"The access token of the upstream {entry.name!r}", tokens.load)


def _matching(pattern: str, form: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {form}")
        return value

    return parse


_project = _matching(r"[a-z0-9.:-]{1,128}", "the id or number of a project")
_region = _matching(r"[a-z0-9-]{1,63}", "a region such as europe-west1, or global, us or eu")
_workspace = _matching(r"[A-Za-z0-9_-]{1,128}", "the id of a workspace, wrkspc_…")
