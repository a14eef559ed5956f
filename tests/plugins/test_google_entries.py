"""The entries of the kinds vertex and google_cloud: URLs, mistakes, and credentials."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import anthropic
import pytest
from clouds import PROJECT, REGION, TOKEN, ScriptedGoogle, cloud_entry, start
from in_process import Commands
from scene import Scene

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import TEST_TOKEN


@pytest.mark.parametrize(
    ("kind", "without", "keys", "fault"),
    [
        ("vertex", "project", {}, "project is missing"),
        ("vertex", "region", {}, "region is missing"),
        ("vertex", "", {"region": "eu/west"}, "region must be a region such as"),
        ("vertex", "", {"project": "a/b"}, "project must be the id or number"),
        ("vertex", "", {"speed": 1}, "speed is unknown"),
        ("vertex", "", {"unsupported": "x"}, "unsupported must be one of ignore, refuse"),
        ("google_cloud", "workspace_id", {}, "workspace_id is missing"),
        ("google_cloud", "", {"betas": "x"}, "betas is unknown"),
        ("vertex", "", {"service_account_file": "x"}, "are both set: keep one"),
        ("vertex", "access_token", {"service_account_file": "/nowhere"}, "readable file"),
        ("vertex", "access_token", {"service_account_file": "/dev/null"}, "must name the key file"),
    ],
)
async def test_mistake_in_an_entry_is_reported_with_its_key(
    kind: str,
    without: str,
    keys: dict[str, Any],
    fault: str,
    scene: Scene,
    google: ScriptedGoogle,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        await start(scene, tmp_path, cloud_entry(google, kind, without, **keys))


@pytest.mark.parametrize(
    ("kind", "keys", "url"),
    [
        ("vertex", {"region": "global"}, "https://aiplatform.googleapis.com"),
        ("vertex", {"region": "us"}, "https://aiplatform.us.rep.googleapis.com"),
        ("vertex", {"region": "eu"}, "https://aiplatform.eu.rep.googleapis.com"),
        ("vertex", {}, f"https://{REGION}-aiplatform.googleapis.com"),
        ("google_cloud", {}, "https://claude.googleapis.com"),
    ],
)
async def test_url_follows_from_the_region(
    kind: str,
    keys: dict[str, str],
    url: str,
    scene: Scene,
    google: ScriptedGoogle,
    tmp_path: Path,
) -> None:
    proxy = await start(scene, tmp_path, cloud_entry(google, kind, "base_url", **keys))
    (upstream,) = proxy.plugins.upstreams
    assert str(upstream.base_url) == url
    if kind == "vertex":
        location = {"region": REGION, **keys}["region"]
        own = anthropic.AnthropicVertex(region=location, project_id=PROJECT, access_token=TOKEN)
        assert str(own.base_url) == f"{url}/v1/"


async def test_missing_library_is_named_at_start(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tornadoproxy_google.tokens", raising=False)
    monkeypatch.setitem(sys.modules, "google.auth", None)
    monkeypatch.setitem(sys.modules, "google", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tornadoproxy\[google\]'"):
        await start(scene, tmp_path, cloud_entry(google, "vertex", "access_token"))
    await start(scene, tmp_path, cloud_entry(google, "vertex"))


async def test_check_online_loads_the_token(
    google: ScriptedGoogle, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    account = str(google.key_file(commands.directory / "account.json"))
    file = commands.directory / "upstreams.toml"

    def check(*entries: str) -> tuple[int, str, str]:
        file.write_text("".join(entries))
        return commands.run("check", "--online", AUTH_TOKEN=TEST_TOKEN, UPSTREAMS_FILE=str(file))

    good = [
        cloud_entry(google, kind, "access_token", service_account_file=account)
        for kind in ("vertex", "google_cloud")
    ]
    status, output, errors = await asyncio.to_thread(check, *good)
    assert (status, errors) == (0, "")
    assert "the upstream 'vertex' has a credential" in output
    assert "the upstream 'google_cloud' accepts the key" in output
    bad = cloud_entry(google, "vertex", "access_token")
    status, _, errors = await asyncio.to_thread(check, bad)
    assert status == 2
    assert "The access token of the upstream 'vertex' could not be loaded" in errors
