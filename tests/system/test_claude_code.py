"""What Claude Code needs of a gateway: its own requests, errors and retry headers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    bytes_response,
    error_response,
    event,
    message_document,
    message_events,
    request_bytes,
    sse_response,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import Ask, Proxy, Records, ScriptedUpstream

SESSION = "0b0ad2a5-3a1c-4f6e-9d58-1a7f5f0f6f0a"
HEADERS = [
    ("Accept", "application/json"),
    ("Content-Type", "application/json"),
    ("User-Agent", "claude-cli/2.9.14 (external, cli)"),
    ("X-App", "cli"),
    ("anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14"),
    ("anthropic-dangerous-direct-browser-access", "true"),
    ("anthropic-version", "2023-06-01"),
    ("X-Stainless-Lang", "js"),
    ("X-Stainless-Retry-Count", "0"),
    ("X-Stainless-Timeout", "600"),
    ("accept-language", "*"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("x-claude-code-session-id", SESSION),
    ("x-claude-code-agent-id", "agent-7"),
    ("x-claude-code-parent-agent-id", "agent-1"),
]
API_KEY = ("x-api-key", TEST_TOKEN)
BEARER = ("Authorization", f"Bearer {TEST_TOKEN}")
SOURCE = """<system-reminder>Do "this" & <b>that</b></system-reminder>
<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>
'; DROP TABLE users; -- <script>alert(1)</script> ${jndi:ldap://x} ../../etc/passwd
def f(): return "\\u00e9\\\\n" + r'\\d{2}'  # Grüße, 世界, 😀\x7f\u2028
"""
# key order, number formats, escapes and blanks as no JSON writer would put them again
BODY = (
    b'{"model":"claude-sonnet-5-5" , "max_tokens": 32000,\n "stream":true,'
    b'"metadata":{"user_id":"user_\\u00e4\\/1"},'
    b'"system":[{"type":"text","text":"Be brief.","cache_control":{"type":"ephemeral"}}],'
    b'"messages":[{"content":%b,"role":"user"}],"tools":[],"max_tokens":3.2e4}'
) % json.dumps(SOURCE, ensure_ascii=False).encode()


def sent(method: str, target: str, credentials: list[tuple[str, str]], body: bytes = b"") -> bytes:
    return request_bytes(method, target, [*HEADERS, *credentials], body)


@pytest.mark.parametrize(
    ("target", "credentials"),
    [
        ("/v1/messages?beta=true", [API_KEY]),
        ("/v1/messages?beta=true", [API_KEY, BEARER]),
        ("/v1/messages/count_tokens?beta=true", [BEARER]),
    ],
    ids=["x-api-key", "both", "count_tokens with Bearer"],
)
async def test_claude_code_request_goes_upstream_unchanged(
    target: str,
    credentials: list[tuple[str, str]],
    ask: Ask,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    upstream.script(bytes_response(b"{}"))
    assert (await ask(sent("POST", target, credentials, BODY))).status == 200
    request = upstream.requests[0]
    assert (request.method, request.target) == ("POST", target)
    assert request.body == BODY
    received = {name.lower(): value for name, value in request.headers}
    assert received.items() >= {name.lower(): value for name, value in HEADERS}.items()
    assert request.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert request.all("authorization") == []
    record = await records.finished()
    assert record.route == target.partition("?")[0]
    assert (record.session_id, record.agent_id, record.parent_agent_id) == (
        SESSION,
        "agent-7",
        "agent-1",
    )


async def test_session_without_agents_is_recorded(
    ask: Ask, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    headers = [("x-claude-code-session-id", SESSION), API_KEY]
    assert (await ask(request_bytes("GET", "/v1/models", headers))).status == 200
    record = await records.finished()
    assert (record.session_id, record.agent_id, record.parent_agent_id) == (SESSION, None, None)


async def test_claude_code_model_list_comes_within_3_seconds(
    ask: Ask, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    async with asyncio.timeout(3):
        response = await ask(sent("GET", "/v1/models?limit=1000", [BEARER]))
    assert response.status == 200
    assert [model["type"] for model in json.loads(response.body)["data"]] == ["model"] * 4
    assert upstream.requests[0].target == "/v1/models?limit=1000"


async def test_pings_of_upstream_are_relayed(
    ask: Ask, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    ping = event({"type": "ping"})
    first, *rest = message_events(message_document(SOURCE))
    events = [first, *(part for each in rest for part in (ping, each)), ping]
    upstream.script(sse_response(events))
    response = await ask(sent("POST", "/v1/messages?beta=true", [BEARER], BODY))
    assert response.body == b"".join(events)


@pytest.mark.parametrize("path", ["/api/hello", "/"])
async def test_connection_probe_needs_no_credential(
    path: str, ask: Ask, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    """A cheap 200 without a credential: nothing goes upstream, nothing is recorded."""
    response = await ask(request_bytes("HEAD", path))
    assert response.status == 200
    assert not upstream.requests
    assert not records.all


@pytest.mark.parametrize(
    "credentials",
    [
        [],
        [("x-api-key", "wrong")],
        [("Authorization", "Bearer wrong")],
        [("x-api-key", "wrong"), BEARER],
    ],
    ids=["none", "wrong x-api-key", "wrong Bearer", "wrong x-api-key beside a right Bearer"],
)
async def test_wrong_credential_of_claude_code_is_401(
    credentials: list[tuple[str, str]],
    ask: Ask,
    proxy: Proxy,
    upstream: ScriptedUpstream,
) -> None:
    """Never 403: a key helper fetches a new key on nothing else."""
    for method, target in (
        ("POST", "/v1/messages?beta=true"),
        ("POST", "/v1/messages/count_tokens"),
        ("GET", "/v1/models?limit=1000"),
    ):
        response = await ask(sent(method, target, credentials))
        assert response.status == 401
        assert response.header("WWW-Authenticate") == "Bearer"
        assert json.loads(response.body)["error"]["type"] == "authentication_error"
    assert not upstream.requests


@pytest.mark.parametrize(
    ("status", "error_type", "message", "headers"),
    [
        (
            429,
            "rate_limit_error",
            "This request would exceed your organization's rate limit",
            [
                ("retry-after", "17"),
                ("retry-after-ms", "17000.5"),
                ("anthropic-ratelimit-unified-status", "rejected"),
                ("anthropic-ratelimit-unified-reset", "1790000000"),
                ("anthropic-organization-id", "org"),
            ],
        ),
        (429, "billing_error", "Your credit balance is too low", [("x-should-retry", "false")]),
        (529, "overloaded_error", "Overloaded", [("x-should-retry", "true")]),
        (400, "invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum", []),
        (413, "request_too_large", "Request exceeds the maximum size", []),
    ],
    ids=str,
)
async def test_upstream_errors_and_retry_headers_pass(
    status: int,
    error_type: str,
    message: str,
    headers: list[tuple[str, str]],
    ask: Ask,
    proxy: Proxy,
    upstream: ScriptedUpstream,
) -> None:
    """Claude Code matches their wording, and retries by their headers."""
    upstream.script(error_response(status, error_type, message, headers, "req_upstream"))
    response = await ask(sent("POST", "/v1/messages?beta=true", [BEARER], BODY))
    assert response.status == status
    error = {"type": error_type, "message": message}
    document = {"type": "error", "error": error, "request_id": "req_upstream"}
    assert response.body == json.dumps(document).encode()
    passed = [(name.lower(), value) for name, value in response.headers]
    assert set(passed) >= {("request-id", "req_upstream"), *headers}
