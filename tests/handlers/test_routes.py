"""The route table as a client sees it: what each path does, in which dialect, and for whom."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from scene import Scene
from served import CHUNKED, anthropic_error, openai_error, request

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, Proxy, bytes_response, request_bytes

pytestmark = pytest.mark.usefixtures("proxy")

PROBES = ("/", "/health", "/ready", "/api/hello")


async def test_v1_relays_every_method(scene: Scene) -> None:
    client = await scene.raw()
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "VERSION-CONTROL"]
    for method in methods:
        scene.upstream.script(bytes_response(b"from upstream", status=207))
        response = await client.ask(request(method, "/v1/files/f-1", body=b"<x/>"))
        assert (response.status, response.body) == (207, b"from upstream"), method
        assert scene.upstream.requests[-1].body == b"<x/>"
    assert [received.method for received in scene.upstream.requests] == methods


async def test_method_that_does_not_exist_is_405(scene: Scene) -> None:
    for method in ("FROB", "CONNECT", "TRACE", "get"):
        for path in ("/v1/models", "/nowhere", "/health"):
            response = await scene.ask(path, method=method)
            anthropic_error(response, 405, "invalid_request_error")
        openai_error(await scene.ask("/openai/v1/models", method=method), 405)
    for path in PROBES:
        response = await scene.ask(path, method="POST", token=None)
        anthropic_error(response, 405, "invalid_request_error")
    assert scene.upstream.requests == []


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_probe_needs_no_credential_and_reveals_nothing(
    token: str | None, scene: Scene
) -> None:
    client = await scene.raw()
    for path in (*PROBES, "/?beta=true"):
        head = request_bytes("HEAD", path, token=token)
        assert (await client.ask(head, to_head=True)).status == 200
    for path in ("/", "/health?verbose=1", "/ready"):
        response = await client.ask(request_bytes("GET", path, token=token))
        assert response.status == 200
        assert response.header("content-type") == "application/json"
        assert response.header("cache-control") == "no-store"
        assert json.loads(response.body) == {"status": "ok"}
        shown = response.raw_head + response.body
        for secret in (TEST_TOKEN, TEST_UPSTREAM_KEY, str(scene.upstream.port), "token"):
            assert secret.encode() not in shown
    assert scene.upstream.connections == 0
    assert scene.records.all == []


async def test_ready_shows_databases_that_fail_and_recover(scene: Scene, tmp_path: Path) -> None:
    async def until(*failing: str) -> dict[str, Any]:
        """Return what is shown once these settings alone are shown as failing."""
        async with asyncio.timeout(10):
            while True:
                response = await scene.ask("/ready", token=None)
                assert (response.status, str(tmp_path).encode() in response.body) == (200, False)
                plugins = json.loads(response.body)["databases"]
                shown = {name: each for plugin in plugins.values() for name, each in plugin.items()}
                if {name for name, each in shown.items() if each["failing"]} == set(failing):
                    return shown
                await asyncio.sleep(0.02)

    budgets, aside = tmp_path / "budgets.db", tmp_path / "aside"
    await scene.start(BUDGETS_DB=budgets, LEDGER_DB=tmp_path / "ledger.db")
    at_first = {"failing": False, "failures": 0, "held": 0, "lost": 0}
    assert await until() == {"BUDGETS_DB": at_first, "LEDGER_DB": at_first}
    budgets.rename(aside)
    await until("BUDGETS_DB")
    aside.rename(budgets)
    recovered = await until()
    assert recovered["BUDGETS_DB"]["failures"] > 0
    assert recovered["LEDGER_DB"] == at_first


@pytest.mark.parametrize("framing", [("Content-Length", "9"), CHUNKED])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/health"), ("HEAD", "/"), ("GET", "/openai/v1/models")),
        ("OPTIONS", "/v1/messages"),  # a preflight
    ],
)
async def test_body_where_none_is_taken_is_413(
    method: str, path: str, framing: tuple[str, str], scene: Scene
) -> None:
    """The body need not come for that, and nothing behind it is taken for a request."""
    origin = "https://app.example.com"
    await scene.start(ALLOWED_ORIGINS=origin)
    preflight = [("Origin", origin), ("Access-Control-Request-Method", "GET")]
    client = await scene.raw()
    refused = request(method, path, framing, *preflight)
    response = await client.ask(refused, to_head=method == "HEAD")
    assert (response.status, response.header("Connection")) == (413, "close")
    await client.send(request("GET", "/health"))
    assert await client.read() == b""


async def test_empty_body_is_accepted_where_none_is_taken(scene: Scene) -> None:
    empty = request("GET", "/health", ("Content-Length", "0"))
    assert (await scene.ask(empty)).status == 200


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/V1/messages", "/metrics", "/health/", "/openaix/v1/models"]
)
async def test_unknown_path_needs_a_credential_then_is_404(path: str, scene: Scene) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        response = await scene.ask(path, method=method, token="wrong")
        anthropic_error(response, 401, "authentication_error")
        response = await scene.ask(f"{path}?key=hidden", method=method)
        message = anthropic_error(response, 404, "not_found_error")
        assert path in message
        assert "hidden" not in message + repr(scene.records.all)
    assert scene.upstream.connections == 0


@pytest.mark.parametrize("path", ["/openai", "/openai/health", "/openai/v1/nothing"])
async def test_unknown_path_below_openai_is_404_with_base_url(
    path: str, proxy: Proxy, scene: Scene
) -> None:
    host = {"Host": f"127.0.0.1:{proxy.port}"}
    openai_error(await scene.ask(path, token="wrong"), 401, code="invalid_api_key")
    message = openai_error(await scene.ask(path, headers=host), 404)
    assert path in message
    assert message.endswith(f"The base URL for OpenAI clients is {proxy.url}/openai/v1.")


@pytest.mark.parametrize("path", ["/v1/v1", "/v1/v1/models?limit=1", "/v1/v1/chat/completions"])
async def test_doubled_v1_is_404_with_base_url(path: str, proxy: Proxy, scene: Scene) -> None:
    response = await scene.ask(path, body=b"{}", token=None)
    anthropic_error(response, 401, "authentication_error")
    response = await scene.ask(path, body=b"{}", headers={"Host": f"127.0.0.1:{proxy.port}"})
    message = anthropic_error(response, 404, "not_found_error")
    assert message.endswith(f"The base URL for Anthropic clients is {proxy.url}, without /v1.")
    assert scene.upstream.requests == []


async def test_error_to_head_has_no_body(scene: Scene) -> None:
    client = await scene.raw()
    for token, status in ((None, 401), (TEST_TOKEN, 404)):
        response = await client.ask(request_bytes("HEAD", "/nothing", token=token), to_head=True)
        assert response.status == status
        assert response.header("Content-Type") == "application/json"
        assert response.header("request-id")
        # were there a body, it would be taken for the head of this response
        assert (await client.ask(request_bytes("GET", "/health"))).status == 200
