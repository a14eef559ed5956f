"""The real proxy, with this package installed in place of the token plugin."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import TEST_TOKEN

ALICES_TOKEN = "alices-long-random-token"
BOBS_TOKEN = "bobs-long-random-token"


def hashed(token):
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def people_file(tmp_path) -> Path:
    path = tmp_path / "people.json"
    path.write_text(json.dumps({"alice": hashed(ALICES_TOKEN), "bob": hashed(BOBS_TOKEN)}))
    return path


@pytest.fixture
def start(start_proxy, people_file):
    async def start():
        return await start_proxy(DISABLED_PLUGINS="token", PEOPLE_FILE=people_file)

    return start


async def ask(http_client, proxy, headers):
    return await http_client.fetch(f"{proxy.url}/v1/models", headers=headers, raise_error=False)


@pytest.mark.parametrize(
    "headers",
    [{"x-api-key": BOBS_TOKEN}, {"Authorization": f"Bearer {BOBS_TOKEN}"}],
    ids=["x-api-key", "bearer"],
)
async def test_the_right_person_gets_in_by_name(start, http_client, upstream, records, headers):
    response = await ask(http_client, await start(), headers)

    assert response.code == 200
    assert len(upstream.requests) == 1
    assert (await records.finished()).principal == "bob"


@pytest.mark.parametrize(
    "headers",
    [{"x-api-key": "nobodys"}, {"x-api-key": TEST_TOKEN}, {"x-api-key": hashed(BOBS_TOKEN)}, {}],
    ids=["unknown", "token-plugin's", "hash", "none"],
)
async def test_nobody_else_gets_in(start, http_client, upstream, records, headers):
    response = await ask(http_client, await start(), headers)

    assert response.code == 401
    assert json.loads(response.body)["error"]["type"] == "authentication_error"
    assert upstream.requests == []
    assert (await records.finished()).principal is None


async def test_people_come_and_go_without_a_restart(start, http_client, people_file):
    proxy = await start()
    people_file.write_text(json.dumps({"carol": hashed("carols-long-random-token")}))
    proxy.reload()

    assert (await ask(http_client, proxy, {"x-api-key": BOBS_TOKEN})).code == 401
    carol = {"x-api-key": "carols-long-random-token"}
    assert (await ask(http_client, proxy, carol)).code == 200


async def test_a_file_that_is_wrong_changes_nothing(start, http_client, people_file):
    proxy = await start()
    people_file.write_text(json.dumps({"carol": hashed("carols-long-random-token"), "dave": ""}))

    with pytest.raises(ConfigurationError, match="'dave' needs the SHA-256"):
        proxy.reload()
    # configured again with the old settings, whose file is wrong now: those before stay
    assert (await ask(http_client, proxy, {"x-api-key": BOBS_TOKEN})).code == 200


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not JSON"),
        (b"\xff", "is not JSON"),
        ("[]", "an object of names and hashes"),
        ("{}", "an object of names and hashes"),
        (json.dumps({"": hashed("t")}), "a name is empty"),
        (json.dumps({"alice": "in-the-clear"}), "'alice' needs the SHA-256"),
        (json.dumps({"alice": 5}), "'alice' needs the SHA-256"),
        (json.dumps({"alice": hashed("t").upper()}), "'alice' needs the SHA-256"),
        (json.dumps({"alice": hashed("t"), "bob": hashed("t")}), "the same token"),
    ],
)
async def test_a_wrong_file_is_refused_readably(start, people_file, content, fault):
    people_file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ConfigurationError, match=fault) as caught:
        await start()
    assert all(line.startswith("PEOPLE_FILE") for line in caught.value.faults)
    assert "in-the-clear" not in str(caught.value)


async def test_every_fault_is_told_at_once(start, people_file):
    people_file.write_text(json.dumps({"alice": "short", "bob": "short"}))

    with pytest.raises(ConfigurationError) as caught:
        await start()
    assert len(caught.value.faults) == 3


async def test_it_does_not_start_without_a_file(start_proxy):
    with pytest.raises(ConfigurationError, match="PEOPLE_FILE is not set"):
        await start_proxy(DISABLED_PLUGINS="token")


def test_the_token_plugin_is_not_even_imported(tmp_path, people_file):
    script = (
        "import sys\n"
        "from tornadoproxy import cli\n"
        "status = cli.main(['check'], {'DISABLED_PLUGINS': 'token', 'PEOPLE_FILE': sys.argv[1],"
        " 'UPSTREAM_API_KEY': 'k'})\n"
        "print(status, 'tornadoproxy_example_auth' in sys.modules,"
        " 'tornadoproxy_token' in sys.modules)\n"
    )
    ran = run([sys.executable, "-c", script, str(people_file)], tmp_path)

    assert ran.stdout.splitlines()[-1] == "0 True False"
    assert "2 people of PEOPLE_FILE" in ran.stdout


def test_it_is_listed(tmp_path, people_file):
    ran = run([sys.executable, "-m", "tornadoproxy", "plugins"], tmp_path, DISABLED_PLUGINS="token")

    rows = [line.split() for line in ran.stdout.splitlines()]
    first = rows[1]
    assert first[:3] == ["1", "people", "tornadoproxy-example-auth"]
    assert "authenticate" in ran.stdout.splitlines()[1]
    assert ["token", "disabled"] == [
        cell for row in rows for cell in row if cell in ("token", "disabled")
    ]


def run(command, directory, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=directory, env=environment, check=True, capture_output=True, text=True
    )
