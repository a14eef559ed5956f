"""All plugins: their fixed settings, and no import for inactive ones."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from program import running
from scene import Scene

from tornadoproxy.testing import ScriptedUpstream

OPTIONAL = {"keys", "ledger", "budgets", "metrics", "otel"}


async def test_settings_that_only_a_restart_applies_are_fixed(scene: Scene) -> None:
    proxy = await scene.start()
    assert {each.name for each in proxy.plugins.declared_settings() if each.fixed} == {
        *("KEYS_DB", "BUDGETS_DB", "LEDGER_DB", "LEDGER_SPOOL", "LEDGER_SPOOL_SIZE"),
        *("METRICS", "METRICS_PATH", "METRICS_PUBLIC", "OTEL_TRACES", "OTEL_SERVICE_NAME"),
        *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"),
    }


async def test_plugins_without_their_settings_are_inactive(scene: Scene) -> None:
    """No hook of an inactive plugin is called: see tests/plugin/test_declarations."""
    proxy = await scene.start()
    inactive = {info.name for info in proxy.plugins.describe() if info.state == "inactive"}
    assert inactive == OPTIONAL
    assert {name for name, _ in proxy.lines} & OPTIONAL == set()


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
    assert imported >= {f"tornadoproxy_{name}" for name in OPTIONAL | {"prices"}}
    libraries = {"sqlite3", "prometheus_client", "opentelemetry", "tomllib"}
    assert {name.partition(".")[0] for name in imported} & libraries == set()
