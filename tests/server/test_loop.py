"""A proxy whose upstream is itself, by a name that does not show it."""

from __future__ import annotations

import pytest
from scene import Scene
from served import CHAT_PATH, MESSAGE_FIELDS, anthropic_error, openai_error
from tornado.testing import bind_unused_port

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, bytes_response

# loopback's, although it does not look like it: inet_aton(3) takes hexadecimal numbers
ANOTHER_NAME = "0x7f.1"


@pytest.mark.parametrize(
    ("path", "key", "error_type"),
    [
        ("/v1/messages", TEST_TOKEN, "api_error"),
        ("/v1/messages", TEST_UPSTREAM_KEY, "api_error"),
        (CHAT_PATH, TEST_UPSTREAM_KEY, "server_error"),
    ],
)
async def test_loop_through_another_name_is_508(
    scene: Scene, path: str, key: str, error_type: str
) -> None:
    """Whether or not the upstream's key is a token of the proxy."""
    free, port = bind_unused_port()
    free.close()
    await scene.start(
        PORT=port,
        UPSTREAM_BASE_URL=f"http://{ANOTHER_NAME}:{port}",
        UPSTREAM_ALLOW_CLEARTEXT="yes",
        UPSTREAM_API_KEY=key,
    )
    check_error = anthropic_error if path == "/v1/messages" else openai_error
    message = check_error(await scene.ask(path, MESSAGE_FIELDS), 508, error_type)
    assert "UPSTREAM_BASE_URL" in message
    await scene.records.finished(2)
    ends = [(record.status, record.outcome) for record in scene.records.all]
    assert ends[0] == (508, "denied")
    assert ends[-1][0] == 508


async def test_chain_of_two_proxies_adds_two_names_to_via(scene: Scene) -> None:
    """Other proxies' names in ``Via`` are no loop."""
    scene.upstream.script(bytes_response(b"ok"))
    inner = await scene.start(AUTH_TOKEN="the-inner-proxys-token")
    await scene.start(UPSTREAM_BASE_URL=inner.url, UPSTREAM_API_KEY="the-inner-proxys-token")
    via = {"Via": "1.0 fred, 1.1 tornadoproxy-0123456789abcdef (comment), 1.1 tornadoproxy-"}
    assert (await scene.ask("/v1/x", headers=via)).body == b"ok"
    (request,) = scene.upstream.requests
    assert request.all("x-api-key") == [TEST_UPSTREAM_KEY]
    first, second = request.all("Via")[-2:]
    assert first != second
    assert first.startswith("1.1 tornadoproxy-")
    assert second.startswith("1.1 tornadoproxy-")
