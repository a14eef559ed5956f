"""Claude on AWS: clients of the API get from each kind what the SDK's client of that cloud gets."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from aws_cloud import (
    ACCESS_KEY,
    API_KEY,
    MODEL,
    REGION,
    SECRET_KEY,
    WORKSPACE,
    ScriptedAWS,
    aws_entry,
    aws_error,
    event_frame,
    exception_frame,
    stream_response,
)
from openai import AsyncOpenAI, BadRequestError
from scene import Scene
from tornado.ioloop import IOLoop

from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    clean_environment,
    error_response,
    json_response,
    message_document,
    message_events,
)

KINDS = ("bedrock", "mantle", "aws")
NAME = "claude-sonnet-5-5"
HELLO = [{"role": "user", "content": "Grüße, 世界 und 😀!"}]
TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]
EVENTS = message_events(message_document("Hi"))

Client = Any  # the SDK's clients have no common base with messages
Call = Callable[[Client, str], Awaitable[object]]


# -- the same calls to both


async def create(client: Client, model: str, **fields: Any) -> Any:  # Any: the SDK's message
    given = {"max_tokens": 2000, "messages": HELLO, **fields}
    return plain((await client.messages.create(model=model, **given)).to_dict())


async def stream(client: Client, model: str, **fields: Any) -> Any:
    given = {"max_tokens": 2000, "messages": HELLO, **fields}
    async with client.messages.stream(model=model, **given) as events:
        kinds = [event.type async for event in events]
        return kinds, plain((await events.get_final_message()).to_dict())


async def tools(client: Client, model: str) -> Any:
    first = await create(client, model, tools=TOOLS, tool_choice={"type": "any"})
    return first, await stream(client, model, tools=TOOLS, tool_choice={"type": "any"})


async def thinking(client: Client, model: str) -> Any:
    enabled = {"type": "enabled", "budget_tokens": 1024}
    return await create(client, model, thinking=enabled), await stream(
        client, model, thinking=enabled
    )


async def betas(client: Client, model: str) -> Any:
    message = await client.beta.messages.create(
        model=model,
        max_tokens=100,
        messages=HELLO,
        betas=["interleaved-thinking-2025-05-14", "context-1m-2025-08-07"],
    )
    return plain(message.to_dict())


async def profile(client: Client, model: str) -> Any:
    message = await client.beta.messages.create(
        model=model, max_tokens=100, messages=HELLO, user_profile_id="uprof_1"
    )
    return plain(message.to_dict())


async def refused(client: Client, model: str) -> Any:
    refusals = []
    given: tuple[dict[str, Any], ...] = ({"messages": []}, {"max_tokens": 0}, {"tools": TOOLS * 2})
    for fields in given:
        with pytest.raises(anthropic.APIStatusError) as error:
            await create(client, model, **fields)
        body: Any = error.value.body
        message = body.get("message") or body["error"]["message"]
        refusals.append((type(error.value), error.value.status_code, message))
    return refusals


async def count_tokens(client: Client, model: str) -> Any:
    return (await client.messages.count_tokens(model=model, messages=HELLO)).input_tokens


async def models(client: Client, _: str) -> Any:
    return [each.id async for each in client.models.list()]


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without its random ids."""
    return {
        **message,
        "id": None,
        "content": [{**block, "id": None} for block in message["content"]],
    }


CALLS: tuple[Call, ...] = (create, stream, tools, thinking, betas, refused)
EXTRA: dict[str, tuple[Call, ...]] = {
    "bedrock": (),
    "mantle": (count_tokens,),
    "aws": (count_tokens, models),
}


@pytest.fixture
def clients(io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Client]]:
    clean_environment(monkeypatch)
    opened: list[Client] = []
    yield opened
    for client in opened:
        io_loop.run_sync(client.close)


def cloud_client(clients: list[Client], aws: ScriptedAWS, kind: str) -> Client:
    """Return the SDK's own client of a cloud."""
    keys = {"aws_access_key": ACCESS_KEY, "aws_secret_key": SECRET_KEY, "aws_region": REGION}
    given: dict[str, Any] = {**keys, "base_url": aws.url, "max_retries": 0}
    client: Client
    if kind == "bedrock":
        client = anthropic.AsyncAnthropicBedrock(**given)
    elif kind == "mantle":
        given["base_url"] += "/anthropic"
        client = anthropic.AsyncAnthropicBedrockMantle(**given)
    else:
        client = anthropic.AsyncAnthropicAWS(**given, workspace_id=WORKSPACE)
    clients.append(client)
    return client


def proxy_client(clients: list[Client], proxy: Proxy) -> Client:
    client = anthropic.AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0)
    clients.append(client)
    return client


async def start(scene: Scene, tmp_path: Path, *entries: str, before: str = "") -> Proxy:
    file = tmp_path / "upstreams.toml"
    file.write_text("\n".join([before, *entries]))
    return await scene.start(UPSTREAMS_FILE=file)


