"""The kinds vertex and google_cloud: what is sent, credentials, errors, and the SDK's calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest
from clouds import (
    PROJECT,
    REGION,
    TOKEN,
    WORKSPACE,
    ScriptedGoogle,
    cloud_entry,
    google_error,
    start,
)
from scene import Scene
from sdk_calls import CALLS, call

from tornadoproxy.testing import (
    TEST_TOKEN,
    ScriptedUpstream,
    bytes_response,
    clean_environment,
    error_response,
    json_response,
    message_document,
)

MODEL = "claude-sonnet-5-5"
MESSAGE: dict[str, Any] = {  # Any: JSON
    "model": MODEL,
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hi"}],
}
MODELS = f"/v1/projects/{PROJECT}/locations/{REGION}/publishers/anthropic/models"
KINDS = ("vertex", "google_cloud")


@pytest.fixture
def direct(google: ScriptedGoogle, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The SDK's own clients of the scripted cloud."""
    clean_environment(monkeypatch)
    vertex = anthropic.AsyncAnthropicVertex(
        region=REGION,
        project_id=PROJECT,
        access_token=TOKEN,
        base_url=f"{google.url}/v1",
        max_retries=0,
    )
    path = f"/v1/projects/{PROJECT}/locations/global/workspaces/{WORKSPACE}/invoke"
    gateway = anthropic.AsyncAnthropicGoogleCloud(
        token_provider=lambda: TOKEN, base_url=google.url + path, max_retries=0
    )
    return {"vertex": vertex, "google_cloud": gateway}


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_of_the_sdk_through_the_proxy_equal_its_own_client(
    kind: str, scene: Scene, google: ScriptedGoogle, direct: dict[str, Any], tmp_path: Path
) -> None:
    proxy = await start(scene, tmp_path, cloud_entry(google, kind))
    through = anthropic.AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0)
    async with through, direct[kind] as own:
        for name in CALLS:
            expected = await call(own, name, MODEL)
            by_client = google.requests[-1]
            assert await call(through, name, MODEL) == expected, name
            sent = google.requests[-1]
            assert sent.path == by_client.path, name
            assert sent.json() == by_client.json(), name
            for header in ("anthropic-version", "anthropic-beta", "authorization", "x-api-key"):
                assert sent.header(header) == by_client.header(header), (name, header)


@pytest.mark.parametrize(
    ("body", "action", "sent"),
    [
        (
            b'{"model":"claude-haiku-4-5-20251001", "max_tokens":1.0}',
            "claude-haiku-4-5@20251001:rawPredict",
            b'{"max_tokens":1.0,"anthropic_version":"vertex-2023-10-16"}',
        ),
        (
            b'{"max_tokens":1,"model":"a/../b;c?d","stream":true}',
            "a%2F..%2Fb%3Bc%3Fd:streamRawPredict",
            b'{"max_tokens":1,"stream":true,"anthropic_version":"vertex-2023-10-16"}',
        ),
        (
            b'{"model":"m@1","anthropic_version":"x","stream":false}',
            "m@1:rawPredict",
            b'{"anthropic_version":"x","stream":false}',
        ),
    ],
)
async def test_vertex_has_the_model_in_the_path_and_other_bytes_as_they_are(
    body: bytes, action: str, sent: bytes, scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "vertex"))
    google.script(json_response(message_document("Hi")))
    await scene.ask("/v1/messages?beta=true", body=body)
    (request,) = google.requests
    assert (request.target, request.body) == (f"{MODELS}/{action}", sent)
    assert request.header("accept-encoding") == "identity"


async def test_large_body_is_renamed_and_changed_too(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "vertex", models={MODEL: "claude-there"}))
    google.script(json_response(message_document("Hi")))
    messages = [{"role": "user", "content": "x" * 500_000}]
    response = await scene.ask("/v1/messages", {**MESSAGE, "messages": messages})
    assert response.status == 200
    (request,) = google.requests
    assert request.path.endswith("/claude-there:rawPredict")
    document = request.json()
    assert document["messages"] == messages
    assert "model" not in document


@pytest.mark.parametrize("body", [{**MESSAGE, "model": 5}, {**MESSAGE, "model": ""}, {}])
async def test_request_without_model_is_refused(
    body: object, scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "vertex"))
    response = await scene.ask("/v1/messages", body)
    assert (response.status, b"Set model" in response.body) == (400, True)
    assert google.requests == []


