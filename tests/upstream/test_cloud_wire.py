"""An access token that the upstream refuses: it is loaded anew, and the request sent again."""

from __future__ import annotations

from pathlib import Path

import pytest
from clouds import ScriptedGoogle, cloud_entry, google_error
from scene import Scene
from several import MESSAGE

from tornadoproxy.upstream import credential


async def start(scene: Scene, google: ScriptedGoogle, path: Path) -> None:
    account = str(google.key_file(path / "account.json"))
    entry = cloud_entry(google, "vertex", "access_token", service_account_file=account)
    (path / "upstreams.toml").write_text(entry)
    await scene.start(UPSTREAMS_FILE=path / "upstreams.toml")
    assert (await scene.ask("/v1/messages", MESSAGE)).status == 200


@pytest.mark.parametrize("body", [MESSAGE, {**MESSAGE, "stream": True}])
async def test_refused_token_is_renewed_and_the_request_sent_again(
    body: dict[str, object],
    scene: Scene,
    google: ScriptedGoogle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start(scene, google, tmp_path)
    monkeypatch.setattr(credential, "NEW", 0)
    google.tokens.clear()  # as if they had been revoked
    assert (await scene.ask("/v1/messages", body)).status == 200
    record = await scene.records.finished(2)
    assert (record.attempts, record.failed_attempts) == (1, ())
    paths = [request.path.rpartition("/")[2] for request in google.requests]
    assert [paths[0], paths[2], paths[3]] == ["token", paths[4], "token"]
    assert google.requests[2].body == google.requests[4].body


async def test_token_that_is_refused_again_is_the_proxys_fault(
    scene: Scene, google: ScriptedGoogle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await start(scene, google, tmp_path)
    refused = google_error(401, "UNAUTHENTICATED", "No")
    google.script(refused, refused)
    response = await scene.ask("/v1/messages", MESSAGE)
    assert (response.status, b"proxy's own credential" in response.body) == (502, True)
    assert "the Google credentials of the upstream 'vertex'" in caplog.text
    assert len(google.requests) == 4
