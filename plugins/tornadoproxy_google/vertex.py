"""Claude on Vertex AI: the model in the path, the rest of a request in the body.

The version of the API, a header elsewhere, is in the body here. Vertex AI refuses betas and fields
that it does not know with 400. Betas that it does not take, and fields that change no content, are
left out and named to the client, or refused here; all else is for Vertex AI to say.

Sources: the package anthropic, ``anthropic/lib/vertex/_client.py``, and
https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec.structs import replace

from tornadoproxy import InvalidRequest, TokenWire, Unsupported, read_fields, write_fields

if TYPE_CHECKING:
    from tornadoproxy import OutgoingRequest, RefreshedCredential

BETAS = (
    "advanced-tool-use-2025-11-20",
    "claude-code-20250219",
    "compact-*",
    "computer-use-*",
    "context-1m-2025-08-07",
    "context-management-2025-06-27",
    "dangerous-tool-use-2026-09-03",
    "interleaved-thinking-2025-05-14",
    "per-turn-control-2026-07-01",
    "thinking-binding-controls-2026-08-01",
    "thinking-display-updates-2026-08-18",
    "tool-search-tool-2025-10-19",
    "web-search-2025-03-05",
)
"""The betas that Vertex AI takes; not every model takes all of them."""

COUNT_BETAS = (
    "claude-code-20250219",
    "context-management-2025-06-27",
    "interleaved-thinking-2025-05-14",
)
"""Those of them that it takes where tokens are counted."""

UNSUPPORTED = Unsupported("Vertex AI", BETAS)
"""What Vertex AI does not take, unless the entry says otherwise."""

FIRST_VERSION = "2023-06-01"
"""The version of the Anthropic API that Vertex AI calls by another name."""

_FIRST_VERSION_THERE = "vertex-2023-10-16"

_BETA, _VERSION = "anthropic-beta", "anthropic-version"
_MESSAGES, _COUNT = "/v1/messages", "/v1/messages/count_tokens"
_RENAMED = {"advanced-tool-use-2025-11-20": "tool-search-tool-2025-10-19"}
_date = re.compile(r"-(20\d{6})$")


class VertexWire(TokenWire):
    """``rawPredict`` and ``streamRawPredict`` of Anthropic's models.

    :param location: the path of project and region, without a slash at its ends.
    :param version: the ``anthropic_version`` of requests; ``None``: the client's.
    """

    needs_body = True
    request_ids = ("x-goog-request-id",)

    def __init__(
        self,
        token: RefreshedCredential[str] | None,
        location: str,
        unsupported: Unsupported,
        version: str | None,
    ) -> None:
        super().__init__(token)
        self._models = f"/v1/{location}/publishers/anthropic/models"
        self._unsupported = unsupported
        counted = tuple(each for each in COUNT_BETAS if unsupported.takes_beta(each))
        self._unsupported_in_counts = replace(unsupported, betas=counted)
        self._set_version = version

    def serves(self, method: str, path: str) -> bool:
        """See `Wire`."""
        return method == "POST" and path.rstrip("/") in (_MESSAGES, _COUNT)

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """See `TokenWire`.

        :raises InvalidRequest: it names no model, or has what the upstream does not take.
        """
        fields = read_fields(request.body or b"")
        counts = request.target.partition("?")[0].rstrip("/") == _COUNT
        unsupported = self._unsupported_in_counts if counts else self._unsupported
        asked = (each.strip() for each in (request.header(_BETA) or "").split(","))
        betas, ignored = unsupported.leave_out(fields, (each for each in asked if each))
        model = _model_there(fields.pop("model", b'""'))
        if counts:
            fields["model"] = json.dumps(model).encode()
            action = "count-tokens:rawPredict"
        else:
            streams = fields.get("stream", b"false") == b"true"
            # a server that drops ";" and what follows it would drop the action
            segment = quote(model, safe="!$&'()*+,=:@")
            action = f"{segment}:{'streamRawPredict' if streams else 'rawPredict'}"
        fields.setdefault("anthropic_version", json.dumps(self._version(request)).encode())
        there = dict.fromkeys(_RENAMED.get(each, each) for each in betas)
        header = [(_BETA, ",".join(there))] if there else []
        return replace(
            request,
            target=f"{self._models}/{action}",
            headers=request.with_headers(*header, without=(_BETA, _VERSION)),
            body=write_fields(fields),
            ignored=(*request.ignored, *ignored),
        )

    def _version(self, request: OutgoingRequest) -> str:
        version = self._set_version or request.header(_VERSION) or FIRST_VERSION
        return _FIRST_VERSION_THERE if version == FIRST_VERSION else version


def _model_there(written: bytes) -> str:
    """Return the model as Vertex AI names it: ``claude-haiku-4-5@20251001``."""
    try:
        name = json.loads(written)
    except (ValueError, RecursionError):  # read_fields decodes no value
        name = None
    if not isinstance(name, str) or not name:
        raise InvalidRequest("Set model to the name of a model.", param="model")
    return _date.sub(r"@\1", name)
