"""Credentials on the wire: which are accepted, and what reaches the upstream."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from served import CHAT_BODY, CHAT_PATH

from tornadoproxy import hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    bytes_response,
    clean_environment,
    request_bytes,
)

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
        Proxy,
        RawConnection,
        RawResponse,
    )

Line = tuple[str, str]

MESSAGE: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "Hi"}],
}
API_KEY: Line = ("x-api-key", TEST_TOKEN)
BEARER: Line = ("Authorization", f"Bearer {TEST_TOKEN}")

each_api = pytest.mark.parametrize("page", ["/v1/models", "/openai/v1/models"])


async def get(client: RawConnection, page: str, *lines: Line) -> RawResponse:
    """Return the response to a GET with these header lines."""
    await client.send(request_bytes("GET", page, lines))
    return await client.response()


def is_refused(response: RawResponse) -> bool:
    """Return whether a response is the API's 401, which it is unless it is a 200."""
    if response.status == 200:
        return False
    assert response.status == 401
    assert response.header("www-authenticate") == "Bearer"
    error = json.loads(response.body)["error"]
    if "code" in error:
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert response.header("x-request-id")
    else:
        assert error["type"] == "authentication_error"
        assert response.header("request-id")
    assert error["message"]
    # Claude Code would replace the message by "Please run /login"
    assert b"x-api-key" not in response.body.lower()
    return True


# -- what is accepted

ACCEPTED: list[list[Line]] = [
    [("X-API-KEY", f"  \t {TEST_TOKEN} \t ")],
    [("authorization", f"  bEaReR   {TEST_TOKEN} \t ")],
    [("x-api-key", " "), BEARER],
    [API_KEY, ("Authorization", "Bearer wrong")],
    [("x-api-key", "dummy"), API_KEY],
    [BEARER, BEARER],
]
REFUSED: list[list[Line]] = [
    [],
    [("x-api-key", "wrong")],
    [("Authorization", "Bearer wrong")],
    [("Authorization", TEST_TOKEN)],
    [("Authorization", "Basic " + base64.b64encode(f":{TEST_TOKEN}".encode()).decode())],
    [("Proxy-Authorization", f"Bearer {TEST_TOKEN}")],
    [("Cookie", f"x-api-key={TEST_TOKEN}")],
    [("x-api-key", TEST_TOKEN[:-1])],
    [("x-api-key", TEST_TOKEN.upper())],
    [("x-api-key", f"wrong,{TEST_TOKEN}")],
    [("x-api-key", TEST_UPSTREAM_KEY)],
    [("x-api-key", "wrong"), BEARER],
    [BEARER, ("Authorization", "Basic dTpw")],
    [*[("x-api-key", "dummy")] * 8, API_KEY],
]


