"""Scripted clouds: Vertex AI and Claude on Google Cloud, and Microsoft Foundry.

They are proven by the package anthropic, whose own clients are pointed at them
(tests/plugins/test_google.py and tests/plugins/test_foundry.py).
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from scene import Scene
from tornado.ioloop import IOLoop

from tornadoproxy.fakes.anthropic_messages import (
    input_tokens,
    message_events,
    message_for,
    new_id,
)
from tornadoproxy.fakes.anthropic_validation import (
    Refusal,
    document_of,
    refuse,
    refuse_field,
    validate,
)
from tornadoproxy.testing import (
    Document,
    Proxy,
    ReceivedRequest,
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    error_response,
    json_response,
    sse_response,
)
from tornadoproxy.testing.loop import run

PROJECT, REGION, WORKSPACE = "acme-prod", "europe-west1", "wrkspc_01AbCdEf23GhIj"
TOKEN = "ya29.fixed-access-token"
AUDIENCE = "https://oauth2.googleapis.com/token"  # whatever the server's address is
KEY = "foundry-key-0123456789"
DEPLOYMENT = "our-sonnet"
IDENTITY_SECRET = "secret-of-the-identity-endpoint"

_VERTEX = re.compile(
    rf"/v1/projects/{PROJECT}/locations/{REGION}/publishers/anthropic/models/"
    r"([^/?;]+):(rawPredict|streamRawPredict)"
)
_GATEWAY = f"/v1/projects/{PROJECT}/locations/global/workspaces/{WORKSPACE}/invoke"
_VERTEX_VERSIONS = {"vertex-2023-10-16": "2023-06-01", "2026-10-21": "2026-10-21"}
_VERTEX_BETAS = {
    "claude-code-20250219",
    "context-management-2025-06-27",
    "interleaved-thinking-2025-05-14",
    "tool-search-tool-2025-10-19",
}
_NOT_IN_VERTEX = ("billing_policy", "container", "mcp_servers", "service_tier", "speed")


class ScriptedGoogle(ScriptedUpstream):
    """Vertex AI, Claude on Google Cloud, and the server that issues access tokens.

    :ivar tokens: the access tokens that are valid.
    :ivar lifetime: of the next ones, in seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = {TOKEN}
        self.lifetime = 3600
        self._public_key = b""

    def key_file(self, path: Path) -> Path:
        """Write the key file of a service account."""
        private_key, self._public_key = _key_pair()
        document = {
            "type": "service_account",
            "client_email": f"proxy@{PROJECT}.iam.gserviceaccount.com",
            "private_key": private_key.decode(),
            "private_key_id": "1",
            "project_id": PROJECT,
            "token_uri": f"{self.url}/token",
        }
        path.write_text(json.dumps(document))
        return path

    async def default_response(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        request = exchange.request
        if request.path == "/token":
            await self._issue(request)(exchange)
            return
        token = (request.header("authorization") or "").removeprefix("Bearer ")
        streams = request.path.endswith(":streamRawPredict")
        if token not in self.tokens:
            message = "Request had invalid authentication credentials."
            await google_error(401, "UNAUTHENTICATED", message, in_list=streams)(exchange)
        elif vertex := _VERTEX.fullmatch(request.path):
            await _vertex(request, unquote(vertex[1]), streams=streams)(exchange)
        elif request.path.startswith(f"{_GATEWAY}/v1/"):
            request.target = request.target.removeprefix(_GATEWAY)
            await super().default_response(exchange)
        else:
            html = "<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>"
            await json_response(html, 404, [("Content-Type", "text/html")])(exchange)

    def _issue(self, request: ReceivedRequest) -> Response:
        """Issue a token for a signed assertion (RFC 7523)."""
        from google.auth import jwt

        form = parse_qs(request.body.decode())
        claims = jwt.decode(form["assertion"][0], self._public_key, audience=AUDIENCE)
        assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
        token = new_id("ya29")
        self.tokens.add(token)
        return json_response(
            {"access_token": token, "expires_in": self.lifetime, "token_type": "Bearer"}
        )


@functools.cache
def _key_pair() -> tuple[bytes, bytes]:
    """Return a private key and its public key, the same ones for all tests."""
    # few tests need it
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = serialization.Encoding.PEM
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public_form = serialization.PublicFormat.SubjectPublicKeyInfo
    public_key = key.public_key().public_bytes(pem, public_form)
    private_form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(pem, private_form, plain), public_key


def google_error(
    status: int,
    name: str,
    message: str,
    *,
    in_list: bool = False,
    headers: tuple[tuple[str, str], ...] = (),
) -> Response:
    """Return an error of Google's own: https://google.aip.dev/193."""
    error = {"error": {"code": status, "message": message, "status": name}}
    lines = [("x-goog-request-id", new_id("goog")), *headers]
    return json_response([error] if in_list else error, status, lines)


def _vertex(request: ReceivedRequest, model: str, *, streams: bool) -> Response:
    document = document_of(request)
    counts = model == "count-tokens"
    assert request.header("anthropic-version") is None
    assert streams == document.get("stream", False)
    try:
        _check_for_vertex(request, document, counts=counts)
        version = _VERTEX_VERSIONS[document.pop("anthropic_version")]
        # names with a date have it after an @
        document["model"] = (document["model"] if counts else model).replace("@", "-")
        if not document["model"].startswith("claude-"):
            named = f"projects/{PROJECT}/locations/{REGION}/publishers/anthropic/models/{model}"
            message = f"Publisher Model `{named}` was not found."
            return google_error(404, "NOT_FOUND", message, in_list=streams)
        return _message(document, version, [("request-id", new_id("req_vrtx"))], counts=counts)
    except Refusal as refusal:
        return error_response(
            refusal.status, refusal.error_type, refusal.message, (), new_id("req_vrtx")
        )


def _check_for_vertex(request: ReceivedRequest, document: Document, *, counts: bool) -> None:
    if document.get("anthropic_version") not in _VERTEX_VERSIONS:
        refuse_field("anthropic_version", "Field required")
    for name in ("model", *_NOT_IN_VERTEX):
        if name in document and not (counts and name == "model"):
            refuse_field(name, "Extra inputs are not permitted")
    betas = set((request.header("anthropic-beta") or "").split(",")) - {""}
    if betas - _VERTEX_BETAS:
        unknown = "`, `".join(sorted(betas - _VERTEX_BETAS))
        message = f"Unexpected value(s) `{unknown}` for the `anthropic-beta` header."
        refuse(400, "invalid_request_error", message)


def _message(
    document: Document, version: str, lines: list[tuple[str, str]], *, counts: bool
) -> Response:
    validate({"max_tokens": 1, **document} if counts else document, version)
    if counts:
        return json_response({"input_tokens": input_tokens(document)}, 200, lines)
    message = message_for(document)
    if document.get("stream"):
        return sse_response(message_events(message), headers=lines)
    return json_response(message, 200, lines)


class ScriptedFoundry(ScriptedUpstream):
    """A Foundry resource with one deployment, and the endpoint of a managed identity.

    :ivar tokens: the access tokens that are valid.
    :ivar lifetime: of the next ones, in seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens: set[str] = set()
        self.lifetime = 3600

    async def default_response(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await self._respond(exchange.request)(exchange)

    def _respond(self, request: ReceivedRequest) -> Response:
        if request.path == "/msi/token":
            return self._issue(request)
        lines = [("apim-request-id", new_id("apim")), ("request-id", new_id("req"))]
        token = (request.header("authorization") or "").removeprefix("Bearer ")
        keys = (request.header("x-api-key"), request.header("api-key"))
        if keys != (KEY, KEY) and token not in self.tokens:
            message = "Access denied due to invalid subscription key or wrong API endpoint."
            return azure_error(401, "401", message)
        path = request.path.removeprefix("/anthropic")
        if path not in ("/v1/messages", "/v1/messages/count_tokens"):
            return azure_error(404, "404", "Resource not found")
        document = document_of(request)
        if document["model"] != DEPLOYMENT:
            message = "The API deployment for this resource does not exist."
            return azure_error(404, "DeploymentNotFound", message)
        document["model"] = "claude-sonnet-5-5"
        version = request.header("anthropic-version") or ""
        try:
            return _message(document, version, lines, counts=path.endswith("tokens"))
        except Refusal as refusal:
            return error_response(refusal.status, refusal.error_type, refusal.message, lines)

    def _issue(self, request: ReceivedRequest) -> Response:
        """Issue a token as App Service does for its managed identity."""
        assert request.header("x-identity-header") == IDENTITY_SECRET
        query = parse_qs(request.target.partition("?")[2])
        assert query["resource"] == ["https://ai.azure.com"]
        token = new_id("eyJ")
        self.tokens.add(token)
        ends = int(time.time()) + self.lifetime
        return json_response(
            {"access_token": token, "expires_on": str(ends), "resource": query["resource"][0]}
        )


def azure_error(
    status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    """Return an error of Azure's own."""
    lines = [("apim-request-id", new_id("apim")), *headers]
    return json_response({"error": {"code": code, "message": message}}, status, lines)


@pytest.fixture
def google(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[ScriptedGoogle]:
    """A scripted Google, and no configuration of this machine."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    cloud = ScriptedGoogle()
    run(io_loop, cloud.start)
    yield cloud
    run(io_loop, cloud.stop)
    assert cloud.failures == []


@pytest.fixture
def foundry(io_loop: IOLoop) -> Iterator[ScriptedFoundry]:
    """A scripted Foundry."""
    cloud = ScriptedFoundry()
    run(io_loop, cloud.start)
    yield cloud
    run(io_loop, cloud.stop)
    assert cloud.failures == []


def cloud_entry(cloud: ScriptedUpstream, kind: str, *without: str, **keys: Any) -> str:
    """Return an entry of ``UPSTREAMS_FILE`` that leads to `cloud`.

    :param without: keys that it does not have.
    :param keys: in addition to the usual ones.
    """
    usual: dict[str, dict[str, Any]] = {  # Any: what TOML takes
        "vertex": {"project": PROJECT, "region": REGION, "access_token": TOKEN},
        "google_cloud": {"project": PROJECT, "workspace_id": WORKSPACE, "access_token": TOKEN},
        "foundry": {"api_key": KEY, "models": {"claude-sonnet-5-5": DEPLOYMENT}},
    }
    prefix = "/anthropic" if kind == "foundry" else ""
    given = {"name": kind, "kind": kind, "base_url": cloud.url + prefix, **usual[kind], **keys}
    lines = [f"{key} = {_toml(value)}" for key, value in given.items() if key not in without]
    return "\n".join(["[[upstream]]", *lines, ""])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    return json.dumps(value)


async def start(scene: Scene, path: Path, *entries: str) -> Proxy:
    """Start a proxy with these upstreams, which are tried in their order."""
    file = path / "upstreams.toml"
    file.write_text("".join(('order = "listed"\n', *entries)))
    return await scene.start(UPSTREAMS_FILE=file)
