"""The fixtures: what leaks fails its test, and so does a credential that can be seen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import StartProxy


async def test_http_client_asks_the_proxy(http_client: AsyncHTTPClient, base_url: str) -> None:
    response = await http_client.fetch(f"{base_url}/health")
    assert response.code == 200


async def test_start_proxy_raises_the_programs_errors(start_proxy: StartProxy) -> None:
    with pytest.raises(ConfigurationError, match="UPSTREAM_IDLE_TIMEOUT must be"):
        await start_proxy(UPSTREAM_IDLE_TIMEOUT="soon")
    with pytest.raises(
        ConfigurationError, match="UPSTREAM_IDLE_TIME: not a setting; correct its name"
    ):
        await start_proxy(UPSTREAM_IDLE_TIME=1)
    with pytest.raises(ConfigurationError, match="TLS_CERT is set without TLS_KEY"):
        await start_proxy(TLS_CERT=__file__)


CARELESS_TESTS = """
import asyncio
import logging
import os

import pytest

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, request_bytes, silent_response

MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)


async def test_fails_in_a_callback(io_loop):
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)


async def test_fails_in_a_response(upstream, raw):
    upstream.script(lambda exchange: 1 / 0)
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    await connection.disconnected()


async def test_sends_garbage(upstream, raw):
    connection = await raw(upstream)
    await connection.send(b"garbage\\r\\n\\r\\n")
    await connection.disconnected()


def test_shows_in_a_record():
    logging.getLogger("tornadoproxy.handlers.relay").debug("sent %s", TEST_UPSTREAM_KEY)


def test_shows_in_a_traceback():
    try:
        raise KeyError(TEST_TOKEN)
    except KeyError:
        logging.getLogger("tornado.application").exception("it failed")


def test_shows_in_standard_output():
    print(TEST_TOKEN)


def test_shows_in_a_subtest(subtests):
    with subtests.test():
        print(TEST_TOKEN)


def test_shows_in_the_descriptor_of_standard_error():
    os.write(2, TEST_UPSTREAM_KEY.encode())


@pytest.fixture
def careless():
    yield
    print(TEST_TOKEN)


def test_shows_in_a_fixtures_end(careless):
    pass


async def test_shows_the_upstream(raw, upstream):
    connection = await raw(upstream)
    await connection.ask(MODELS)


async def numbers():
    while True:
        yield 1


async def test_leaves_what_harms_nobody(upstream, raw, start_proxy):
    task = asyncio.ensure_future(asyncio.Event().wait())
    await anext(numbers())
    await asyncio.to_thread(int)
    await start_proxy(DRAIN_TIMEOUT=0)
    upstream.script(silent_response())
    connection = await raw()
    await connection.send(MODELS)
    await upstream.received()
    logging.getLogger("tornadoproxy").error("fine")
"""


ERRORS = ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
WARNINGS = ("-Wignore", *(f"-Werror::{name}" for name in ERRORS))


def test_careless_tests_fail(tmp_path: Path) -> None:
    tests, careless = Path(__file__).parent, tmp_path / "tests"
    careless.mkdir()
    shutil.copy(tests / "conftest.py", careless)
    (careless / "test_careless.py").write_text(CARELESS_TESTS)
    (tmp_path / "bench").symlink_to(tests.parent / "bench")  # whose programs conftest needs
    # not by the fixture pytester, which prints what the tests show
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_tornado.plugin", "-rA", *WARNINGS],
        cwd=careless,
        # other plugins that are installed take long to import
        env={**os.environ, "PYTHONPATH": str(tests), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    words = [line.split() for line in run.stdout.splitlines() if "::test_" in line]
    assert {(each[1].rpartition("::test_")[2], each[0]) for each in words} == {
        ("fails_in_a_callback", "PASSED"),
        ("fails_in_a_callback", "ERROR"),
        ("fails_in_a_response", "PASSED"),
        ("fails_in_a_response", "ERROR"),
        ("sends_garbage", "PASSED"),
        ("sends_garbage", "ERROR"),
        ("shows_in_a_record", "FAILED"),
        ("shows_in_a_traceback", "FAILED"),
        ("shows_in_standard_output", "FAILED"),
        ("shows_in_a_subtest", "PASSED"),
        ("shows_in_a_subtest", "SUBFAILED(<subtest>)"),
        ("shows_in_the_descriptor_of_standard_error", "FAILED"),
        ("shows_in_a_fixtures_end", "PASSED"),
        ("shows_in_a_fixtures_end", "ERROR"),
        ("shows_the_upstream", "FAILED"),
        ("leaves_what_harms_nobody", "PASSED"),
    }
    assert re.search("in the event loop: .*ZeroDivisionError", run.stdout)
    assert "ProtocolError: not a request line: b'garbage'" in run.stdout
