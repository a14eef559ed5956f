"""All plugins: their fixed settings, and no call or import for inactive ones."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections import Counter
from functools import reduce
from operator import and_
from pathlib import Path
from types import FrameType
from typing import TypeAlias

import pytest
from people import CHAT, MESSAGES, message
from program import running
from scene import Scene

from tornadoproxy.testing import TEST_TOKEN, ScriptedUpstream, request_bytes

OPTIONAL = ("prices", "keys", "ledger", "budgets", "metrics", "otel")

# a module, and a function's name and first line in it
Function: TypeAlias = tuple[str, str, int]

ROUNDS = 6
WARM_UP = 3


def is_counted(module: str) -> bool:
    """Return whether a module is the proxy's, and not of the client and upstream beside it."""
    return module.startswith("tornadoproxy") and not module.startswith(
        ("tornadoproxy.fakes", "tornadoproxy.testing")
    )


async def calls(scene: Scene, path: str, *, stream: bool) -> Counter[Function]:
    """Count the calls of the functions of the proxy started last that serve a request.

    A timer or a split packet adds calls to a round and never removes any: the calls that every
    round has are the request's own.
    """
    body = json.dumps(message(stream=stream)).encode()
    request = request_bytes("POST", path, body=body, token=TEST_TOKEN)
    connection = await scene.raw()
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

        before = len(scene.records.all)
        sys.setprofile(count)
        try:
            response = await connection.ask(request)
            record = await scene.records.finished(before + 1)
            for _ in range(5):
                await asyncio.sleep(0)  # what is left to do after the record
        finally:
            sys.setprofile(None)
        assert (response.status, record.outcome, record.cost) == (200, "completed", None)
        if number >= WARM_UP:
            rounds.append(found)
    return reduce(and_, rounds)


async def test_settings_that_only_a_restart_applies_are_fixed(scene: Scene) -> None:
    proxy = await scene.start()
    assert {each.name for each in proxy.plugins.declared_settings() if each.fixed} == {
        *("KEYS_DB", "BUDGETS_DB", "LEDGER_DB", "LEDGER_SPOOL", "LEDGER_SPOOL_SIZE"),
        *("METRICS", "METRICS_PATH", "METRICS_PUBLIC", "OTEL_TRACES", "OTEL_SERVICE_NAME"),
        *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"),
    }


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
@pytest.mark.parametrize("path", [MESSAGES, CHAT])
async def test_inactive_plugin_costs_no_call(
    path: str, stream: bool, scene: Scene, tmp_path: Path
) -> None:
    await scene.start(DISABLED_PLUGINS=" ".join(OPTIONAL))
    expected = await calls(scene, path, stream=stream)
    assert sum(expected.values()) > 50
    assert {module.partition(".")[0] for module, _, _ in expected} == {
        *("tornadoproxy", "tornadoproxy_token", "tornadoproxy_access_log")
    }
    # prices is active unless it is disabled
    inactive = await scene.start(DISABLED_PLUGINS="prices")
    states = {info.name: info.state for info in inactive.plugins.describe()}
    assert {states[name] for name in OPTIONAL[1:]} == {"inactive"}
    assert {name for name, _ in inactive.lines} & {*OPTIONAL} == set()
    assert await calls(scene, path, stream=stream) == expected

    # an active plugin adds its own calls alone, which shows that they are counted
    await scene.start(DISABLED_PLUGINS="prices", LEDGER_DB=tmp_path / "ledger.db")
    found = await calls(scene, path, stream=stream)
    assert expected - found == Counter()
    added = {(module, name) for module, name, _ in found - expected}
    assert ("tornadoproxy_ledger", "Ledger.request_finished") in added
    assert {module for module, _ in added} == {
        *("tornadoproxy_ledger", "tornadoproxy.storage.database", "tornadoproxy.storage.worker"),
        "tornadoproxy.plugin.manager",
    }


async def test_start_imports_no_library_of_inactive_plugin(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with running(tmp_path, upstream, PYTHONVERBOSE="1") as program:
        await program.port()
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    matched = (re.match(r"import '([\w.]+)'", line) for line in program.errors.all)
    names = [each[1] for each in matched if each]
    # what Python's own start imports before, such as a measurement of coverage, does not count
    first = next(at for at, name in enumerate(names) if name.startswith("tornadoproxy"))
    imported = set(names[first:])
    assert imported >= {f"tornadoproxy_{name}" for name in OPTIONAL}
    libraries = {"sqlite3", "prometheus_client", "opentelemetry", "tomllib"}
    assert {name.partition(".")[0] for name in imported} & libraries == set()
