"""Credentials on the wire: which of them are accepted, and which way each of them may travel."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tornadoproxy import ConfigurationError, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    bytes_response,
    clean_environment,
    message_document,
    message_events,
    request_bytes,
    response_head,
    sse_response,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy import IncomingRequest, Settings
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

# a protected page of each dialect, and what whoever is let in finds there
PAGES = {"/v1/models": 200, "/openai/v1/models": 200}

MESSAGE: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "Hi"}],
}

CHAT = json.dumps({"model": MESSAGE["model"], "messages": MESSAGE["messages"]}).encode()

each_page = pytest.mark.parametrize("page", PAGES)


class Doorman:
    """Looks at what a client presents, and leaves the decision to the others."""

    def __init__(self) -> None:
        self.api_keys: list[list[str]] = []
        self.authorizations: list[list[str]] = []

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> None:
        self.api_keys.append(request.headers.get_list("X-Api-Key"))
        self.authorizations.append(request.headers.get_list("Authorization"))


async def get(client: RawConnection, page: str, *lines: tuple[str, str]) -> RawResponse:
    """Ask for a page with these header lines; return the response."""
    await client.send(request_bytes("GET", page, lines))
    return await client.response()


def refused(response: RawResponse, page: str) -> bool:
    """Whether a response is the dialect's 401; anything that is neither that nor a yes fails."""
    if response.status == PAGES[page]:
        return False
    assert response.status == 401
    assert response.header("www-authenticate") == "Bearer"
    assert response.header("content-type") == "application/json"
    document = json.loads(response.body)
    if page.startswith("/openai/"):
        assert document["error"]["type"] == "invalid_request_error"
        assert document["error"]["code"] == "invalid_api_key"
    else:
        assert document["type"] == "error"
        assert document["error"]["type"] == "authentication_error"
    assert document["error"]["message"]
    # Claude Code then hides the whole message behind "Please run /login"
    assert b"x-api-key" not in response.body.lower()
    return True


# -- what is accepted


RIGHT: list[tuple[str, str]] = [
    ("x-api-key", TEST_TOKEN),
    ("X-API-KEY", TEST_TOKEN),
    ("Authorization", f"Bearer {TEST_TOKEN}"),
    ("authorization", f"bearer {TEST_TOKEN}"),
    ("AUTHORIZATION", f"BEARER {TEST_TOKEN}"),
    ("Authorization", f"bEaReR {TEST_TOKEN}"),
    ("x-api-key", f"  \t {TEST_TOKEN} \t "),
    ("Authorization", f"  Bearer {TEST_TOKEN} \t "),
    ("Authorization", f"Bearer    {TEST_TOKEN}"),
]

WRONG: list[list[tuple[str, str]]] = [
    [],
    [("x-api-key", "wrong")],
    [("Authorization", "Bearer wrong")],
    [("x-api-key", "")],
    [("x-api-key", "   ")],
    [("x-api-key", ""), ("x-api-key", "")],
    [("Authorization", "")],
    [("Authorization", "Bearer")],
    [("Authorization", "Bearer ")],
    [("Authorization", TEST_TOKEN)],
    [("Authorization", f"Token {TEST_TOKEN}")],
    [("Authorization", f"Bearer{TEST_TOKEN}")],
    [("Authorization", f"Bearer Bearer {TEST_TOKEN}")],
    [("Authorization", "Basic " + base64.b64encode(f":{TEST_TOKEN}".encode()).decode())],
    [("Proxy-Authorization", f"Bearer {TEST_TOKEN}")],
    [("Cookie", f"x-api-key={TEST_TOKEN}")],
    [("x-api-key", f"Bearer {TEST_TOKEN}")],
    [("x-api-key", TEST_TOKEN[:-1])],
    [("x-api-key", TEST_TOKEN + "x")],
    [("x-api-key", TEST_TOKEN.upper())],
    [("x-api-key", f'"{TEST_TOKEN}"')],
    [("x-api-key", TEST_UPSTREAM_KEY)],
]


@each_page
async def test_both_headers_are_accepted_on_every_route_whatever_the_case_and_blanks(
    page: str, proxy: Proxy, raw: OpenRaw, records: Records
) -> None:
    client = await raw()
    for line in RIGHT:
        assert not refused(await get(client, page, line), page), line

    await records.finished(len(RIGHT))
    assert {record.principal for record in records.all} == {"token"}


