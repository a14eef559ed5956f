"""The cost of plugins that are disabled or inactive: no call and no import."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, RawConnection, request_bytes

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from tornadoproxy.testing import Proxy, Records, StartProxy

OPTIONAL = ("prices", "keys", "ledger", "budgets", "metrics", "otel")
SAID = "Grüße!"

# a module, and a function's name and first line in it
Function: TypeAlias = tuple[str, str, int]

ROUNDS = 6
WARM_UP = 3

REQUESTS = {
    "JSON": ("/v1/messages", False),
    "SSE": ("/v1/messages", True),
    "chat JSON": ("/openai/v1/chat/completions", False),
    "chat SSE": ("/openai/v1/chat/completions", True),
}


def is_counted(module: str) -> bool:
    """Return whether a module is the proxy's, and not of the client and upstream beside it."""
    return module.startswith("tornadoproxy") and not module.startswith(
        ("tornadoproxy.fakes", "tornadoproxy.testing")
    )


async def calls(proxy: Proxy, records: Records, kind: str) -> Counter[Function]:
    """Count the calls of the proxy's functions that serve a request, once it runs warm.

    A timer or a split packet adds calls to a round and never removes any: the calls that every
    round has are the request's own.
    """
    path, stream = REQUESTS[kind]
    messages = [{"role": "user", "content": SAID}]
    document = {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100,
        "stream": stream,
        "messages": messages,
    }
    request = request_bytes("POST", path, body=json.dumps(document).encode(), token=TEST_TOKEN)
    connection = await RawConnection.open(proxy.port)
    rounds = []
    for number in range(WARM_UP + ROUNDS):
        found: Counter[Function] = Counter()

        def count(
            frame: FrameType, event: str, _: object, found: Counter[Function] = found
        ) -> None:
            module = str(frame.f_globals.get("__name__", ""))
            if event == "call" and is_counted(module):
                code = frame.f_code
                found[module, code.co_qualname, code.co_firstlineno] += 1

        before = len(records.all)
        sys.setprofile(count)
        try:
            await connection.send(request)
            response = await connection.response()
            record = await records.finished(before + 1)
            for _ in range(5):
                await asyncio.sleep(0)  # what is left to do after the record
        finally:
            sys.setprofile(None)
        assert (response.status, record.outcome, record.cost) == (200, "completed", None)
        assert record.usage.output_tokens
        assert b"scripted" in response.body
        if number >= WARM_UP:
            rounds.append(found)
    await connection.close()
    return reduce(and_, rounds)


@pytest.mark.parametrize("kind", REQUESTS)
async def test_inactive_plugin_costs_no_call(
    kind: str, start_proxy: StartProxy, records: Records, tmp_path: Path
) -> None:
    without = await start_proxy(DISABLED_PLUGINS=" ".join(OPTIONAL))
    # prices is active unless it is disabled
    inactive = await start_proxy(DISABLED_PLUGINS="prices")
    states = {info.name: info.state for info in inactive.plugins.describe()}
    assert {states[name] for name in OPTIONAL[1:]} == {"inactive"}

    expected = await calls(without, records, kind)
    assert sum(expected.values()) > 50
    assert {module.partition(".")[0] for module, _, _ in expected} == {
        *("tornadoproxy", "tornadoproxy_token", "tornadoproxy_access_log")
    }
    assert await calls(inactive, records, kind) == expected

    # an active plugin adds its own calls alone, which shows that they are counted
    active = await start_proxy(DISABLED_PLUGINS="prices", LEDGER_DB=tmp_path / "ledger.db")
    found = await calls(active, records, kind)
    assert expected - found == Counter()
    added = {(module, name) for module, name, _ in found - expected}
    added.remove(("tornadoproxy.plugin.manager", "Plugins.tell"))
    assert {module for module, _ in added} == {
        *("tornadoproxy_ledger", "tornadoproxy.storage.database", "tornadoproxy.storage.worker")
    }
    assert ("tornadoproxy_ledger", "Ledger.request_finished") in added
    assert ("tornadoproxy.storage.database", "Database.write_behind") in added


SERVES = """
import sys

from tornadoproxy.__main__ import main

status = main()
print("modules:", *sys.modules)
sys.exit(status)
"""


def test_start_imports_no_library_of_inactive_plugin(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PORT": "0",
        "AUTH_TOKEN": TEST_TOKEN,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
    }
    lines = []
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, "serve"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdout is not None
        for line in program.stdout:
            lines.append(line)
            if line.startswith("curl "):
                program.send_signal(signal.SIGTERM)
    assert program.returncode == 0, "".join(lines)
    (imported,) = (set(line.split()[1:]) for line in lines if line.startswith("modules: "))
    assert imported >= {f"tornadoproxy_{name}" for name in OPTIONAL}
    libraries = {"sqlite3", "prometheus_client", "opentelemetry", "tomllib"}
    assert {name.partition(".")[0] for name in imported} & libraries == set()
