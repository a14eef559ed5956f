"""``codex-catalog``: the models of the upstream, as the Codex CLI reads them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from in_process import Commands, Done

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Response,
    ScriptedUpstream,
    bytes_response,
    error_response,
    json_response,
    silent_response,
)

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

YES, NO = {"supported": True}, {"supported": False}
OPUS: Json = {
    "id": "claude-opus-5-5",
    "display_name": "Claude Opus 5.5",
    "lifecycle": "active",
    "max_input_tokens": 1_000_000,
    "max_tokens": 128_000,
    "capabilities": {
        "effort": {**YES, "low": YES, "medium": YES, "high": YES, "xhigh": None, "max": YES},
        "image_input": YES,
        "thinking": {**YES, "types": {"adaptive": YES}},
    },
}
PLAIN: Json = {
    "id": "claude-plain",
    "capabilities": {"effort": NO, "image_input": NO, "thinking": NO},
}
BUDGET: Json = {"id": "claude-budget", "capabilities": {"effort": NO, "thinking": YES}}
RETIRED: Json = {"id": "claude-3", "lifecycle": "retired"}
UNKNOWN: Json = {"id": "claude-new", "max_input_tokens": None}

# what Codex 0.171 refuses to do without, and 0.100 as well
REQUIRED = {
    *("slug", "display_name", "supported_reasoning_levels", "shell_type", "visibility"),
    *("supported_in_api", "priority", "support_verbosity", "truncation_policy"),
    *("experimental_supported_tools", "base_instructions", "apply_patch_tool_type"),
    *("supports_reasoning_summaries", "supports_parallel_tool_calls", "context_window"),
}


async def run(commands: Commands, upstream: ScriptedUpstream, **variables: str) -> Done:
    variables |= {
        "AUTH_TOKEN": TEST_TOKEN,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
        "UPSTREAM_BASE_URL": upstream.url,
    }
    return await asyncio.to_thread(lambda: commands.run("codex-catalog", **variables))


async def catalog(
    commands: Commands, upstream: ScriptedUpstream, *models: Json, **variables: str
) -> dict[str, Json]:
    upstream.script(json_response({"data": models, "has_more": False}))
    done = await run(commands, upstream, **variables)
    assert (done.status, done.errors) == (0, "")
    entries = json.loads(done.output)["models"]
    assert [each["priority"] for each in entries] == list(range(1, len(entries) + 1))
    assert all(each.keys() >= REQUIRED for each in entries)
    return {each["slug"]: each for each in entries}


async def test_catalog_has_the_capabilities_of_models(
    commands: Commands, upstream: ScriptedUpstream
) -> None:
    found = await catalog(commands, upstream, OPUS, PLAIN, BUDGET, RETIRED, UNKNOWN)
    assert list(found) == ["claude-opus-5-5", "claude-plain", "claude-budget", "claude-new"]
    opus = found["claude-opus-5-5"]
    assert opus["display_name"] == "Claude Opus 5.5"
    assert opus["description"] == "claude-opus-5-5, 1,000,000 tokens of context"
    assert opus["context_window"] == opus["max_context_window"] == 1_000_000
    assert opus["default_reasoning_level"] == "high"
    efforts = {
        slug: [each["effort"] for each in entry["supported_reasoning_levels"]]
        for slug, entry in found.items()
    }
    assert efforts == {
        "claude-opus-5-5": ["low", "medium", "high", "max"],
        "claude-plain": [],
        "claude-budget": ["low", "medium", "high"],
        "claude-new": ["low", "medium", "high"],
    }
    plain = found["claude-plain"]
    assert plain["default_reasoning_summary"] == "none"
    assert "default_reasoning_level" not in plain
    assert plain["context_window"] == 200_000
    images = [slug for slug, entry in found.items() if "image" in entry["input_modalities"]]
    assert images == ["claude-opus-5-5", "claude-new"]
    assert all(entry["apply_patch_tool_type"] == "freeform" for entry in found.values())
    assert "*** Begin Patch" in plain["base_instructions"]


async def test_catalog_has_the_names_of_clients(
    commands: Commands, upstream: ScriptedUpstream
) -> None:
    found = await catalog(
        *(commands, upstream, OPUS),
        MODELS="fast=claude-plain claude-opus-5-5=x",
        CHAT_MODELS="gpt-5=claude-opus-5-5 *=claude-opus-5-5",
    )
    assert list(found) == ["claude-opus-5-5", "fast", "gpt-5"]
    assert found["gpt-5"]["display_name"] == "gpt-5 (Claude Opus 5.5)"
    assert found["gpt-5"]["context_window"] == 1_000_000
    assert found["fast"]["description"] == "claude-plain, 200,000 tokens of context"


def test_catalog_of_a_cloud_has_the_models_of_the_settings(commands: Commands) -> None:
    file = commands.directory / "upstreams.toml"
    entry = 'name = "aws"\nkind = "bedrock"\nregion = "eu-west-1"'
    file.write_text(f'[[upstream]]\n{entry}\nmodels = ["claude-haiku-5-5", "claude-*"]\n')
    done = commands.run("codex-catalog", AUTH_TOKEN=TEST_TOKEN, UPSTREAMS_FILE=str(file))
    assert (done.status, done.errors) == (0, "")
    (only,) = json.loads(done.output)["models"]
    assert (only["slug"], only["context_window"]) == ("claude-haiku-5-5", 200_000)


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (
            error_response(403, "permission_error", "Key disabled."),
            "the upstream responded to GET /v1/models with 403: Key disabled.",
        ),
        (
            error_response(401, "authentication_error", "no"),
            "UPSTREAM_API_KEY: the upstream refused this key (status 401): replace it",
        ),
        (bytes_response(b"<html>"), "the upstream's models are unknown: The upstream's response"),
        (silent_response(), "the upstream's models are unknown: The upstream did not begin"),
        (json_response({"data": []}), "the upstream lists no models: name them in CHAT_MODELS"),
    ],
    ids=["403", "401", "no list", "silence", "empty"],
)
async def test_catalog_without_models_is_refused_with_one_line(
    commands: Commands, upstream: ScriptedUpstream, response: Response, told: str
) -> None:
    upstream.script(response)
    done = await run(commands, upstream, UPSTREAM_FIRST_BYTE_TIMEOUT="0.2")
    assert (done.status, done.output) == (2, "")
    (line,) = done.errors.splitlines()
    assert line.startswith(f"tornadoproxy: {told}")
    assert TEST_UPSTREAM_KEY not in line
