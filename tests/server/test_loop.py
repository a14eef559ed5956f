"""A proxy whose upstream is itself: refused at start where it can be told, else 508."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, bytes_response, request_bytes

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from tornadoproxy.testing import (
        OpenRaw,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

GET = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
POST = request_bytes("POST", "/v1/messages", (), b'{"a":1}', token=TEST_TOKEN)
CHUNKED = (
    request_bytes("POST", "/v1/messages", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    + b"2\r\n{}\r\n0\r\n\r\n"
)

# loopback's, although it does not look like it: inet_aton(3) takes hexadecimal numbers
ANOTHER_NAME = "0x7f.1"


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number


def check_loop_detected(response: RawResponse, error_type: str = "api_error") -> None:
    assert response.status == 508
    assert response.header("Content-Type") == "application/json"
    error = json.loads(response.body)["error"]
    assert error["type"] == error_type
    assert "UPSTREAM_BASE_URL" in error["message"]


@pytest.mark.parametrize(
    ("host", "upstream_host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "LOCALHOST."),
        ("localhost", "127.0.0.1"),
        ("::1", "localhost"),
        ("::1", "[::1]"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.2"),
        ("::", "localhost"),
        ("::", "[::ffff:127.0.0.1]"),
        ("gateway.example", "gateway.example"),
    ],
)
async def test_a_proxy_whose_upstream_is_itself_does_not_start(
    start_proxy: StartProxy, port: int, host: str, upstream_host: str
) -> None:
    with pytest.raises(ConfigurationError, match="UPSTREAM_BASE_URL") as caught:
        await start_proxy(HOST=host, PORT=port, UPSTREAM_BASE_URL=f"http://{upstream_host}:{port}")
    (fault,) = caught.value.faults
    assert "PORT" in fault
    with socket.create_server(("127.0.0.1", port)):
        pass  # nobody listens there


@pytest.mark.parametrize("data", [GET, POST, CHUNKED], ids=["GET", "POST", "chunked"])
@pytest.mark.parametrize("key", [TEST_TOKEN, TEST_UPSTREAM_KEY], ids=["its token", "another key"])
async def test_one_that_reaches_itself_by_another_name_answers_508(
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
    port: int,
    data: bytes,
    key: str,
) -> None:
    """Whatever the upstream's key is: that it is no token of the proxy would tell nobody why."""
    await start_proxy(
        PORT=port,
        UPSTREAM_BASE_URL=f"http://{ANOTHER_NAME}:{port}",
        UPSTREAM_ALLOW_CLEARTEXT="yes",
        UPSTREAM_API_KEY=key,
    )
    connection = await raw()
    await connection.send(data)
    check_loop_detected(await connection.response())
    await records.finished(2)
    assert [record.status for record in records.all] == [508, 508]
    assert [record.outcome for record in records.all] == ["denied", "completed"]


@pytest.mark.parametrize("data", [GET, POST, CHUNKED], ids=["GET", "POST", "chunked"])
async def test_two_that_lead_to_each_other_answer_508(
    start_proxy: StartProxy, raw: OpenRaw, records: Records, port: int, data: bytes
) -> None:
    second = await start_proxy(UPSTREAM_BASE_URL=f"http://127.0.0.1:{port}")
    await start_proxy(PORT=port, UPSTREAM_BASE_URL=second.url, UPSTREAM_API_KEY=TEST_TOKEN)
    connection = await raw()
    await connection.send(data)
    check_loop_detected(await connection.response())
    await records.finished(3)
    assert len(records.all) == 3


async def test_a_chat_in_a_loop_is_508_in_the_openai_shape(
    start_proxy: StartProxy, raw: OpenRaw, port: int
) -> None:
    await start_proxy(
        PORT=port, UPSTREAM_BASE_URL=f"http://{ANOTHER_NAME}:{port}", UPSTREAM_ALLOW_CLEARTEXT="yes"
    )
    connection = await raw()
    body = b'{"model":"claude-sonnet-5-5","messages":[{"role":"user","content":"Hi"}]}'
    await connection.send(
        request_bytes("POST", "/openai/v1/chat/completions", (), body, token=TEST_TOKEN)
    )
    response = await connection.response()
    check_loop_detected(response, "server_error")
    assert (response.header("x-request-id") or "").startswith("req_")


async def test_two_in_a_chain_work(
    start_proxy: StartProxy, upstream: ScriptedUpstream, anthropic_client: AsyncAnthropic
) -> None:
    inner = await start_proxy(AUTH_TOKEN="the-inner-proxys-token")
    outer = await start_proxy(
        UPSTREAM_BASE_URL=inner.url, UPSTREAM_API_KEY="the-inner-proxys-token"
    )
    client = anthropic_client.with_options(base_url=outer.url)
    async with client.messages.stream(
        model="claude-sonnet-5-5",
        max_tokens=100,
        messages=[{"role": "user", "content": "Through two"}],
    ) as stream:
        message = await stream.get_final_message()
    assert message.content[0].type == "text"
    assert message.content[0].text.endswith("Through two")
    (request,) = upstream.requests
    assert request.all("x-api-key") == [TEST_UPSTREAM_KEY]
    first, second = request.all("Via")
    assert first != second
    assert first.startswith("1.1 tornadoproxy-")
    assert second.startswith("1.1 tornadoproxy-")


async def test_another_proxys_name_in_via_is_no_loop(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(bytes_response(b"ok"))
    await start_proxy()
    connection = await raw()
    via = {"Via": "1.0 fred, 1.1 tornadoproxy-0123456789abcdef (comment), 1.1 tornadoproxy-"}
    await connection.send(request_bytes("GET", "/v1/x", via, token=TEST_TOKEN))
    assert (await connection.response()).body == b"ok"
