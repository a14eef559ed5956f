"""Claude Code: its requests cross unchanged, and what a person reads in the real program.

The program runs where ``npm install --prefix tests/system/claude_code`` has been run, as
``.ci/run`` does. It reaches loopback only: all else would go through an HTTPS proxy that is not
there.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tornadoproxy_budgets import storage as budgets
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_keys import store as keys

from tornadoproxy import Database
from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, bytes_response, request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy.testing import Ask, Proxy, Records, ScriptedUpstream, StartProxy

# -- its requests

SESSION = "0b0ad2a5-3a1c-4f6e-9d58-1a7f5f0f6f0a"
HEADERS = [
    ("Accept", "application/json"),
    ("Content-Type", "application/json"),
    ("User-Agent", "claude-cli/2.9.14 (external, cli)"),
    ("X-App", "cli"),
    ("anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14"),
    ("anthropic-dangerous-direct-browser-access", "true"),
    ("anthropic-version", "2023-06-01"),
    ("X-Stainless-Timeout", "600"),
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


@pytest.mark.parametrize(
    ("method", "target", "credentials", "body"),
    [
        ("POST", "/v1/messages?beta=true", [API_KEY], BODY),
        ("POST", "/v1/messages?beta=true", [API_KEY, BEARER], BODY),
        ("POST", "/v1/messages/count_tokens?beta=true", [BEARER], BODY),
        ("GET", "/v1/models?limit=1000", [BEARER], b""),
    ],
    ids=["x-api-key", "both", "count_tokens", "models"],
)
async def test_claude_code_request_goes_upstream_unchanged(
    method: str,
    target: str,
    credentials: list[tuple[str, str]],
    body: bytes,
    ask: Ask,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    upstream.script(bytes_response(b"{}"))
    async with asyncio.timeout(3):
        sent = request_bytes(method, target, [*HEADERS, *credentials], body)
        assert (await ask(sent)).status == 200
    (received,) = upstream.requests
    assert (received.method, received.target, received.body) == (method, target, body)
    headers = {name.lower(): value for name, value in received.headers}
    assert headers.items() >= {name.lower(): value for name, value in HEADERS}.items()
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert received.all("authorization") == []
    record = await records.finished()
    assert record.route == target.partition("?")[0]
    agents = (record.session_id, record.agent_id, record.parent_agent_id)
    assert agents == (SESSION, "agent-7", "agent-1")


# -- the program

CLAUDE = Path(__file__).parent / "claude_code" / "node_modules" / ".bin" / "claude"

installed = pytest.mark.skipif(
    not CLAUDE.exists(), reason="needs npm install --prefix tests/system/claude_code"
)

MODEL = "claude-sonnet-5-5"


class ClaudeCode:
    """Runs one prompt in print mode, with a home directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    async def __call__(self, url: str, **variables: str) -> tuple[int, str]:
        """Ask once; return the exit status and what is printed."""
        process = await asyncio.create_subprocess_exec(
            *(CLAUDE, "-p", "Say hello", "--model", MODEL),
            cwd=self.home,
            env={
                "HOME": str(self.home),
                "PATH": os.environ["PATH"],
                "ANTHROPIC_BASE_URL": url,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_AUTOUPDATER": "1",
                "DISABLE_TELEMETRY": "1",
                "HTTPS_PROXY": "http://127.0.0.1:9",
                "NO_PROXY": "127.0.0.1",
                **variables,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode or 0, printed.decode()


@pytest.fixture
def claude(tmp_path: Path) -> ClaudeCode:
    return ClaudeCode(tmp_path)


def make_key(path: Path, *, models: tuple[str, ...] = (), revoked: bool = False) -> str:
    now = int(time.time())
    with Database(path, keys.SCHEMA, name="keys") as database, database.transaction() as connection:
        key = keys.create(connection, "ada", (), keys.Limits(models), None, now)
        if revoked:
            keys.revoke(connection, "ada", now)
    return key


def spend_all(path: Path) -> None:
    with (
        Database(path, budgets.SCHEMA, name="budgets") as database,
        database.transaction() as connection,
    ):
        everyone = Scope("organization")
        budgets.set_cap(connection, everyone, "monthly", 0, actor="test", now=time.time())


Case = tuple[dict[str, Any], dict[str, str]]
"""Settings of the proxy, and variables of Claude Code."""

TOKEN = {"ANTHROPIC_AUTH_TOKEN": TEST_TOKEN}


def revoked_key(path: Path) -> Case:
    return {"KEYS_DB": path}, {"ANTHROPIC_AUTH_TOKEN": make_key(path, revoked=True)}


def key_for_another_model(path: Path) -> Case:
    key = make_key(path, models=("claude-haiku-*",))
    return {"KEYS_DB": path}, {"ANTHROPIC_AUTH_TOKEN": key}


def spent_budget(path: Path) -> Case:
    spend_all(path)
    return {"BUDGETS_DB": path}, TOKEN


def upstream_down(_: Path) -> Case:
    # Claude Code retries these for three minutes by default
    return {"UPSTREAM_BASE_URL": "http://127.0.0.1:9"}, {**TOKEN, "CLAUDE_CODE_MAX_RETRIES": "0"}


@installed
@pytest.mark.parametrize(
    ("case", "told"),
    [
        (
            lambda _: ({}, {"ANTHROPIC_AUTH_TOKEN": "wrong"}),
            "API Error: 401 The credential sent is not known here: send a token or key",
        ),
        (
            lambda _: ({}, {"ANTHROPIC_API_KEY": "wrong"}),
            "API Error: 401 The credential sent is not known here: send a token",
        ),
        (revoked_key, "API Error: 401 This key was revoked at "),
        (key_for_another_model, "API Error: 403 This key is for the model claude-haiku-*"),
        (spent_budget, "spend limit reached (monthly; resets "),
        (upstream_down, "API Error: 502 The upstream cannot be reached"),
        # the scripted upstream answers 401 where there is no key
        (
            lambda _: ({"UPSTREAM_API_KEY": None}, TOKEN),
            "API Error: 502 The upstream refused this proxy's own",
        ),
    ],
)
async def test_claude_code_refused_shows_why_and_asks_once(
    case: Callable[[Path], Case],
    told: str,
    claude: ClaudeCode,
    start_proxy: StartProxy,
    records: Records,
) -> None:
    settings, variables = case(claude.home / "test.db")
    proxy = await start_proxy(**settings)

    status, printed = await claude(proxy.url, **variables)

    assert told in printed
    assert "/login" not in printed
    assert status == 1
    assert len(records.all) == 1


@installed
async def test_claude_code_prints_the_response(
    claude: ClaudeCode, start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy()

    status, printed = await claude(proxy.url, ANTHROPIC_AUTH_TOKEN=TEST_TOKEN)

    assert (status, printed.endswith("Say hello\n")) == (0, True)
    assert [request.target for request in upstream.requests] == ["/v1/messages?beta=true"]


@installed
async def test_claude_code_runs_its_key_helper_again_after_a_401(
    claude: ClaudeCode, start_proxy: StartProxy, records: Records
) -> None:
    proxy = await start_proxy()
    helper = f"cat fresh 2>&1 || echo {TEST_TOKEN} > fresh"
    settings = claude.home / ".claude" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"apiKeyHelper": helper}))

    status, printed = await claude(proxy.url)

    assert (status, printed.endswith("Say hello\n")) == (0, True)
    assert [record.status for record in records.all] == [401, 200]
