"""All plugins: their fixed settings, and which are inactive without settings of theirs."""

from __future__ import annotations

from scene import Scene

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
