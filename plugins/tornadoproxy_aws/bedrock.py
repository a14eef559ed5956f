"""Amazon Bedrock's InvokeModel: the model in the path, the rest of a request in the body.

What the Anthropic API takes in headers is in the body here: its version, betas and the user
profile. Streams are event streams of AWS. Bedrock refuses betas and fields that it does not know
with 400, so that those which belong to the Anthropic API alone are left out, and named to the
client, or refused here.

Sources: the package anthropic, ``anthropic/lib/bedrock/_client.py``, and
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages-request-response.html
"""

from __future__ import annotations

import fnmatch
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy import InvalidRequest, read_fields, write_fields
from tornadoproxy_aws.eventstream import CONTENT_TYPE, EventStreamDecoder
from tornadoproxy_aws.native import USER_PROFILE
from tornadoproxy_aws.wire import AWSWire

if TYPE_CHECKING:
    from tornadoproxy import OutgoingRequest, ResponseDecoder, ResponseHead
    from tornadoproxy_aws.signing import Signer

BETAS = (
    "compact-2026-01-12",
    "computer-use-*",
    "context-1m-2025-08-07",
    "context-management-2025-06-27",
    "dev-full-thinking-2025-05-14",
    "effort-2025-11-24",
    "interleaved-thinking-2025-05-14",
    "output-128k-2025-02-19",
    "token-efficient-tools-2025-02-19",
    "tool-examples-2025-10-29",
    "tool-search-tool-2025-10-19",
)
"""The betas that AWS documents for Claude on Bedrock; not every model takes all of them."""

UNSUPPORTED_FIELDS = (
    "billing_policy",
    "container",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "mcp_servers",
    "service_tier",
    "speed",
    "thread",
    "workspace_id",
)
"""The fields of a request that are about accounts and servers of the Anthropic API."""

FIRST_VERSION = "2023-06-01"
"""The version of the Anthropic API that Bedrock calls by another name."""

_FIRST_VERSION_THERE = "bedrock-2023-05-31"

_BETA = "anthropic-beta"
_VERSION = "anthropic-version"

# an object of a few plain fields; a quote within a string is escaped, so that this finds no text
_cache_controls = re.compile(rb'(?<!\\)"cache_control"\s*:\s*(\{[^{}]*\})')
_WITH_CACHE_CONTROL = ("system", "tools", "messages")
_CACHE_SCOPE = "cache_control.scope"


class Rules(Struct, frozen=True):
    """What an upstream does not take.

    :param version: the ``anthropic_version`` of requests; ``None``: the client's.
    :param betas: names of those that it takes; ``*`` stands for any text.
    :param unsupported_fields: those that it does not take.
    :param refuses: whether a request with any of these is refused; else they are left out.
    """

    version: str | None = None
    betas: tuple[str, ...] = BETAS
    unsupported_fields: tuple[str, ...] = UNSUPPORTED_FIELDS
    refuses: bool = False

    def takes_beta(self, name: str) -> bool:
        """Whether the upstream takes a beta."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.betas)


class BedrockWire(AWSWire):
    """InvokeModel and InvokeModelWithResponseStream, for Claude."""

    def __init__(self, signer: Signer | None, rules: Rules) -> None:
        super().__init__(signer)
        self.needs_body = True
        self._rules = rules

    def serves(self, method: str, path: str) -> bool:
        """See `Wire`."""
        return method == "POST" and path.rstrip("/") == "/v1/messages"

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """See `AWSWire`.

        :raises InvalidRequest: it names no model, or has what the upstream does not take.
        """
        fields = read_fields(request.body or b"")
        model = _model_in_path(fields.pop("model", b'""'))
        streams = _boolean("stream", fields.pop("stream", b"false"))
        ignored = [name for name in self._rules.unsupported_fields if fields.pop(name, None)]
        ignored += self._move_betas(request, fields)
        ignored += _drop_cache_scopes(fields)
        if ignored and self._rules.refuses:
            raise InvalidRequest(
                f"Amazon Bedrock does not support {', '.join(ignored)}: leave that out."
            )
        profile = request.header(USER_PROFILE)
        if profile is not None:
            fields.setdefault("user_profile_id", json.dumps(profile).encode())
        fields.setdefault("anthropic_version", json.dumps(self._version(request)).encode())
        action = "invoke-with-response-stream" if streams else "invoke"
        return replace(
            request,
            target=f"/model/{model}/{action}",
            # neither events nor errors could be read in a compressed response
            headers=request.with_headers(
                ("Accept-Encoding", "identity"),
                ("Content-Type", "application/json"),
                without=(_BETA, _VERSION, USER_PROFILE),
            ),
            body=write_fields(fields),
            ignored=(*request.ignored, *ignored),
        )

    def _version(self, request: OutgoingRequest) -> str:
        version = self._rules.version or request.header(_VERSION) or FIRST_VERSION
        return _FIRST_VERSION_THERE if version == FIRST_VERSION else version

    def _move_betas(self, request: OutgoingRequest, fields: dict[str, bytes]) -> list[str]:
        """Put the betas of the header into the body; return those that are left out."""
        given = _words("anthropic_beta", fields.pop("anthropic_beta", b"[]"))
        in_header = (request.header(_BETA) or "").split(",")
        betas = dict.fromkeys([*given, *(name.strip() for name in in_header if name.strip())])
        taken = [name for name in betas if self._rules.takes_beta(name)]
        if taken:
            fields["anthropic_beta"] = json.dumps(taken).encode()
        return [name for name in betas if name not in taken]

    def read(
        self, request: OutgoingRequest, head: ResponseHead
    ) -> tuple[ResponseHead, ResponseDecoder | None]:
        """See `Wire`."""
        head, decoder = super().read(request, head)
        if decoder is not None or not (head.header("content-type") or "").startswith(CONTENT_TYPE):
            return head, decoder
        fields = head.with_fields(
            ("Content-Type", "text/event-stream; charset=utf-8"), without=("Content-Length",)
        )
        events = EventStreamDecoder(head.header("request-id") or "")
        return head._replace(fields=fields), events


def _model_in_path(written: bytes) -> str:
    """Return a model's name as a segment of the path; the id of a profile has slashes."""
    name = _value("model", written)
    if not isinstance(name, str) or name.partition(";")[0] in ("", ".", ".."):
        raise InvalidRequest("Set model to the name of a model.", param="model")
    return quote(name, safe=":;")


def _boolean(name: str, written: bytes) -> bool:
    value = _value(name, written)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false.", param=name)
    return bool(value)


def _words(name: str, written: bytes) -> list[str]:
    value = _value(name, written)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidRequest(f"{name} must be a list of names.", param=name)
    return value


def _value(name: str, written: bytes) -> object:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{name} cannot be read.", param=name) from None


def _drop_cache_scopes(fields: dict[str, bytes]) -> list[str]:
    """Drop the scope of prompt caches, which Bedrock refuses: its caches have no other."""
    found = []
    for name in _WITH_CACHE_CONTROL:
        if b'"scope"' in fields.get(name, b""):
            without = _cache_controls.sub(_without_scope, fields[name])
            if without != fields[name]:
                fields[name] = without
                found = [_CACHE_SCOPE]
    return found


def _without_scope(found: re.Match[bytes]) -> bytes:
    try:
        control = json.loads(found[1])
    except ValueError:
        return found[0]
    if control.get("type") != "ephemeral" or control.pop("scope", None) is None:
        return found[0]
    return b'"cache_control":' + json.dumps(control, separators=(",", ":")).encode()
