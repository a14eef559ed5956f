"""The check of `conftest.py`: no test shows a credential."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CARELESS_TESTS = """
import logging
import os
import sys

import pytest

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, request_bytes


def test_in_a_record():
    logging.getLogger("tornadoproxy.handlers.relay").debug("sent %s", TEST_UPSTREAM_KEY)


def test_in_a_traceback():
    try:
        raise KeyError(TEST_TOKEN)
    except KeyError:
        logging.getLogger("tornado.application").exception("it failed")


def test_in_standard_output():
    print(TEST_TOKEN)


def test_in_the_descriptor_of_standard_error():
    os.write(2, TEST_UPSTREAM_KEY.encode())


@pytest.fixture
def careless():
    yield
    print(TEST_TOKEN)


def test_in_a_fixtures_end(careless):
    pass


async def test_up_the_wrong_way(raw, upstream):
    client = await raw(upstream)
    await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    await client.response()


async def test_careful(proxy, raw):
    client = await raw()
    await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    assert (await client.response()).status == 200
    print("fine")
    logging.getLogger("tornadoproxy").error("fine")
"""


def test_conftest_fails_tests_that_show_a_credential(tmp_path: Path) -> None:
    """It is in conftest.py, and the credentials of the fixtures are its canaries."""
    tests = Path(__file__).parent
    shutil.copy(tests / "conftest.py", tmp_path)
    (tmp_path / "test_careless.py").write_text(CARELESS_TESTS)

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-Wignore", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    outcome_words = ("PASSED", "FAILED", "ERROR")
    outcomes = {
        (words[1].rpartition("::")[2], words[0])
        for line in run.stdout.splitlines()
        if (words := line.split()) and words[0] in outcome_words and "::" in words[1]
    }
    assert run.returncode == 1
    assert outcomes == {
        ("test_in_a_record", "FAILED"),
        ("test_in_a_traceback", "FAILED"),
        ("test_in_standard_output", "FAILED"),
        ("test_in_the_descriptor_of_standard_error", "FAILED"),
        ("test_in_a_fixtures_end", "PASSED"),
        ("test_in_a_fixtures_end", "ERROR"),
        ("test_up_the_wrong_way", "FAILED"),
        ("test_careful", "PASSED"),
    }
