"""``MODELS``: other names for models upstream, in every API."""

from __future__ import annotations

import json

import pytest
from scene import Scene
from served import CHAT_PATH, CHUNKED, Authorizer, in_chunks, request

from tornadoproxy.protocol.body_fields import IN_THREAD

NAMES = "fast=claude-haiku-4-5 *=claude-sonnet-5-5"
MESSAGE = (
    b'{ "metadata": {"model": "fast"},\t"messages" : [{"role": "user", "content": "\\u0048i'
    b'\\"model\\": \\"fast\\""}],\r\n "model"  :\n"fast" ,"max_tokens":10 }\n'
)
HAIKU = MESSAGE.replace(b'\n"fast"', b'\n"claude-haiku-4-5"')


@pytest.mark.parametrize("authorized", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/messages?beta=true", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (MESSAGE, HAIKU),
        (
            MESSAGE.replace(b'"model"  ', b'"mod\\u0065l"'),
            HAIKU.replace(b'"model"  ', b'"mod\\u0065l"'),
        ),
        (MESSAGE.replace(b'\n"fast"', b'\n"fa\\u0073t"'), HAIKU),
        (
            MESSAGE.replace(b'\n"fast"', b'"gpt-4"'),
            HAIKU.replace(b'\n"claude-haiku-4-5"', b'"claude-sonnet-5-5"'),
        ),
        (MESSAGE.replace(b'\n"fast"', b'"claude-x"'),) * 2,
        (MESSAGE.replace(b"Hi", b"x" * IN_THREAD), HAIKU.replace(b"Hi", b"x" * IN_THREAD)),
    ],
    ids=["fast", "escaped field", "escaped name", "any other", "claude-x", "large"],
)
async def test_only_the_name_of_the_model_changes(
    scene: Scene, path: str, sent: bytes, received: bytes, *, chunked: bool, authorized: bool
) -> None:
    authorizer = Authorizer()
    await scene.start(plugins=[authorizer] if authorized else [], MODELS=NAMES)
    client = await scene.raw()
    if chunked:
        await client.ask(request("POST", path, CHUNKED) + in_chunks(sent, 1000))
    else:
        await client.ask(request("POST", path, body=sent))
    (seen,) = scene.upstream.requests
    assert seen.body == received
    assert seen.all("content-length") == [str(len(received))]
    assert seen.all("transfer-encoding") == []
    assert (await scene.records.finished()).requested_model == json.loads(sent)["model"]
    assert [each.model for each in authorizer.models()] == (
        [json.loads(received)["model"]] if authorized and "count" not in path else []
    )


@pytest.mark.parametrize(
    ("name", "there"),
    [("fast", "claude-haiku-4-5"), ("gpt-4", "claude-opus-5-5"), ("gpt-3", "claude-sonnet-5-5")],
)
async def test_chat_models_come_before_models(scene: Scene, name: str, there: str) -> None:
    await scene.start(MODELS=NAMES, CHAT_MODELS="gpt-4=claude-opus-5-5")
    message = {"role": "user", "content": "Hi"}
    assert (await scene.ask(CHAT_PATH, {"model": name, "messages": [message]})).status == 200
    assert scene.upstream.requests[0].json()["model"] == there
    assert (await scene.records.finished()).requested_model == name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/complete", b'{"model": "fast"}'),
        ("/v1/messages/batches", b'{"model": "fast"}'),
        ("/v1/messages", b"no JSON"),
        ("/v1/messages", b'{"model": 1}'),
    ],
)
async def test_other_body_is_not_changed(scene: Scene, path: str, body: bytes) -> None:
    await scene.start(MODELS=NAMES)
    await scene.ask(path, body=body)
    assert [each.body for each in scene.upstream.requests] == [body]


async def test_field_twice_is_refused(scene: Scene) -> None:
    await scene.start(MODELS=NAMES)
    twice = b'{"model": "claude-x", "model": "fast"}'
    assert (await scene.ask("/v1/messages", body=twice)).status == 400
    assert scene.upstream.connections == 0
