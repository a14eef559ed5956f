"""AWS credentials by botocore's own chain: loaded in a thread, refreshed ahead of their end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aws_cloud import ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, ScriptedAWS, aws_entry, aws_error
from scene import Scene

BODY = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hi"}],
}

# a credential process, which says how often it has run
PROCESS = """
import json, pathlib, sys
here = pathlib.Path(sys.argv[1])
with (here / "runs").open("a") as runs:
    runs.write("x")
(here / "gate").read_bytes() if (here / "gate").exists() else None
print((here / "credentials").read_text())
"""


class Source:
    """A profile whose credentials a process prints."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        (directory / "process.py").write_text(PROCESS)
        command = f"{sys.executable} {directory / 'process.py'} {directory}"
        (directory / "config").write_text(f"[profile claude]\ncredential_process = {command}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(directory / "config"))

    def give(self, key_id: str = ACCESS_KEY, *, token: str = SESSION_TOKEN, minutes: float) -> None:
        """Let the process print these from now on."""
        ends = datetime.now(UTC) + timedelta(minutes=minutes)
        printed = {
            "Version": 1,
            "AccessKeyId": key_id,
            "SecretAccessKey": SECRET_KEY,
            "SessionToken": token,
            "Expiration": ends.isoformat(),
        }
        (self._directory / "credentials").write_text(json.dumps(printed))

    @property
    def runs(self) -> int:
        """How often the process has begun."""
        runs = self._directory / "runs"
        return len(runs.read_bytes()) if runs.exists() else 0


@pytest.fixture
def source(
    aws: ScriptedAWS,  # it takes the configuration of this machine away first
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Source:
    return Source(tmp_path, monkeypatch)


@pytest.fixture
def file(aws: ScriptedAWS, tmp_path: Path) -> Path:
    """An ``UPSTREAMS_FILE`` with an upstream that uses the profile."""
    file = tmp_path / "upstreams.toml"
    file.write_text(aws_entry(aws, "mantle", profile="claude"))
    aws.credentials = dict.fromkeys((ACCESS_KEY, "AKIDSECOND"), (SECRET_KEY, SESSION_TOKEN))
    return file


def key_ids(aws: ScriptedAWS) -> list[str]:
    return [
        str(each.header("authorization")).partition("Credential=")[2].partition("/")[0]
        for each in aws.requests
    ]


async def test_first_requests_wait_for_one_load(
    scene: Scene, aws: ScriptedAWS, source: Source, file: Path
) -> None:
    source.give(minutes=60)
    await scene.start(UPSTREAMS_FILE=file)
    responses = await asyncio.gather(*(scene.ask("/v1/messages", BODY) for _ in range(5)))
    assert [each.status for each in responses] == [200] * 5
    assert source.runs == 1


async def test_proxy_serves_others_while_credentials_are_loaded(
    scene: Scene, aws: ScriptedAWS, source: Source, file: Path, tmp_path: Path
) -> None:
    source.give(minutes=60)
    os.mkfifo(tmp_path / "gate")  # the process waits until it is opened for writing
    await scene.start(UPSTREAMS_FILE=file)
    asking = asyncio.ensure_future(scene.ask("/v1/messages", BODY))
    while not source.runs:
        await asyncio.sleep(0.01)
    assert (await scene.ask("/health")).status == 200
    assert not asking.done()
    await asyncio.to_thread((tmp_path / "gate").write_bytes, b"open")
    assert (await asking).status == 200


async def test_credentials_that_end_soon_are_loaded_anew_without_delay(
    scene: Scene, aws: ScriptedAWS, source: Source, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.give(minutes=2)
    await scene.start(UPSTREAMS_FILE=file)
    assert (await scene.ask("/v1/messages", BODY)).status == 200
    monkeypatch.setattr("tornadoproxy.upstream.credential.NEW", 0.0)
    source.give("AKIDSECOND", minutes=60)
    while key_ids(aws)[-1] == ACCESS_KEY:
        assert (await scene.ask("/v1/messages", BODY)).status == 200


async def test_refused_credentials_are_loaded_anew_and_the_request_sent_again(
    scene: Scene, aws: ScriptedAWS, source: Source, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.give(minutes=60)
    await scene.start(UPSTREAMS_FILE=file)
    assert (await scene.ask("/v1/messages", BODY)).status == 200
    del aws.credentials[ACCESS_KEY]
    source.give("AKIDSECOND", minutes=60)
    monkeypatch.setattr("tornadoproxy.upstream.credential.NEW", 0.0)
    assert (await scene.ask("/v1/messages", BODY)).status == 200
    assert key_ids(aws) == [ACCESS_KEY, ACCESS_KEY, "AKIDSECOND"]
    assert source.runs == 2


async def test_credentials_refused_for_good_are_the_proxys_fault(
    scene: Scene,
    aws: ScriptedAWS,
    source: Source,
    file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source.give(minutes=60)
    await scene.start(UPSTREAMS_FILE=file)
    expired = aws_error(403, "ExpiredTokenException", "The security token is expired")
    aws.script(expired, expired)
    response = await scene.ask("/v1/messages", BODY)
    assert (response.status, b"this proxy's own" in response.body) == (502, True)
    assert "the AWS credentials of the upstream 'mantle': the upstream refused" in caplog.text


async def test_missing_credentials_fail_the_request_and_another_upstream_is_tried(
    scene: Scene, aws: ScriptedAWS, source: Source, file: Path
) -> None:
    await scene.start(UPSTREAMS_FILE=file)  # the process fails
    response = await scene.ask("/v1/messages", BODY)
    assert (response.status, b"could not be loaded" in response.body) == (502, True)
    assert str(SECRET_KEY).encode() not in response.body
    other = f'[[upstream]]\nname = "other"\nbase_url = "{scene.upstream.url}"\napi_key = "k"\n'
    file.write_text(f'order = "listed"\n{file.read_text()}{other}')
    await scene.start(UPSTREAMS_FILE=file)
    response = await scene.ask("/v1/messages", BODY)
    assert (response.status, response.header("x-tornadoproxy-upstream")) == (200, "other")
    assert aws.requests == []


async def test_environment_is_the_start_of_the_chain(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    file = tmp_path / "upstreams.toml"
    entry = aws_entry(aws, "bedrock")
    file.write_text("\n".join(line for line in entry.splitlines() if "access_key" not in line))
    await scene.start(UPSTREAMS_FILE=file)
    assert (await scene.ask("/v1/messages", BODY)).status == 200
    assert key_ids(aws) == [ACCESS_KEY]


async def test_session_token_of_the_entry_is_sent(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    aws.credentials[ACCESS_KEY] = (SECRET_KEY, SESSION_TOKEN)
    (tmp_path / "token").write_text(SESSION_TOKEN)
    keys = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
    file = tmp_path / "upstreams.toml"
    token = str(tmp_path / "token")
    file.write_text(aws_entry(aws, "bedrock", **keys, session_token_file=token))
    await scene.start(UPSTREAMS_FILE=file)
    assert (await scene.ask("/v1/messages", BODY)).status == 200
    assert aws.requests[0].header("x-amz-security-token") == SESSION_TOKEN
