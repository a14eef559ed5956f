"""The kind foundry: its key or its token, deployments, errors, and the SDK's calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anthropic
import pytest
from clouds import (
    DEPLOYMENT,
    IDENTITY_SECRET,
    KEY,
    ScriptedFoundry,
    azure_error,
    cloud_entry,
    start,
)
from scene import Scene
from sdk_calls import CALLS, call

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import (
    TEST_TOKEN,
    ScriptedUpstream,
    bytes_response,
    clean_environment,
)

MODEL = "claude-sonnet-5-5"
MESSAGE: dict[str, Any] = {  # Any: JSON
    "model": MODEL,
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hi"}],
}


async def test_calls_of_the_sdk_through_the_proxy_equal_its_own_client(
    scene: Scene, foundry: ScriptedFoundry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    models = {MODEL: DEPLOYMENT, "nobody": "nobody"}
    proxy = await start(scene, tmp_path, cloud_entry(foundry, "foundry", models=models))
    through = anthropic.AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0)
    direct = anthropic.AsyncAnthropicFoundry(
        api_key=KEY, base_url=f"{foundry.url}/anthropic", max_retries=0
    )
    async with through, direct:
        for name in CALLS:
            expected = await call(direct, name, DEPLOYMENT)
            by_client = foundry.requests[-1]
            assert await call(through, name, MODEL) == expected, name
            sent = foundry.requests[-1]
            assert sent.path == by_client.path, name
            assert sent.json() == by_client.json(), name
            for header in ("anthropic-version", "authorization", "x-api-key", "api-key"):
                assert sent.header(header) == by_client.header(header), (name, header)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "403", "permission_error"),
        (404, "DeploymentNotFound", "not_found_error"),
        (429, "429", "rate_limit_error"),
        (500, "InternalServerError", "api_error"),
    ],
)
async def test_azures_error_has_the_form_of_the_api(
    status: int, code: str, kind: str, scene: Scene, foundry: ScriptedFoundry, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(foundry, "foundry"))
    headers = (("retry-after", "43"),)
    foundry.script(azure_error(status, code, "Words of Azure", headers))
    response = await scene.ask("/v1/messages", MESSAGE)
    document = json.loads(response.body)
    assert (response.status, document["error"]["type"]) == (status, kind)
    assert document["error"]["message"].endswith("Words of Azure")
    assert response.header("retry-after") == "43"
    assert response.header("request-id") == document["request_id"]
    assert document["request_id"].startswith("apim_")


async def test_request_moves_on_if_the_deployment_does_not_exist(
    scene: Scene, foundry: ScriptedFoundry, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    entry = cloud_entry(foundry, "foundry", models={MODEL: "deleted"})
    other = f'[[upstream]]\nname = "other"\nbase_url = "{upstream.url}"\napi_key = "key"\n'
    await start(scene, tmp_path, entry, other)
    response = await scene.ask("/v1/messages", MESSAGE)
    assert (response.status, response.header("x-tornadoproxy-upstream")) == (200, "other")
    assert [request.json()["model"] for request in foundry.requests] == ["deleted"]


async def test_request_id_of_the_api_comes_before_that_of_azure(
    scene: Scene, foundry: ScriptedFoundry, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(foundry, "foundry"))
    response = await scene.ask("/v1/messages", MESSAGE)
    assert (response.header("request-id") or "").startswith("req_")
    assert (response.header("apim-request-id") or "").startswith("apim_")


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/m", "/v1/messages/batches", "/v1/organizations/me"]
)
async def test_what_foundry_lacks_is_not_asked_for(
    path: str, scene: Scene, foundry: ScriptedFoundry, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(foundry, "foundry"))
    assert (await scene.ask(path)).status == 404
    assert foundry.requests == []


async def test_files_are_relayed_and_large_uploads_streamed(
    scene: Scene, foundry: ScriptedFoundry, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(foundry, "foundry"))
    foundry.script(bytes_response(b"{}", [("Content-Type", "application/json")]))
    response = await scene.ask("/v1/files", body=b"x" * 2_000_000)
    assert response.status == 200
    assert foundry.requests[0].body_length == 2_000_000


# -- Entra ID


@pytest.fixture
def _identity(foundry: ScriptedFoundry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A managed identity, as on App Service, and no other identity of this machine."""
    for name in ("CLIENT_ID", "CLIENT_SECRET", "TENANT_ID", "FEDERATED_TOKEN_FILE", "USERNAME"):
        monkeypatch.delenv(f"AZURE_{name}", raising=False)
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{foundry.url}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", IDENTITY_SECRET)


@pytest.mark.usefixtures("_identity")
async def test_token_of_entra_id_is_loaded_once_and_sent_without_a_key(
    scene: Scene, foundry: ScriptedFoundry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await start(scene, tmp_path, cloud_entry(foundry, "foundry", "api_key"))
    for _ in range(2):
        assert (await scene.ask("/v1/messages", MESSAGE)).status == 200
    issued, *asked = foundry.requests
    assert (issued.path, len(asked)) == ("/msi/token", 2)
    (token,) = foundry.tokens
    for request in asked:
        assert request.header("authorization") == f"Bearer {token}"
        assert (request.header("x-api-key"), request.header("api-key")) == (None, None)
    assert token not in caplog.text
    assert IDENTITY_SECRET not in caplog.text


@pytest.mark.usefixtures("_identity")
async def test_token_of_entra_id_that_has_ended_is_loaded_anew(
    scene: Scene, foundry: ScriptedFoundry, tmp_path: Path
) -> None:
    foundry.lifetime = 0
    await start(scene, tmp_path, cloud_entry(foundry, "foundry", "api_key"))
    for _ in range(2):
        assert (await scene.ask("/v1/messages", MESSAGE)).status == 200
    assert len(foundry.tokens) == 2


# -- entries


@pytest.mark.parametrize(
    ("without", "keys", "fault"),
    [
        ("base_url", {}, "resource is missing"),
        ("base_url", {"resource": "a/b"}, "resource must be the name of a Foundry resource"),
        ("", {"resource": "ours"}, "resource and base_url are both set"),
        ("", {"scope": "x"}, "scope is for Entra ID, and a key is set"),
        ("", {"region": "x"}, "region is unknown"),
    ],
)
async def test_mistake_in_an_entry_is_reported_with_its_key(
    without: str,
    keys: dict[str, Any],
    fault: str,
    scene: Scene,
    foundry: ScriptedFoundry,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        await start(scene, tmp_path, cloud_entry(foundry, "foundry", without, **keys))


async def test_url_is_that_of_the_resource(
    scene: Scene, foundry: ScriptedFoundry, tmp_path: Path
) -> None:
    entry = cloud_entry(foundry, "foundry", "base_url", resource="Ours-1")
    proxy = await start(scene, tmp_path, entry)
    (upstream,) = proxy.plugins.upstreams
    assert str(upstream.base_url) == "https://ours-1.services.ai.azure.com/anthropic"
    own = anthropic.AnthropicFoundry(resource="ours-1", api_key=KEY)
    assert str(own.base_url) == f"{upstream.base_url}/"


async def test_missing_library_is_named_at_start(
    scene: Scene, foundry: ScriptedFoundry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tornadoproxy_foundry.tokens", raising=False)
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tornadoproxy\[azure\]'"):
        await start(scene, tmp_path, cloud_entry(foundry, "foundry", "api_key"))
    await start(scene, tmp_path, cloud_entry(foundry, "foundry"))
