"""The command sign-ins of the plugin oidc."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
from people import run_command, until
from signing_in import SigningIn
from tornadoproxy_oidc import OpenIDConnect
from tornadoproxy_oidc.settings import OIDC_DB

from tornadoproxy import Follower


async def test_sign_ins_of_a_person_are_listed_and_ended(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Follower, "INTERVAL", 0.02)
    await signing_in.start()
    first, second = await signing_in.sign_in(), await signing_in.sign_in()
    signing_in.provider.person.update(sub="bob", email="bob@acme.example")
    other = await signing_in.sign_in()
    where = {OIDC_DB: signing_in.where}

    listed = run_command(OpenIDConnect(), where, "list", "--format", "json")
    # those of one second have no order
    rows = sorted(json.loads(listed.stdout), key=lambda row: str(row["name"]))
    assert [row["name"] for row in rows] == ["ada", "ada", "bob"]
    assert (rows[0]["email"], rows[0]["groups"]) == ("ada@acme.example", ["lab"])

    ended = run_command(OpenIDConnect(), where, "end", "ada")
    assert (ended.returncode, ended.stdout) == (0, "ended 2 sign-ins of ada\n")
    for tokens in (first, second):
        bearer = tokens["access_token"]
        async with asyncio.timeout(2):
            await until(401, partial(signing_in.get, bearer))
        assert (await signing_in.refresh(tokens["refresh_token"])).status == 401
    assert (await signing_in.get(other["access_token"])).status == 200

    again = run_command(OpenIDConnect(), where, "end", "ada")
    assert (again.returncode, "ada is not signed in" in again.stderr) == (2, True)


def test_command_without_a_database_says_so() -> None:
    ran = run_command(OpenIDConnect(), {}, "list")
    assert (ran.returncode, "OIDC_DB is not set" in ran.stderr) == (2, True)