async def test_what_vertex_does_not_take_is_left_out_and_named(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    entry = cloud_entry(google, "vertex", betas="context-management-* advanced-*")
    await start(scene, tmp_path, entry)
    betas = "context-management-2025-06-27, unknown-beta-1,advanced-tool-use-2025-11-20"
    headers = [("anthropic-beta", betas)]
    cached = {
        "type": "text",
        "text": "x",
        "cache_control": {"type": "ephemeral", "scope": "global"},
    }
    body = {**MESSAGE, "speed": "fast", "service_tier": "auto", "system": [cached]}
    response = await scene.ask("/v1/messages", body, headers=headers)
    assert response.status == 200
    assert response.header("x-tornadoproxy-ignored") == (
        "service_tier, speed, unknown-beta-1, cache_control.scope"
    )
    assert b'"cache_control":{"type":"ephemeral"}' in google.requests[0].body
    there = "context-management-2025-06-27,tool-search-tool-2025-10-19"
    assert google.requests[0].header("anthropic-beta") == there
    count = {"model": MODEL, "messages": MESSAGE["messages"]}
    response = await scene.ask("/v1/messages/count_tokens", count, headers=headers)
    assert response.header("x-tornadoproxy-ignored") == (
        "unknown-beta-1, advanced-tool-use-2025-11-20"
    )


async def test_what_vertex_does_not_take_is_refused_if_the_entry_says_so(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "vertex", unsupported="refuse"))
    response = await scene.ask("/v1/messages", {**MESSAGE, "speed": "fast"})
    assert (response.status, b"does not support speed" in response.body) == (400, True)
    assert google.requests == []


async def test_vertex_lists_the_models_of_the_entry_and_has_no_batches(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    models = {MODEL: "claude-sonnet-5-5@20260901"}
    await start(scene, tmp_path, cloud_entry(google, "vertex", models=models))
    listed = await scene.ask("/openai/v1/models")
    assert [each["id"] for each in json.loads(listed.body)["data"]] == [MODEL]
    assert (await scene.ask("/v1/messages/batches")).status == 404
    await scene.ask("/v1/messages", MESSAGE)
    (request,) = google.requests
    assert request.path.endswith("/claude-sonnet-5-5@20260901:rawPredict")


async def test_gateway_has_a_path_for_the_organization(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "google_cloud"))
    await scene.ask("/v1/user_profiles?limit=1")
    before = f"/v1/projects/{PROJECT}/locations/global/claudeOrganization/invoke"
    assert google.requests[0].target == f"{before}/v1/user_profiles?limit=1"


async def test_gateway_lists_its_models(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    account = str(google.key_file(tmp_path / "account.json"))
    entry = cloud_entry(google, "google_cloud", "access_token", service_account_file=account)
    await start(scene, tmp_path, entry)
    for path in ("/openai/v1/models", "/v1/models"):
        listed = await scene.ask(path)
        assert MODEL in {each["id"] for each in json.loads(listed.body)["data"]}


async def test_chat_completion_through_vertex(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "vertex"))
    asked = {"model": MODEL, "messages": MESSAGE["messages"]}
    response = await scene.ask("/openai/v1/chat/completions", asked)
    assert json.loads(response.body)["choices"][0]["message"]["content"].endswith("Hi")
    response = await scene.ask("/openai/v1/chat/completions", {**asked, "stream": True})
    assert response.body.endswith(b"data: [DONE]\n\n")
    assert [request.path.rpartition(":")[2] for request in google.requests] == [
        "rawPredict",
        "streamRawPredict",
    ]
    google.script(google_error(429, "RESOURCE_EXHAUSTED", "Quota", in_list=True))
    response = await scene.ask("/openai/v1/chat/completions", asked)
    assert (response.status, json.loads(response.body)["error"]["message"]) == (429, "Quota")


# -- errors


ERRORS = [
    (400, "INVALID_ARGUMENT", "invalid_request_error"),
    (403, "PERMISSION_DENIED", "permission_error"),
    (404, "NOT_FOUND", "not_found_error"),
    (413, "INVALID_ARGUMENT", "request_too_large"),
    (429, "RESOURCE_EXHAUSTED", "rate_limit_error"),
    (503, "UNAVAILABLE", "overloaded_error"),
]


