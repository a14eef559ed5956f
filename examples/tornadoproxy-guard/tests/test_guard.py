"""The plugin in a real proxy: nothing that it refuses or masks reaches the upstream."""

from __future__ import annotations

import json

import pytest

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import Ask, Records, ScriptedUpstream, StartProxy

RULES = {"GUARD_REFUSE": r"project-x", "GUARD_MASK": r"\d{3}-\d{2}-\d{4} Müller"}
MESSAGES, CHAT = "/v1/messages", "/openai/v1/chat/completions"


def body(text: str, **fields: object) -> bytes:
    message = {"role": "user", "content": [{"type": "text", "text": text}]}
    document = {"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [message], **fields}
    return json.dumps(document).encode()


@pytest.mark.parametrize("path", [MESSAGES, CHAT, "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    "text", ["About project-x.", "\x00project-x", "\\u0070roject-x is no project"]
)
async def test_match_is_refused_and_nothing_is_sent(
    start_proxy: StartProxy,
    ask: Ask,
    upstream: ScriptedUpstream,
    records: Records,
    path: str,
    text: str,
) -> None:
    await start_proxy(GUARD_MESSAGE="No.", **RULES)
    sent = body(text).replace(b"\\\\u", b"\\u")
    response = await ask(path, body=sent)
    error = json.loads(response.body)["error"]
    assert (response.status, error["message"]) == (403, "No.")
    assert upstream.connections == 0
    record = await records.finished()
    assert (record.outcome, record.error) == ("denied", "Denied: No.")


@pytest.mark.parametrize("path", [MESSAGES, CHAT])
async def test_match_is_masked(
    start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, path: str
) -> None:
    await start_proxy(**RULES)
    assert (await ask(path, body=body("I am M\u00fcller, 123-45-6789."))).status == 200
    (request,) = upstream.requests
    assert "I am [masked], [masked]." in request.body.decode()
    assert request.all("content-length") == [str(len(request.body))]


async def test_other_request_is_the_same_byte_for_byte(
    start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream
) -> None:
    await start_proxy(**RULES)
    sent = body("  M\u00fcle ") + b"\n"
    assert (await ask(MESSAGES, body=sent)).status == 200
    assert (await ask("/v1/models")).status == 200
    assert upstream.requests[0].body == sent


@pytest.mark.parametrize(
    ("sent", "headers", "status"),
    [
        (b'{"a": 1, "a": "project-x"}', {}, 400),
        (b"{", {}, 400),
        (b"x" * 3_000_000, {}, 403),
        (b"\x1f\x8b", {"Content-Encoding": "gzip"}, 403),
        (b"--b\r\n123-45-6789", {"Content-Type": "multipart/form-data; boundary=b"}, 403),
    ],
    ids=["a field twice", "no JSON", "a streamed one", "compressed", "masks only JSON"],
)
async def test_what_cannot_be_checked_is_refused(
    start_proxy: StartProxy,
    ask: Ask,
    upstream: ScriptedUpstream,
    sent: bytes,
    headers: dict[str, str],
    status: int,
) -> None:
    await start_proxy(**RULES)
    assert (await ask("/v1/files", body=sent, headers=headers)).status == status
    assert upstream.connections == 0


async def test_without_patterns_the_plugin_is_inactive(start_proxy: StartProxy) -> None:
    proxy = await start_proxy()
    assert {info.name: info.state for info in proxy.plugins.describe()}["guard"] == "inactive"


@pytest.mark.parametrize("pattern", ["(", "a*"])
async def test_invalid_pattern_is_refused(start_proxy: StartProxy, pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="GUARD_MASK must"):
        await start_proxy(GUARD_MASK=pattern)
