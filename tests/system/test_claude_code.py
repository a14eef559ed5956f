"""The real Claude Code against the real proxy: what a person reads there.

It runs where ``npm install --prefix tests/system/claude_code`` has been run, as ``.ci/run``
does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aws_cloud import MODEL, ScriptedAWS, aws_entry
from clouds import TOKEN as GOOGLE_TOKEN
from clouds import ScriptedGoogle, cloud_entry
from desk import CLAUDE, INSTALLED, environment, run_prompt
from scene import Scene
from tornadoproxy_budgets import storage as budgets
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_keys import changes
from tornadoproxy_keys import store as keys

from tornadoproxy import Database
from tornadoproxy.testing import TEST_TOKEN, Proxy, Records, ScriptedUpstream

pytestmark = [
    *INSTALLED,
    pytest.mark.gen_test(timeout=50),  # it takes long to start while other tests run
]


async def say_hello(home: Path, url: str, **variables: str) -> tuple[int, str]:
    """Run one prompt; see `run_prompt`."""
    own = {
        "ANTHROPIC_BASE_URL": url,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
    }
    return await run_prompt([str(CLAUDE)], home, {**environment(home), **own, **variables})


def make_key(path: Path, *, models: tuple[str, ...] = (), revoked: bool = False) -> str:
    now = int(time.time())
    with Database(path, keys.SCHEMA, name="keys") as database, database.transaction() as connection:
        by = changes.By("test")
        _, key = changes.create(connection, "ada", (), keys.Limits(models), None, now, by)
        if revoked:
            changes.revoke(connection, "ada", now, by)
    return key


Case = tuple[dict[str, Any], dict[str, str]]
"""Settings of the proxy, and variables of Claude Code."""

TOKEN = {"ANTHROPIC_AUTH_TOKEN": TEST_TOKEN}


def revoked_key(path: Path) -> Case:
    return {"KEYS_DB": path}, {"ANTHROPIC_AUTH_TOKEN": make_key(path, revoked=True)}


def key_for_another_model(path: Path) -> Case:
    return {"KEYS_DB": path}, {"ANTHROPIC_AUTH_TOKEN": make_key(path, models=("claude-haiku-*",))}


def spent_budget(path: Path) -> Case:
    with (
        Database(path, budgets.SCHEMA, name="budgets") as database,
        database.transaction() as connection,
    ):
        everyone = Scope("organization")
        budgets.set_cap(connection, everyone, "monthly", 0, actor="test", now=time.time())
    return {"BUDGETS_DB": path}, TOKEN


# Claude Code retries an upstream that is down for three minutes by default
DOWN = {"UPSTREAM_BASE_URL": "http://127.0.0.1:9"}, {**TOKEN, "CLAUDE_CODE_MAX_RETRIES": "0"}


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (({}, {"ANTHROPIC_AUTH_TOKEN": "wrong"}), "401 The credential sent is not known"),
        (({}, {"ANTHROPIC_API_KEY": "wrong"}), "401 The credential sent is not known"),
        (revoked_key, "API Error: 401 This key was revoked at "),
        (key_for_another_model, "API Error: 403 This key is for the model claude-haiku-*"),
        (spent_budget, "spend limit reached · $0.00 of $0.00 is spent (monthly; resets "),
        (DOWN, "API Error: 502 The upstream cannot be reached"),
        # the scripted upstream answers 401 where there is no key
        (({"UPSTREAM_API_KEY": None}, TOKEN), "502 The upstream refused this proxy's own"),
    ],
)
async def test_claude_code_refused_shows_why_and_asks_once(
    case: Case | Callable[[Path], Case], told: str, scene: Scene, tmp_path: Path
) -> None:
    settings, variables = case(tmp_path / "test.db") if callable(case) else case
    proxy = await scene.start(**settings)
    status, printed = await say_hello(tmp_path, proxy.url, **variables)
    assert told in printed
    assert "/login" not in printed
    assert status == 1
    assert len(scene.records.all) == 1


async def test_claude_code_prints_the_response(
    proxy: Proxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    status, printed = await say_hello(tmp_path, proxy.url, **TOKEN)
    assert (status, printed.endswith("Say hello\n")) == (0, True)
    assert [request.target for request in upstream.requests] == ["/v1/messages?beta=true"]


async def test_claude_code_runs_its_key_helper_again_after_a_401(
    proxy: Proxy, records: Records, tmp_path: Path
) -> None:
    helper = f"cat fresh 2>&1 || echo {TEST_TOKEN} > fresh"
    settings = tmp_path / ".claude" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"apiKeyHelper": helper}))
    status, printed = await say_hello(tmp_path, proxy.url)
    assert (status, printed.endswith("Say hello\n")) == (0, True)
    assert [record.status for record in records.all] == [401, 200]


async def test_claude_code_works_through_bedrock(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.toml"
    names = 'models = {"claude-*" = "eu.anthropic.claude-*-v1:0"}'
    file.write_text(aws_entry(aws, "bedrock", names))
    proxy = await scene.start(UPSTREAMS_FILE=file)
    status, printed = await say_hello(tmp_path, proxy.url, **TOKEN)
    assert (status, printed.endswith("Say hello\n")) == (0, True)
    (request,) = aws.requests
    assert request.path == f"/model/{MODEL}/invoke-with-response-stream"


@pytest.mark.parametrize("kind", ["vertex", "google_cloud"])
async def test_claude_code_works_through_google(
    kind: str, scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text(cloud_entry(google, kind))
    proxy = await scene.start(UPSTREAMS_FILE=file)
    status, printed = await say_hello(tmp_path, proxy.url, **TOKEN)
    assert (status, printed.endswith("Say hello\n")) == (0, True)
    # of a system message's effort, which needs a beta, Claude Code does without after a 400
    assert [record.status for record in scene.records.all][-1:] == [200]
    request = google.requests[-1]
    assert request.header("authorization") == f"Bearer {GOOGLE_TOKEN}"
