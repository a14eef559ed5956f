"""The program in a process of its own: standard streams, and what a plain start loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import program
import pytest
from test_plugin_commands import SHOP

PATIENCE = 50.0  # seconds; a limit for what would otherwise hang, never an expectation


def shop(directory: Path, *arguments: str, stdout: int) -> subprocess.Popen[str]:
    program.install(directory, "shop", SHOP)
    paths = (str(directory / "site"), *filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "tornadoproxy", "shop", *arguments],
        cwd=directory,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_output_to_a_reader_that_stops_is_no_error(tmp_path: Path) -> None:
    with shop(tmp_path, "list", stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "0\n"
        running.stdout.close()
        _, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, errors) == (141, "")


def test_output_without_a_reader_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with shop(tmp_path, "sell", "tea", stdout=writing) as running:
        os.close(writing)
        _, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, errors) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device to try")
def test_output_to_a_full_device_is_a_fault(tmp_path: Path) -> None:
    told = "tornadoproxy: cannot write to standard output: No space left on device\n"
    with (
        Path("/dev/full").open("wb") as full,
        shop(tmp_path, "sell", "tea", "--price", "1", stdout=full.fileno()) as running,
    ):
        _, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, errors) == (2, told)


SERVE = """
import asyncio, os, sys
from tornadoproxy.__main__ import main
from tornadoproxy.server.server import Server

start = Server.start

async def start_and_list(self):
    await start(self)
    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
    writer.write(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\\r\\n"
    print(*sys.modules, flush=True)
    os._exit(0)

Server.start = start_and_list
main()
"""


def test_start_loads_only_what_serving_needs(tmp_path: Path) -> None:
    """A module that is loaded here delays the first response of every start."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE],
        cwd=tmp_path,
        # no COVERAGE_*: measuring would load more
        env={"PATH": os.defpath, "PORT": "0", "UPSTREAM_API_KEY": "key"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert loaded >= {"tornadoproxy.server.server", "tornadoproxy_token"}
    assert not loaded & {
        *("argparse", "difflib", "dotenv", "importlib.metadata", "pathlib", "secrets", "shlex"),
        *("sqlite3", "tomllib", "tornadoproxy_admin.keys", "tornadoproxy_console.live"),
        *("opentelemetry", "prometheus_client", "hypothesis", "pytest", "openai", "anthropic"),
        *("tornadoproxy.cli.help_text", "tornadoproxy.cli.own_parser", "tornadoproxy.fakes"),
        *("tornadoproxy.handlers.openai", "tornadoproxy.openai", "tornadoproxy.testing"),
        *("tornadoproxy.handlers.admission", "tornadoproxy.handlers.routes", "httptools"),
        *("tornado.web", "tornadoproxy.plugin.observing"),
        *("tornadoproxy.protocol.sse", "tornadoproxy.upstream.client", "tornadoproxy_ledger.rows"),
        *("tornadoproxy.storage", "tornadoproxy.plugin.command.tables"),
        *("tornadoproxy_budgets.engine", "tornadoproxy_keys.store", "tornadoproxy_ledger.sums"),
    }
