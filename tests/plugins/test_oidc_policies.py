"""The plugin oidc: what holds for groups, and the settings that Claude Code gets."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from postgres import sqlite_only
from signing_in import MESSAGE, SigningIn, document
from tornadoproxy_oidc import sessions
from tornadoproxy_oidc.policies import Policies

from tornadoproxy import ConfigurationError, Follower
from tornadoproxy.testing import RawResponse

POLICIES = """
[[policy]]
groups = ["left"]
denied = "You have left! Ask your manager"

[[policy]]
groups = ["staff"]
settings = "staff.json"

[[policy]]
groups = ["lab"]
models = ["claude-sonnet-*"]
[policy.settings]
model = "sonnet"
permissions = {deny = ["Read(.env)"]}
env = {Z = "ü", A = "1"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "staff.json").write_text('{"model": "opus"}')
    file = tmp_path / "policies.toml"
    file.write_text(POLICIES)
    return file


async def settings(signing_in: SigningIn, bearer: str, tag: str | None = None) -> RawResponse:
    headers = {} if tag is None else {"If-None-Match": tag}
    return await signing_in.scene.ask("/managed/settings", token=bearer, headers=headers)


async def test_claude_code_gets_the_settings_of_the_group(
    signing_in: SigningIn, file: Path
) -> None:
    await signing_in.start(OIDC_POLICY_FILE=file)
    bearer = (await signing_in.sign_in())["access_token"]
    response = await settings(signing_in, bearer)
    # the checksum that Claude Code computes by itself: compact, sorted, not escaped
    canonical = (
        '{"env":{"A":"1","Z":"ü"},"model":"sonnet","permissions":{"deny":["Read(.env)"]}}'.encode()
    )
    checksum = f"sha256:{hashlib.sha256(canonical).hexdigest()}"
    found = document(response)
    assert (response.status, response.header("etag")) == (200, f'"{checksum}"')
    assert found["checksum"] == checksum
    assert found["settings"] == json.loads(canonical)
    assert isinstance(found["uuid"], str)
    assert set(found) == {"uuid", "checksum", "settings"}

    for tag in (f'"{checksum}"', f'W/"{checksum}"', f'"x", "{checksum}"'):
        unchanged = await settings(signing_in, bearer, tag)
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert unchanged.header("etag") == f'"{checksum}"'
    nothing = hashlib.sha256(b"{}").hexdigest()
    assert (await settings(signing_in, bearer, f'"sha256:{nothing}"')).status == 200


async def test_first_policy_of_the_groups_counts_and_reloads(
    signing_in: SigningIn, file: Path
) -> None:
    proxy = await signing_in.start(OIDC_POLICY_FILE=file)
    signing_in.provider.person["groups"] = ["lab", "staff"]
    bearer = (await signing_in.sign_in())["access_token"]
    assert document(await settings(signing_in, bearer))["settings"] == {"model": "opus"}
    (file.parent / "staff.json").write_text('{"model": "haiku"}')
    proxy.reload()
    assert document(await settings(signing_in, bearer))["settings"] == {"model": "haiku"}


async def test_person_without_settings_gets_404(signing_in: SigningIn, file: Path) -> None:
    proxy = await signing_in.start()
    bearer = (await signing_in.sign_in())["access_token"]
    assert (await settings(signing_in, bearer)).status == 404
    signing_in.provider.person["groups"] = []
    other = (await signing_in.sign_in())["access_token"]
    proxy.reload(OIDC_POLICY_FILE=file)
    assert (await settings(signing_in, bearer)).status == 200
    assert (await settings(signing_in, other)).status == 404


async def test_settings_need_a_bearer(signing_in: SigningIn, file: Path) -> None:
    await signing_in.start(OIDC_POLICY_FILE=file)
    for token in ("test-token-that-clients-present", "a.b.c", None):
        response = await signing_in.scene.ask("/managed/settings", token=token)
        assert (response.status, document(response)["type"]) == (401, "error"), token