RENAMED = f'models = {{"claude-sonnet-5-5" = "{MODEL}"}}'


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_through_the_proxy_equal_those_of_the_clouds_own_client(
    kind: str, scene: Scene, aws: ScriptedAWS, clients: list[Client], tmp_path: Path
) -> None:
    there = MODEL if kind == "bedrock" else NAME
    entry = aws_entry(aws, kind, RENAMED if kind == "bedrock" else "")
    through = proxy_client(clients, await start(scene, tmp_path, entry))
    direct = cloud_client(clients, aws, kind)
    for call in CALLS + EXTRA[kind]:
        aws.requests.clear()
        expected = await call(direct, there)
        sent = [(each.method, each.target) for each in aws.requests]
        assert await call(through, NAME) == expected, call
        assert [(each.method, each.target) for each in aws.requests[len(sent) :]] == sent


@pytest.mark.parametrize("kind", KINDS)
async def test_cloud_gets_the_body_that_the_sdk_sends(
    kind: str, scene: Scene, aws: ScriptedAWS, clients: list[Client], tmp_path: Path
) -> None:
    through = proxy_client(clients, await start(scene, tmp_path, aws_entry(aws, kind)))
    direct = cloud_client(clients, aws, kind)
    arn = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abc"
    for client in (direct, through):
        aws.script(json_response(message_document("Hi")))
        await profile(client, arn)
        await create(client, arn if kind == "bedrock" else NAME)
        await betas(client, arn if kind == "bedrock" else NAME)
    for expected, got in zip(aws.requests[:3], aws.requests[3:], strict=True):
        assert got.target == expected.target
        assert got.json() == expected.json()
        # a header that is in the body as well is left out
        for name in ("anthropic-beta", "anthropic-user-profile-id"):
            assert got.header(name) == (None if kind == "bedrock" else expected.header(name))


