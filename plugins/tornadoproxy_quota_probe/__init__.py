"""A response of the proxy's own to the quota probe of Claude Code.

Claude Code that is signed in to the proxy sends a request at each start that asks for one token. It
reads only the headers of the response, which say how much of a cap is spent. With
``ANSWER_QUOTA_PROBE`` the proxy responds by itself: the headers are the same, and no model runs.

Other plugins authorize the probe as they do any request, so a person whose cap is reached gets that
response.
"""

from __future__ import annotations

import json

from tornadoproxy import (
    INACTIVE,
    Identity,
    Inactive,
    IncomingRequest,
    ModelRequest,
    ModelResponse,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

MAX_SIZE = 1024
"""The largest body that is looked into, in bytes: a probe has about 400."""

ANSWER_QUOTA_PROBE: Setting[bool] = Setting(
    "ANSWER_QUOTA_PROBE",
    parsers.boolean,
    default=False,
    help=(
        "whether the proxy itself responds to the request that Claude Code sends at each start to "
        "read its spend, which otherwise runs a model for one token"
    ),
    fixed=True,
)

_RESPONSE = ModelResponse("", stop_reason="max_tokens")


class QuotaProbe:
    """The plugin: it recognizes the probe, and responds to it."""

    @hookimpl
    def declare_settings(self) -> tuple[Setting[bool]]:
        return (ANSWER_QUOTA_PROBE,)

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        if not settings[ANSWER_QUOTA_PROBE]:
            return INACTIVE
        return "responses to the quota probe of Claude Code"

    @hookimpl
    def respond(
        self,
        request: IncomingRequest,
        identity: Identity,
        model_request: ModelRequest,
        body: bytes,
    ) -> ModelResponse | None:
        if model_request.max_tokens != 1 or len(body) > MAX_SIZE or not _is_probe(body):
            return None
        return _RESPONSE


def _is_probe(body: bytes) -> bool:
    """Return whether `body` is that of the probe: one user message, ``quota``."""
    messages = json.loads(body).get("messages")
    return bool(messages == [{"role": "user", "content": "quota"}])