@each_page
async def test_wrong_or_missing_is_401_never_403_and_stays_here(
    page: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    client = await raw()
    for lines in WRONG:
        assert refused(await get(client, page, *lines), page), lines

    await records.finished(len(WRONG))
    told = {(record.status, record.outcome, record.principal) for record in records.all}
    assert told == {(401, "denied", None)}
    assert upstream.connections == 0


@pytest.mark.parametrize(
    ("lines", "retry"),
    [
        ([], "false"),
        ([("Authorization", "Bearer wrong")], "false"),
        ([("x-api-key", "wrong")], "false"),
        ([("x-api-key", " "), ("Authorization", "Bearer wrong")], "false"),
        # a key helper's: it is run again only if the 401 may be retried
        ([("x-api-key", "wrong"), ("Authorization", "Bearer wrong")], None),
    ],
)
@each_page
async def test_401_unless_of_a_key_helper_says_not_to_retry(
    page: str, lines: list[tuple[str, str]], retry: str | None, proxy: Proxy, raw: OpenRaw
) -> None:
    response = await get(await raw(), page, *lines)

    assert refused(response, page)
    assert response.header("x-should-retry") == retry


async def test_the_query_is_no_place_for_a_credential(proxy: Proxy, raw: OpenRaw) -> None:
    page = f"/v1/models?x-api-key={TEST_TOKEN}&key={TEST_TOKEN}&access_token={TEST_TOKEN}"

    assert (await get(await raw(), page)).status == 401


# -- precedence


@each_page
async def test_a_non_empty_x_api_key_alone_is_compared(
    page: str, proxy: Proxy, raw: OpenRaw
) -> None:
    client = await raw()
    right, wrong = ("Authorization", f"Bearer {TEST_TOKEN}"), ("Authorization", "Bearer wrong")

    assert refused(await get(client, page, ("x-api-key", "wrong"), right), page)
    assert refused(await get(client, page, right, ("x-api-key", "wrong")), page)
    assert not refused(await get(client, page, ("x-api-key", TEST_TOKEN), wrong), page)
    assert not refused(await get(client, page, wrong, ("x-api-key", TEST_TOKEN)), page)


@each_page
async def test_an_empty_x_api_key_counts_as_absent(page: str, proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    bearer = ("Authorization", f"Bearer {TEST_TOKEN}")

    for empty in ("", "   ", " \t "):
        assert not refused(await get(client, page, ("x-api-key", empty), bearer), page)
        assert not refused(await get(client, page, *[("x-api-key", empty)] * 2, bearer), page)
        both = ("x-api-key", empty), ("x-api-key", TEST_TOKEN)
        assert not refused(await get(client, page, *both), page)
        assert refused(await get(client, page, ("x-api-key", empty), ("x-api-key", "no")), page)


@each_page
async def test_of_several_x_api_key_lines_one_that_is_right_is_enough_among_eight(
    page: str, proxy: Proxy, raw: OpenRaw
) -> None:
    client = await raw()
    right = ("x-api-key", TEST_TOKEN)

    for wrong_ones in range(10):
        dummies = [("x-api-key", f"dummy-{number}") for number in range(wrong_ones)]
        response = await get(client, page, *dummies, right)
        assert refused(response, page) == (wrong_ones >= 8)
    assert not refused(await get(client, page, right, ("x-api-key", "dummy")), page)
    assert refused(await get(client, page, *[("x-api-key", "dummy")] * 2), page)


@each_page
async def test_several_authorization_lines_that_differ_are_401(
    page: str, proxy: Proxy, raw: OpenRaw
) -> None:
    client = await raw()
    right = ("Authorization", f"Bearer {TEST_TOKEN}")

    for other in ("Bearer wrong", "Bearer", "Basic dTpw", ""):
        assert refused(await get(client, page, right, ("Authorization", other)), page)
        assert refused(await get(client, page, ("Authorization", other), right), page)
    assert not refused(await get(client, page, right, right), page)


# -- what a token is made of


@each_page
async def test_a_comma_is_part_of_a_token(page: str, start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(AUTH_TOKEN="left,right")
    client = await raw()

    for right in (("x-api-key", "left,right"), ("Authorization", "Bearer left,right")):
        assert not refused(await get(client, page, right), page)
    for wrong in (
        [("x-api-key", "left")],
        [("x-api-key", "right")],
        [("x-api-key", "other,left,right")],
        [("x-api-key", "left, right")],
        # a framework would join these two with the very comma
        [("x-api-key", "left"), ("x-api-key", "right")],
        [("Authorization", "Bearer left"), ("Authorization", "right")],
        [("Authorization", "Bearer wrong, Bearer left,right")],
        [("Authorization", "Bearer left,right, Bearer left,right")],
    ):
        assert refused(await get(client, page, *wrong), page)


@each_page
async def test_a_comma_does_not_separate_two_guesses(page: str, proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()

    for guess in (f"wrong,{TEST_TOKEN}", f"{TEST_TOKEN},wrong", f"{TEST_TOKEN},"):
        assert refused(await get(client, page, ("x-api-key", guess)), page)
        assert refused(await get(client, page, ("Authorization", f"Bearer {guess}")), page)


@each_page
async def test_tokens_are_bytes(page: str, start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(AUTH_TOKEN="schlüssel-€")
    client = await raw()

    async def presents(token: bytes) -> list[bool]:
        found = []
        for line in (b"X-Api-Key: " + token, b"Authorization: Bearer " + token):
            head = b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (page.encode(), line)
            await client.send(head)
            found.append(not refused(await client.response(), page))
        return found

    assert await presents("schlüssel-€".encode()) == [True, True]
    assert await presents("schlüssel-€".encode("cp1252")) == [False, False]
    assert await presents(b"schl\xff\xfe-\x80") == [False, False]
    # what lossy decoding would make of it
    assert await presents(b"schl?ssel-?") == [False, False]
    assert await presents("schlüssel-€".encode("ascii", "ignore")) == [False, False]
    assert await presents("schlu\u0308ssel-€".encode()) == [False, False]


async def test_a_non_ascii_guess_is_no_crash(proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    for guess in (b"\xe9", b"\xff" * 200, "ключ".encode(), TEST_TOKEN.encode() + b"\xa0"):
        for line in (b"X-Api-Key: " + guess, b"Authorization: Bearer " + guess):
            await client.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")
            assert refused(await client.response(), "/v1/models")


async def test_every_guess_is_compared_with_every_token_in_constant_time(
    start_proxy: StartProxy, raw: OpenRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_proxy(AUTH_TOKEN="short a-much-longer-token third")
    client = await raw()
    lengths: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        lengths.append((len(one), len(other)))
        return compare_digest(one, other)

    compare_digest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)

    for guess in ("short", "a-much-longer-token", "third", "wrong", "x" * 5000, "\xff"):
        lengths.clear()
        await get(client, "/v1/models", ("x-api-key", guess))
        assert lengths == [(32, 32)] * 3


# -- where tokens come from


@each_page
async def test_several_tokens_during_a_rotation(
    page: str, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(AUTH_TOKEN=" the-old-one  the-new-one ")
    client = await raw()

    assert not refused(await get(client, page, ("x-api-key", "the-old-one")), page)
    assert not refused(await get(client, page, ("Authorization", "Bearer the-new-one")), page)
    assert refused(await get(client, page, ("x-api-key", "the-old-one the-new-one")), page)
    assert refused(await get(client, page, ("x-api-key", "the-old-onethe-new-one")), page)

    await records.finished(4)
    assert [record.principal for record in records.all] == ["token-1", "token-2", None, None]


async def test_a_file_of_tokens(start_proxy: StartProxy, raw: OpenRaw, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-the-file\nand-another\n")
    await start_proxy(AUTH_TOKEN=None, AUTH_TOKEN_FILE=file)
    client = await raw()

    for token in ("from-the-file", "and-another"):
        assert (await get(client, "/v1/models", ("x-api-key", token))).status == 200
    for token in (TEST_TOKEN, str(file), "from-the-file and-another", ""):
        assert (await get(client, "/v1/models", ("x-api-key", token))).status == 401


@pytest.mark.parametrize("name", ["AUTH_TOKEN", "AUTH_TOKEN_FILE"])
@pytest.mark.parametrize("value", ["", "  "])
async def test_set_but_empty_is_a_start_up_error(
    name: str, value: str, start_proxy: StartProxy
) -> None:
    variables: dict[str, Any] = {"AUTH_TOKEN": None, name: value}

    with pytest.raises(ConfigurationError, match=rf"^{name} is set but empty"):
        await start_proxy(**variables)


async def test_an_empty_token_file_is_a_start_up_error(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(" \n")

    with pytest.raises(ConfigurationError, match=r"^AUTH_TOKEN_FILE names a file that is empty"):
        await start_proxy(AUTH_TOKEN=None, AUTH_TOKEN_FILE=file)


# -- 401 comes first


@pytest.mark.parametrize(
    "framing", [("Content-Length", "400000000"), ("Transfer-Encoding", "chunked")]
)
@each_page
async def test_401_before_a_byte_of_the_body_is_sent(
    page: str, framing: tuple[str, str], proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()

    await client.send(request_bytes("POST", page, [framing], token="wrong"))

    async with asyncio.timeout(1):
        assert refused(await client.response(), page)
    assert upstream.connections == 0


@each_page
async def test_a_client_that_expects_100_continue_gets_the_401_instead(
    page: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()

    lines = [("Expect", "100-continue"), ("Content-Length", "1000000")]
    await client.send(request_bytes("POST", page, lines, token="wrong"))

    async with asyncio.timeout(1):
        response = await client.response()
    assert refused(response, page)
    assert response.interim == []
    assert upstream.connections == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_401_is_readable_while_a_large_body_is_being_sent(
    chunked: bool, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    size = 30_000_000
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))

    await client.send(request_bytes("POST", "/v1/messages", [framing], token="wrong"))
    if chunked:
        await client.send(b"%x\r\n" % size)
    for _ in range(30):
        await client.send(bytes(1_000_000))
    await client.send(b"\r\n0\r\n\r\n" if chunked else b"")

    assert refused(await client.response(), "/v1/models")
    assert upstream.connections == 0


async def test_an_sdk_that_sends_a_large_body_with_a_wrong_key_gets_its_401(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    large = {**MESSAGE, "messages": [{"role": "user", "content": "x" * 20_000_000}]}

    async with anthropic.AsyncAnthropic(
        base_url=proxy.url, api_key="wrong", max_retries=0
    ) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(**large)


# -- the real SDKs


async def test_anthropic_sdk_api_key_goes_as_bearer(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    doorman = Doorman()
    proxy = await start_proxy(plugins=[doorman])

    async with anthropic.AsyncAnthropic(
        base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0
    ) as client:
        message = await client.messages.create(**MESSAGE)

    assert message.stop_reason == "end_turn"
    assert (doorman.api_keys, doorman.authorizations) == ([[]], [[f"Bearer {TEST_TOKEN}"]])


async def test_anthropic_sdk_auth_token(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    doorman = Doorman()
    proxy = await start_proxy(plugins=[doorman])

    async with anthropic.AsyncAnthropic(
        base_url=proxy.url, auth_token=TEST_TOKEN, max_retries=0
    ) as client:
        message = await client.messages.create(**MESSAGE)

    assert message.stop_reason == "end_turn"
    assert (doorman.api_keys, doorman.authorizations) == ([[]], [[f"Bearer {TEST_TOKEN}"]])


async def test_anthropic_sdk_default_headers_beside_a_dummy_key(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    doorman = Doorman()
    proxy = await start_proxy(plugins=[doorman])

    async with anthropic.AsyncAnthropic(
        base_url=proxy.url,
        api_key="dummy-key",
        default_headers={"x-api-key": TEST_TOKEN},
        max_retries=0,
    ) as client:
        message = await client.messages.create(**MESSAGE)

    assert message.stop_reason == "end_turn"
    assert doorman.api_keys == [[TEST_TOKEN]]


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (TEST_TOKEN, {}),
        ("dummy-key", {"x-api-key": TEST_TOKEN}),
        ("dummy-key", {"Authorization": f"Bearer {TEST_TOKEN}"}),
    ],
)
async def test_openai_sdk(
    key: str, headers: dict[str, str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)

    async with openai.AsyncOpenAI(
        base_url=f"{proxy.url}/openai/v1", api_key=key, default_headers=headers, max_retries=0
    ) as client:
        completion = await client.chat.completions.create(
            model="claude-sonnet-5-5", messages=[{"role": "user", "content": "Hi"}]
        )
        models = await client.models.list()

    assert completion.choices[0].finish_reason == "stop"
    assert "claude-sonnet-5-5" in {model.id for model in models.data}


async def test_anthropic_sdk_raises_its_own_class_with_what_it_was_told(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)

    async with anthropic.AsyncAnthropic(
        base_url=proxy.url, api_key="wrong", max_retries=0
    ) as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(**MESSAGE)

    error = caught.value
    assert error.status_code == 401
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert isinstance(error.body, dict)
    assert error.body["error"]["type"] == "authentication_error"
    assert "The credential sent is not known" in error.body["error"]["message"]


async def test_openai_sdk_raises_its_own_class_with_what_it_was_told(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)

    async with openai.AsyncOpenAI(
        base_url=f"{proxy.url}/openai/v1", api_key="wrong", max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()

    error = caught.value
    assert error.status_code == 401
    assert error.request_id
    assert (error.type, error.code) == ("invalid_request_error", "invalid_api_key")
    assert "The credential sent is not known" in str(error)


# -- which way a credential travels


PRESENTED = [
    [("x-api-key", TEST_TOKEN)],
    [("Authorization", f"Bearer {TEST_TOKEN}")],
    [("x-api-key", TEST_TOKEN), ("Authorization", f"Bearer {TEST_TOKEN}")],
    [("x-api-key", "dummy"), ("X-API-Key", TEST_TOKEN), ("x-api-key", "")],
    [("Authorization", f"Bearer {TEST_TOKEN}")] * 2,
    [("x-api-key", TEST_TOKEN), ("Authorization", "Basic dGVzdC10b2tlbg==")],
    [("x-api-key", TEST_TOKEN), ("Connection", "x-api-key, authorization, keep-alive")],
]


@pytest.mark.parametrize(
    ("scheme", "credential"),
    [
        ("x-api-key", ("x-api-key", TEST_UPSTREAM_KEY)),
        ("bearer", ("authorization", f"Bearer {TEST_UPSTREAM_KEY}")),
    ],
)
async def test_upstream_gets_one_credential_and_it_is_not_the_clients(
    scheme: str,
    credential: tuple[str, str],
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    await start_proxy(UPSTREAM_AUTH_SCHEME=scheme)
    others = [
        ("Cookie", "session=theirs"),
        ("Cookie", "more=theirs"),
        ("Proxy-Authorization", "Basic dGhlaXJz"),
    ]
    names = {"x-api-key", "authorization", "proxy-authorization", "cookie"}
    client = await raw()
    for lines in PRESENTED:
        assert (await get(client, "/v1/models", *lines, *others)).status == 200

        chat = request_bytes("POST", "/openai/v1/chat/completions", [*lines, *others], CHAT)
        await client.send(chat)
        assert (await client.response()).status == 200
    assert (await get(client, "/openai/v1/models", *PRESENTED[2], *others)).status == 200

    assert len(upstream.requests) >= 2 * len(PRESENTED)
    for received in upstream.requests:
        sent = [(name.lower(), value) for name, value in received.headers if name.lower() in names]
        assert sent == [credential], received
        for theirs in (TEST_TOKEN, "theirs", "dGhlaXJz", "dummy", "dGVzdC10b2tlbg"):
            assert theirs.encode() not in received.raw_head


async def test_without_a_key_upstream_gets_no_credential(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_API_KEY=None)
    upstream.script(bytes_response(b"ok"))

    response = await get(
        await raw(),
        "/v1/models",
        ("x-api-key", TEST_TOKEN),
        ("Authorization", f"Bearer {TEST_TOKEN}"),
    )

    assert response.body == b"ok"
    (received,) = upstream.requests
    assert received.header("x-api-key") is None
    assert received.header("authorization") is None
    assert TEST_TOKEN.encode() not in received.raw_head


async def test_upstreams_cookies_do_not_reach_the_client_and_nor_does_its_key(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    cookies = [("Set-Cookie", "theirs=1; Path=/"), ("X-Kept", "yes"), ("set-cookie", "theirs=2")]
    upstream.script(
        bytes_response(b"fine", cookies),
        bytes_response(b"not fine", cookies, 500),
        sse_response(message_events(message_document("Hi")), headers=cookies),
    )
    client = await raw()

    for status in (200, 500, 200):
        response = await get(client, "/v1/models", ("x-api-key", TEST_TOKEN))
        assert response.status == status
        assert response.header("x-kept") == "yes"
        assert response.header("set-cookie") is None
        said = response.raw_head + response.body
        assert b"theirs" not in said
        assert TEST_UPSTREAM_KEY.encode() not in said
        assert TEST_TOKEN.encode() not in said


# -- tokens and keys read anew


async def test_new_tokens_and_a_new_key_while_a_stream_goes_on(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    first, *rest = message_events(message_document("A long answer."))
    may_go_on = asyncio.Event()

    async def slow_stream(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        head = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
        await exchange.send(response_head(200, head))
        await exchange.chunk(first)
        await may_go_on.wait()
        await exchange.chunk(b"".join(rest))
        await exchange.last_chunk()

    upstream.script(slow_stream)
    streaming, other = await raw(), await raw()
    await streaming.send(request_bytes("GET", "/v1/messages", token=TEST_TOKEN))
    assert (await streaming.head()).status == 200
    assert await streaming.chunk() == first

    proxy.reload(AUTH_TOKEN="the-new-token", UPSTREAM_API_KEY="the-new-key")

    assert refused(await get(other, "/v1/models", ("x-api-key", TEST_TOKEN)), "/v1/models")
    assert (await get(other, "/v1/models", ("x-api-key", "the-new-token"))).status == 200
    may_go_on.set()
    body = b""
    while chunk := await streaming.chunk():
        body += chunk
    assert body == b"".join(rest)
    assert (await records.finished(3)).outcome == "completed"
    # the stream's connection lives on; the token that opened it does not
    response = await get(streaming, "/v1/models", ("x-api-key", TEST_TOKEN))
    assert refused(response, "/v1/models")
    keys = [received.header("x-api-key") for received in upstream.requests]
    assert keys == [TEST_UPSTREAM_KEY, "the-new-key"]


async def test_files_of_tokens_and_keys_are_read_anew(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    tokens, key = tmp_path / "tokens", tmp_path / "key"
    tokens.write_text("first-token\n")
    key.write_text("first-key\n")
    proxy = await start_proxy(
        AUTH_TOKEN=None,
        AUTH_TOKEN_FILE=tokens,
        UPSTREAM_API_KEY=None,
        UPSTREAM_API_KEY_FILE=key,
    )
    client = await raw()
    assert (await get(client, "/v1/models", ("x-api-key", "first-token"))).status == 200

    tokens.write_text("first-token second-token\n")
    key.write_text("second-key\n")
    proxy.reload()

    for token in ("first-token", "second-token"):
        assert (await get(client, "/v1/models", ("x-api-key", token))).status == 200
    keys = [received.header("x-api-key") for received in upstream.requests]
    assert keys == ["first-key", "second-key", "second-key"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"AUTH_TOKEN": ""}, "AUTH_TOKEN is set but empty"),
        ({"AUTH_TOKEN_FILE": "/no/such/file"}, "AUTH_TOKEN_FILE must name a readable file"),
        ({"UPSTREAM_API_KEY": "two words"}, "UPSTREAM_API_KEY must be one value"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL must be one of"),
        ({"ALLOW_ANONYMOUS": "yes"}, "ALLOW_ANONYMOUS contradicts the token"),
    ],
)
async def test_a_refused_reload_leaves_all_as_it_was(
    changes: dict[str, str], fault: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    new = {"AUTH_TOKEN": "the-new-token", "UPSTREAM_API_KEY": "the-new-key", **changes}

    with pytest.raises(ConfigurationError, match=f"^{fault}"):
        proxy.reload(**new)

    await _all_is_as_it_was(raw, upstream)


class SecondThoughts:
    """Accepts the settings at start, and refuses them ever after."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl(trylast=True)
    def configure(self, settings: Settings) -> None:
        self.asked += 1
        if self.asked == 2:
            raise ConfigurationError("MOOD has changed: wait")


async def test_a_reload_that_a_plugin_refuses_leaves_all_as_it_was(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(plugins={"zz_last": SecondThoughts()})

    with pytest.raises(ConfigurationError, match=r"^MOOD has changed: wait$"):
        proxy.reload(AUTH_TOKEN="the-new-token", UPSTREAM_API_KEY="the-new-key")

    await _all_is_as_it_was(raw, upstream)
    proxy.reload(AUTH_TOKEN="the-new-token", UPSTREAM_API_KEY="the-new-key")
    client = await raw()
    assert (await get(client, "/v1/models", ("x-api-key", "the-new-token"))).status == 200
    assert upstream.requests[-1].header("x-api-key") == "the-new-key"


async def _all_is_as_it_was(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    client = await raw()
    assert (await get(client, "/v1/models", ("x-api-key", TEST_TOKEN))).status == 200
    for token in ("the-new-token", "", "anything"):
        assert refused(await get(client, "/v1/models", ("x-api-key", token)), "/v1/models")
    assert [received.header("x-api-key") for received in upstream.requests] == [TEST_UPSTREAM_KEY]
