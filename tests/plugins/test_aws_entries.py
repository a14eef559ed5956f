"""Entries of ``UPSTREAMS_FILE`` on AWS: defaults, the environment, and faults with their lines."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from aws_cloud import ScriptedAWS, aws_entry
from in_process import Commands

from tornadoproxy.testing import TEST_TOKEN

KEY = "bedrock-api-key-canary-0123456789"


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    (tmp_path / "config").write_text("[profile claude]\nregion = ap-south-1\n")


def check(commands: Commands, entry: str, **variables: str) -> tuple[str, str]:
    """Return what ``check`` prints and what it complains of, without the file's name."""
    file = commands.directory / "upstreams.toml"
    file.write_text(f'[[upstream]]\nname = "a"\n{entry}\n')
    done = commands.run("check", AUTH_TOKEN=TEST_TOKEN, UPSTREAMS_FILE=str(file), **variables)
    assert KEY not in done.output + done.errors
    return done.output, done.errors.replace(f"tornadoproxy: {file}, ", "").rstrip()


@pytest.mark.parametrize(
    ("entry", "variables", "where"),
    [
        ('kind = "bedrock"\nregion = "eu-west-1"', {}, "bedrock-runtime.eu-west-1.amazonaws.com"),
        (
            'kind = "bedrock"',
            {"AWS_REGION": "us-east-2", "AWS_DEFAULT_REGION": "x"},
            "bedrock-runtime.us-east-2.amazonaws.com",
        ),
        (
            'kind = "mantle"\nprofile = "claude"',
            {},
            "bedrock-mantle.ap-south-1.api.aws/anthropic",
        ),
        (
            'kind = "aws"',
            {"AWS_DEFAULT_REGION": "us-west-2", "ANTHROPIC_AWS_WORKSPACE_ID": "wrkspc_1"},
            "aws-external-anthropic.us-west-2.api.aws",
        ),
        (
            'kind = "bedrock"\nregion = "eu-west-1"\nbase_url = "https://vpce-1.example/bedrock"',
            {"AWS_BEARER_TOKEN_BEDROCK": KEY},
            "vpce-1.example/bedrock",
        ),
    ],
)
def test_upstream_follows_from_the_entry_and_the_environment(
    entry: str, variables: dict[str, str], where: str, commands: Commands
) -> None:
    output, errors = check(commands, entry, **variables)
    assert errors == ""
    assert f"https://{where}" in output


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AWS_REGION": "a.example/"}, "line 1: region is not set, and that of the environment"),
        ({"AWS_REGION": "eu-west-1", "AWS_BEARER_TOKEN_BEDROCK": "a b"}, "line 3: kind 'bedrock'"),
    ],
)
def test_fault_of_the_environment_names_the_entry(
    variables: dict[str, str], told: str, commands: Commands
) -> None:
    _, errors = check(commands, 'kind = "bedrock"', **variables)
    assert errors.startswith(told)


def test_profile_of_the_environment_that_is_missing_leaves_no_region(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "missing")
    _, errors = check(commands, 'kind = "bedrock"')
    assert errors == "line 1: region is missing: set it, or AWS_REGION"


def test_misspelled_region_is_named_with_the_key_that_was_meant(commands: Commands) -> None:
    _, errors = check(commands, 'kind = "bedrock"\nregon = "us-east-1"')
    assert errors.endswith("line 4: regon is unknown: did you mean region?")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ('kind = "bedrock"', "line 1: region is missing: set it, or AWS_REGION"),
        (
            'kind = "bedrock"\nregion = "a.example/"',
            "line 4: region must be the name of a region, such as us-east-1",
        ),
        (
            'kind = "bedrock"\nregion = "a"\nprofile = "b"',
            "line 5: profile is not a profile of the AWS configuration files: 'b'",
        ),
        (
            'kind = "bedrock"\nprofile = "claude"\napi_key = "k-0123456789"',
            "line 4: profile and api_key are both set: keep one of them",
        ),
        (
            'kind = "bedrock"\nregion = "a"\naccess_key_id = "b"',
            "line 1: secret_access_key is missing: access_key_id and secret_access_key go together",
        ),
        (
            'kind = "bedrock"\nregion = "a"\nbeta = "b"',
            "line 5: beta is unknown: did you mean betas?",
        ),
        (
            'kind = "bedrock"\nregion = "a"\nunsupported = "drop"',
            "line 5: unsupported must be one of ignore, refuse",
        ),
        (
            'kind = "aws"\nregion = "a"',
            "line 1: workspace_id is missing: set it, or ANTHROPIC_AWS_WORKSPACE_ID",
        ),
    ],
)
def test_fault_of_an_entry_is_one_line(entry: str, told: str, commands: Commands) -> None:
    output, errors = check(commands, entry)
    assert output == ""
    assert errors.startswith(told)
    assert "\n" not in errors


def test_missing_library_is_named_with_the_entrys_line(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.startswith("tornadoproxy_aws.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    _, errors = check(commands, 'kind = "bedrock"\nregion = "eu-west-1"')
    assert "line 3: kind 'bedrock' needs botocore" in errors
    assert "pip install 'tornadoproxy[aws]'" in errors


async def test_check_online_asks_with_the_credential(aws: ScriptedAWS, commands: Commands) -> None:
    file = commands.directory / "upstreams.toml"
    kinds = (aws_entry(aws, kind) for kind in ("bedrock", "mantle", "aws"))
    file.write_text("\n".join(kinds))

    def check() -> tuple[int, str, str]:
        return commands.run("check", "--online", AUTH_TOKEN=TEST_TOKEN, UPSTREAMS_FILE=str(file))

    status, output, errors = await asyncio.to_thread(check)
    assert (status, errors) == (0, "")
    assert "the upstream 'aws' accepts the key" in output
    aws.credentials.clear()
    status, _, errors = await asyncio.to_thread(check)
    assert status == 2
    assert "the AWS credentials of the upstream 'aws': the upstream refused this key" in errors
