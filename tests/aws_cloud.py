"""A scripted AWS: it verifies signatures, and speaks Bedrock's InvokeModel and event stream.

It is proven by the package anthropic, whose own clients of Bedrock, of Bedrock's ``mantle`` and of
Claude Platform on AWS are pointed at it (tests/plugins/test_aws.py).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from tornado.ioloop import IOLoop

from tornadoproxy.fakes.anthropic_messages import message_events, message_for, new_id
from tornadoproxy.fakes.anthropic_validation import Refusal, document_of, validate
from tornadoproxy.testing import (
    Document,
    ReceivedRequest,
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    bytes_response,
)
from tornadoproxy.testing.loop import run

REGION = "eu-west-1"
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI", "session/token+=="
API_KEY = "bedrock-api-key-0123456789"
WORKSPACE = "wrkspc_01AbCdEf23GhIj"
MODEL = "eu.anthropic.claude-sonnet-5-5-v1:0"

_SERVICES = {"model": "bedrock", "anthropic": "bedrock-mantle", "v1": "aws-external-anthropic"}
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)
# what a proxy on the way may add, change or drop
_NEVER_SIGNED = {"connection", "forwarded", "transfer-encoding", "via"}
_NOT_IN_BEDROCK = {"model", "stream", "service_tier", "mcp_servers", "container", "speed"}
_BEDROCK_ONLY = ("anthropic_version", "anthropic_beta", "user_profile_id")


class ScriptedAWS(ScriptedUpstream):
    """The three services at one address, told apart by their paths.

    :ivar credentials: the access keys that are valid: secret key and session token by key id.
    :ivar api_keys: the API keys that are valid.
    """

    def __init__(self) -> None:
        super().__init__(keep_body=4 * 1024 * 1024)
        self.credentials: dict[str, tuple[str, str | None]] = {ACCESS_KEY: (SECRET_KEY, None)}
        self.api_keys = {API_KEY}

    async def default_response(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        request = exchange.request
        refused = self._refusal(request)
        if refused is not None:
            await refused(exchange)
        elif request.path.startswith("/model/"):
            await _bedrock(request)(exchange)
        else:
            if request.path.startswith("/v1/"):
                assert request.header("anthropic-workspace-id") == WORKSPACE
            request.target = request.target.removeprefix("/anthropic")
            await super().default_response(exchange)

    def _refusal(self, request: ReceivedRequest) -> Response | None:
        """Return the response to a request whose credential is not valid."""
        given = request.header("authorization") or ""
        if not given.startswith("AWS4-"):
            key = given.removeprefix("Bearer ") or request.header("x-api-key")
            return None if key in self.api_keys else aws_error(403, "AccessDeniedException", "No")
        try:
            self._verify(request, given)
        except ValueError as error:
            return aws_error(403, "InvalidSignatureException", str(error))
        return None

    def _verify(self, request: ReceivedRequest, given: str) -> None:
        """Compute the signature of what was received.

        :raises ValueError: it is another one, or does not cover what it has to.
        """
        parsed = _AUTHORIZATION.fullmatch(given)
        if parsed is None:
            raise ValueError("the Authorization header cannot be read")
        key_id, day, region, service, names, signature = parsed.groups()
        signed = names.split(";")
        present = {name.lower() for name, _ in request.headers}
        amz = {name for name in present if name.startswith("x-amz-")}
        if not {"host", "x-amz-date", *amz} <= set(signed) <= present - _NEVER_SIGNED:
            raise ValueError(f"the wrong headers are signed: {names}")
        if (region, service) != (REGION, _SERVICES[request.path.split("/")[1]]):
            raise ValueError(f"signed for {service} in {region}")
        timestamp = request.header("x-amz-date") or ""
        sent = datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs((datetime.now(UTC) - sent).total_seconds()) > 300 or timestamp[:8] != day:
            raise ValueError("Signature expired")
        if key_id not in self.credentials:
            raise ValueError("The security token included in the request is invalid.")
        secret, token = self.credentials[key_id]
        if request.header("x-amz-security-token") != token:
            raise ValueError("The security token included in the request is invalid.")
        expected = _signature(
            SigV4Auth(ReadOnlyCredentials(key_id, secret, token), service, region),
            AWSRequest(
                method=request.method,
                url=f"http://{request.header('host')}{request.target}",
                headers={name: ",".join(request.all(name)) for name in signed},
                data=request.body,
            ),
            timestamp,
        )
        if not hmac.compare_digest(expected, signature):
            raise ValueError("The request signature we calculated does not match")


def _signature(signer: SigV4Auth, request: AWSRequest, timestamp: str) -> str:
    request.context["timestamp"] = timestamp
    canonical = signer.canonical_request(request)
    return str(signer.signature(signer.string_to_sign(request, canonical), request))


def _bedrock(request: ReceivedRequest) -> Response:
    model, _, action = request.path.removeprefix("/model/").partition("/")
    try:
        message = message_for(_document(request, unquote(model)))
    except Refusal as refusal:
        names = {400: "ValidationException", 404: "ResourceNotFoundException"}
        return aws_error(refusal.status, names[refusal.status], refusal.message)
    if action == "invoke":
        lines = [*_lines(), ("Content-Type", "application/json")]
        return bytes_response(json.dumps(message).encode(), lines)
    assert action == "invoke-with-response-stream"
    return stream_response([event_frame(event) for event in message_events(message)])


def _document(request: ReceivedRequest, model: str) -> Document:
    """Return what the API would be asked.

    :raises Refusal: Bedrock would refuse it.
    """
    document = document_of(request)
    version = document.get("anthropic_version")
    for name in sorted(_NOT_IN_BEDROCK & document.keys()):
        raise Refusal(400, "", f"{name}: Extra inputs are not permitted")
    if b'"scope"' in request.body:
        raise Refusal(400, "", "cache_control.ephemeral.scope: Extra inputs are not permitted")
    if version not in ("bedrock-2023-05-31", "2026-10-21"):
        raise Refusal(400, "", "anthropic_version: Field required")
    if {"claude-code-20250219", "unknown"} & set(document.get("anthropic_beta", ())):
        raise Refusal(400, "", "invalid beta flag")
    document = {name: each for name, each in document.items() if name not in _BEDROCK_ONLY}
    named = re.search(r"claude-[a-z0-9-]+?(?=-v\d|$)", model)
    document["model"] = named[0] if named else "claude-sonnet-5-5"
    validate(document, "2023-06-01" if version.startswith("bedrock") else version)
    return document


# -- responses


def _lines() -> list[tuple[str, str]]:
    return [("x-amzn-RequestId", new_id("aws"))]


def aws_error(
    status: int, name: str, message: str, headers: Sequence[tuple[str, str]] = ()
) -> Response:
    """Return an error of AWS."""
    lines = [
        *_lines(),
        ("Content-Type", "application/json"),
        ("x-amzn-ErrorType", f"{name}:http://internal.amazon.com/coral/com.amazon.bedrock/"),
        *headers,
    ]
    return bytes_response(json.dumps({"message": message}).encode(), lines, status)


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """Return one frame of an event stream.

    https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html
    """
    block = b"".join(
        bytes([len(name)])
        + name.encode()
        + b"\x07"
        + struct.pack("!H", len(value))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", len(block) + len(payload) + 16, len(block))
    message = prelude + struct.pack("!I", binascii.crc32(prelude)) + block + payload
    return message + struct.pack("!I", binascii.crc32(message))


def event_frame(event: bytes) -> bytes:
    """Return the frame of one server-sent event of the API."""
    data = event.partition(b"data: ")[2].strip()
    payload = json.dumps({"bytes": base64.b64encode(data).decode(), "p": "abcdefg"}).encode()
    headers = {":event-type": "chunk", ":content-type": "application/json"}
    return frame({**headers, ":message-type": "event"}, payload)


def exception_frame(name: str, message: str) -> bytes:
    """Return a frame that ends a stream with an error."""
    headers = {":exception-type": name, ":content-type": "application/json"}
    return frame(
        {**headers, ":message-type": "exception"}, json.dumps({"message": message}).encode()
    )


def stream_response(frames: Sequence[bytes], *, split: int | None = None) -> Response:
    """Return an event stream of these frames.

    :param split: the size of the pieces that it is cut into.
    """
    pieces = list(frames)
    if split is not None:
        whole = b"".join(frames)
        pieces = [whole[start : start + split] for start in range(0, len(whole), split)]

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        lines = [*_lines(), ("Content-Type", "application/vnd.amazon.eventstream")]
        await exchange.head(200, [*lines, ("Transfer-Encoding", "chunked")])
        for piece in pieces:
            await exchange.pause()
            await exchange.chunk(piece)
        await exchange.last_chunk()

    return response


# -- fixtures


@pytest.fixture
def aws(io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedAWS]:
    """A scripted AWS, and no AWS configuration of this machine."""
    missing = str(tmp_path / "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", missing)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", missing)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    cloud = ScriptedAWS()
    run(io_loop, cloud.start)
    yield cloud
    run(io_loop, cloud.stop)
    assert cloud.failures == []


def aws_entry(aws: ScriptedAWS, kind: str, *more: str, name: str | None = None, **keys: Any) -> str:
    """Return an entry of ``UPSTREAMS_FILE`` that leads to `aws`.

    :param more: further lines.
    :param keys: of the entry; without a credential among them, it is the access key.
    """
    prefix = "/anthropic" if kind == "mantle" else ""
    given: dict[str, Any] = {  # Any: what TOML takes
        "name": name or kind,
        "kind": kind,
        "base_url": aws.url + prefix,
        "region": REGION,
    }
    if kind == "aws":
        given["workspace_id"] = WORKSPACE
    if not keys.keys() & {"api_key", "profile", "access_key_id"}:
        keys |= {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**given, **keys}.items()]
    return "\n".join(["[[upstream]]", *lines, *more, ""])