@pytest.mark.parametrize("in_list", [False, True])
async def test_googles_error_has_the_form_of_the_api(
    in_list: bool,  # a parameter of the test
    scene: Scene,
    google: ScriptedGoogle,
    tmp_path: Path,
    subtests: pytest.Subtests,
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "vertex"))
    words, headers = "Words of Google", (("retry-after", "7"),)
    for status, name, kind in ERRORS:
        with subtests.test(status=status, name=name):
            google.script(google_error(status, name, words, in_list=in_list, headers=headers))
            response = await scene.ask("/v1/messages", {**MESSAGE, "stream": in_list})
            document = json.loads(response.body)
            assert (response.status, document["type"]) == (status, "error")
            assert document["error"] == {"type": kind, "message": words}
            assert response.header("retry-after") == "7"
            assert response.header("request-id") == document["request_id"]
            assert document["request_id"].startswith("goog_")


async def test_errors_of_the_api_keep_their_words_and_ids(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    await start(scene, tmp_path, cloud_entry(google, "vertex"))
    too_long = "prompt is too long: 210000 tokens > 200000 maximum"
    google.script(error_response(400, "invalid_request_error", too_long, (), "req_vrtx_1"))
    response = await scene.ask("/v1/messages", MESSAGE)
    assert json.loads(response.body)["error"]["message"] == too_long
    assert response.header("request-id") == "req_vrtx_1"
    google.script(bytes_response(b"<html>Too large", [("Content-Type", "text/html")], 413))
    response = await scene.ask("/v1/messages", MESSAGE)
    assert json.loads(response.body)["error"]["type"] == "request_too_large"


async def test_request_moves_on_to_another_upstream(
    scene: Scene, google: ScriptedGoogle, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    other = f'[[upstream]]\nname = "other"\nbase_url = "{upstream.url}"\napi_key = "key"\n'
    await start(scene, tmp_path, cloud_entry(google, "vertex"), other)
    google.script(google_error(429, "RESOURCE_EXHAUSTED", "Quota", in_list=True))
    response = await scene.ask("/v1/messages", {**MESSAGE, "stream": True})
    assert (response.status, response.header("x-tornadoproxy-upstream")) == (200, "other")
    assert b"Quota" not in response.body
    assert upstream.requests[0].json() == {**MESSAGE, "stream": True}
    assert upstream.requests[0].header("authorization") is None
    record = await scene.records.finished()
    assert record.failed_attempts == ("vertex: 429 rate_limit_error",)


# -- credentials


async def test_access_token_of_a_service_account_is_loaded_once(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    account = str(google.key_file(tmp_path / "account.json"))
    entry = cloud_entry(google, "vertex", "access_token", service_account_file=account)
    await start(scene, tmp_path, entry)
    for _ in range(2):
        assert (await scene.ask("/v1/messages", MESSAGE)).status == 200
    assert [request.path for request in google.requests].count("/token") == 1


async def test_access_token_that_has_ended_is_loaded_anew(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    google.lifetime = 0
    account = str(google.key_file(tmp_path / "account.json"))
    entry = cloud_entry(google, "vertex", "access_token", service_account_file=account)
    await start(scene, tmp_path, entry)
    for _ in range(2):
        assert (await scene.ask("/v1/messages", MESSAGE)).status == 200
    sent = {each.header("authorization") for each in google.requests if each.path != "/token"}
    assert len(sent) == 2


async def test_default_credentials_are_those_of_the_environment(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = google.key_file(tmp_path / "account.json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    proxy = await start(scene, tmp_path, cloud_entry(google, "google_cloud", "access_token"))
    assert (await scene.ask("/v1/messages", MESSAGE)).status == 200
    proxy.reload()
    assert (await scene.ask("/v1/messages", MESSAGE)).status == 200
    assert [request.path for request in google.requests].count("/token") == 2


async def test_without_credentials_the_error_shows_no_more_than_its_kind(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    await start(scene, tmp_path, cloud_entry(google, "vertex", "access_token"))
    response = await scene.ask("/v1/messages", MESSAGE)
    assert response.status == 502
    assert "The access token of the upstream 'vertex' could not be loaded" in response.body.decode()
    assert google.requests == []
