"""All plugins: their fixed settings, inactivity without settings, and missing libraries."""

from __future__ import annotations

import sys

import pytest
from scene import Scene

from tornadoproxy import ConfigurationError

OPTIONAL = {
    *("keys", "ledger", "budgets", "metrics", "otel", "recorder"),
    *("admin", "aws", "console", "google", "foundry", "oidc", "quota_probe"),
}


async def test_settings_that_only_a_restart_applies_are_fixed(scene: Scene) -> None:
    proxy = await scene.start()
    assert {each.name for each in proxy.plugins.declared_settings() if each.fixed} == {
        *("KEYS_DB", "BUDGETS_DB", "LEDGER_DB", "LEDGER_SPOOL", "LEDGER_SPOOL_SIZE"),
        *("METRICS", "METRICS_PATH", "METRICS_PUBLIC", "OTEL_TRACES", "OTEL_SERVICE_NAME"),
        *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "RECORD_DIR"),
        *("CONSOLE", "OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_PUBLIC_URL", "OIDC_DB"),
        *("OIDC_LOGIN_NOTICE", "OIDC_CONFIRM_EMAIL", "ANSWER_QUOTA_PROBE"),
    }


async def test_plugins_without_their_settings_are_inactive(scene: Scene) -> None:
    """No hook of an inactive plugin is called: see tests/plugin/test_declarations."""
    proxy = await scene.start()
    inactive = {info.name for info in proxy.plugins.describe() if info.state == "inactive"}
    assert inactive == OPTIONAL
    assert {name for name, _ in proxy.lines} & OPTIONAL == set()


@pytest.mark.parametrize(
    ("setting", "library", "extra"),
    [
        ("METRICS", "prometheus_client", "metrics"),
        ("OTEL_TRACES", "opentelemetry.sdk.trace", "otel"),
    ],
)
async def test_missing_library_is_named_at_start(
    setting: str, library: str, extra: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tornadoproxy_otel.spans", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError) as refused:
        await scene.start(**{setting: "yes"})
    needed = f"{setting} needs {library.replace('_', '-')}; "
    install = f"install it with `pip install 'tornadoproxy[{extra}]'`, or remove {setting}."
    assert str(refused.value) == needed + install
