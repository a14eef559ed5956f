"""The entries on the page about upstreams: a proxy starts with them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from clouds import ScriptedGoogle
from documents import PAGES, blocks, sections
from scene import Scene

SECRETS = "/run/secrets/"


@pytest.mark.parametrize(
    ("heading", "upstreams"),
    [
        (
            "Google Vertex AI and Claude on Google Cloud",
            {
                "vertex": "https://europe-west1-aiplatform.googleapis.com",
                "gateway": "https://claude.googleapis.com",
            },
        ),
        ("Microsoft Foundry", {"foundry": "https://acme-claude.services.ai.azure.com/anthropic"}),
    ],
)
async def test_proxy_starts_with_the_entries_of_a_cloud(
    heading: str, upstreams: dict[str, str], scene: Scene, google: ScriptedGoogle, tmp_path: Path
) -> None:
    (entries,) = blocks(sections(PAGES["upstreams"], 2)[heading], "toml")
    google.key_file(tmp_path / "claude-proxy.json")
    (tmp_path / "foundry").write_text("a-key-of-the-resource")
    file = tmp_path / "upstreams.toml"
    file.write_text(entries.replace(SECRETS, f"{tmp_path}/"))
    proxy = await scene.start(UPSTREAMS_FILE=file)
    found = {each.name: str(each.base_url) for each in proxy.plugins.upstreams}
    assert found == upstreams
