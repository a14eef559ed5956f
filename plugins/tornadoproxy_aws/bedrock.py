"""Amazon Bedrock's InvokeModel: the model in the path, the rest of a request in the body.

What the Anthropic API takes in headers is in the body here: its version, betas and the user
profile. Streams are event streams of AWS. Bedrock refuses betas and fields that it does not know
with 400. Betas that it does not take, and fields that change no content, are left out and named to
the client, or refused here; all else is for Bedrock to say.

Sources: the package anthropic, ``anthropic/lib/bedrock/_client.py``, and
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages-request-response.html
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec.structs import replace

from tornadoproxy import InvalidRequest, Unsupported, read_fields, write_fields
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

UNSUPPORTED = Unsupported("Amazon Bedrock", BETAS)
"""What Bedrock does not take, unless the entry says otherwise."""

FIRST_VERSION = "2023-06-01"
"""The version of the Anthropic API that Bedrock calls by another name."""

_FIRST_VERSION_THERE = "bedrock-2023-05-31"

_BETA = "anthropic-beta"
_VERSION = "anthropic-version"


class BedrockWire(AWSWire):
    """InvokeModel and InvokeModelWithResponseStream, for Claude.

    :param version: the ``anthropic_version`` of requests; ``None``: the client's.
    """

    def __init__(
        self,
        signer: Signer | None,
        unsupported: Unsupported = UNSUPPORTED,
        version: str | None = None,
    ) -> None:
        super().__init__(signer)
        self.needs_body = True
        self._unsupported = unsupported
        self._set_version = version

    def serves(self, method: str, path: str) -> bool:
        """See `Wire`."""
        return method == "POST" and path.rstrip("/") == "/v1/messages"

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """See `CloudWire`.

        :raises InvalidRequest: it names no model, or has what the upstream does not take.
        """
        fields = read_fields(request.body or b"")
        model = _model_in_path(fields.pop("model", b'""'))
        streams = _boolean("stream", fields.pop("stream", b"false"))
        in_body = _words("anthropic_beta", fields.pop("anthropic_beta", b"[]"))
        in_header = (each.strip() for each in (request.header(_BETA) or "").split(","))
        betas, ignored = self._unsupported.leave_out(
            fields, (*in_body, *(each for each in in_header if each))
        )
        if betas:
            fields["anthropic_beta"] = json.dumps(betas).encode()
        profile = request.header(USER_PROFILE)
        if profile is not None:
            fields.setdefault("user_profile_id", json.dumps(profile).encode())
        fields.setdefault("anthropic_version", json.dumps(self._version(request)).encode())
        action = "invoke-with-response-stream" if streams else "invoke"
        return replace(
            request,
            target=f"/model/{model}/{action}",
            headers=request.with_headers(
                ("Accept", "application/json"),  # of the response's JSON, within events as well
                ("Content-Type", "application/json"),
                without=(_BETA, _VERSION, USER_PROFILE),
            ),
            body=write_fields(fields),
            ignored=(*request.ignored, *ignored),
        )

    def _version(self, request: OutgoingRequest) -> str:
        version = self._set_version or request.header(_VERSION) or FIRST_VERSION
        return _FIRST_VERSION_THERE if version == FIRST_VERSION else version

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