@each_api
async def test_token_in_either_header_is_accepted(page: str, proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    for lines in ACCEPTED:
        assert not is_refused(await get(client, page, *lines)), lines
    await scene.records.finished(len(ACCEPTED))
    assert {record.principal for record in scene.records.all} == {"token"}


@each_api
async def test_wrong_or_missing_credential_is_401(page: str, proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    for lines in REFUSED:
        assert is_refused(await get(client, page, *lines)), lines
    in_query = f"{page}?x-api-key={TEST_TOKEN}&key={TEST_TOKEN}&access_token={TEST_TOKEN}"
    assert is_refused(await get(client, in_query))
    await scene.records.finished(len(REFUSED) + 1)
    reported = {(record.status, record.outcome, record.principal) for record in scene.records.all}
    assert reported == {(401, "denied", None)}
    assert scene.upstream.connections == 0


@pytest.mark.parametrize(
    ("lines", "retry"),
    [
        ([], "false"),
        ([("Authorization", "Bearer wrong")], "false"),
        ([("x-api-key", "wrong")], "false"),
        ([("x-api-key", " "), ("Authorization", "Bearer wrong")], "false"),
        # of a key helper, which Claude Code runs again only if the 401 may be retried
        ([("x-api-key", "wrong"), ("Authorization", "Bearer wrong")], None),
    ],
)
@each_api
async def test_401_forbids_retry_except_to_key_helper(
    page: str, lines: list[Line], retry: str | None, proxy: Proxy, scene: Scene
) -> None:
    response = await get(await scene.raw(), page, *lines)
    assert is_refused(response)
    assert response.header("x-should-retry") == retry


# -- 401 before the body


@pytest.mark.parametrize(
    "lines",
    [
        [("Content-Length", "400000000")],
        [("Transfer-Encoding", "chunked")],
        [("Expect", "100-continue"), ("Content-Length", "1000000")],
    ],
)
@each_api
async def test_401_precedes_body(page: str, lines: list[Line], proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    await client.send(request_bytes("POST", page, lines, token="wrong"))
    response = await client.response()
    assert is_refused(response)
    assert response.interim == []
    assert scene.upstream.connections == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_401_is_readable_while_large_body_is_sent(
    proxy: Proxy, scene: Scene, *, chunked: bool
) -> None:
    client = await scene.raw()
    size = 10_000_000
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))
    await client.send(request_bytes("POST", "/v1/messages", [framing], token="wrong"))
    if chunked:
        await client.send(b"%x\r\n" % size)
    for _ in range(10):
        await client.send(bytes(1_000_000))
    await client.send(b"\r\n0\r\n\r\n" if chunked else b"")
    assert is_refused(await client.response())
    assert scene.upstream.connections == 0


# -- the SDKs


class Recorder:
    """Records the credential headers, and leaves the decision to other plugins."""

    def __init__(self) -> None:
        self.presented: list[tuple[list[str], list[str]]] = []

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> None:
        lines = request.headers.get_list
        self.presented.append((lines("X-Api-Key"), lines("Authorization")))


@pytest.mark.parametrize(
    ("options", "api_keys"),
    [
        ({"api_key": TEST_TOKEN}, []),
        ({"auth_token": TEST_TOKEN}, []),
        ({"api_key": "dummy", "default_headers": {"x-api-key": TEST_TOKEN}}, [TEST_TOKEN]),
    ],
    ids=["api_key", "auth_token", "default_headers"],
)
async def test_anthropic_sdk_is_accepted(
    options: Any, api_keys: list[str], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    recorder = Recorder()
    proxy = await scene.start(plugins=[recorder])
    async with anthropic.AsyncAnthropic(base_url=proxy.url, max_retries=0, **options) as client:
        message = await client.messages.create(**MESSAGE)
    assert message.stop_reason == "end_turn"
    ((sent, bearer),) = recorder.presented
    assert sent == api_keys
    assert api_keys or bearer == [f"Bearer {TEST_TOKEN}"]


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (TEST_TOKEN, {}),
        ("dummy", {"x-api-key": TEST_TOKEN}),
        ("dummy", {"Authorization": f"Bearer {TEST_TOKEN}"}),
    ],
)
async def test_openai_sdk_is_accepted(
    key: str, headers: dict[str, str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    async with openai.AsyncOpenAI(
        base_url=f"{proxy.url}/openai/v1", api_key=key, default_headers=headers, max_retries=0
    ) as client:
        models = await client.models.list()
    assert "claude-sonnet-5-5" in {model.id for model in models.data}


async def test_anthropic_sdk_reads_401_while_sending_large_body(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    large = {**MESSAGE, "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    async with anthropic.AsyncAnthropic(
        base_url=proxy.url, api_key="wrong", max_retries=0
    ) as client:
        with pytest.raises(anthropic.AuthenticationError, match="The credential sent is not known"):
            await client.messages.create(**large)


# -- what reaches the upstream

PRESENTED: list[list[Line]] = [
    [API_KEY, BEARER],
    [("x-api-key", "dummy"), ("X-API-Key", TEST_TOKEN), ("x-api-key", "")],
    [BEARER, BEARER],
    [API_KEY, ("Authorization", "Basic dGVzdC10b2tlbg==")],
    [API_KEY, ("Connection", "x-api-key, authorization, keep-alive")],
]
OTHERS: list[Line] = [
    ("Cookie", "session=theirs"),
    ("Cookie", "more=theirs"),
    ("Proxy-Authorization", "Basic dGhlaXJz"),
]


@pytest.mark.parametrize(
    ("variables", "credential"),
    [
        ({"UPSTREAM_AUTH_SCHEME": "x-api-key"}, [("x-api-key", TEST_UPSTREAM_KEY)]),
        (
            {"UPSTREAM_AUTH_SCHEME": "bearer"},
            [("authorization", f"Bearer {TEST_UPSTREAM_KEY}")],
        ),
        ({"UPSTREAM_API_KEY": None}, []),
    ],
)
async def test_upstream_gets_only_the_proxys_credential(
    variables: dict[str, Any], credential: list[Line], scene: Scene
) -> None:
    await scene.start(**variables)
    scene.upstream.script(*[bytes_response(b"{}")] * (2 * len(PRESENTED) + 1))
    client = await scene.raw()
    for lines in PRESENTED:
        await get(client, "/v1/models", *lines, *OTHERS)
        await client.send(request_bytes("POST", CHAT_PATH, [*lines, *OTHERS], CHAT_BODY))
        await client.response()
    await get(client, "/openai/v1/models", *PRESENTED[0], *OTHERS)

    assert len(scene.upstream.requests) == 2 * len(PRESENTED) + 1
    names = {"x-api-key", "authorization", "proxy-authorization", "cookie"}
    for received in scene.upstream.requests:
        sent = [(name.lower(), value) for name, value in received.headers if name.lower() in names]
        assert sent == credential, received
        for theirs in (TEST_TOKEN, "theirs", "dGhlaXJz", "dummy", "dGVzdC10b2tlbg"):
            assert theirs.encode() not in received.raw_head