@sqlite_only
async def test_settings_need_no_store_and_no_provider(
    signing_in: SigningIn, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signing_in.start(OIDC_POLICY_FILE=file)
    bearer = (await signing_in.sign_in())["access_token"]
    assert isinstance(signing_in.where, Path)
    signing_in.where.rename(signing_in.where.with_name("away"))
    await signing_in.provider.stop()
    monkeypatch.setattr(Follower, "MAX_UNVERIFIED", 0.0)
    file.unlink()
    assert (await signing_in.get(bearer)).status == 503
    for _ in range(50):  # no limit of rate
        assert (await settings(signing_in, bearer)).status == 200


async def test_signed_out_person_gets_no_settings(signing_in: SigningIn, file: Path) -> None:
    await signing_in.start(OIDC_POLICY_FILE=file)
    bearer = (await signing_in.sign_in())["access_token"]
    await signing_in.post("/oauth/revoke", token=bearer)
    assert (await settings(signing_in, bearer)).status == 401


async def test_group_may_use_its_models_alone(signing_in: SigningIn, file: Path) -> None:
    await signing_in.start(OIDC_POLICY_FILE=file)
    bearer = (await signing_in.sign_in())["access_token"]
    for token in (bearer, signing_in.provider.token(groups=["lab"])):
        message = {**MESSAGE, "model": "claude-sonnet-5-5"}
        assert (await signing_in.scene.ask("/v1/messages", message, token=token)).status == 200
        message = {**MESSAGE, "model": "claude-opus-5-5"}
        refused = await signing_in.scene.ask("/v1/messages", message, token=token)
        assert (refused.status, document(refused)["error"]["message"]) == (
            403,
            "Your group may use the model claude-sonnet-*, and the request asks for "
            "claude-opus-5-5.",
        )
        listed = document(await signing_in.scene.ask("/v1/models", token=token))
        allowed = [each["id"] for each in listed["data"]]
        assert allowed == ["claude-sonnet-5-5", "claude-sonnet-4-5-20250929"]
    batch = await signing_in.scene.ask("/v1/messages/batches", {"requests": []}, token=bearer)
    assert (batch.status, b"one by one" in batch.body) == (403, True)


async def test_person_whose_groups_are_left_out_is_refused(
    signing_in: SigningIn, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider leaves out the groups of a person who has very many (OIDC Core §5.6.2)."""
    await signing_in.start(OIDC_POLICY_FILE=file)
    tokens = await signing_in.sign_in()
    elsewhere: dict[str, Any] = {
        "_claim_names": {"groups": "src1"},
        "_claim_sources": {"src1": {"endpoint": "x"}},
    }
    refused = await signing_in.get(signing_in.provider.token(**elsewhere))
    said = document(refused)["error"]["message"]
    assert (refused.status, "claim groups is left out" in said) == (401, True)
    del signing_in.provider.person["groups"]
    signing_in.provider.person |= elsewhere
    begun = await signing_in.begin()
    page = await signing_in.approve(begun)
    assert (page.status, b"claim groups is left out" in page.body) == (403, True)
    assert document(await signing_in.poll(begun))["error"] == "access_denied"
    monkeypatch.setattr(sessions, "GRACE", -1)
    assert (await signing_in.refresh(tokens["refresh_token"])).status == 401


async def test_proxy_for_people_who_sign_in_accepts_nobody_else(signing_in: SigningIn) -> None:
    """Whoever is refused must not get in without a credential."""
    await signing_in.start(AUTH_TOKEN=None)
    for token in (None, "anything"):
        response = await signing_in.scene.ask("/v1/messages", MESSAGE, token=token)
        assert response.status == 401
    bearer = (await signing_in.sign_in())["access_token"]
    assert (await signing_in.get(bearer)).status == 200


async def test_denied_group_is_kept_out_everywhere(
    signing_in: SigningIn, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await signing_in.start(OIDC_POLICY_FILE=file, OIDC_WORKLOADS="ci=left")
    tokens = await signing_in.sign_in()
    refused = [
        await signing_in.get(signing_in.provider.token(groups=["lab", "left"])),
        await signing_in.get(signing_in.provider.token(aud="ci")),
    ]
    signing_in.provider.person["groups"] = ["left"]
    begun = await signing_in.begin()
    page = await signing_in.approve(begun)
    assert b"<p>You have left! Ask your manager</p>" in page.body
    assert document(await signing_in.poll(begun))["error"] == "access_denied"

    file.write_text('[[policy]]\ngroups = ["lab"]\ndenied = "You have left! Ask your manager"')
    proxy.reload()
    refused.append(await signing_in.get(tokens["access_token"]))
    for response in refused:
        said = document(response)["error"]["message"]
        assert (response.status, said) == (403, "You have left! Ask your manager")
    monkeypatch.setattr(sessions, "GRACE", -1)
    signing_in.provider.person["groups"] = ["lab"]
    assert (await signing_in.refresh(tokens["refresh_token"])).status == 401
    assert signing_in.scene.upstream.requests == []


WRONG = (
    ("policy = 5", "policy must be a list of tables"),
    ("policies = []", "unknown field policies; known: policy"),
    ("[[policy]]\ngroup = ['x']", "policy 1 has the unknown field group"),
    ("[[policy]]\n[[policy]]\ngroups = 'x'", "policy 2: groups must be a list"),
    ("[[policy]]\ngroups = []", "at least one name"),
    ("[[policy]]\nmodels = [5]", "models must be a list"),
    ("[[policy]]\ndenied = true", "denied must be a text"),
    ("[[policy]]\ndenied = ' '", "policy 1: denied must not be empty"),
    (
        "[[policy]]\nsettings = {}\n[[policy]]\ngroups = ['left']\ndenied = 'No.'",
        "policy 2 never applies, because policy 1 has no groups",
    ),
    ("[[policy]]\nsettings = {ratio = nan}", "a date or nan"),
    ("[[policy]]\nsettings = 5", "settings must be a table, or the path"),
    ("[[policy]]\nsettings = 'absent.json'", "cannot be read: No such file"),
    ("[[policy]]\nsettings = 'broken.json'", "is not valid"),
    ("[[policy]]\nsettings = {since = 2026-01-01}", "a date"),
    ("[[policy", "not valid TOML"),
)


async def test_wrong_policy_file_ends_the_start(signing_in: SigningIn, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    file = tmp_path / "policies.toml"
    for text, said in WRONG:
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            await signing_in.start(OIDC_POLICY_FILE=file)


def test_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sign-in.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "interns.json").write_text("{}")
    given: dict[str, Any] = tomllib.loads(example)
    assert Policies(given, tmp_path).of(["contractors-2025"]).denied is not None