async def test_headers_of_the_client_neither_break_nor_enter_the_signature(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    await start(scene, tmp_path, aws_entry(aws, "bedrock"))
    headers = [
        ("X-Amz-Date", "20200101T000000Z"),
        ("X-Amz-Security-Token", "theirs"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Amzn-Bedrock-GuardrailIdentifier", "g-1"),
        ("Connection", "keep-alive"),
        ("Accept", "text/event-stream"),
    ]
    body = {"model": NAME, "max_tokens": 9, "messages": HELLO}
    assert (await scene.ask("/v1/messages", body, headers=headers)).status == 200
    (request,) = aws.requests
    assert request.all("x-amz-security-token") == []
    signed = re.findall(r"SignedHeaders=([^,]+)", request.header("authorization") or "")
    assert signed == ["content-type;host;x-amz-date;x-amzn-bedrock-guardrailidentifier"]
    assert request.header("accept") == "application/json"


@pytest.mark.parametrize("kind", KINDS)
async def test_api_key_authenticates_without_a_signature(
    kind: str, scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    await start(scene, tmp_path, aws_entry(aws, kind, api_key=API_KEY))
    body = {"model": NAME, "max_tokens": 9, "messages": HELLO}
    assert (await scene.ask("/v1/messages", body)).status == 200
    (request,) = aws.requests
    given = request.header("x-api-key"), request.header("authorization")
    assert given == ((API_KEY, None) if kind == "aws" else (None, f"Bearer {API_KEY}"))


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_event_stream_split_anywhere_is_the_apis_stream(
    size: int, scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    await start(scene, tmp_path, aws_entry(aws, "bedrock"))
    frames = [event_frame(each) for each in EVENTS]
    aws.script(stream_response(frames, split=size))
    body = {"model": NAME, "max_tokens": 9, "messages": HELLO, "stream": True}
    response = await scene.ask("/v1/messages", body)
    assert response.body == b"".join(EVENTS)
    assert response.header("content-type") == "text/event-stream; charset=utf-8"
    assert (response.header("request-id") or "").startswith("aws_")
    record = await scene.records.finished()
    assert (record.usage.output_tokens, record.request_id) == (
        message_document("Hi")["usage"]["output_tokens"],
        response.header("request-id"),
    )


async def test_chat_completions_work_through_bedrock(
    scene: Scene, aws: ScriptedAWS, clients: list[Client], tmp_path: Path
) -> None:
    proxy = await start(scene, tmp_path, aws_entry(aws, "bedrock", RENAMED))
    url = f"{proxy.url}/openai/v1"
    client: Client = AsyncOpenAI(base_url=url, api_key=TEST_TOKEN, max_retries=0)
    clients.append(client)
    given = {"model": NAME, "messages": HELLO, "temperature": 0.5}
    completion = await client.chat.completions.create(**given)
    chunks = [each async for each in await client.chat.completions.create(**given, stream=True)]
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert completion.choices[0].message.content.endswith("😀!")
    assert text == completion.choices[0].message.content
    aws.script(aws_error(400, "ValidationException", "prompt is too long"))
    with pytest.raises(BadRequestError, match="prompt is too long"):
        await client.chat.completions.create(**given)
    assert [each.path.rpartition("/")[2] for each in aws.requests] == [
        "invoke",
        "invoke-with-response-stream",
        "invoke",
    ]


# -- another upstream


THROTTLED = {
    "ThrottlingException": aws_error(429, "ThrottlingException", "Too many tokens"),
    "ServiceQuotaExceededException": aws_error(400, "ServiceQuotaExceededException", "Quota"),
    "ModelTimeoutException": aws_error(408, "ModelTimeoutException", "Slow"),
    "ModelErrorException": aws_error(424, "ModelErrorException", "Broken"),
    "expired token": aws_error(403, "ExpiredTokenException", "Expired"),
    "exception at first": stream_response([exception_frame("throttlingException", "Too many")]),
    "exception before content": stream_response(
        [event_frame(EVENTS[0]), exception_frame("serviceUnavailableException", "Not now")]
    ),
    "cut within a frame": stream_response([event_frame(EVENTS[0])[:-9]]),
    "no event stream": stream_response([b"x" * 40]),
}


@pytest.mark.parametrize("trigger", THROTTLED)
@pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_request_moves_on_from_a_throttled_bedrock(
    trigger: str, path: str, scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    other = f'[[upstream]]\nname = "other"\nbase_url = "{scene.upstream.url}"\napi_key = "k"\n'
    entry = aws_entry(aws, "bedrock")
    await start(scene, tmp_path, entry, other, before='order = "listed"')
    # credentials that are refused right after they were loaded are tried once more
    aws.script(*[THROTTLED[trigger]] * 2)
    body = {"model": NAME, "max_tokens": 9, "messages": HELLO, "stream": True}
    response = await scene.ask(path, body)
    assert (response.status, response.header("x-tornadoproxy-upstream")) == (200, "other")
    assert b"error" not in response.body
    record = await scene.records.finished()
    assert record.attempts == 2


async def test_exception_within_the_content_is_an_error_event(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    await start(scene, tmp_path, aws_entry(aws, "bedrock"))
    frames = [event_frame(each) for each in EVENTS[:4]]
    late = [exception_frame("modelTimeoutException", "Too slow"), event_frame(EVENTS[4])]
    aws.script(stream_response([*frames, *late]))
    body = {"model": NAME, "max_tokens": 9, "messages": HELLO, "stream": True}
    response = await scene.ask("/v1/messages", body)
    error = {
        "type": "error",
        "error": {"type": "timeout_error", "message": "Too slow"},
        "request_id": response.header("request-id"),
    }
    before, _, data = response.body.partition(b"event: error\ndata: ")
    assert before == b"".join(EVENTS[:4])
    assert json.loads(data) == error


ERRORS = [
    (400, "ValidationException", 400, "invalid_request_error"),
    (413, "RequestEntityTooLargeException", 413, "request_too_large"),
    (429, "ThrottlingException", 429, "rate_limit_error"),
    (408, "ModelTimeoutException", 504, "timeout_error"),
    (403, "AccessDeniedException", 403, "permission_error"),
    (404, "ResourceNotFoundException", 404, "not_found_error"),
    (503, "ServiceUnavailableException", 503, "overloaded_error"),
    (500, "InternalServerException", 500, "api_error"),
]


async def test_error_of_aws_has_the_apis_form_and_its_own_words(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    await start(scene, tmp_path, aws_entry(aws, "bedrock"))
    words = "Input is too long for requested model."
    body = {"model": NAME, "max_tokens": 9, "messages": HELLO}
    for status, name, seen, kind in ERRORS:
        with subtests.test(name=name):
            error = aws_error(status, name, words, [("Retry-After", "7")])
            # a 403 makes the proxy load its credentials anew
            aws.script(*[error] * (2 if status == 403 else 1))
            response = await scene.ask("/v1/messages", body)
            assert (response.status, response.header("retry-after")) == (seen, "7")
            request_id = response.header("request-id")
            assert request_id == response.header("x-amzn-requestid")
            assert json.loads(response.body) == {
                "type": "error",
                "error": {"type": kind, "message": words},
                "request_id": request_id,
            }
            assert "ETag" not in dict(response.headers)


async def test_error_of_the_api_stays_as_it_came(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    await start(scene, tmp_path, aws_entry(aws, "mantle"))
    aws.script(error_response(400, "invalid_request_error", "prompt is too long: 9 > 8"))
    body = {"model": NAME, "max_tokens": 9, "messages": HELLO}
    response = await scene.ask("/v1/messages", body)
    assert response.status == 400
    assert re.search(rb'"prompt is too long: 9 > 8"', response.body)


@pytest.mark.parametrize(
    ("kind", "path", "serves"),
    [
        ("bedrock", "/v1/messages/count_tokens", False),
        ("bedrock", "/v1/messages/batches", False),
        ("mantle", "/v1/messages/batches", False),
        ("mantle", "/v1/files", False),
        ("aws", "/v1/messages/batches", True),
        ("aws", "/v1/user_profiles/uprof_1/action_urls", False),
    ],
)
async def test_paths_that_a_cloud_lacks_are_not_found(
    kind: str, path: str, serves: bool, scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    await start(scene, tmp_path, aws_entry(aws, kind))
    body = {"requests": [{"custom_id": "a", "params": {}}]}
    response = await scene.ask(path, body)
    assert response.status == (200 if serves else 404)
    assert len(aws.requests) == serves
